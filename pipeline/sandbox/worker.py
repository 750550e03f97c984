"""The worker as a process of its own, as it runs in production: `python -m pipeline run` with an environment.

It can be waited for (`/ready`), asked for its metrics, stopped, killed and held. It does not outlive its starter.
Used by the demo and by the tests that need real signals and real crashes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline.errors import StartFailed
from pipeline.sandbox.processes import Guarded, StandIns, free_port, until
from pipeline.sandbox.project_data import SDK_KEYS

_ANSWER_SECONDS = 5


class Worker:
    """One worker process; `start()` after `kill()` or `stop()` runs it again, its log goes on in the same file."""

    def __init__(
        self,
        environment: Mapping[str, str],
        *,
        log: Path,
        module: str = "pipeline",
        arguments: Sequence[str] = ("run",),
        remove: Path | None = None,
    ) -> None:
        """`environment` is the whole environment; a free port is taken for its operations unless it names one.

        `module` is what is run with `arguments`; `remove` a directory to remove should this process die without
        stopping the worker.
        """
        self._remove = remove
        self.port = int(environment.get("PIPELINE_OPS__PORT") or free_port())
        self.log = log
        self._environment = {**environment, "PIPELINE_OPS__PORT": str(self.port)}
        self._command = [sys.executable, "-m", module, *arguments]
        self._process: Guarded | None = None
        self._wanted = False

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    @property
    def ended(self) -> bool:
        """Whether it ended although nobody stopped it."""
        return self._wanted and not self.running

    def start(self) -> None:
        """Run it; returns at once."""
        self._process = Guarded(self._command, log=self.log, environment=self._environment, remove=self._remove)
        self._wanted = True

    def wait_ready(self, timeout: float = 60, *, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Wait for `/ready`. Raises StartFailed with the end of its log if it ends or is late.

        `meanwhile` is called again and again, and may raise.
        """

        def ready() -> bool:
            meanwhile()
            return not self.running or self.readiness[0] == 200

        try:
            until(ready, timeout=timeout, what="the worker")
        except TimeoutError as error:
            raise StartFailed(f"{error}; /ready says {self.readiness[1]}\n{self.log_tail()}") from error
        if not self.running:
            raise StartFailed(f"the worker ended at its start:\n{self.log_tail()}")

    def wait(self, timeout: float = 30) -> int:
        """Wait until it ends by itself. Its status, 128 + signal if one ended it. Raises TimeoutError."""
        return self._running().wait(timeout)

    def stop(self, timeout: float = 30) -> int:
        """SIGTERM, and its status; killed after `timeout` seconds. 0 if it was never started."""
        if self._process is None:
            return 0
        self._wanted = False
        self._process.signal(signal.SIGCONT)
        return self._process.stop(timeout)

    def kill(self) -> int:
        """SIGKILL, as a node that dies."""
        self._wanted = False
        return self._running().kill()

    def signal(self, number: int) -> None:
        """Send it a signal; returns at once."""
        self._running().signal(number)

    def pause(self) -> None:
        """SIGSTOP, as a machine that hangs."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    @property
    def healthy(self) -> bool:
        """Whether `/health` says so."""
        return self._get("/health")[0] == 200

    @property
    def readiness(self) -> tuple[int, str]:
        """Status and text of `/ready` now; status 0 if it does not answer."""
        return self._get("/ready")

    def metrics(self) -> str:
        """What `/metrics` says now; empty if it does not answer."""
        status, text = self._get("/metrics")
        return text if status == 200 else ""

    def metric(self, name: str, **labels: str) -> float:
        """One value of a metric now, without its prefix; 0 where there is none."""
        named = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
        begin = f"decision_pipeline_{name}{{{named}}} " if named else f"decision_pipeline_{name} "
        for line in self.metrics().splitlines():
            if line.startswith(begin):
                return float(line.removeprefix(begin))
        return 0.0

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/metrics"

    def log_tail(self, lines: int = 40) -> str:
        return self._process.log_tail(lines) if self._process is not None else ""

    def _running(self) -> Guarded:
        if self._process is None:
            raise RuntimeError("Worker.start() was not called")
        return self._process

    def _get(self, path: str) -> tuple[int, str]:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://127.0.0.1:{self.port}{path}", timeout=_ANSWER_SECONDS) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode("utf-8", "replace")
        except OSError as error:
            return 0, str(error)


def worker_environment(
    settings: Mapping[str, str], *, topics: Mapping[str, str], stand_ins: StandIns | None = None
) -> dict[str, str]:
    """The whole environment of a worker: this process's without its PIPELINE_*, and what is given.

    `settings` are names without their prefix, e.g. `{"ODP__MAX_LINGER": "0.1"}`, and go before the rest; `topics` is
    the field in the settings -> name of the topic.
    """
    own = {
        "TOPICS__REPLICATION_FACTOR": "1",
        **{f"TOPICS__{field.upper()}": name for field, name in topics.items()},
    }
    if stand_ins is not None:
        own |= {
            "OPTIMIZELY__SDK_KEYS": json.dumps(SDK_KEYS),
            "OPTIMIZELY__DATAFILE_URL_TEMPLATE": stand_ins.cdn_url_template,
            "ODP__ALLOWED_HOSTS": "127.0.0.1",
            "ODP__ALLOW_HTTP": "true",
            "LOGX__URL": stand_ins.logx_url,
            "LOGX__EU_URL": stand_ins.logx_url,
            "CMAB__PREDICTION_URL_TEMPLATE": stand_ins.prediction_url_template,
        }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIPELINE_")}
    return environment | {f"PIPELINE_{name}": value for name, value in (own | dict(settings)).items()}
