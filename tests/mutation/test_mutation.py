"""The tool itself: which faults it makes, and that it tells a fault the tests notice from one they do not."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.mutation import report
from tests.mutation.__main__ import PACKAGES, ROOT
from tests.mutation.accepted import ACCEPTED
from tests.mutation.finding import Mutant, changes, described, mutated, sample, sources
from tests.mutation.judging import Suite
from tests.mutation.running import KILLED, SURVIVED, TIMED_OUT, Verdict
from tests.mutation.state import State


def mutants(source: str) -> list[Mutant]:
    return described("f.py", source, range(len(changes(ast.parse(source)))))


def faults(source: str) -> set[str]:
    return {mutant.after for mutant in mutants(source)}


def body(line: str) -> str:
    return f"def f(a, b):\n    {line}\n    raise\n"  # to be deleted, as most statements are


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a(b < c)", {"a(b <= c)", "a(b >= c)"}),
        ("a(b is not c)", {"a(b is c)"}),
        ("a(b in c)", {"a(b not in c)"}),
        ("a(b and c)", {"a(b or c)"}),
        ("a(not b)", {"a(b)"}),
        ("a(b // 2)", {"a(b * 2)", "a(b // 3)", "a(b // 1)"}),
        ("a('x', f'y{b}', b'', True, None)", {
            "a('x!', f'y{b}', b'', True, None)", "a('x', f'y!{b}', b'', True, None)",
            "a('x', f'y{b}', b'!', True, None)", "a('x', f'y{b}', b'', False, None)",
        }),
        ("if a: pass", {"if True:", "if False:", "if not a:"}),
        ("if a is b: pass", {"if True:", "if False:", "if a is not b:"}),
        ("a(b if c else d)", {"a(b if True else d)", "a(b if False else d)", "a(b if not c else d)"}),
        ("a([b for b in c if b])", {"a([b for b in c])", "a([b for b in c if not b])"}),
        ("a(b[c:])", {"a(b[:])"}),
        ("a(b.startswith(c))", {"a(b.endswith(c))"}),
        ("a(b.get(c, d))", {"a(b.get(c))"}),
        ("a(lambda: b)", {"a(lambda: None)"}),
        ("return a", {"return None"}),
        ("return False", {"return True"}),
        ("a += b", {"a -= b"}),
        ("a: int = b", set()),
        ("a.append(b)", {"a.extend(b)"}),
        ("a(cast('int', b))", set()),
        ("assert a, 'told'", set()),
    ],
)  # fmt: skip
def test_faults_of_a_line(line: str, expected: set[str]) -> None:
    assert faults(body(line)) == expected | {"pass"}


def test_loops_end_early_or_late() -> None:
    found = faults(
        "def f(a):\n    for b in a:\n        if b:\n            break\n        else:\n            continue\n"
    )
    assert {"break", "continue", "pass"} <= found


def test_arguments_lose_their_defaults() -> None:
    assert faults("def f(a, b=1, *, c=None): ...\n") == {
        "def f(a, b, *, c=None):", "def f(a, b=1, *, c):", "def f(a, b=2, *, c=None):", "def f(a, b=0, *, c=None):",
    }  # fmt: skip


def test_what_is_no_behaviour_is_left_alone() -> None:
    assert mutants(
        '"""Text."""\n'
        "from __future__ import annotations\n"
        '__all__ = ["f"]\n'
        'T = TypeVar("T")\n'
        "Test = Callable[[int], bool | None]\n"
        "Node = Leaf | None\n"
        "@dataclass(frozen=True)\n"
        'class C(Base["x"], gc=False):\n'
        '    """Text."""\n'
        '    __slots__ = ("a",)\n'
        '    a: Annotated[int, "text"]\n'
        '    """Text."""\n'
        'def f(a: "int") -> "bool":\n'
        '    """Text."""\n'
        "    return None\n"
    ) == []  # fmt: skip


def test_a_mutant_is_found_again_by_its_number() -> None:
    source = "def f(a):\n    return a > 1\n"
    for mutant in mutants(source):
        assert mutant.after in ast.unparse(mutated(source, mutant.number))
        assert (mutant.line, mutant.function) == (2, "f")


def test_a_sample_is_shared_out_and_the_same_again() -> None:
    texts = {"a.py": "a = 1, 2, 3\n", "b.py": "b = 1, 2, 3, 4, 5, 6\n"}
    assert Counter(one.file for one in sample(texts, 9, 1)) == {"a.py": 3, "b.py": 6}
    assert sample(texts, 9, 1) == sample(texts, 9, 1) != sample(texts, 9, 2)
    assert len(set(sample(texts, 100, 1))) == 18


def test_what_is_known_is_not_tried_again_but_survivors_are(tmp_path: Path) -> None:
    texts = {"a.py": "a = 1\n"}
    killed, survived = sample(texts, 2, 1)
    state = State(tmp_path / "state", texts, "tests")
    state.keep(killed, Verdict(KILLED, "a test", 1.0))
    state.keep(survived, Verdict(SURVIVED, "", 2.0))
    again = State(tmp_path / "state", texts, "tests")
    assert (again.verdict(killed), again.verdict(survived)) == (Verdict(KILLED, "a test", 1.0), None)
    assert State(tmp_path / "state", {"a.py": "a = 2\n"}, "tests").verdict(killed) is None
    assert State(tmp_path / "state", texts, "other tests").verdict(killed) is None


def test_what_stands_beside_the_tests_is_part_of_them(tmp_path: Path) -> None:
    for name in ("one/test_a.py", "one/helper.py", "two/test_b.py", "two/deep/test_c.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a = 1\n")
    suite = Suite(tmp_path, ("p",), ("one/test_a.py::test_it",), slow=("two",))
    before = suite.digest
    for name in ("one/helper.py", "two/deep/test_c.py"):
        (tmp_path / name).write_text("a = 2\n")
        assert suite.digest != before
        before = suite.digest


def test_the_report() -> None:
    one, two = mutants("a = 1\n")
    found = {one: Verdict(TIMED_OUT, "", 1.0), two: Verdict(SURVIVED, "", 1.0)}
    assert report.percentage(found) == 50.0
    assert list(report.survivors(found)) == ["f.py:1 ", "  - a = 1", "  + a = 0"]
    assert [line.split() for line in report.table(found)][1:] == [
        ["f.py", "2", "0", "1", "1", "50.0%"], ["all", "2", "0", "1", "1", "50.0%"],
    ]  # fmt: skip


def test_what_is_accepted_is_there_and_has_a_reason() -> None:
    texts = sources(ROOT, PACKAGES)
    for file in {one.file for one in ACCEPTED}:
        wanted = {(one.function, one.change) for one in ACCEPTED if one.file == file}
        functions = {function for function, _ in wanted}
        numbers = [number for number, one in enumerate(changes(ast.parse(texts[file]))) if one.function in functions]
        there = {(mutant.function, mutant.change) for mutant in described(file, texts[file], numbers)}
        assert wanted - there == set()
    assert all(one.reason for one in ACCEPTED)


# A small project with a fault that is noticed, one that is not, and one that never ends.

CODE = """\
def grown_up(age: int) -> bool:
    return age >= 18


def unseen(age: int) -> int:
    return age + age


def emptied(full: list[int]) -> None:
    while full:
        full.pop()
"""
TESTS = """\
from planted.code import emptied, grown_up, unseen


def test_grown_up():
    assert (grown_up(17), grown_up(18), grown_up(19)) == (False, True, True)


def test_emptied():
    emptied([1])
"""


def test_planted_faults(tmp_path: Path) -> None:
    for path, text in {"planted/__init__.py": "", "planted/code.py": CODE, "checks/test_code.py": TESTS}.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "tests.mutation", "--root", str(tmp_path), "--package", "planted", "--tests", "checks",
         "--deadline", "2", "--state", str(tmp_path / "state")],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    kept = [json.loads(line) for line in (tmp_path / "state").read_text().splitlines()]
    outcomes = {(one["function"], one["change"].split(" => ")[1]): (one["outcome"], one["by"]) for one in kept}
    assert outcomes["grown_up", "return age > 18"] == (KILLED, "checks/test_code.py::test_grown_up")
    assert outcomes["grown_up", "return age >= 17"] == (KILLED, "checks/test_code.py::test_grown_up")
    assert outcomes["unseen", "return age - age"] == (SURVIVED, "")
    assert outcomes["emptied", "pass"] == (TIMED_OUT, "")
    assert "planted/code.py:6 unseen\n  - return age + age\n  + return age - age\n" in done.stdout


def test_tests_that_fail_without_a_fault_are_told(tmp_path: Path) -> None:
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / "code.py").write_text("a = 1\n")
    (tmp_path / "test_code.py").write_text("def test_it():\n    assert False\n")
    done = subprocess.run(
        [sys.executable, "-m", "tests.mutation", "--root", str(tmp_path), "--package", "planted", "--tests", "."],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    told = "the tests fail without any mutant: test_code.py::test_it\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)
