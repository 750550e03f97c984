"""aiokafka's clients as this product uses them, and what goes wrong at a start in words for a person."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import KafkaConnectionError, KafkaError
from aiokafka.helpers import create_ssl_context

from pipeline.errors import StartFailed
from pipeline.kafka.records import lighten_consumers
from pipeline.settings import KafkaSettings, read_password

_AnyClient = AIOKafkaConsumer | AIOKafkaProducer | AIOKafkaAdminClient
_Client = TypeVar("_Client", AIOKafkaConsumer, AIOKafkaProducer, AIOKafkaAdminClient)

log = structlog.get_logger("pipeline.kafka")

# A batch of results is cut here; with what compression may add it stays below the broker's default of 1 MiB a batch.
BATCH_BYTES = 512 * 1024
_RETRY_SECONDS = 1.0
_STOP_SECONDS = 5.0
_CUT_SECONDS = 0.5
_BACKGROUND_TASKS = (
    "_sync_task", "_coordination_task", "_heartbeat_task", "_commit_refresh_task", "_reset_committed_task",
    "_fetch_task", "_sender_task",
)  # fmt: skip


def _connection(settings: KafkaSettings) -> dict[str, Any]:
    values: dict[str, Any] = {
        "bootstrap_servers": settings.bootstrap_servers,
        "client_id": settings.client_id,
        "request_timeout_ms": int(settings.request_timeout * 1000),
        "security_protocol": settings.security_protocol,
    }
    if settings.security_protocol.endswith("SSL"):
        try:
            values["ssl_context"] = create_ssl_context(
                cafile=str(settings.ssl_cafile) if settings.ssl_cafile else None,
                certfile=str(settings.ssl_certfile) if settings.ssl_certfile else None,
                keyfile=str(settings.ssl_keyfile) if settings.ssl_keyfile else None,
            )
        except OSError as error:
            text = error.strerror or str(error)
            raise StartFailed(
                f"PIPELINE_KAFKA__SSL_CAFILE, __SSL_CERTFILE or __SSL_KEYFILE cannot be used: {text}"
            ) from error
    if settings.security_protocol.startswith("SASL"):
        values["sasl_mechanism"] = settings.sasl_mechanism
        values["sasl_plain_username"] = settings.sasl_username
        values["sasl_plain_password"] = _password(settings)
    return values


def _password(settings: KafkaSettings) -> str:
    if settings.sasl_password_file:
        try:
            return read_password(settings.sasl_password_file)
        except OSError as error:
            raise StartFailed(
                f"PIPELINE_KAFKA__SASL_PASSWORD_FILE: {settings.sasl_password_file} cannot be read: {error.strerror}"
            ) from error
    return settings.sasl_password.get_secret_value() if settings.sasl_password else ""


def group_consumer(settings: KafkaSettings, role: str) -> AIOKafkaConsumer:
    """A member of the role's group. Positions are set by us, never by aiokafka.

    With `earliest` aiokafka would step over a lost range of the log with one line at INFO; RoundRobin because the
    state of its sticky assignor is shared by all consumers of a process.
    """
    lighten_consumers()
    return AIOKafkaConsumer(
        **_connection(settings),
        group_id=f"{settings.group_id}.{role}",
        group_instance_id=settings.group_instance_id,
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level="read_committed",
        partition_assignment_strategy=(RoundRobinPartitionAssignor,),
        session_timeout_ms=int(settings.session_timeout * 1000),
        heartbeat_interval_ms=int(settings.heartbeat_interval * 1000),
        max_poll_interval_ms=int(settings.max_poll_interval * 1000),
        rebalance_timeout_ms=int(settings.rebalance_timeout * 1000),
        max_partition_fetch_bytes=int(settings.fetch_bytes),
        # Partitions that were not known when the group was formed are taken within half a minute, not five.
        metadata_max_age_ms=30_000,
    )


def scanner(settings: KafkaSettings) -> AIOKafkaConsumer:
    """A consumer without a group, to read what a previous owner published, and to ask for offsets."""
    lighten_consumers()
    return AIOKafkaConsumer(
        **_connection(settings),
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_uncommitted",
        fetch_max_wait_ms=100,
        max_partition_fetch_bytes=int(settings.fetch_bytes),
    )


def producer(settings: KafkaSettings, *, before_send: Callable[[], None] = lambda: None) -> AIOKafkaProducer:
    """The one producer of a process: idempotent, acknowledged by all replicas.

    `before_send` is called before each request is handed to the socket: a process that was held in the middle of a turn
    of its loop goes on there, and must not send what it held ready.
    """
    made = AIOKafkaProducer(
        **_connection(settings),
        acks="all",
        enable_idempotence=True,
        compression_type=None if settings.compression_type == "none" else settings.compression_type,
        max_batch_size=BATCH_BYTES,
        max_request_size=max(int(settings.max_dead_letter_bytes), int(settings.max_record_bytes)) + BATCH_BYTES,
    )
    # aiokafka gives up a batch whose partition has had no leader for a request's time, idempotent or not: an outage.
    made._message_accumulator._batch_ttl = math.inf
    network: Any = made.client
    send = network.send

    async def checked(*arguments: Any, **named: Any) -> Any:
        before_send()
        return await send(*arguments, **named)

    network.send = checked
    return made


def admin(settings: KafkaSettings) -> AIOKafkaAdminClient:
    return AIOKafkaAdminClient(**_connection(settings))


class _Causes(logging.Handler):
    """aiokafka says why it could not connect only in its log; a person must be told."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        # A connection that was reset may come as an error without a text.
        named = [type(one).__name__ for one in record.args or () if isinstance(one, Exception) and not str(one)]
        self.lines.append(f"{line}{', '.join(named)}")


class _NotYet(StartFailed):
    """Waiting may mend it: no broker answers, or it is just starting."""


async def start_client(client: _Client) -> _Client:
    """Start a client, or raise StartFailed with the cause. A client that did not start is closed."""
    causes = _Causes()
    logger = logging.getLogger("aiokafka")
    logger.addHandler(causes)
    try:
        await client.start()
    except KafkaError as error:
        await stop_client(client)
        raise _explained(error, causes.lines) from error
    except asyncio.CancelledError:
        await stop_client(client, seconds=_CUT_SECONDS)
        raise
    finally:
        logger.removeHandler(causes)
    return client


async def stop_client(client: _AnyClient, *, seconds: float = _STOP_SECONDS) -> None:
    """Stop a client, or cut its connections if that takes longer, as without a broker. Raises nothing of aiokafka's.

    A producer must have nothing left to send: the caller flushes what it gave it.
    """
    stop: Any = client.close if isinstance(client, AIOKafkaAdminClient) else client.stop
    # A task of its own: where a broker is away, aiokafka's fetcher raises CancelledError though nobody cancelled.
    stopping = asyncio.ensure_future(stop())
    try:
        await asyncio.wait([stopping], timeout=seconds)
    finally:
        if not await _ended([stopping]) and seconds > 0:
            log.warning("a Kafka client did not stop in time and was cut off", client=type(client).__name__)
        await _cut_off(client)


async def _ended(tasks: Collection[asyncio.Future[Any]]) -> bool:
    """Cancel tasks and take their exceptions, else asyncio logs these at the end; False if one had not ended itself."""
    done = all(task.done() for task in tasks)
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_CUT_SECONDS)
    for task in tasks:
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            log.debug("a Kafka client's task failed at its stop", reason=type(error).__name__)
    return done


async def _cut_off(client: _AnyClient) -> None:
    """Close whatever a stop left open. aiokafka 0.14 has no such method, so its parts are named here."""
    network: Any = client.client if isinstance(client, AIOKafkaProducer) else client._client
    parts: tuple[Any, ...] = (
        network,
        *(getattr(client, name, None) for name in ("_coordinator", "_fetcher", "_sender")),
    )
    tasks = {getattr(part, name, None) for part in parts for name in _BACKGROUND_TASKS}
    tasks |= getattr(getattr(client, "_fetcher", None), "_pending_tasks", set())
    await _ended([task for task in tasks if task is not None and not task.done()])
    for connection in list(network._conns.values()):
        connection.close()


async def wait_for_broker(settings: KafkaSettings) -> None:
    """Return when a broker answers. Raises StartFailed after `start_timeout`, or at once if the cause is ours."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + settings.start_timeout
    said = False
    while True:
        try:
            await stop_client(await start_client(admin(settings)))
        except _NotYet as error:
            if loop.time() + _RETRY_SECONDS > deadline:
                raise
            if not said:
                log.warning("waiting for a broker", reason=str(error), seconds=settings.start_timeout)
                said = True
            await asyncio.sleep(_RETRY_SECONDS)
        else:
            return


def _explained(error: KafkaError, causes: Sequence[str]) -> StartFailed:
    lines = (*causes, str(error))
    kind, _, advice = next(row for row in _ADVICE if any(word in line for line in lines for word in row[1]))
    made = kind if isinstance(error, KafkaConnectionError) else StartFailed
    return made(f"{advice} ({causes[-1] if causes else error})")


# What to raise, aiokafka's words that tell it, and the advice. The first row that fits is taken, and the last one fits.
_ADVICE: tuple[tuple[type[StartFailed], tuple[str, ...], str], ...] = (
    (
        StartFailed,
        ("AuthenticationFailed", "Authentication failed", "SaslAuthenticate"),
        "the broker refused the user or password: check PIPELINE_KAFKA__SASL_USERNAME, "
        "PIPELINE_KAFKA__SASL_PASSWORD and PIPELINE_KAFKA__SASL_MECHANISM",
    ),
    (
        StartFailed,
        ("CERTIFICATE_VERIFY_FAILED", "certificate verify failed"),
        "the broker's certificate is not trusted: set PIPELINE_KAFKA__SSL_CAFILE to the authority that signed it",
    ),
    (
        StartFailed,
        ("UnsupportedSaslMechanism", "mechanism"),
        "the broker does not offer this way of signing in: check PIPELINE_KAFKA__SASL_MECHANISM",
    ),
    (
        StartFailed,
        ("IllegalSaslState",),
        "the broker asks for no password on this port: check PIPELINE_KAFKA__SECURITY_PROTOCOL and the port",
    ),
    (
        StartFailed,
        ("SSL", "ssl"),
        "TLS with the broker failed: check PIPELINE_KAFKA__SECURITY_PROTOCOL, the port and the client certificate",
    ),
    (
        _NotYet,
        ("closed", "reset by peer", "ConnectionResetError"),
        "what listens there hangs up: check PIPELINE_KAFKA__SECURITY_PROTOCOL and the port, as it may want TLS or a "
        "password, or none; a broker that is just starting does so, too",
    ),
    (
        _NotYet,
        ("Unable to bootstrap", "Connect call failed", "Connection"),
        "no broker can be reached: check PIPELINE_KAFKA__BOOTSTRAP_SERVERS and that Kafka is running",
    ),
    (_NotYet, ("",), "Kafka refused the connection"),
)
