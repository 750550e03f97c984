"""Kafka's jars are downloaded once, whole, as pinned, or not at all. No test here reaches a network."""

from __future__ import annotations

import errno
import hashlib
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import StartFailed
from pipeline.sandbox import kafka_jars
from pipeline.sandbox.kafka_jars import Jar, ensure_downloaded, pinned_jars
from tests.patience import PATIENCE
from tests.sandbox.terminal import Terminal

CONTENT = {"org.example:one:1.0": b"one" * 1000, "org.example.deep:two_2.13:2.1": b"two" * 500}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, two small jars pinned, a repository of one's own that has them, and no network."""
    jars = tuple(Jar(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in CONTENT.items())
    monkeypatch.setattr(kafka_jars, "pinned_jars", lambda: jars)
    for name, data in CONTENT.items():
        group, artifact, version = name.split(":")
        place = tmp_path / "m2" / group.replace(".", "/") / artifact / version / f"{artifact}-{version}.jar"
        place.parent.mkdir(parents=True)
        place.write_bytes(data)
    monkeypatch.setenv("M2_REPO", str(tmp_path / "m2"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache" / "decision-pipeline"


def _without_repository(tmp_path: Path) -> None:
    (tmp_path / "m2").rename(tmp_path / "gone")


def test_the_pinned_jars_are_complete() -> None:
    jars = pinned_jars()
    assert len(jars) == 46
    assert len({jar.name for jar in jars}) == 46
    assert all(len(jar.sha256) == 64 and jar.size > 0 for jar in jars)
    assert f"org.apache.kafka:kafka_2.13:{kafka_jars.VERSION}" in [jar.coordinate for jar in jars]


def test_what_is_missing_is_fetched_once(cache: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    directory = ensure_downloaded(lambda had, total: seen.append((had, total)))
    assert directory == cache / f"kafka-{kafka_jars.VERSION}"
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == {
        "one-1.0.jar": CONTENT["org.example:one:1.0"],
        "two_2.13-2.1.jar": CONTENT["org.example.deep:two_2.13:2.1"],
    }
    assert seen[0] == (0, 4500)
    assert seen[-1] == (4500, 4500)
    assert [path.name for path in cache.iterdir()] == [directory.name], "nothing else stays behind"
    # From now on neither repository nor network is needed, and nobody is told of a download.
    _without_repository(tmp_path)
    assert ensure_downloaded(lambda had, total: pytest.fail("downloaded again")) == directory


def test_a_damaged_jar_is_fetched_again(cache: Path) -> None:
    directory = ensure_downloaded()
    (directory / "one-1.0.jar").write_bytes(b"cut")
    assert ensure_downloaded() == directory
    assert (directory / "one-1.0.jar").read_bytes() == CONTENT["org.example:one:1.0"]
    assert [path.name for path in cache.iterdir()] == [directory.name]


def test_another_file_is_refused(cache: Path, tmp_path: Path) -> None:
    other = tmp_path / "m2" / "org" / "example" / "one" / "1.0" / "one-1.0.jar"
    other.write_bytes(b"new" * 1000)
    with pytest.raises(StartFailed, match=r"one-1\.0\.jar is not the file"):
        ensure_downloaded()
    assert list(cache.iterdir()) == []


def test_without_network_it_says_what_to_do(cache: Path, tmp_path: Path) -> None:
    _without_repository(tmp_path)
    with pytest.raises(StartFailed, match=r"could not be downloaded .*--bootstrap-servers"):
        ensure_downloaded()
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "no room"), (errno.EROFS, "cannot be written to")])
def test_a_full_or_closed_disk_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, "at the wire")

    monkeypatch.setattr(kafka_jars, "_fetch", fail)
    with pytest.raises(StartFailed, match=words):
        ensure_downloaded()
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_made_is_not_called_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    told = r"^/proc/nowhere/decision-pipeline cannot be written to; set XDG_CACHE_HOME to a directory that can$"
    with pytest.raises(StartFailed, match=told):
        ensure_downloaded()


def test_without_jgo_it_says_what_to_do(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del cache
    monkeypatch.setitem(sys.modules, "jgo.maven", None)
    with pytest.raises(StartFailed, match=r"pip install 'decision-pipeline\[demo\]'"):
        ensure_downloaded()


def test_ctrl_c_during_the_download_is_one_line_at_once(
    pipeline: Callable[..., Terminal], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for name in ("HTTPS_PROXY", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setenv("M2_REPO", str(tmp_path / "none"))
        terminal = pipeline("demo")
        terminal.read_until("downloading Apache Kafka")
        silent.settimeout(20)
        with silent.accept()[0]:
            assert terminal.interrupt(presses=2) < 5
    assert terminal.process.returncode == 130
    first, *rest = terminal.said.splitlines()
    assert first.startswith("downloading Apache Kafka")
    assert rest == ["interrupted; everything was stopped"]


def test_several_at_once_do_not_disturb_each_other(cache: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        directories = {future.result() for future in [pool.submit(ensure_downloaded) for _ in range(6)]}
    assert len(directories) == 1
    assert [path.name for path in cache.iterdir()] == [directories.pop().name]


def test_another_process_may_remove_its_download_while_old_ones_are_looked_for(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "glob", lambda *_: iter([cache / "download-of-another"]))
    assert ensure_downloaded().exists()


def test_what_a_killed_download_left_is_removed_after_a_day(cache: Path) -> None:
    for name, age in (("download-old", 2 * 86_400), ("download-new", 60)):
        (cache / name).mkdir(parents=True)
        subprocess.run(["touch", "-d", f"{age} seconds ago", str(cache / name)], check=True, timeout=PATIENCE)
    ensure_downloaded()
    assert not (cache / "download-old").exists()
    assert (cache / "download-new").exists()
