"""Bounds on ratios, so that a change that makes the worker dearer is seen: `make bench-check`.

A ratio is of two things timed in the same run, so a slower machine does not move it much; what it does move is allowed
for by the slack. Absolute figures have no bounds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

FILE = Path(__file__).with_name("bounds.json")


def broken(ratios: Mapping[str, float], bounds: Mapping[str, Mapping[str, float]], slack: float) -> list[str]:
    """One sentence for each ratio beyond its bound, and for each bound whose ratio was not measured."""
    found = []
    for name, bound in bounds.items():
        ratio = ratios.get(name)
        if ratio is None:
            found.append(f"{name}: not measured")
        elif "at_most" in bound and ratio > bound["at_most"] * (1 + slack):
            found.append(f"{name}: {ratio:.2f}, at most {bound['at_most']:g} (and {slack:.0%})")
        elif "at_least" in bound and ratio < bound["at_least"] * (1 - slack):
            found.append(f"{name}: {ratio:.2f}, at least {bound['at_least']:g} (less {slack:.0%})")
    return found


def _target(bound: Mapping[str, float]) -> dict[str, float]:
    """A bound at its `target`, which is where it is to go; without one it bounds nothing."""
    return {kind: bound["target"] for kind in ("at_most", "at_least") if kind in bound and "target" in bound}


def report(ratios: Mapping[str, float], console: Console) -> int:
    """Say which bounds are broken; 1 if any is."""
    document = json.loads(FILE.read_text("utf-8"))
    found = broken(ratios, document["bounds"], document["slack"])
    for line in found:
        console.print(f"bound not kept: {line}")
    for line in broken(ratios, {name: _target(bound) for name, bound in document["bounds"].items()}, 0.0):
        console.print(f"target not reached yet: {line}")
    if not found:
        console.print(f"all {len(document['bounds'])} bounds hold")
    return 1 if found else 0
