"""The text to paste into another terminal: the settings of a worker, a request and its answer.

Printed by `pipeline sandbox` and by `pipeline demo --keep-running`.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from pipeline.sandbox.project_data import PRODUCTION, user_id

_PREFIX = "PIPELINE_"
REQUEST_ID = "my-first-request"

_EXAMPLE = """{python} - <<'END'
import asyncio, json
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

request = json.loads('{request}')

async def main():
    broker = {{"bootstrap_servers": "{bootstrap_servers}"}}
    async with AIOKafkaConsumer("{results}", **broker) as results, AIOKafkaProducer(**broker) as producer:
        await results.seek_to_end()
        await producer.send("{requests}", json.dumps(request).encode(), key=request["userId"].encode())
        async for record in results:
            result = json.loads(record.value)
            if result["requestId"] == request["requestId"]:
                return result

print(json.dumps(asyncio.run(asyncio.wait_for(main(), 30)), indent=2))
END"""
_KCAT = """printf '{user}\\t{request}\\n' |
  kcat -P -b {bootstrap_servers} -t {requests} -K '\\t' -X partitioner=murmur2_random
kcat -C -b {bootstrap_servers} -t {results} -o -100 -e -q -f '%p %k %s\\n' | grep {request_id}"""


def command(*arguments: str) -> str:
    """The `pipeline` command for a shell that does not have it on its path."""
    return " ".join([shlex.quote(sys.executable), "-m pipeline", *arguments])


def program() -> str:
    """The `pipeline` command as a person types it here: after `make demo` it is not on the path."""
    if shutil.which("pipeline") is not None:
        return "pipeline"
    script = Path(sys.executable).with_name("pipeline")
    if not script.is_file():
        return command()
    here = Path.cwd()
    return shlex.quote(str(script.relative_to(here) if script.is_relative_to(here) else script))


def exports(environment: Mapping[str, str]) -> str:
    """The settings in an environment, as lines for a shell."""
    settings = sorted((name, value) for name, value in environment.items() if name.startswith(_PREFIX))
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in settings)


def example(bootstrap_servers: str, topics: Mapping[str, str]) -> str:
    """A command that sends a request and prints its answer, with this Python."""
    return _EXAMPLE.format(python=shlex.quote(sys.executable), **_names(bootstrap_servers, topics))


def example_for_kcat(bootstrap_servers: str, topics: Mapping[str, str]) -> str:
    """The same for kcat: a request, then its answer among the newest results."""
    return _KCAT.format(**_names(bootstrap_servers, topics))


def _names(bootstrap_servers: str, topics: Mapping[str, str]) -> dict[str, str]:
    request = {
        "requestId": REQUEST_ID,
        "sdkKey": PRODUCTION,
        "userId": user_id(42),
        "keys": ["checkout_redesign"],
        "fetchSegments": True,
    }
    return {
        "bootstrap_servers": bootstrap_servers,
        "requests": topics["decide_requests"],
        "results": topics["decide_results"],
        "user": user_id(42),
        "request": json.dumps(request),
        "request_id": REQUEST_ID,
    }
