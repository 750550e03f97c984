"""What a person meets who has something wrong: one line that says what and what to do, an exit code, no traceback.

Elsewhere: an unreachable broker, missing topics and a port in use in flows/test_process.py and test_cli.py; results
under a denied key and a CDN that recovers in flows/test_datafiles.py; Java, damaged jars and a cache that cannot be
written to in sandbox/.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from pipeline.errors import ConfigurationError, StartFailed
from pipeline.sandbox import existing_kafka
from pipeline.sandbox.demo import Plan, run_demo
from pipeline.sandbox.kafka import LocalKafka
from pipeline.sandbox.processes import StandIns, free_port, until
from pipeline.sandbox.project_data import PRODUCTION, REVOKED, datafile
from pipeline.sandbox.worker import Worker
from pipeline.settings import masked
from tests.patience import PATIENCE
from tests.support import (
    Broker,
    add_listener_with_password,
    create_topics,
    delete_topics,
    unique_topics,
    worker_env,
)

ROOT = Path(__file__).parents[1]
NOTHING: Mapping[str, str] = MappingProxyType({})
SETTINGS = {"OPTIMIZELY__SDK_KEYS": PRODUCTION, "OPTIMIZELY__DATAFILE_URL_TEMPLATE": "http://127.0.0.1:1/%s.json"}


def started(*command: str, environment: Mapping[str, str], given: str = "") -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PIPELINE_", "PIP_"))}
    return subprocess.run(
        command, input=given, capture_output=True, text=True, timeout=PATIENCE, check=False, cwd=ROOT,
        env=own | dict(environment),
    )  # fmt: skip


def failed(*arguments: str, settings: Mapping[str, str], environment: Mapping[str, str] = NOTHING) -> tuple[str, str]:
    """The one line that a command which fails says, and its log; exit code 1."""
    named = {f"PIPELINE_{name}": value for name, value in settings.items()}
    done = started(sys.executable, "-m", "pipeline", *arguments, environment=named | dict(environment))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    if arguments[0] == "run":
        # Its last line is as JSON as the others: nothing else may come to who collects them.
        last = [json.loads(line) for line in done.stderr.splitlines()][-1]
        assert (last["level"], last["logger"]) == ("error", "pipeline.run")
        return last["event"], done.stderr
    (told,) = [line for line in done.stderr.splitlines() if not line.startswith(("{", "warning: "))]
    assert told.startswith("error: ")
    return told.removeprefix("error: "), done.stderr


def failed_demo(environment: Mapping[str, str], *arguments: str) -> str:
    return failed("demo", *arguments, settings={}, environment=environment)[0]


# The broker


class Secured:
    """A broker with a listener that asks for a password and one that does not."""

    def __init__(self, broker: LocalKafka, port: int) -> None:
        self.open, self.secured = broker.bootstrap_servers, f"127.0.0.1:{port}"

    def settings(self, address: str, **more: str) -> dict[str, str]:
        return SETTINGS | {
            "KAFKA__BOOTSTRAP_SERVERS": address, "KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT",
            "KAFKA__SASL_MECHANISM": "SCRAM-SHA-512", "KAFKA__SASL_USERNAME": "alice",
            "KAFKA__SASL_PASSWORD": "secret", "OPS__PORT": "0",
        } | more  # fmt: skip


@pytest.fixture(scope="module")
def secured() -> Iterator[Secured]:
    broker = LocalKafka(scram_users={"alice": "secret"})
    port = add_listener_with_password(broker)
    with broker:
        yield Secured(broker, port)


@pytest.mark.parametrize("command", [("run",), ("topics", "create"), ("check-config", "--topics")])
def test_a_wrong_password_is_told_at_once_with_the_settings_to_check(
    secured: Secured, command: tuple[str, ...]
) -> None:
    # No start that waits a minute for a broker would end within the time that a command has here.
    settings = secured.settings(secured.secured, KAFKA__SASL_PASSWORD="wrong", KAFKA__START_TIMEOUT="100")
    told, _ = failed(*command, settings=settings)
    assert told.startswith(
        "the broker refused the user or password: check PIPELINE_KAFKA__SASL_USERNAME, PIPELINE_KAFKA__SASL_PASSWORD "
        f'and PIPELINE_KAFKA__SASL_MECHANISM (Unable connect to "{secured.secured}"'
    )
    assert "wrong" not in told


@pytest.mark.parametrize(
    ("listener", "changed", "told"),
    [
        ("secured", {"KAFKA__SASL_MECHANISM": "PLAIN"}, "the broker does not offer this way of signing in: check "),
        ("secured", {"KAFKA__SECURITY_PROTOCOL": "PLAINTEXT"}, "what listens there hangs up: check "),
        ("secured", {"KAFKA__SECURITY_PROTOCOL": "SASL_SSL"}, "what listens there hangs up: check "),
        ("open", {}, "the broker asks for no password on this port: check "),
        ("open", {"KAFKA__SECURITY_PROTOCOL": "SSL"}, "what listens there hangs up: check "),
    ],
)
def test_another_kind_of_listener_is_not_called_an_unreachable_broker(
    secured: Secured, listener: str, changed: dict[str, str], told: str
) -> None:
    settings = secured.settings(getattr(secured, listener), **changed)
    line, _ = failed("topics", "create", settings=settings)
    assert line.startswith(told)
    setting = "PIPELINE_KAFKA__SASL_MECHANISM" if "signing in" in told else "PIPELINE_KAFKA__SECURITY_PROTOCOL"
    assert setting in line.split("(Unable")[0]
    assert not line.endswith(": )"), "the cause has no text"


def test_what_may_be_a_broker_that_is_just_starting_is_waited_for(secured: Secured) -> None:
    settings = secured.settings(secured.secured, KAFKA__SECURITY_PROTOCOL="PLAINTEXT", KAFKA__START_TIMEOUT="1.5")
    told, log = failed("run", settings=settings)
    assert told.startswith("what listens there hangs up: ")
    assert log.count("waiting for a broker") == 1


def test_an_address_that_is_none_is_told_in_words() -> None:
    wrong = {"PIPELINE_KAFKA__BOOTSTRAP_SERVERS": "broker"}
    done = started(sys.executable, "-m", "pipeline", "topics", "create", environment=wrong)
    assert done.returncode == 2
    assert done.stderr == "error: PIPELINE_KAFKA__BOOTSTRAP_SERVERS: broker has no port; did you mean broker:9092?\n"


def test_the_demo_names_its_option_where_a_broker_wants_a_password(secured: Secured) -> None:
    told = failed_demo(NOTHING, "--bootstrap-servers", secured.secured)
    assert told == (
        f"--bootstrap-servers: {secured.secured} hangs up, as it may want TLS or a password; is Kafka running there? "
        "The demo uses a listener without TLS and without a password"
    )


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("", "must be host:port, or several separated by commas"),
        ("broker", "broker has no port; did you mean broker:9092?"),
        ("broker:9092,", "holds an empty item: check the commas"),
    ],
)
def test_an_address_for_the_demo_that_is_none_is_told_in_words(address: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        run_demo(Plan(bootstrap_servers=address))
    assert caught.value.mistakes == (f"--bootstrap-servers: {told}",)


def _answer_once(listener: socket.socket, answer: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(100)
        connection.sendall(answer)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"", "says nothing for 0.3 s"),
        (b"HTTP/1.1 400 Bad Request", "is no Kafka, or wants TLS"),
        (None, "cannot be reached (Connection refused)"),
    ],
)
def test_what_is_no_broker_is_told_with_each_address(
    monkeypatch: pytest.MonkeyPatch, answer: bytes | None, told: str
) -> None:
    monkeypatch.setattr(existing_kafka, "_ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        if answer is None:
            listener.close()
        elif answer:
            pool.submit(_answer_once, listener, answer)
        with pytest.raises(StartFailed) as failure:
            existing_kafka.ensure_answers(f"127.0.0.1:99999,{address}")
    assert str(failure.value).startswith(
        f"--bootstrap-servers: 127.0.0.1:99999 is no port, {address} {told}; is Kafka "
    )


# The CDN


@pytest.fixture
def start(kafka: Broker, stand_ins: StandIns, tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """`start(**settings)`: a worker on topics of its own; stopped at the end, which must go well."""
    topics = unique_topics()
    asyncio.run(create_topics(kafka.bootstrap_servers, topics, 1, 1))
    workers: list[Worker] = []

    def of(**settings: str) -> Worker:
        log = tmp_path / f"worker-{len(workers)}.log"
        workers.append(Worker(worker_env(kafka, topics, stand_ins, settings), log=log))
        workers[-1].start()
        return workers[-1]

    yield of
    statuses = [worker.stop() for worker in workers]
    asyncio.run(delete_topics(kafka.bootstrap_servers, topics))
    assert statuses == [0] * len(workers)
    for worker in workers:
        assert "Traceback" not in worker.log.read_text()


def logged(worker: Worker, event: str) -> dict[str, Any]:
    """The one line about it, once it is there."""
    until(lambda: event in worker.log.read_text(), timeout=PATIENCE, what=event)
    (line,) = [line for line in worker.log.read_text().splitlines() if event in line]
    found: dict[str, Any] = json.loads(line)
    return found


def test_a_wrong_sdk_key_is_an_error_in_the_log_and_no_reason_not_to_start(start: Callable[..., Worker]) -> None:
    worker = start(OPTIMIZELY__SDK_KEYS=json.dumps([REVOKED, PRODUCTION]))
    worker.wait_ready()
    told = logged(worker, "datafile denied")
    assert (told["level"], told["sdk_key"], told["error"]) == ("error", masked(REVOKED), "HTTP 403")
    assert told["advice"].startswith("check PIPELINE_OPTIMIZELY__SDK_KEYS")
    assert REVOKED not in worker.log.read_text()


def test_while_the_cdn_is_down_log_and_readiness_say_what_is_awaited_and_why(start: Callable[..., Worker]) -> None:
    template = f"http://127.0.0.1:{free_port()}/%s.json"
    worker = start(OPTIMIZELY__SDK_KEYS=PRODUCTION, OPTIMIZELY__DATAFILE_URL_TEMPLATE=template)
    held = logged(worker, "start held")
    assert held["level"] == logged(worker, "datafile failed")["level"] == "warning"
    assert "PIPELINE_OPTIMIZELY__DATAFILE_URL_TEMPLATE" in held["advice"]
    ((key, fault),) = held["waiting_for"].items()
    assert key == masked(PRODUCTION)
    assert "Cannot connect to host 127.0.0.1" in fault
    status, document = worker.readiness
    assert status == 503
    waiting, datafile = json.loads(document)["awaited"]
    assert (waiting, datafile) == ("waiting for the datafiles", f"the datafile of {key}: {fault}")


# The first download


def without_network(directory: Path) -> dict[str, str]:
    """An environment in which nothing was downloaded yet and nothing can be."""
    return {
        "HOME": str(directory), "XDG_CACHE_HOME": str(directory / "cache"), "M2_REPO": str(directory / "none"),
        "PIP_INDEX_URL": "http://127.0.0.1:1/simple", "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1",
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:1"),
        **dict.fromkeys(("NO_PROXY", "no_proxy"), ""),
    }  # fmt: skip


def test_without_a_network_the_demo_says_what_to_do(tmp_path: Path) -> None:
    told = failed_demo(without_network(tmp_path))
    assert told.startswith("Apache Kafka could not be downloaded (45 MB, once): check the network (HTTPS_PROXY, ")
    assert "--bootstrap-servers" in told
    assert list((tmp_path / "cache" / "decision-pipeline").iterdir()) == []


def make_environment(**environment: str) -> str:
    """What the first step of `make demo` says after its progress; exit code 1."""
    done = started("sh", ".ci/venv", "demo", environment=environment)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    begun, told = done.stderr.split("\nmake: ")
    assert all(line.startswith("ERROR: ") for line in begun.splitlines())
    return told


def test_without_a_network_the_first_set_up_says_what_to_do(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, timeout=PATIENCE)
    # A pip of its own would take longer to install than all the rest.
    (packages,) = venv.glob("lib/*/site-packages")
    pip = find_spec("pip")
    assert pip is not None and pip.origin is not None
    (packages / "pip").symlink_to(Path(pip.origin).parent)
    told = make_environment(VENV=str(venv), **without_network(tmp_path))
    assert told.startswith("the package index could not be reached. Without a network, set PIP_NO_INDEX=1 and ")
    assert told.endswith(f"All that pip said: {venv}/setup.log\n")
    assert not list(venv.glob(".installed-*"))


# Room on the disk


@pytest.fixture
def disk(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """`disk(program)`: an environment whose Python runs the program first, to find another disk than there is."""

    def of(program: str) -> dict[str, str]:
        (tmp_path / "sitecustomize.py").write_text(program)
        return {"PYTHONPATH": str(tmp_path), "TMPDIR": str(tmp_path)}

    return of


def test_a_disk_without_room_for_kafka_is_told(disk: Callable[[str], dict[str, str]], tmp_path: Path) -> None:
    full = disk(
        "import errno, os\n"
        "def full(path, *_, make=os.mkdir):\n"
        "    if 'decision-pipeline' in str(path):\n"
        "        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))\n"
        "    make(path)\n"
        "os.mkdir = full\n"
    )
    told = failed_demo(full | without_network(tmp_path))
    cache = tmp_path / "cache" / "decision-pipeline"
    assert told == f"no room for Apache Kafka (45 MB) in {cache}; free some, or set XDG_CACHE_HOME"


def test_a_disk_without_room_for_kafkas_data_is_told_before_the_broker_fails(
    kafka: Broker, disk: Callable[[str], dict[str, str]], tmp_path: Path
) -> None:
    del kafka  # Its jars are there.
    before = {path.name for path in tmp_path.iterdir()}
    little = disk("import shutil\nshutil.disk_usage = lambda _: shutil._ntuple_diskusage(10**12, 10**12 - 7e6, 7e6)\n")
    told = failed_demo(little)
    assert told == (
        f"no room for Kafka's data: 7 MB are free in {tmp_path}, 100 MB are needed. "
        "Free some room, or set TMPDIR to a directory of another disk"
    )
    left = {path.name for path in tmp_path.iterdir()} - before - {"sitecustomize.py", "__pycache__"}
    assert left == set()


@pytest.mark.parametrize("arguments", ["check-config", "--help", "decide --datafile {datafile}"])
def test_output_that_finds_no_room_is_one_line(arguments: str, tmp_path: Path) -> None:
    file = tmp_path / "datafile.json"
    file.write_text(json.dumps(datafile(PRODUCTION, "http://127.0.0.1:1")))
    command = f"{sys.executable} -m pipeline {arguments.format(datafile=file)} >/dev/full"
    settings = {"PIPELINE_OPTIMIZELY__SDK_KEYS": PRODUCTION}
    done = started("sh", "-c", command, environment=settings, given='{"userId": "ada"}\n')
    assert done.stderr == "error: no room for the output: free some, or write to another disk\n"
    assert done.returncode == 1


# The terminal


def test_what_an_output_has_no_character_for_is_drawn_otherwise() -> None:
    program = "from pipeline.sandbox.display import display\nwith display() as shown: shown.step('\u2587\u2587 60 %')"
    done = started(sys.executable, "-c", program, environment={"PYTHONIOENCODING": "ascii"})
    assert (done.stdout, done.stderr) == ("## 60 %\n", "")


# Python


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("echo 3.9", "Python 3.11 or later is needed, python3 is 3.9. Name another one: make PYTHON=python3.12 ..."),
        ("echo 2.7", "Python 3.11 or later is needed, python3 is 2.7. Name another one: make PYTHON=python3.12 ..."),
        (
            "exit 1",
            "python3 was not found or does not run. Install Python 3.11 or later, or name one: "
            "make PYTHON=python3.12 ...",
        ),
        (
            'case "$2" in *ensurepip*) exit 1;; *) echo 3.11;; esac',
            "python3 has no venv module with pip. On Debian and Ubuntu: apt-get install python3-venv",
        ),
    ],
)
def test_a_python_that_will_not_do_is_told_before_anything_is_made(tmp_path: Path, answer: str, told: str) -> None:
    python = tmp_path / "python3"
    python.write_text(f"#!/bin/sh\n{answer}\n")
    python.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    venv = tmp_path / "venv"
    assert make_environment(VENV=str(venv), PATH=path, PYTHON="") == f"{told}\n"
    assert not venv.exists()
