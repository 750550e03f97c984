"""What a call says of itself: an answer where there is one, else what to do about it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from pipeline.errors import AccessRefused, PayloadRefused, Unavailable, UpstreamError
from pipeline.transport import Transport


@asynccontextmanager
async def answering(
    status: int, headers: dict[str, str] | None = None, body: bytes = b""
) -> AsyncIterator[tuple[Transport, str]]:
    """A server that answers every request so, and a transport to ask it."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status, headers=headers, body=body)

    application = web.Application()
    application.router.add_route("*", "/", answer)
    async with TestServer(application, host="127.0.0.1") as server, Transport() as transport:
        yield transport, f"http://127.0.0.1:{server.port}/"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (302, UpstreamError), (304, UpstreamError), (400, PayloadRefused), (401, AccessRefused), (403, AccessRefused),
        (404, AccessRefused), (405, UpstreamError), (408, Unavailable), (413, PayloadRefused), (422, PayloadRefused),
        (425, Unavailable), (429, Unavailable), (500, Unavailable), (503, Unavailable),
    ],
)  # fmt: skip
async def test_a_status_that_is_no_success_says_what_to_do(status: int, kind: type[UpstreamError]) -> None:
    async with answering(status, {"Location": "http://127.0.0.1:1/"} if status == 302 else None) as (transport, url):
        with pytest.raises(UpstreamError) as caught:
            await transport.post(url, b"{}", headers={}, timeout=5)
        assert type(caught.value) is kind
        assert caught.value.status == status


@pytest.mark.asyncio
async def test_of_an_answer_that_is_too_large_the_status_counts_unless_it_is_a_success() -> None:
    for status, kind in ((503, Unavailable), (400, PayloadRefused), (200, UpstreamError)):
        async with answering(status, body=b"x" * 70_000) as (transport, url):
            with pytest.raises(UpstreamError) as caught:
                await transport.post(url, b"{}", headers={}, timeout=5, max_bytes=64 * 1024)
            assert type(caught.value) is kind
            assert str(caught.value) == (f"HTTP {status}" if status >= 400 else "the answer is larger than 65536 bytes")


@pytest.mark.asyncio
async def test_not_modified_answers_a_question_and_confirms_nothing_that_was_sent() -> None:
    async with answering(304) as (transport, url):
        assert (await transport.get(url, headers={}, timeout=5)).status == 304
        with pytest.raises(UpstreamError) as caught:
            await transport.post(url, b"{}", headers={}, timeout=5)
        assert caught.value.status == 304


@pytest.mark.asyncio
@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\0b", "key\r\nx-other: 1"])
async def test_a_header_that_cannot_be_sent_is_an_error_of_this_package(value: str) -> None:
    async with answering(200) as (transport, url):
        for call in (
            transport.get(url, headers={"x-api-key": value}, timeout=5),
            transport.post(url, b"{}", headers={"x-api-key": value}, timeout=5),
        ):
            with pytest.raises(UpstreamError) as caught:
                await call
            assert (type(caught.value), caught.value.status) == (UpstreamError, 0)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "host",
    ["a..example", ".example", "x" * 64 + ".example", "ž" * 60 + ".example"],
    ids=["empty label", "begins with an empty label", "long label", "label too long when written in ASCII"],
)
async def test_a_host_that_has_no_name_is_an_error_of_this_package(host: str) -> None:
    async with Transport() as transport:
        with pytest.raises(UpstreamError) as caught:
            await transport.post(f"http://{host}/", b"{}", headers={}, timeout=5)
        assert (type(caught.value), caught.value.status) == (UpstreamError, 0)


@pytest.mark.asyncio
async def test_silence_and_a_closed_door_are_to_be_tried_again() -> None:
    async with Transport() as transport:
        async with TestServer(web.Application(), host="127.0.0.1") as server:
            url = f"http://127.0.0.1:{server.port}/"
        with pytest.raises(Unavailable) as caught:
            await transport.get(url, headers={}, timeout=5)
        assert caught.value.status == 0
