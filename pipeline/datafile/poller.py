"""Datafiles of the configured SDK keys, each asked for conditionally at an interval and compiled on arrival.

Promises: what was accepted once stays in use whatever comes later (outages, 403, rubbish); a project is swapped as
one reference, between two chunks; validators are remembered only of what was accepted, so a bad file does not stick.
`settled()` holds the start until each key is loaded or known to be bad. The decide role reads `project()` per record.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from http import HTTPStatus
from typing import Any, Literal
from urllib.parse import quote

import structlog
from yarl import URL

from pipeline.datafile.compiling import compiled, let_go
from pipeline.errors import AccessRefused, DatafileRefused, Unavailable, UpstreamError
from pipeline.limits import Backoff
from pipeline.messages.words import UNKNOWN_KEY
from pipeline.metrics import Metrics
from pipeline.outage import UNAVAILABLE, Upstream
from pipeline.project import ProjectConfig, compile_datafile
from pipeline.settings import OptimizelySettings, masked
from pipeline.transport import Answer, Transport

NEW, UNCHANGED, REFUSED, DENIED, FAILED = OUTCOMES = ("new", "unchanged", "refused", "denied", "failed")
FIRST_RETRY = 0.5
FIRST_REMINDER = 2.0
REMIND_EVERY = 30.0
_HELD_ADVICE = "it goes on by itself; check the way to the CDN, and PIPELINE_OPTIMIZELY__DATAFILE_URL_TEMPLATE"
_DENIED_ADVICE = "check PIPELINE_OPTIMIZELY__SDK_KEYS, or publish the environment; it is asked for at each poll"

Compile = Callable[[bytes], ProjectConfig]
State = Literal["loading", "loaded", "denied"]

log = structlog.get_logger("pipeline.datafile")


@dataclass(frozen=True, slots=True)
class DatafileStatus:
    """One SDK key as people and probes see it. `age` is seconds since the CDN last confirmed what is in use.

    `denied` means: never loaded, and the CDN said that the key is not good. `error` is the last poll's, if it failed;
    a loaded key may have one.
    """

    sdk_key: str
    state: State
    revision: str | None
    age: float | None
    error: str | None


class Datafiles:
    """All SDK keys of this process. `start()`, `settled()`, and `close()` at the end."""

    def __init__(
        self, *, transport: Transport, settings: OptimizelySettings, metrics: Metrics,
        compile: Compile = compile_datafile,  # noqa: A002 - what it does
        clock: Callable[[], float] = time.monotonic, rng: random.Random | None = None,
    ) -> None:  # fmt: skip
        # Seeded by the system, so that the workers of a fleet started together do not poll together.
        self._rng = rng or random.Random()  # noqa: S311
        self._interval = settings.poll_interval
        # One for all keys, and its own: names are looked up in asyncio's, and must not wait for a compilation.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="datafiles")
        self.upstream = Upstream("cdn", metrics)
        self._watched = {
            key: _Watched(
                key, transport=transport, settings=settings, metrics=metrics, compile=compile, clock=clock,
                backoff=Backoff(first=FIRST_RETRY, cap=settings.poll_interval, rng=self._rng),
                thread=self._thread, upstream=self.upstream,
            )
            for key in settings.sdk_keys
        }  # fmt: skip
        self._projects: dict[str, ProjectConfig] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._settled = asyncio.Event()

    async def start(self) -> None:
        """Begin to poll; returns at once."""
        self._note_settled()
        for watched in self._watched.values():
            task = asyncio.create_task(self._poll(watched), name=f"datafile-{watched.name}")
            task.add_done_callback(self._ended)
            self._tasks.append(task)

    async def settled(self) -> None:
        """Wait until each key was loaded or is known to be bad (401, 403, 404), however long that takes.

        A CDN that is down or sends rubbish holds it: starting without a project would answer requests with errors
        that are not theirs. What is waited for is logged soon, and again each 30 s.
        """
        patience = FIRST_REMINDER
        while not self._settled.is_set():
            try:
                async with asyncio.timeout(patience):
                    await self._settled.wait()
            except TimeoutError:
                log.warning("start held: datafiles not loaded yet", waiting_for=self.missing(), advice=_HELD_ADVICE)
                patience = REMIND_EVERY
        for task in self._tasks:
            if task.done():
                task.result()

    def missing(self) -> dict[str, str]:
        """What `settled()` waits for: masked SDK key -> what came of the last question."""
        return {one.name: one.fault or "no answer yet" for one in self._watched.values() if not one.known}

    def project(self, sdk_key: str) -> ProjectConfig | None:
        """The project in use; None for a key not configured, not loaded yet, or known to be bad."""
        return self._projects.get(sdk_key)

    def error(self, sdk_key: str) -> str | None:
        """What results say instead of decisions, in the Agent's words; None where there is a project.

        For a key that is not configured the Agent has no words, as it takes any key: `unknown SDK key`.
        """
        watched = self._watched.get(sdk_key)
        if watched is None:
            return UNKNOWN_KEY
        return None if watched.project is not None else watched.verdict

    @property
    def sole_key(self) -> str | None:
        """The SDK key of requests that name none; None unless exactly one is configured."""
        return next(iter(self._watched)) if len(self._watched) == 1 else None

    def status(self) -> list[DatafileStatus]:
        """One entry for each key, in the order of the settings, for /health, /ready and logs."""
        return [watched.status() for watched in self._watched.values()]

    async def close(self) -> None:
        """Stop polling. The projects stay readable."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _poll(self, watched: _Watched) -> None:
        # The first question comes at once; the beat after it starts anywhere in the interval, see `_rng`.
        offset = self._interval * self._rng.random()
        while True:
            was_known = watched.known
            await watched.ask()
            if watched.project is not None:
                await self._use(watched.key, watched.project)
            self._note_settled()
            if not watched.known:
                await asyncio.sleep(watched.retry_delay())
            else:
                await asyncio.sleep(self._interval if was_known else offset)

    async def _use(self, key: str, project: ProjectConfig) -> None:
        replaced = [self._projects[key]] if key in self._projects else []
        self._projects[key] = project
        if replaced and replaced[0] is not project:
            await asyncio.get_running_loop().run_in_executor(self._thread, let_go, replaced)

    def _note_settled(self) -> None:
        if all(watched.known for watched in self._watched.values()):
            self._settled.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            # Only a defect ends a poll. Raised here it reaches the loop's exception handler at once, and `settled`.
            self._settled.set()
            task.result()


class _Watched:
    """One SDK key: asks once, judges the answer, remembers. Never raises for what the CDN does."""

    def __init__(
        self, key: str, *, transport: Transport, settings: OptimizelySettings, metrics: Metrics, compile: Compile,  # noqa: A002
        clock: Callable[[], float], backoff: Backoff, thread: ThreadPoolExecutor, upstream: Upstream,
    ) -> None:  # fmt: skip
        self.key = key
        self.name = masked(key)
        self.project: ProjectConfig | None = None
        self.verdict: str | None = None
        self.fault: str | None = None
        self._quoted = quote(key, safe="")
        # Encoded already and left so: some stores read a bare `+` in a path as a space.
        self._url = URL(settings.datafile_url_template.replace("%s", self._quoted), encoded=True)
        self._transport, self._settings = transport, settings
        self._compile, self._clock, self._backoff, self._thread = compile, clock, backoff, thread
        self._validators: Mapping[str, str] = {}
        self._digest = b""
        self._refused_before: tuple[bytes, str] | None = None
        self._confirmed: float | None = None
        self._failures = 0
        self._retry_after: float | None = None
        self._outage = upstream.outage(
            begins="datafile failed", ends="datafile polling recovered", log=log, sdk_key=self.name
        )
        self._stale = False
        self._polls = {outcome: metrics.datafile_polls.labels(self.name, outcome) for outcome in OUTCOMES}
        self._loaded_gauge = metrics.datafile_loaded.labels(self.name)
        self._denied_gauge = metrics.datafile_denied.labels(self.name)
        self._stale_gauge = metrics.datafile_stale.labels(self.name)
        self._compile_seconds = metrics.datafile_compile_seconds

    @property
    def known(self) -> bool:
        """True once requests for the key can be answered, if only with an error."""
        return self.project is not None or self.verdict is not None

    def retry_delay(self) -> float:
        """Seconds until the key is asked for again while nothing is known of it."""
        return self._backoff.delay(self._failures, self._retry_after)

    def status(self) -> DatafileStatus:
        state: State = "loaded" if self.project is not None else "denied" if self.verdict is not None else "loading"
        return DatafileStatus(
            sdk_key=self.name,
            state=state,
            revision=self.project.revision if self.project is not None else None,
            age=None if self._confirmed is None else self._clock() - self._confirmed,
            error=self.fault,
        )

    async def ask(self) -> None:
        """Ask the CDN once and take over what it says."""
        try:
            answer = await self._transport.get(
                self._url, headers=self._validators, timeout=self._settings.request_timeout,
                max_bytes=self._settings.max_datafile_bytes,
            )  # fmt: skip
            outcome = await self._take(answer)
        except AccessRefused as error:
            self._denied(error)
        except DatafileRefused as error:
            self._refused(str(error))
        except UpstreamError as error:
            if HTTPStatus.OK <= error.status < HTTPStatus.MULTIPLE_CHOICES:
                self._refused(str(error))  # an answer that is too large
            else:
                self._failed(error)
        else:
            self._confirm(outcome)
        self._note_age()

    async def _take(self, answer: Answer) -> str:
        if answer.status == HTTPStatus.NOT_MODIFIED:
            if self.project is None:
                raise UpstreamError("HTTP 304 to a question without a condition", status=answer.status)
            return UNCHANGED
        found = await asyncio.get_running_loop().run_in_executor(self._thread, self._judge, answer.body)
        digest, project, refusal = found
        if refusal is not None:
            self._refused_before = digest, refusal
            raise DatafileRefused(refusal)
        outcome = UNCHANGED
        if project is not None:
            log.info(
                "datafile taken", sdk_key=self.name, revision=project.revision,
                replaces=self.project.revision if self.project is not None else None,
            )  # fmt: skip
            self.project = project
            # Some are refused for what is in use.
            self._refused_before = None
            outcome = NEW
        self._digest = digest
        self._validators = _validators(answer)
        return outcome

    def _judge(self, raw: bytes) -> tuple[bytes, ProjectConfig | None, str | None]:
        """In a thread: the digest of an answer, the project if it is to be used from now on, why it is refused if so.

        What is not used is let go of here, with the error whose traceback refers to it: the loop would stand still.
        A document that was judged before is not compiled again, neither the one in use nor the one refused last.
        """
        digest = blake2b(raw, digest_size=16).digest()
        if digest == self._digest:
            return digest, None, None
        if self._refused_before is not None and digest == self._refused_before[0]:
            return digest, None, self._refused_before[1]
        try:
            with self._compile_seconds.time():
                project = compiled(self._compile, raw)
        except DatafileRefused as error:
            return digest, None, str(error)
        current = self.project
        refusal = None if current is None else self._objection(current, project)
        if refusal is None and (current is None or project.revision != current.revision):
            return digest, project, None
        # The same revision is not swapped: as for the SDKs, it tells.
        unused = [project]
        del project
        let_go(unused)
        return digest, None, refusal

    def _objection(self, current: ProjectConfig, project: ProjectConfig) -> str | None:
        owner, former = (project.account_id, project.project_id), (current.account_id, current.project_id)
        if owner != former:
            return f"it is for account and project {owner}, the one in use for {former}"
        if _older(project.revision, current.revision) and not self._settings.allow_older_revision:
            return (
                f"revision {project.revision} is older than {current.revision}, which is in use; "
                "optimizely.allow_older_revision takes it"
            )
        return None

    def _confirm(self, outcome: str) -> None:
        self._polls[outcome].inc()
        self.verdict = self.fault = self._retry_after = None
        self._failures = 0
        self._confirmed = self._clock()
        self._loaded_gauge.set_to_current_time()
        self._denied_gauge.set(0)
        self._outage.end()

    def _denied(self, error: AccessRefused) -> None:
        self._denied_gauge.set(1)
        self.verdict = _agents_words(self.key, error.status)
        self._note(DENIED, str(error), edge=str(error.status), advice=_DENIED_ADVICE)

    def _refused(self, reason: str) -> None:
        self._denied_gauge.set(0)
        if self.verdict is not None:
            self.verdict = _agents_words(self.key, HTTPStatus.OK)
        self._retry_after = None
        self._note(REFUSED, reason, edge=reason)

    def _failed(self, error: UpstreamError) -> None:
        self._retry_after = error.retry_after if isinstance(error, Unavailable) else None
        self._note(FAILED, str(error))

    def _note(self, outcome: str, text: str, *, edge: str = "", **more: Any) -> None:
        """Count each failure; the outage says it once, and again only when it is something else."""
        self._polls[outcome].inc()
        self._failures += 1
        # Errors of the HTTP client may quote the address, and so the key.
        self.fault = text.replace(self.key, self.name).replace(self._quoted, self.name)
        self._outage.begin(
            UNAVAILABLE if outcome == FAILED else outcome, self.fault, message=f"datafile {outcome}", edge=edge,
            revision_in_use=self.project.revision if self.project is not None else None, **more,
        )  # fmt: skip

    def _note_age(self) -> None:
        """Judged after a poll, so an interval longer than the bound does not make a healthy datafile stale."""
        age = 0.0 if self._confirmed is None else self._clock() - self._confirmed
        stale = age > self._settings.stale_after
        self._stale_gauge.set(stale)
        if stale and not self._stale:
            log.warning("datafile stale", sdk_key=self.name, age_seconds=round(age), error=self.fault)
        self._stale = stale


def _validators(answer: Answer) -> Mapping[str, str]:
    """Headers that make the next question conditional."""
    names = (("ETag", "If-None-Match"), ("Last-Modified", "If-Modified-Since"))
    return {ask: answer.headers[told] for told, ask in names if told in answer.headers}


def _agents_words(key: str, status: int) -> str:
    """What the Agent answers for a key whose client it cannot make; only 403 has words of its own."""
    if status == HTTPStatus.FORBIDDEN:
        return "unable to fetch fresh datafile (consider rechecking SDK key), status code: 403 Forbidden"
    return f"failed to instantiate Optimizely for SDK Key: {key}"


def _older(revision: str, current: str) -> bool:
    """Whether both are decimal integers and the first is the lower one. Compared as text: no length is too much."""
    if not (revision.isascii() and revision.isdecimal() and current.isascii() and current.isdecimal()):
        return False
    one, other = revision.lstrip("0"), current.lstrip("0")
    return (len(one), one) < (len(other), other)
