"""Which dead letters a topic's records may become, found where the package raises `Rejected`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PIPELINE = Path(__file__).parents[2] / "pipeline"
TOPICS = ("decide.requests", "decide.results", "track.events", "odp.events")
_REQUESTS, _RESULTS, _TRACK, _ODP = ({topic} for topic in TOPICS)
_EVENTS = _TRACK | _ODP

# A module, or a function in it, to the topics whose records it is given.
_GIVEN = {
    "kafka/partition.py": set(TOPICS),
    "kafka/undecodable.py": set(TOPICS),
    "messages/contracts.py": _REQUESTS | _EVENTS,
    "messages/decide.py": _REQUESTS,
    "messages/results.py": _RESULTS,
    "messages/events.py": _EVENTS,
    "messages/events.py::_track_fault": _TRACK,
    "messages/events.py::_odp_fault": _ODP,
    "decision/slices.py": _REQUESTS,
    "handlers/decide.py": _REQUESTS,
    "handlers/keys.py": _EVENTS,
    "handlers/logx.py": _RESULTS,
    "handlers/odp_events.py": _ODP,
    "logx/dispatcher.py": _RESULTS | _TRACK,
    "logx/payload.py::impressions": _RESULTS,
    "logx/payload.py::_render_head": _RESULTS,
    "logx/payload.py::conversion": _TRACK,
    "odp/events.py": _ODP,
    "dispatch.py": _RESULTS | _EVENTS,
}


def raised() -> Iterator[tuple[str, str, str]]:
    """Each `Rejected(...)`: its module, the function around it, its reason."""
    for path in sorted(PIPELINE.rglob("*.py")):
        for top in ast.parse(path.read_text("utf-8")).body:
            for node in ast.walk(top):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "Rejected":
                    reason = ast.literal_eval(node.args[0])
                    assert isinstance(reason, str)
                    yield path.relative_to(PIPELINE).as_posix(), getattr(top, "name", ""), reason


def reasons() -> dict[str, set[str]]:
    """Each reason to the topics whose records may become dead letters for it. A place nobody placed is a KeyError."""
    found: dict[str, set[str]] = {}
    for module, function, reason in raised():
        found.setdefault(reason, set()).update(_GIVEN.get(f"{module}::{function}") or _GIVEN[module])
    return found
