"""One HTTP session for the process: answers as values, failures as errors that say what to do about them.

Redirects are not followed and proxies not taken from the environment: the addresses called are the ones configured.
Every call has a deadline and every body a bound.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import NamedTuple, Self

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from pipeline.errors import AccessRefused, PayloadRefused, Unavailable, UpstreamError

MAX_ANSWER_BYTES = 8 * 1024**2
_EXCERPT = 512


class Answer(NamedTuple):
    status: int
    headers: CIMultiDictProxy[str]
    body: bytes


class Transport:
    """Shared by every client of the process. Use as an async context manager, or `start()` and `close()`."""

    def __init__(self, *, max_connections: int = 100) -> None:
        self._max_connections = max_connections
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        connector = aiohttp.TCPConnector(limit=self._max_connections, ssl=_tls())
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=True, trust_env=False)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def get(
        self, url: str | URL, *, headers: Mapping[str, str], timeout: float, max_bytes: int = MAX_ANSWER_BYTES
    ) -> Answer:
        """The answer, if 2xx or 304. Raises Unavailable, AccessRefused, PayloadRefused or UpstreamError."""
        return await self._call("GET", url, None, headers, timeout, max_bytes)

    async def post(
        self, url: str, body: bytes, *, headers: Mapping[str, str], timeout: float, max_bytes: int = MAX_ANSWER_BYTES
    ) -> Answer:
        """The answer, if 2xx. Raises Unavailable, AccessRefused, PayloadRefused or UpstreamError."""
        return await self._call("POST", url, body, headers, timeout, max_bytes)

    async def _call(
        self,
        method: str,
        url: str | URL,
        body: bytes | None,
        headers: Mapping[str, str],
        timeout: float,
        max_bytes: int,
    ) -> Answer:
        if self._session is None:
            raise RuntimeError("Transport.start() was not called")
        try:
            async with self._session.request(
                method, url, data=body, headers=headers, allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=timeout),
            ) as response:  # fmt: skip
                received = await _bounded(response, max_bytes)
                answer = Answer(response.status, response.headers, received)
        except TimeoutError as error:
            raise Unavailable(f"no answer within {timeout:g} s") from error
        except aiohttp.InvalidURL as error:
            raise _cannot_be_asked(error) from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"{type(error).__name__}: {error}") from error
        except ValueError as error:
            raise _cannot_be_asked(error) from error
        if 200 <= answer.status < 300 or (answer.status == 304 and method == "GET"):
            return answer
        raise _failure(answer)


def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


async def _bounded(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        size += len(part)
        parts.append(part)
        if size > max_bytes:
            # Leaving the body unread closes the connection, so the rest is not downloaded.
            if response.status >= 400:
                break  # the status says what to do; of the text a beginning is enough
            raise UpstreamError(f"the answer is larger than {max_bytes} bytes", status=response.status)
    return b"".join(parts)


def _cannot_be_asked(error: ValueError) -> UpstreamError:
    """A host or header that cannot be sent at all (UnicodeError of IDNA is one): a datafile may name any."""
    return UpstreamError(f"cannot be asked: {type(error).__name__}: {error}")


def _failure(answer: Answer) -> UpstreamError:
    status, body = answer.status, answer.body[:_EXCERPT]
    text = f"HTTP {status}"
    if status in (401, 403, 404):
        return AccessRefused(text, status=status, body=body)
    if status in (400, 413, 422):
        return PayloadRefused(text, status=status, body=body)
    if status in (408, 425, 429) or status >= 500:
        return Unavailable(text, status=status, body=body, retry_after=_retry_after(answer.headers))
    return UpstreamError(text, status=status, body=body)


def _retry_after(headers: CIMultiDictProxy[str]) -> float | None:
    """Seconds from a Retry-After header in its form of seconds; the form of a date is left to our own backoff."""
    text = headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() else None
