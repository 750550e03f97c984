"""The `pipeline` command as a person runs it: output, exit codes, and errors in one line."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from pipeline.messages.contracts import DECIDE_RESULT
from pipeline.sandbox.processes import free_port, until
from pipeline.sandbox.project_data import PRODUCTION, datafile
from tests.patience import PATIENCE
from tests.support import Broker, Topics, delete_topics, unique_topics

SECRET = "correct-horse-battery"
KEYS = ["sandboxProduction01", "sandboxStaging0001"]


def run(
    *arguments: str, given: bytes = b"", settings: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIPELINE_")}
    environment |= {f"PIPELINE_{name}": value for name, value in (settings or {}).items()}
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments], input=given, capture_output=True, timeout=PATIENCE, check=False,
        env=environment,
    )  # fmt: skip


def errors(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    """What was told on standard error; nothing else may be there."""
    lines = done.stderr.decode().splitlines()
    assert all(line.startswith("error: ") for line in lines), lines
    return [line.removeprefix("error: ") for line in lines]


# check-config


def shown_by(done: subprocess.CompletedProcess[bytes]) -> dict[str, tuple[str, str, str]]:
    """Setting -> its mark, value and origin, as a line of standard output has them."""
    head, *lines = done.stdout.decode().splitlines()
    assert head.split() == ["setting", "value", "from"]
    rows = [(line[0], *line[2:].split()) for line in lines]
    assert all(len(row) == 4 for row in rows), "no line is folded, and each has a name, a value and an origin"
    return {name: (mark, value, place) for mark, name, value, place in rows}


def test_check_config_shows_every_setting_in_effect_its_origin_and_no_secret(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    file.write_text("kafka:\n  client_id: of-the-file\n  commit_interval: 0.5\n")
    done = run(
        "check-config", "--config", str(file),
        settings={
            "OPTIMIZELY__SDK_KEYS": json.dumps(KEYS), "KAFKA__SASL_PASSWORD": SECRET, "KAFKA__GROUP_ID": "my-group",
            "ROLES": '["logx"]',
        },
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr.decode() == (
        "warning: PIPELINE_KAFKA__SASL_PASSWORD: has no effect with PIPELINE_KAFKA__SECURITY_PROTOCOL=PLAINTEXT\n"
    )
    shown = shown_by(done)
    assert shown["PIPELINE_KAFKA__GROUP_ID"] == ("*", "my-group", "environment")
    assert shown["PIPELINE_KAFKA__CLIENT_ID"] == ("*", "of-the-file", f"{file}:2")
    assert shown["PIPELINE_KAFKA__COMMIT_INTERVAL"] == (" ", "0.5", f"{file}:3")
    assert shown["PIPELINE_ROLES"] == ("*", "logx", "environment")
    assert shown["PIPELINE_KAFKA__SASL_PASSWORD"] == ("*", "***", "environment")
    assert shown["PIPELINE_OPTIMIZELY__POLL_INTERVAL"] == (" ", "60", "default")
    assert shown["PIPELINE_OPTIMIZELY__SDK_KEYS"] == ("*", "348a…on01,debf…0001", "environment")
    for secret in (SECRET, *KEYS):
        assert secret.encode() not in done.stdout


def test_check_config_cuts_no_value_however_long() -> None:
    hosts = [f"odp-{number}.example.com" for number in range(200)]
    done = run("check-config", settings={"OPTIMIZELY__SDK_KEYS": "key", "ODP__ALLOWED_HOSTS": ",".join(hosts)})
    assert shown_by(done)["PIPELINE_ODP__ALLOWED_HOSTS"] == ("*", ",".join(hosts), "environment")


def test_check_config_shows_a_value_that_the_output_has_no_character_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = run("check-config", settings={"OPTIMIZELY__SDK_KEYS": KEYS[0]})
    assert (done.returncode, done.stderr) == (0, b"")
    assert shown_by(done)["PIPELINE_OPTIMIZELY__SDK_KEYS"] == ("*", "348a?on01", "environment")


def test_check_config_tells_every_mistake_and_quotes_no_secret() -> None:
    done = run(
        "check-config",
        settings={
            "KAFKA__FOO": "1",
            "OPS__PORT": "x",
            "OPTIMIZELY__SDK_KEYS": f"{SECRET}!",
            "KAFKA__SASL_PASSWORD": SECRET,
        },
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert [line.split(":")[0] for line in errors(done)] == [
        "PIPELINE_KAFKA__FOO", "PIPELINE_OPTIMIZELY__SDK_KEYS", "PIPELINE_OPS__PORT",
    ]  # fmt: skip
    assert SECRET.encode() not in done.stderr


def test_check_config_needs_an_sdk_key_and_reads_a_file(tmp_path: Path) -> None:
    done = run("check-config")
    assert (done.returncode, errors(done)) == (2, ["PIPELINE_OPTIMIZELY__SDK_KEYS: name at least one SDK key"])
    file = tmp_path / "pipeline.yaml"
    file.write_text("optimizely: {sdk_keys: [someKey01]}\nkafka: {group_id: of-the-file}\n")
    done = run("check-config", "--config", str(file))
    assert done.returncode == 0
    assert b"of-the-file" in done.stdout
    assert b"someKey01" not in done.stdout


def test_a_warning_is_told_beside_the_mistakes_and_not_only_once_they_are_mended() -> None:
    wrong = {"RUN_ID": "7", "KAFKA__GROUP": "shop"}
    done = run("check-config", settings=wrong)
    assert done.returncode == 2
    (warning,) = [line for line in done.stderr.splitlines() if line.startswith(b"warning: ")]
    assert b"PIPELINE_RUN_ID" in warning
    assert b"error: PIPELINE_KAFKA__GROUP" in done.stderr
    (as_json,) = json.loads(run("check-config", "--json", settings=wrong).stdout)["warnings"]
    assert warning == f"warning: {as_json}".encode()
    logged = [json.loads(line) for line in run("run", settings=wrong).stderr.splitlines()]
    assert [line["event"] for line in logged if line["level"] == "warning"] == [as_json]


def test_check_config_as_json_holds_settings_or_mistakes_and_no_secret() -> None:
    done = run(
        "check-config", "--json",
        settings={"OPTIMIZELY__SDK_KEYS": json.dumps(KEYS), "KAFKA__FETCH_BYTES": "1Mi", "RUN_ID": "7"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    document = json.loads(done.stdout)
    assert (document["valid"], len(document["warnings"])) == (True, 1)
    shown = {one["name"]: one for one in document["settings"]}
    assert shown["PIPELINE_KAFKA__FETCH_BYTES"] == {
        "name": "PIPELINE_KAFKA__FETCH_BYTES", "setting": "kafka.fetch_bytes", "value": 1024**2,
        "default": 256 * 1024, "changed": True, "from": "environment",
    }  # fmt: skip
    assert shown["PIPELINE_OPTIMIZELY__SDK_KEYS"]["value"] == ["348a…on01", "debf…0001"]
    assert not any(key.encode() in done.stdout for key in KEYS)
    wrong = run("check-config", "--json", settings={"OPS__PORT": "x"})
    assert (wrong.returncode, wrong.stderr) == (2, b"")
    assert json.loads(wrong.stdout) == {
        "valid": False,
        "mistakes": [
            "PIPELINE_OPS__PORT: must be a whole number, not x",
            "PIPELINE_OPTIMIZELY__SDK_KEYS: name at least one SDK key",
        ],
        "warnings": [],
    }


def test_check_config_as_json_says_why_the_topics_cannot_be_asked_for() -> None:
    address = f"127.0.0.1:{free_port()}"
    settings = {"OPTIMIZELY__SDK_KEYS": "key", "KAFKA__BOOTSTRAP_SERVERS": address, "KAFKA__START_TIMEOUT": "1"}
    done = run("check-config", "--json", "--topics", settings=settings)
    document = json.loads(done.stdout)
    assert (done.returncode, document["valid"], "topics" in document) == (1, True, False)
    assert document["error"].startswith("no broker can be reached")


# The command line


def test_the_version_names_the_program_python_and_aiokafka() -> None:
    done = run("--version")
    assert (done.returncode, done.stderr) == (0, b"")
    python, kafka = platform.python_version(), version("aiokafka")
    assert (
        done.stdout.decode()
        == f"decision-pipeline {version('decision-pipeline')} (Python {python}, aiokafka {kafka})\n"
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["chek-config"], "No such command 'chek-config'. Did you mean 'check-config'? (see `pipeline --help`)"),
        (["topics", "creat"], "No such command 'creat'. Did you mean 'create'? (see `pipeline topics --help`)"),
        (
            ["run", "--confg", "x"],
            "No such option: --confg (Possible options: --config) (see `pipeline run --help`)",
        ),
        (["run", "x"], "Got unexpected extra argument(s) (x) (see `pipeline run --help`)"),
        (["decide"], "Missing option '--datafile' (see `pipeline decide --help`)"),
    ],
)
def test_a_mistake_in_the_command_line_is_one_line_with_what_is_meant(arguments: list[str], line: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout, errors(done)) == (2, b"", [line])


def test_without_a_command_the_help_is_shown() -> None:
    done = run()
    assert done.returncode == 2
    assert b"check-config" in done.stdout
    assert run("--help").stdout.strip() == done.stdout.strip()


@pytest.mark.parametrize("command", [[], ["run"], ["check-config"], ["topics", "create"], ["demo"], ["sandbox"]])
def test_an_option_without_a_value_looks_like_one(command: list[str]) -> None:
    text = run(*command, "--help").stdout.decode()
    assert "--help" in text
    assert "<bool>" not in text


# run


def logged(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    """The events of the lines on standard error, all of them errors in JSON."""
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert {(line["level"], line["logger"]) for line in lines} <= {("error", "pipeline.run")}
    return [line["event"] for line in lines]


def test_the_mistakes_of_a_run_are_lines_of_its_log(tmp_path: Path) -> None:
    done = run("run", settings={"KAFKA__FOO": "1", "OPS__PORT": "x", "OPTIMIZELY__SDK_KEYS": f"{SECRET}!"})
    assert (done.returncode, done.stdout) == (2, b"")
    assert [line.split(":")[0] for line in logged(done)] == [
        "PIPELINE_KAFKA__FOO", "PIPELINE_OPTIMIZELY__SDK_KEYS", "PIPELINE_OPS__PORT",
    ]  # fmt: skip
    assert SECRET.encode() not in done.stderr
    missing = run("run", "--config", str(tmp_path / "none.yaml"))
    (told,) = logged(missing)
    assert (missing.returncode, "none.yaml" in told) == (2, True)


@pytest.mark.parametrize(
    ("roles", "told"),
    [
        ("decide,contact", "--roles: contact is none of decide, logx, odp_events"),
        ("decide,logs", "--roles: logs is none of decide, logx, odp_events; did you mean logx?"),
        (",", "--roles: holds an empty item: check the commas"),
        ("", "--roles: must hold at least one"),
    ],
)
def test_unknown_roles_are_a_mistake(roles: str, told: str) -> None:
    done = run("run", "--roles", roles, settings={"OPTIMIZELY__SDK_KEYS": "key"})
    assert (done.returncode, logged(done)) == (2, [told])


def test_in_a_terminal_the_mistakes_of_a_run_are_lines_for_a_person() -> None:
    # Not every machine has a terminal to give.
    program = (
        "import sys; sys.stderr.isatty = lambda: True; sys.argv = ['pipeline', 'run', '--roles', 'contact']; "
        "from pipeline.__main__ import main; main()"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIPELINE_")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, timeout=PATIENCE, check=False, env=environment
    )
    told = (
        b"error: --roles: contact is none of decide, logx, odp_events\n"
        b"error: PIPELINE_OPTIMIZELY__SDK_KEYS: name at least one SDK key\n"
    )
    assert (done.returncode, done.stderr) == (2, told)


# topics


@pytest.fixture
def topics(kafka: Broker) -> Iterator[Topics]:
    """Names of topics that are not there yet."""
    named = unique_topics()
    yield named
    asyncio.run(delete_topics(kafka.bootstrap_servers, named))


def settings_for(kafka: Broker, topics: Topics) -> dict[str, str]:
    names = {f"TOPICS__{field.upper()}": name for field, name in asdict(topics).items()}
    return names | {
        "KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers, "TOPICS__REPLICATION_FACTOR": "1",
        "TOPICS__PARTITIONS": "3", "OPTIMIZELY__SDK_KEYS": "key",
    }  # fmt: skip


def test_topics_are_created_once_and_described(kafka: Broker, topics: Topics) -> None:
    settings = settings_for(kafka, topics)
    missing = run("topics", "describe", settings=settings)
    assert missing.returncode == 1
    advice = [f"{name} is missing: run `pipeline topics create`" for name in topics.names]
    assert missing.stdout.decode().splitlines()[-5:] == advice
    assert run("check-config", "--topics", settings=settings).returncode == 1
    created = run("topics", "create", settings=settings)
    assert (created.returncode, errors(created)) == (0, [])
    assert created.stdout.decode().splitlines() == [f"{name}: created" for name in topics.names]
    again = run("topics", "create", settings=settings)
    assert again.stdout.decode().splitlines() == [f"{name}: was there already" for name in topics.names]
    described = run("topics", "describe", settings=settings)
    assert described.returncode == 0
    lines = described.stdout.decode().splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [[name, "3", "1"] for name in topics.names]
    assert "message.timestamp.type=LogAppendTime" in lines[1]
    assert run("check-config", "--topics", settings=settings).returncode == 0


def test_a_broker_that_is_not_there_is_one_line(topics: Topics) -> None:
    settings = {"KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}", "KAFKA__START_TIMEOUT": "1"}
    done = run("topics", "create", settings=settings)
    (told,) = errors(done)
    assert done.returncode == 1
    assert told.startswith("no broker can be reached: check PIPELINE_KAFKA__BOOTSTRAP_SERVERS")


# decide


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("offline") / "datafile.json"
    file.write_text(json.dumps(datafile(PRODUCTION, "http://127.0.0.1:1")))
    return file


def decided(project: Path, lines: Sequence[bytes], *more: str) -> list[dict[str, Any]]:
    done = run("decide", "--datafile", str(project), *more, given=b"\n".join(lines) + b"\n")
    assert (done.returncode, done.stderr) == (0, b"")
    results = [json.loads(line) for line in done.stdout.splitlines()]
    for number, result in enumerate(results):
        assert DECIDE_RESULT.is_valid(result), DECIDE_RESULT.first_fault(result)
        assert result["source"] == f"stdin-0-{number}"
    assert len(results) == len(lines)
    return results


def test_each_line_gives_a_result_and_a_broken_one_does_not_disturb_the_next(project: Path) -> None:
    good = {"requestId": "r-1", "userId": "ada", "keys": ["emergency_stop"]}
    results = decided(
        project,
        [
            json.dumps(good).encode(), b"{", b"", b"[1]", b'{"keys": []}', b"\xff\xfe",
            b'{"userId": "ada", "decideOptions": ["NO"]}', json.dumps(good | {"requestId": "r-2"}).encode() + b"\r",
            b'{"userId": "ada", "pad": "' + b"x" * 1024**2 + b'"}', json.dumps(good | {"keys": None}).encode(),
        ],
    )  # fmt: skip
    assert [bool(result.get("error")) for result in results] == [
        False, True, True, True, True, True, True, False, True, False,
    ]  # fmt: skip
    assert results[0]["decisions"] == results[7]["decisions"]
    assert (results[0]["requestId"], results[7]["requestId"]) == ("r-1", "r-2")
    assert results[6]["error"] == "invalid option: NO"
    assert len(results[9]["decisions"]) == 14
    # What cannot be read names nobody.
    assert (results[1]["userId"], results[1]["requestId"]) == ("", "stdin-0-1")


def test_segments_come_from_a_file_and_only_for_requests_that_fetch_them(project: Path, tmp_path: Path) -> None:
    segments = tmp_path / "segments.json"
    segments.write_text('{"ada": ["loyal_customers"]}')
    body = {"userId": "ada", "keys": ["checkout_redesign"]}
    lines = [
        json.dumps(body | more).encode()
        for more in ({"fetchSegments": True}, {}, {"fetchSegments": True, "userId": "bob"})
    ]
    rules = [result["decisions"][0]["ruleKey"] for result in decided(project, lines, "--segments", str(segments))]
    assert rules[0] == "checkout_loyal"
    assert "checkout_loyal" not in rules[1:]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("datafile", "{", "--datafile: "),
        ("datafile", None, "cannot be read"),
        ("segments", "[]", "--segments: must be an object of user id -> list of segments"),
        ("segments", "{", "--segments: not JSON"),
        *((name, "", f"--{name}: not JSON") for name in ("segments", "profiles", "predictions")),
        ("segments", '{"ada": "loyal"}', "--segments: must be an object"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_and_exit_code_2(
    project: Path, tmp_path: Path, name: str, text: str | None, told: str
) -> None:
    file = tmp_path / "given.json"
    if text is not None:
        file.write_text(text)
    arguments = {"datafile": str(project), name: str(file)}
    done = run("decide", *(part for option, path in arguments.items() for part in (f"--{option}", path)), given=b"{}\n")
    (line,) = errors(done)
    assert (done.returncode, done.stdout) == (2, b"")
    assert told in line


def test_results_come_line_by_line_and_a_reader_that_goes_away_is_no_traceback(project: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "decide", "--datafile", str(project)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    line = b'{"userId": "ada", "keys": ["emergency_stop"]}\n'
    with process.stdin, process.stderr:
        with process.stdout:
            process.stdin.write(line)
            process.stdin.flush()
            # The answer is here before there is a second question.
            assert json.loads(process.stdout.readline())["userId"] == "ada"
        process.stdin.write(line)
        process.stdin.flush()
        until(lambda: process.poll() is not None, timeout=PATIENCE, what="its end")
        assert process.stderr.read() == b""
    assert process.returncode == 1
