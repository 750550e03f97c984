"""The build machine's rule: a skipped test is a failure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("assert True", 0),
        ("pytest.skip('no broker')", 1),
        ("pytest.xfail('some day')", 1),
        ("pytest.importorskip('nowhere_to_be_found')", 1),
    ],
)
def test_a_skip_fails_the_run(tmp_path: Path, body: str, code: int) -> None:
    (tmp_path / "test_one.py").write_text(f"import pytest\n\ndef test_one():\n    {body}\n", "utf-8")
    options = ["-p", "tests.no_skips", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path)],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert ("not allowed here" in done.stdout) == bool(code)
