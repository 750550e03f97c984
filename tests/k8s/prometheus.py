"""A real Prometheus: started on a free port of 127.0.0.1, asked by its HTTP API, gone when its starter is.

No wheel carries it; Debian and Ubuntu do, as the package `prometheus`. Used by `scrape`.
"""

from __future__ import annotations

import json
import math
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import yaml

from pipeline.errors import StartFailed
from pipeline.sandbox.processes import Guarded, free_port, until
from tests.patience import PATIENCE


class QueryFailed(Exception):
    """Prometheus does not evaluate an expression; the text is its own."""


class Series(NamedTuple):
    """One series of an answer: its labels, and its values as far as they are numbers."""

    labels: Mapping[str, str]
    values: tuple[float, ...]


class Prometheus:
    """The HTTP API of a running one."""

    def __init__(self, address: str) -> None:
        self.address = address
        # Proxies of the environment are for other hosts.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def instant(self, expression: str) -> list[Series]:
        """What the expression gives now. Raises QueryFailed."""
        return _series(self._get("query", query=expression), lambda found: [found["value"]])

    def over(self, expression: str, *, seconds: float) -> list[Series]:
        """What a panel draws of the last `seconds`, a point for each. Raises QueryFailed."""
        now = time.time()
        answered = self._get("query_range", query=expression, start=f"{now - seconds:.3f}", end=f"{now:.3f}", step="1")
        return _series(answered, lambda found: found["values"])

    def value(self, expression: str) -> float:
        """The one number that an expression gives now; 0 where it gives nothing."""
        return sum(sum(series.values) for series in self.instant(expression))

    def label_values(self, selector: str, label: str) -> list[str]:
        """What a variable of a dashboard offers. Raises QueryFailed."""
        found: list[str] = self._get(f"label/{label}/values", **{"match[]": selector})
        return found

    def rule_groups(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._get("rules")["groups"]
        return found

    def target(self) -> dict[str, Any]:
        """The one target: `health`, `lastError`, ..."""
        (found,) = self._get("targets")["activeTargets"]
        return dict(found)

    def _get(self, path: str, **arguments: str) -> Any:
        address = f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(arguments)}"
        try:
            with self._opener.open(address, timeout=PATIENCE) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise QueryFailed(_told(error.read())) from error


def _told(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError):
        return body.decode("utf-8", "replace")[:200]


def _series(answered: Mapping[str, Any], points: Any) -> list[Series]:
    """Those that have a number at all: 0 divided by 0 draws nothing."""
    found = []
    for one in answered["result"]:
        numbers = (float(text) for _, text in points(one))
        values = tuple(number for number in numbers if not math.isnan(number))
        if values:
            found.append(Series(one["metric"], values))
    return found


@contextmanager
def running(*, target: str, labels: Mapping[str, str], rules: Sequence[Path]) -> Iterator[Prometheus]:
    """One that scrapes `target` (host:port) each second, and evaluates the rule files as often. Raises StartFailed."""
    command = shutil.which("prometheus")
    if command is None:
        raise StartFailed("prometheus is needed; on Debian and Ubuntu: apt-get install prometheus")
    with TemporaryDirectory(prefix="decision-pipeline-prometheus-") as directory:
        home, address = Path(directory), f"127.0.0.1:{free_port()}"
        configuration = home / "prometheus.yml"
        configuration.write_text(yaml.safe_dump(_configuration(target, labels, rules)), "utf-8")
        process = Guarded(
            [
                command,
                f"--config.file={configuration}",
                f"--storage.tsdb.path={home / 'data'}",
                f"--web.listen-address={address}",
                "--log.level=warn",
            ],
            log=home / "prometheus.log",
            remove=home,
        )
        try:
            _wait_until_ready(process, f"http://{address}/-/ready")
            yield Prometheus(f"http://{address}")
        finally:
            process.stop()


def _configuration(target: str, labels: Mapping[str, str], rules: Sequence[Path]) -> dict[str, Any]:
    return {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(path.resolve()) for path in rules],
        "scrape_configs": [
            {"job_name": labels["job"], "static_configs": [{"targets": [target], "labels": dict(labels)}]}
        ],
    }


def _wait_until_ready(process: Guarded, address: str) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ready() -> bool:
        if not process.running:
            return True
        try:
            with opener.open(address, timeout=PATIENCE) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    try:
        until(ready, timeout=PATIENCE, what="Prometheus")
    except TimeoutError as error:
        raise StartFailed(f"{error}\n{process.log_tail(5)}") from error
    if not process.running:
        raise StartFailed(f"Prometheus ended at its start:\n{process.log_tail(5)}")
