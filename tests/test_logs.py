"""Logs as a collector reads them: one JSON object a line, whoever wrote it; repeats of aiokafka held back."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from datetime import datetime
from typing import Any

import pytest

from pipeline.logs import _Repeats
from tests.patience import PATIENCE

SCRIPT = """
import logging, sys
import structlog
from pipeline.logs import configure_logs

configure_logs(*sys.argv[1:])
log = structlog.get_logger("pipeline.test")
log.debug("a record")
log.info("started", roles=["decide"], partitions=4)
log.warning("held", reason="unavailable", text="two\\nlines", sdk_key="\u2026a1b2 \U0001f511")
user_id = "user-77"
try:
    1 / 0
except ZeroDivisionError as error:
    log.error("the process ends", exc_info=error)
with structlog.contextvars.bound_contextvars(role="logx"):
    log.info("within a role")
for name in ("aiokafka.producer.producer", "other"):
    logging.getLogger(name).debug("Sending (key=%s value=%s)", b"user-77", b"a value")
for attempt in range(5):
    logging.getLogger("aiokafka.conn").error("Unable to connect to %s", attempt)
    logging.getLogger("other").warning("Unable to connect to %s", attempt)
"""


def written(*arguments: str, terminal: bool = False, **environment: str) -> str:
    """All that the script writes to standard error; `terminal`: which it takes for one."""
    # Not every machine has a terminal to give.
    program = f"import sys; sys.stderr.isatty = lambda: True\n{SCRIPT}" if terminal else SCRIPT
    inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM", "FORCE_COLOR")}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, timeout=PATIENCE, check=True,
        env=inherited | environment,
    )  # fmt: skip
    assert done.stdout == b""
    return done.stderr.decode()


def logged(level: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written(level).splitlines()]


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    return logged("info")


def of(lines: list[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"].startswith(event)]


def test_every_line_is_an_object_that_says_when_who_and_how_bad(lines: list[dict[str, Any]]) -> None:
    for line in lines:
        assert line.keys() >= {"event", "logger", "level", "timestamp"}
        assert datetime.fromisoformat(line["timestamp"]).utcoffset() is not None
    (started,) = of(lines, "started")
    assert (started["logger"], started["level"]) == ("pipeline.test", "info")
    assert (started["roles"], started["partitions"]) == (["decide"], 4)


def test_an_exception_and_a_text_of_two_lines_are_one_line(lines: list[dict[str, Any]]) -> None:
    (ended,) = of(lines, "the process ends")
    assert "ZeroDivisionError" in ended["exception"]
    (held,) = of(lines, "held")
    assert held["text"] == "two\nlines"


@pytest.mark.parametrize(("encoding", "key"), [("utf-8", "…a1b2 🔑"), ("ascii", r"\u2026a1b2 \ud83d\udd11")])
def test_characters_are_as_they_are_where_the_output_has_them(encoding: str, key: str) -> None:
    (line,) = [line for line in written("warning", PYTHONIOENCODING=encoding).splitlines() if '"held"' in line]
    assert f'"sdk_key": "{key}"' in line
    assert json.loads(line)["sdk_key"] == "…a1b2 🔑"


def test_what_is_bound_to_the_context_is_on_the_line_and_only_there(lines: list[dict[str, Any]]) -> None:
    assert [line["event"] for line in lines if line.get("role") == "logx"] == ["within a role"]


def test_a_text_of_aiokafka_passes_once_and_other_libraries_say_what_they_like(lines: list[dict[str, Any]]) -> None:
    connections = of(lines, "Unable to connect")
    assert [line["event"] for line in connections if line["logger"] == "aiokafka.conn"] == ["Unable to connect to 0"]
    assert len([line for line in connections if line["logger"] == "other"]) == 5


def test_the_level_is_the_least_that_is_logged(lines: list[dict[str, Any]]) -> None:
    assert of(lines, "a record") == []
    assert {line["level"] for line in logged("error")} == {"error"}
    assert of(logged("debug"), "a record") != []


def test_no_level_logs_the_records_that_aiokafka_sends() -> None:
    debugged = logged("debug")
    assert [line["logger"] for line in of(debugged, "Sending")] == ["other"]
    # What else aiokafka says stays, and a level above its own is kept.
    assert [line for line in debugged if line["logger"] == "aiokafka.conn"] != []
    assert [line for line in logged("error") if line["logger"] == "aiokafka.conn"] != []


# For a person


def test_pretty_lines_begin_with_time_level_and_event_and_a_traceback_is_as_python_prints_it() -> None:
    lines = written("info", "pretty").splitlines()
    (started,) = [line for line in lines if "started" in line]
    time, level, rest = started.split(maxsplit=2)
    assert datetime.fromisoformat(time).utcoffset() is not None
    assert (level, rest.split()) == ("[info", ["]", "started", "[pipeline.test]", "roles=['decide']", "partitions=4"])
    begin = next(number for number, line in enumerate(lines) if "the process ends" in line)
    assert lines[begin + 1] == "Traceback (most recent call last):"
    assert "ZeroDivisionError: division by zero" in lines[begin + 2 : begin + 7]
    # Nor what the variables were: a frame holds users and keys.
    assert not any("user-77" in line for line in lines)
    assert len([line for line in lines if "[aiokafka.conn]" in line]) == 1


def test_in_a_terminal_logs_are_pretty_and_elsewhere_json_unless_told_otherwise() -> None:
    def is_json(text: str) -> bool:
        return text.startswith("{")

    assert not is_json(written("info", terminal=True))
    assert is_json(written("info", "json", terminal=True))
    assert is_json(written("info"))
    assert not is_json(written("info", "pretty"))


@pytest.mark.parametrize(
    ("terminal", "environment", "colored"),
    [
        (True, {"TERM": "xterm"}, True),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (False, {"TERM": "xterm"}, False),
    ],
)
def test_colors_are_for_terminals_that_want_them(terminal: bool, environment: dict[str, str], colored: bool) -> None:
    assert ("\x1b[" in written("info", "pretty", terminal=terminal, **environment)) is colored


# Repeats


def record(name: str, text: str, created: float) -> logging.LogRecord:
    made = logging.LogRecord(name, logging.ERROR, "", 0, text, None, None)
    made.created = created
    return made


def test_a_repeat_passes_again_after_ten_seconds_and_texts_are_told_apart() -> None:
    repeats = _Repeats()
    shown = [
        repeats.filter(record("aiokafka", text, created))
        for text, created in (("a", 0), ("a", 9.9), ("b", 9.9), ("a", 10.1), ("a", 20), ("b", 19.8), ("b", 19.95))
    ]
    assert shown == [True, False, True, True, False, False, True]


def test_texts_without_end_are_not_remembered_without_end() -> None:
    repeats = _Repeats()
    for number in range(5000):
        assert repeats.filter(record("aiokafka", f"text {number}", 0))
    assert len(repeats._last) <= 1001
