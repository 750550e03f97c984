"""Somebody's Kafka that the demo was told to use: whether it can be, and nothing of the run left in it.

Used by `parts` and `ports`. Every wait has a deadline; the errors name the option and not the settings of a worker.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    GroupIdNotFound,
    KafkaError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.admin import DeleteGroupsRequest
from aiokafka.protocol.group import LeaveGroupRequest

from pipeline.errors import StartFailed

_ANSWER_SECONDS = 5
_REMOVE_SECONDS = 5
# Number 1, of Metadata version 1 about no topic: a listener that wants a password hangs up on whoever asks that first.
_QUESTION = struct.pack(">ihhihi", 14, 3, 1, 1, -1, 0)
_LAST_PORT = 65_535
_Removal = tuple[str, Callable[[], Awaitable[list[str]]]]


def ensure_answers(bootstrap_servers: str) -> None:
    """Ask each address. Raises StartFailed, saying why of each, if none answers as a broker that this can use."""
    faults = []
    for server in bootstrap_servers.split(","):
        host, _, port = server.rpartition(":")
        fault = fault_of(host.strip("[]"), int(port))
        if fault is None:
            return
        faults.append(f"{server} {fault}")
    raise StartFailed(
        f"--bootstrap-servers: {', '.join(faults)}; is Kafka running there? "
        "The demo uses a listener without TLS and without a password"
    )


def fault_of(host: str, port: int) -> str | None:
    """Why the listener is not a Kafka that this can use; None if it is one."""
    if port > _LAST_PORT:
        return "is no port"
    try:
        with socket.create_connection((host, port), timeout=_ANSWER_SECONDS) as connection:
            connection.sendall(_QUESTION)
            answer = connection.recv(8)
    except TimeoutError:
        return f"says nothing for {_ANSWER_SECONDS} s"
    except OSError as error:
        return f"cannot be reached ({error.strerror or error})"
    except UnicodeError:
        return "is no host name"  # `a..b`: the name cannot even be asked for.
    if not answer:
        return "hangs up, as it may want TLS or a password"
    return None if answer[4:] == struct.pack(">i", 1) else "is no Kafka, or wants TLS"


async def remove(bootstrap_servers: str, *, topics: Iterable[str], groups: Iterable[str]) -> list[str]:
    """Delete topics and consumer groups, members included; what could not be, one sentence each."""
    admin, topics, groups = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers), list(topics), list(groups)
    deadline = asyncio.get_running_loop().time() + _REMOVE_SECONDS
    removals: list[_Removal] = [(f"topics {', '.join(topics)}", partial(_remove_topics, admin, topics))]
    removals += [(f"group {group}", partial(_remove_group, admin, group)) for group in groups]
    try:
        if left := await _attempt((", ".join([*topics, *groups]), partial(_start, admin)), deadline):
            return left
        return [line for removal in removals for line in await _attempt(removal, deadline)]
    finally:
        await admin.close()


async def _attempt(removal: _Removal, deadline: float) -> list[str]:
    """One failure is not the others': what is left, if anything."""
    what, remove_it = removal
    try:
        async with asyncio.timeout_at(deadline):
            return await remove_it()
    except TimeoutError:
        return [f"{what} could not be deleted: no answer within {_REMOVE_SECONDS:g} s"]
    except KafkaError as error:
        return [f"{what} could not be deleted: {error!r}"]


async def _start(admin: AIOKafkaAdminClient) -> list[str]:
    await admin.start()
    return []


async def _remove_topics(admin: AIOKafkaAdminClient, topics: list[str]) -> list[str]:
    deleted: Any = await admin.delete_topics(topics)
    return [
        line
        for topic, code in deleted.topic_error_codes
        for line in _told(f"topic {topic}", code, UnknownTopicOrPartitionError)
    ]


async def _remove_group(admin: AIOKafkaAdminClient, group: str) -> list[str]:
    """A member with a name of its own stays when its worker ends, to come back; a group with members is not deleted."""
    try:
        coordinator = await admin.find_coordinator(group)
    except GroupCoordinatorNotAvailableError:
        return []  # This Kafka never had a group.
    described: Any
    for described in await admin.describe_consumer_groups([group], coordinator):
        for _error, _group, _state, _type, _protocol, members, *_ in described.groups:
            for member, *_ in members:
                await admin._send_request(LeaveGroupRequest(group, member), coordinator)
    deleted: Any = await admin._send_request(DeleteGroupsRequest([group]), coordinator)
    return [line for name, code in deleted.results for line in _told(f"group {name}", code, GroupIdNotFound)]


def _told(what: str, code: int, absent: type[KafkaError]) -> list[str]:
    error = for_code(code)
    return [] if code == 0 or error is absent else [f"{what} could not be deleted: {error.__name__}"]
