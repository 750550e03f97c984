"""What the figures depend on: the machine they come from, who ran on which core, and what a process used of it.

Linux only: processor time and memory of a process are read from /proc, affinities are set by the scheduler's calls.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_LIBRARIES = ("aiokafka", "orjson", "aiohttp", "optimizely-sdk")
CORES = sorted(os.sched_getaffinity(0))
MEASURED, OTHERS = CORES[:1], CORES[1:] or CORES
"""What is measured has the first core to itself; the broker, the services and this process have the others."""


def pin(pid: int, cores: list[int]) -> None:
    """Keep a process, with all its threads so far and those they will start, on `cores`."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), cores)


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one process since its start: processor time in seconds, and the most memory it has held, in bytes."""

    cpu: float
    peak_bytes: int


def usage(pid: int) -> Usage:
    """The same figures as getrusage, of another process while it runs."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    status = Path(f"/proc/{pid}/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    return Usage((int(fields[11]) + int(fields[12])) / _TICKS, peak)


def description() -> dict[str, str]:
    """The machine in words."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 1024**2
    return {
        "processor": ", ".join(sorted(models)) or platform.machine(),
        "cores": str(len(CORES)),
        "memory": f"{memory:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: version(name) for name in _LIBRARIES},
        "load_at_start": f"{os.getloadavg()[0]:.2f}",
    }
