"""`pipeline sandbox`: the stand-ins alone, and a Kafka where asked for, for a worker and a producer of one's own.

Starts no worker: prints the settings and the command of one, to paste into another terminal, and a request. Runs until
Ctrl-C, or until a part ends by itself, and leaves nothing behind.
"""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import dataclass

from pipeline.errors import StartFailed
from pipeline.sandbox.display import Display, display
from pipeline.sandbox.guide import command, example, example_for_kcat, exports
from pipeline.sandbox.interrupts import Interrupts, how_to_end
from pipeline.sandbox.kafka import LocalKafka
from pipeline.sandbox.parts import TOPICS, create_topics, start_kafka
from pipeline.sandbox.ports import kafka_port, ops_port
from pipeline.sandbox.processes import SERVICES, StandIns, port_is_free
from pipeline.sandbox.project_data import PRODUCTION, REVOKED, STAGING
from pipeline.sandbox.worker import worker_environment

_OWN_KAFKA = "127.0.0.1:9092"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """What to start."""

    kafka: bool = False
    """A broker as well, with the topics made."""
    port_base: int | None = None
    """First of consecutive ports: CDN, ODP, logx, CMAB, Kafka. Without it Kafka's usual one and any free ones."""
    odp_arguments: tuple[str, ...] = ()


def run_sandbox(sandbox: Sandbox) -> int:
    """Start it and wait; the exit code. Raises StartFailed with what to do."""
    with Interrupts() as interrupts, display() as shown, ExitStack() as stack, interrupts.allowed():
        kafka: LocalKafka | None = None
        try:
            base = sandbox.port_base
            ports = {} if base is None else {service: _free(base + place) for place, service in enumerate(SERVICES)}
            if sandbox.kafka:
                port = kafka_port(shown) if base is None else _free(base + len(SERVICES))
                kafka = start_kafka(stack, shown, port=port)
            shown.step("starting stand-ins for Optimizely's CDN, ODP, logx and CMAB")
            stand_ins = stack.enter_context(StandIns(SERVICES, ports=ports, arguments={"odp": sandbox.odp_arguments}))
            _show(stand_ins, kafka, shown)
            while not stand_ins.ended and (kafka is None or kafka.pid is not None):
                time.sleep(0.2)
        except KeyboardInterrupt:
            if kafka is not None:
                kafka.kill()
            shown.step("stopped")
            return 0
        told = f"Kafka ended by itself: {kafka.ended}" if kafka is not None and kafka.ended else ""
        raise StartFailed(told or f"{', '.join(stand_ins.ended)} ended by itself; everything else was stopped")


def _free(port: int) -> int:
    if not port_is_free(port):
        raise StartFailed(f"port {port} is in use: choose another --port-base")
    return port


def _show(stand_ins: StandIns, kafka: LocalKafka | None, shown: Display) -> None:
    settings = {"OPTIMIZELY__SDK_KEYS": json.dumps([PRODUCTION, STAGING]), "OPS__PORT": str(ops_port(shown))}
    if kafka is not None:
        settings["KAFKA__BOOTSTRAP_SERVERS"] = kafka.bootstrap_servers
    environment = worker_environment(settings, topics={}, stand_ins=stand_ins)
    topics = {stream: stream.replace("_", ".") for stream in TOPICS}
    if kafka is not None:
        create_topics(environment)
    shown.step(
        "\nStand-ins. Each counts at GET /ledger, lists its faults at GET /control, takes orders at POST /control:\n"
        + "\n".join(f"  {service:<5} {stand_ins.address(service)}" for service in SERVICES)
        + f"\nSDK keys {PRODUCTION} and {STAGING}; {REVOKED} is denied. Users user-00001 to user-05000.\n"
        f"\nNo worker runs yet. Paste into another terminal, for a worker of your own:\n\n{exports(environment)}\n"
    )
    if kafka is None:
        shown.step(
            f"Its broker is {_OWN_KAFKA}, or the one you export as PIPELINE_KAFKA__BOOTSTRAP_SERVERS. If another\n"
            "worker reads the same topics there, such as the demo's, each request gets two results: `--kafka`\n"
            "starts a broker of your own. Then:\n"
        )
        shown.step(f"{command('topics', 'create')}\n{command('run')}\n")
    else:
        shown.step(f"{command('run')}\n\nThe topics are there: {', '.join(topics.values())}.\n")
        shown.step(f"Then a request and its answer, from a third:\n\n{example(kafka.bootstrap_servers, topics)}\n")
        shown.step(f"The same with kcat:\n\n{example_for_kcat(kafka.bootstrap_servers, topics)}\n")
    shown.step(f"{how_to_end()} stops everything.")
