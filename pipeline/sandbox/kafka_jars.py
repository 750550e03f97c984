"""Apache Kafka's jars: downloaded once, by the SHA-256 this package pins, into the user's cache.

The directory of a version appears by one rename when every file in it was checked, so an interrupted download leaves
nothing that looks whole, and two processes at once do not disturb each other. Later starts look at names and sizes and
need no network. Used by `kafka.LocalKafka` and, to show progress, by the demo.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from pipeline.errors import StartFailed

VERSION = "4.3.1"
Progress = Callable[[int, int], None]
"""Called with bytes had and bytes in all; first with 0, and not at all when nothing has to be downloaded."""

_DOWNLOADS_AT_ONCE = 4
_TIMEOUT_SECONDS = 10
_ABANDONED_AFTER_SECONDS = 86_400
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class Jar(NamedTuple):
    coordinate: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        _group, artifact, version = self.coordinate.split(":")
        return f"{artifact}-{version}.jar"


def pinned_jars() -> tuple[Jar, ...]:
    """What Kafka needs, as committed in kafka_jars.txt."""
    lines = files("pipeline.sandbox").joinpath("kafka_jars.txt").read_text("utf-8").splitlines()
    rows = (line.split() for line in lines if not line.startswith("#"))
    return tuple(Jar(coordinate, int(size), sha256) for coordinate, size, sha256 in rows)


def cache_directory() -> Path:
    """Where downloads are kept: `decision-pipeline` in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "decision-pipeline"


def ensure_downloaded(progress: Progress | None = None) -> Path:
    """The directory that holds the jars; downloads them if needed. Raises StartFailed saying what to do."""
    jars = pinned_jars()
    target = cache_directory() / f"kafka-{VERSION}"
    if _complete(target, jars):
        return target
    try:
        with _room(target.parent) as directory:
            made = _download(jars, Path(directory), progress or (lambda had, total: None))
            _put(made, target, jars)
    except OSError as error:
        raise _failed(error, target.parent) from error
    return target


def _room(cache: Path) -> tempfile.TemporaryDirectory[str]:
    """A directory in the cache. Whatever is wrong here is not the network."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(cache)
        # A thread that is left behind by Ctrl-C may still write there while it is removed.
        return tempfile.TemporaryDirectory(prefix="download-", dir=cache, ignore_cleanup_errors=True)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise
        raise _not_writable(cache) from error


def _complete(directory: Path, jars: tuple[Jar, ...]) -> bool:
    try:
        return all((directory / jar.name).stat().st_size == jar.size for jar in jars)
    except OSError:
        return False


def _download(jars: tuple[Jar, ...], directory: Path, progress: Progress) -> Path:
    context = _maven(directory / "repository")
    made = directory / "jars"
    made.mkdir()
    total, had = sum(jar.size for jar in jars), 0
    progress(had, total)
    waiting: SimpleQueue[Jar] = SimpleQueue()
    for jar in jars:
        waiting.put(jar)
    done: SimpleQueue[Jar | Exception] = SimpleQueue()
    # Daemons, unlike the threads of a pool: after Ctrl-C nobody waits for a server that does not answer.
    threads = [
        threading.Thread(target=_fetch_all, args=(context, waiting, made, done), daemon=True)
        for _ in range(_DOWNLOADS_AT_ONCE)
    ]
    for thread in threads:
        thread.start()
    for _ in jars:
        finished = done.get()
        if isinstance(finished, Exception):
            _let_end(threads, waiting)
            raise finished
        had += finished.size
        progress(had, total)
    return made


def _let_end(threads: list[threading.Thread], waiting: SimpleQueue[Jar]) -> None:
    """Take no new jar, and wait for the downloads under way: they have a time limit, and write what is removed next."""
    with suppress(Empty):
        while True:
            waiting.get_nowait()
    for thread in threads:
        thread.join()


def _fetch_all(context: Any, waiting: SimpleQueue[Jar], made: Path, done: SimpleQueue[Jar | Exception]) -> None:
    """Fetch until no jar waits or one failed, whose error the starter raises."""
    while True:
        try:
            jar = waiting.get_nowait()
        except Empty:
            return
        try:
            _fetch(context, jar, made)
        except Exception as error:  # noqa: BLE001 - boundary of the thread: the starter raises it
            done.put(error)
            return
        done.put(jar)


def _maven(repository: Path) -> Any:
    try:
        from jgo.maven import MavenContext, PythonResolver
    except ImportError as error:
        raise StartFailed(
            "Apache Kafka is downloaded with the package jgo, which is not installed: "
            "`pip install 'decision-pipeline[demo]'`, or name an existing Kafka (--bootstrap-servers)"
        ) from error
    # A Maven user's own repository saves the download, and is the way round where only a mirror is reachable.
    own = Path(os.environ.get("M2_REPO") or Path.home() / ".m2" / "repository")
    return MavenContext(
        resolver=PythonResolver(),
        repo_cache=repository,
        local_repos=[own] if own.is_dir() else [],
        timeout=_TIMEOUT_SECONDS,
    )


def _fetch(context: Any, jar: Jar, made: Path) -> None:
    try:
        found: Path = context.create_dependency(jar.coordinate).artifact.resolve()
    except RuntimeError as error:
        raise OSError(f"{jar.coordinate} was not found") from error
    content = found.read_bytes()
    if hashlib.sha256(content).hexdigest() != jar.sha256:
        raise StartFailed(
            f"{jar.name} is not the file this version of decision-pipeline was tested with (its SHA-256 differs). "
            f"Nothing was installed. If you have a mirror or a local Maven repository, it holds another file."
        )
    (made / jar.name).write_bytes(content)


def _put(made: Path, target: Path, jars: tuple[Jar, ...]) -> None:
    """Give the finished directory its name, unless another process was faster."""
    try:
        made.rename(target)
    except OSError:
        if _complete(target, jars):
            return
        # What is there is damaged. It is moved away first: a directory with files cannot be renamed over.
        target.rename(made.with_name("damaged"))
        made.rename(target)


def _remove_abandoned(cache: Path) -> None:
    """Downloads that were killed leave their directory."""
    for directory in cache.glob("download-*"):
        # Another process may remove its own meanwhile.
        with suppress(FileNotFoundError):
            if time.time() - directory.stat().st_mtime > _ABANDONED_AFTER_SECONDS:
                shutil.rmtree(directory, ignore_errors=True)


def _failed(error: OSError, cache: Path) -> StartFailed:
    total = sum(jar.size for jar in pinned_jars()) / 1e6
    if error.errno in _NO_ROOM:
        return StartFailed(f"no room for Apache Kafka ({total:.0f} MB) in {cache}; free some, or set XDG_CACHE_HOME")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return _not_writable(cache)
    return StartFailed(
        f"Apache Kafka could not be downloaded ({total:.0f} MB, once): check the network (HTTPS_PROXY, if you need a "
        f"proxy) and try again, or name an existing Kafka (--bootstrap-servers). It failed with "
        f"{type(error).__name__}: {error}"
    )


def _not_writable(cache: Path) -> StartFailed:
    return StartFailed(f"{cache} cannot be written to; set XDG_CACHE_HOME to a directory that can")
