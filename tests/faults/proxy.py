"""A TCP proxy before a broker, to take the network away: connections are refused, or accepted and nothing passes."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Literal, Self

Mode = Literal["passing", "slow", "silent", "refusing"]
_SLOW_SECONDS = 0.15
_CALL_SECONDS = 10


class Proxy:
    """Listens on a port of 127.0.0.1 and passes bytes to another, in a thread of its own; `set` changes that."""

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self._target = target
        self._mode: Mode = "passing"
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL_SECONDS)
        self._loop.close()

    def set(self, mode: Mode) -> None:
        """From now on. `refusing` ends the connections there are; `silent` keeps them and passes nothing."""
        self._do(self._set(mode))

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_CALL_SECONDS)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", self.port)

    async def _set(self, mode: Mode) -> None:
        self._mode = mode
        self._changed.set()
        self._changed = asyncio.Event()
        if mode == "refusing":
            await self._close()
        elif self._server is None:
            await self._listen()

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._open:
            writer.transport.abort()

    async def _end(self) -> None:
        await self._close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            await self._passing()
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
            self._open.add(far_writer)
            await asyncio.gather(self._copy(reader, far_writer), self._copy(far_reader, writer))
            self._open.discard(far_writer)
        except OSError:
            writer.transport.abort()
        finally:
            self._open.discard(writer)

    async def _passing(self) -> None:
        while self._mode == "silent":
            await self._changed.wait()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            while data := await reader.read(65_536):
                if self._mode == "slow":
                    await asyncio.sleep(_SLOW_SECONDS)
                await self._passing()
                writer.write(data)
                await writer.drain()
