"""What a run is made of: a broker, the stand-ins, the topics, a worker; each ended by the stack it was put on.

Used by the demo. Starting is synchronous and every wait in it has a deadline; the errors say what to do.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from uuid import uuid4

from pipeline.errors import StartFailed
from pipeline.sandbox import existing_kafka
from pipeline.sandbox.display import Display
from pipeline.sandbox.kafka import LocalKafka, java_command
from pipeline.sandbox.kafka_jars import ensure_downloaded
from pipeline.sandbox.processes import StandIns, how_it_ended
from pipeline.sandbox.worker import Worker, worker_environment
from pipeline.settings import ROLES

_PARTITIONS = 8
_COMMAND_SECONDS = 60
_LAST_SECONDS = 3
_LINES_SHOWN = 5
TOPICS = ("decide_requests", "decide_results", "track_events", "odp_events", "dead_letters")


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything of a run; the worker is not started yet."""

    bootstrap_servers: str
    kafka: LocalKafka | None
    stand_ins: StandIns
    topics: Mapping[str, str]
    worker: Worker

    def check(self) -> None:
        """Raises StartFailed that names a part which ended although nobody stopped it, with the end of its log."""
        if self.kafka is not None and (told := self.kafka.ended) is not None:
            raise StartFailed(f"Kafka ended by itself: {told}")
        if self.stand_ins.ended:
            raise StartFailed(f"the stand-in for {self.stand_ins.ended[0]} ended by itself; try again")
        if self.worker.ended:
            log = self.worker.log_tail(_LINES_SHOWN)
            raise StartFailed(
                f"the worker ended by itself ({how_it_ended(self.worker.wait(1))}); its log ends with\n{log}"
            )

    def abandon(self) -> None:
        """End at once what would end politely: nothing of it is needed any more."""
        if self.worker.running:
            self.worker.kill()
        if self.kafka is not None:
            self.kafka.kill()


def start_parts(
    bootstrap_servers: str | None, stack: ExitStack, shown: Display, *, kafka_port: int, operations_port: int
) -> Parts:
    """Everything but the worker runs; `stack` ends it in the opposite order. Raises StartFailed with what to do.

    `bootstrap_servers` names an existing Kafka; it gets topics and groups of this run alone, deleted at the end.
    """
    run = f"demo-{uuid4().hex[:8]}"
    kafka: LocalKafka | None = None
    if bootstrap_servers is None:
        kafka = start_kafka(stack, shown, port=kafka_port)
        address, own_topics = kafka.bootstrap_servers, ""
    else:
        shown.step(f"asking Kafka at {bootstrap_servers}")
        existing_kafka.ensure_answers(bootstrap_servers)
        address, own_topics = bootstrap_servers, f"{run}."
    topics = {stream: own_topics + stream.replace("_", ".") for stream in TOPICS}
    shown.step("starting stand-ins for Optimizely's CDN, ODP and logx")
    stand_ins = stack.enter_context(StandIns())
    settings = {
        "KAFKA__BOOTSTRAP_SERVERS": address,
        "KAFKA__GROUP_ID": run,
        # As in production: who comes back under its old name need not wait until its group has missed it.
        "KAFKA__GROUP_INSTANCE_ID": f"{run}-0",
        "TOPICS__PARTITIONS": str(_PARTITIONS),
        # The stand-in really executes GraphQL, on the cores of everything else: on a busy machine it is slow, and a
        # user without segments is an error, which here would be the machine's and not the worker's.
        "ODP__FETCH_DEADLINE": "25",
        "ODP__REQUEST_TIMEOUT": "20",
        "ODP__MAX_IN_FLIGHT": "4",
        "OPS__PORT": str(operations_port),
    }
    environment = worker_environment(settings, topics=topics, stand_ins=stand_ins)
    if kafka is None:
        groups = [f"{run}.{role}" for role in ROLES]
        stack.callback(lambda: _remove(address, list(topics.values()), groups, shown))
    create_topics(environment)
    worker = Worker(environment, log=stand_ins.directory / "worker.log", remove=stand_ins.directory)
    stack.callback(lambda: worker.stop(timeout=_LAST_SECONDS))
    return Parts(address, kafka, stand_ins, topics, worker)


def start_kafka(stack: ExitStack, shown: Display, *, port: int) -> LocalKafka:
    """A node of one's own, downloaded where it is not there yet."""
    java_command()
    ensure_downloaded(shown.download)
    shown.step("starting Apache Kafka")
    return stack.enter_context(LocalKafka(port=port))


def create_topics(environment: Mapping[str, str]) -> None:
    """`pipeline topics create`, as an operator runs it."""
    command = [sys.executable, "-m", "pipeline", "topics", "create"]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise StartFailed(f"`pipeline topics create` took longer than {_COMMAND_SECONDS} s") from error
    if done.returncode != 0:
        raise StartFailed(
            f"`pipeline topics create` failed: {(done.stderr or done.stdout).strip().removeprefix('error: ')}"
        )


def _remove(bootstrap_servers: str, topics: list[str], groups: list[str], shown: Display) -> None:
    for line in asyncio.run(existing_kafka.remove(bootstrap_servers, topics=topics, groups=groups)):
        shown.step(line)
