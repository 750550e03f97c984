"""Which program this is: its version, and those of Python and aiokafka, on which most reports of a fault depend."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

NAME = "decision-pipeline"


def versions() -> dict[str, str]:
    """The versions by name; `unknown` for a package whose metadata is not there, as in a copied source tree."""
    return {"version": _of(NAME), "python": platform.python_version(), "aiokafka": _of("aiokafka")}


def _of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
