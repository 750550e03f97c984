"""What the stand-ins share: a port on 127.0.0.1, faults to order, a ledger of what arrived, an end with their starter.

Each stand-in is a process, `python -m pipeline.sandbox.<service> --port 0`, that says `{"service":..., "port":...}` in
one line. `GET /ledger` is what it counted; `GET /control` lists the faults it can have, `POST /control` with a JSON
object orders some, and `{"reset": true}` forgets faults and counts. Nothing here knows the worker: a stand-in that
shared its client's code would prove nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import stat
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, ClassVar

import orjson
from aiohttp import web

_LARGEST_BODY = 64 * 1024**2
_LONGEST_HOLD = 30
_LONGEST_LATENCY = 60
STATUSES = range(200, 600)  # 1xx is no answer: the client would wait for another.
_HEADER = re.compile(r"[ -~]{1,100}")
_NO_FAULTS: dict[str, Any] = {
    "latency": 0.0,
    "status": None,
    "fail_next": 0,
    "fail_status": 503,
    "drop_next": 0,
    "hold_answers": False,
    "retry_after": None,
}
_MEANINGS = {
    "latency": "seconds before every answer",
    "status": "answered to every request; nothing is counted as taken",
    "fail_next": "number of requests to come that get fail_status",
    "fail_status": "status for fail_next",
    "drop_next": "number of requests to come that are taken, then their connection closed without an answer",
    "hold_answers": f"requests are taken, and answered when this is false again or after {_LONGEST_HOLD} s",
    "retry_after": "header Retry-After of a failure: seconds, or a text",
    "reset": "true forgets all faults and counts",
}
_NUMBER = (int, float)
# What a control may be beside the None it is at first. Any other control stays of the type that it has at first.
_UNLESS_NONE: dict[str, tuple[type, ...]] = {
    "status": (int,),
    "retry_after": (int, float, str),
    "max_aliases": (int,),
    "answer": (dict, list),
}
_NAMES: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    list: "a list",
    dict: "an object",
    type(None): "null",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class StandIn(ABC):
    """One service. A subclass has its routes, its ledger and its own controls."""

    service: ClassVar[str]
    controls: ClassVar[Mapping[str, Any]] = {}
    """Names and initial values of a service's own controls; `POST /control` knows no others."""
    meanings: ClassVar[Mapping[str, str]] = {}
    """The same names, each with a line for `GET /control`."""

    def __init__(self) -> None:
        self.initial = _NO_FAULTS | dict(self.controls)
        self.faults: dict[str, Any] = dict(self.initial)
        self.requests = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self._held: list[web.Request] = []
        self._released = asyncio.Event()

    @abstractmethod
    def routes(self) -> Mapping[tuple[str, str], Handler]:
        """(method, path) -> handler, of the service itself; faults apply to these."""

    @abstractmethod
    def ledger(self, query: Mapping[str, str]) -> dict[str, Any]:
        """What was counted, beside the requests."""

    @abstractmethod
    def reset(self) -> None:
        """Forget what was counted."""

    def refusal(self, controls: Mapping[str, Any]) -> str | None:
        """Why nothing of it is done, None if all of it is. A service whose controls have more rules adds them."""
        unknown = controls.keys() - self.initial.keys() - {"reset"}
        if unknown:
            return f"no such control: {', '.join(sorted(unknown))}"
        for name, value in controls.items():
            fault = _type_fault(name, value, self.initial.get(name, False))
            if fault is not None:
                return fault
        return None

    def ordered(self, controls: Mapping[str, Any]) -> None:
        """Controls were set. Most act on the next request; a service that has others acts here."""
        self.faults |= controls
        if self.faults["hold_answers"]:
            self._released.clear()
        else:
            self._released.set()

    def application(self) -> web.Application:
        application = web.Application(client_max_size=_LARGEST_BODY)
        for (method, path), handler in self.routes().items():
            application.router.add_route(method, path, self._faulted(handler))
        application.router.add_get("/ledger", self._get_ledger)
        application.router.add_get("/control", self._get_control)
        application.router.add_post("/control", self._post_control)
        return application

    def _faulted(self, handler: Handler) -> Handler:
        async def answer(request: web.Request) -> web.StreamResponse:
            self.requests += 1
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            try:
                if self.faults["latency"]:
                    await asyncio.sleep(self.faults["latency"])
                return await self._answer(handler, request)
            finally:
                self.in_flight -= 1

        return answer

    async def _answer(self, handler: Handler, request: web.Request) -> web.StreamResponse:
        status = self.faults["status"]
        if status is None and self.faults["fail_next"] > 0:
            self.faults["fail_next"] -= 1
            status = self.faults["fail_status"]
        if status is not None:
            await request.read()
            wait = self.faults["retry_after"]
            return web.Response(status=status, headers={} if wait is None else {"Retry-After": str(wait)})
        response = await handler(request)
        if self.faults["hold_answers"]:
            await self._release(request)
        if self.faults["drop_next"] > 0 and request.transport is not None:
            self.faults["drop_next"] -= 1
            request.transport.abort()
        return response

    async def _release(self, request: web.Request) -> None:
        """Wait until answers are given again. Whoever asked may be gone by then: what was taken stays taken."""
        self._held.append(request)
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._released.wait(), _LONGEST_HOLD)
        finally:
            self._held.remove(request)

    @property
    def unanswered(self) -> int:
        """Requests that were taken and are held, and that somebody still waits for."""
        return sum(request.transport is not None and not request.transport.is_closing() for request in self._held)

    async def _get_ledger(self, request: web.Request) -> web.Response:
        counted = {
            "requests": self.requests,
            "most_in_flight": self.most_in_flight,
            "unanswered": self.unanswered,  # taken, and held by `hold_answers`
            **self.ledger(request.query),
        }
        return answer_json(counted)

    async def _get_control(self, request: web.Request) -> web.Response:
        meanings = _MEANINGS | dict(self.meanings)
        values = self.faults | {"reset": False}
        listed = {
            name: {"value": value, "allowed": _allowed(name, self.initial.get(name, False)), "meaning": meanings[name]}
            for name, value in values.items()
        }
        return answer_json(listed)

    async def _post_control(self, request: web.Request) -> web.Response:
        try:
            controls = orjson.loads(await request.read())
        except orjson.JSONDecodeError as error:
            return answer_json({"error": f"not JSON: {error}"}, status=400)
        fault = "not an object" if type(controls) is not dict else self.refusal(controls)
        if fault is not None:
            return answer_json({"error": fault}, status=400)
        if controls.pop("reset", False):
            self.faults = dict(self.initial)
            self.requests = self.most_in_flight = 0
            self.reset()
        self.ordered(controls)
        return answer_json(self.faults)


def _types(name: str, initial: object) -> tuple[type, ...]:
    if initial is None:
        return *_UNLESS_NONE[name], type(None)
    return _NUMBER if type(initial) is float else (type(initial),)


def _allowed(name: str, initial: object) -> str:
    """The values that an order may give a control, in words; the same rules as `_type_fault`."""
    types = _types(name, initial)
    words = " or ".join(_NAMES[kind] for kind in types)
    if name.endswith("status") and int in types:
        return f"{words}, from {STATUSES[0]} to {STATUSES[-1]}"
    if name == "latency":
        return f"{words}, from 0 to {_LONGEST_LATENCY}"
    return f"{words}, 0 or more" if int in types else words


def _type_fault(name: str, value: object, initial: object) -> str | None:
    allowed = _types(name, initial)
    if type(value) not in allowed:
        return f"{name} is to be {' or '.join(_NAMES[kind] for kind in allowed)}"
    if isinstance(value, int | float) and value < 0:
        return f"{name} is to be 0 or more"
    return _range_fault(name, value)


def _range_fault(name: str, value: object) -> str | None:
    """What would only fail, or never end, when a request is answered."""
    if name.endswith("status") and type(value) is int and value not in STATUSES:
        return f"{name} is to be from {STATUSES[0]} to {STATUSES[-1]}"
    if name == "latency" and isinstance(value, int | float) and value > _LONGEST_LATENCY:
        return f"latency is to be at most {_LONGEST_LATENCY}"
    if name == "retry_after" and isinstance(value, str) and not _HEADER.fullmatch(value):
        return "retry_after is to be a number, or a short text without control characters"
    return None


def answer_json(document: object, *, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(document), status=status, content_type="application/json")


def argument_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    return parser


def serve(stand_in: StandIn, port: int) -> None:
    """Serve until SIGTERM, Ctrl-C, or the end of standard input where that is a pipe. A port in use is one line."""
    try:
        asyncio.run(_serve(stand_in, port))
    except OSError as error:
        sys.exit(f"127.0.0.1:{port} cannot be listened on: {error.strerror or error}")


async def _serve(stand_in: StandIn, port: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    # A script that starts it in the background has it ignore Ctrl-C: it stays so.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGINT, stop.set)

    def starter_wrote_or_ended() -> None:
        if not os.read(0, 1024):
            loop.remove_reader(0)
            stop.set()

    if stat.S_ISFIFO(os.fstat(0).st_mode):
        loop.add_reader(0, starter_wrote_or_ended)
    runner = web.AppRunner(stand_in.application(), access_log=None, handle_signals=False, shutdown_timeout=1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port, backlog=1024)
        await site.start()
        line = orjson.dumps({"service": stand_in.service, "port": runner.addresses[0][1]}).decode()
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        await stop.wait()
    finally:
        await runner.cleanup()
