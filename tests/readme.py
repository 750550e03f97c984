"""The tables of README.md, made from the settings, the metrics, the alerts and the limits themselves, so that they
cannot be out of date.

`python -m tests.readme` writes them between their markers; with `--check` it only says whether they are current and
ends with 1 if they are not (part of `make check`).
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import json
import math
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, ByteSize, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pipeline.messages.contracts import DECIDE_REQUEST, MAX_NESTING
from pipeline.metrics import Metrics
from pipeline.odp.events import MAX_BYTES as ODP_EVENTS_BYTES
from pipeline.settings import CONFIG_FILE, PREFIX, Settings
from pipeline.transport import MAX_ANSWER_BYTES, Transport

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RULES = ROOT / "k8s" / "rules" / "decision-pipeline.rules.yml"
# What a value is, by its type; durations are the only numbers that are not whole.
_KINDS: dict[Any, str] = {
    str: "text", SecretStr: "secret text", Path: "file", bool: "`true`, `false`", float: "seconds", int: "number",
    ByteSize: "bytes",
}  # fmt: skip


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _default(value: Any) -> str:
    if value is None:
        return ""
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, ByteSize):
        whole = next((unit for unit in (1024**2, 1024) if value % unit == 0), 0)
        return f"`{value // whole}{'MiB' if whole > 1024 else 'KiB'}`" if whole else f"`{int(value)}`"
    if isinstance(value, bool | tuple):
        return f"`{json.dumps(value)}`"
    return f"`{value}`"


def _value(field: FieldInfo) -> str:
    """What may stand there: a unit, the words allowed, the least and the most."""
    kind = field.annotation
    if get_origin(kind) in (UnionType, Union):
        (kind,) = (one for one in get_args(kind) if one is not type(None))
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is tuple:
        words = [word for one in get_args(kind) if get_origin(one) is Literal for word in get_args(one)]
        return f"list of {', '.join(f'`{word}`' for word in words) or 'text'}"
    if get_origin(kind) is Literal:
        return ", ".join(f"`{word}`" for word in get_args(kind))
    least = [getattr(bound, "ge", None) for bound in field.metadata]
    most = next((bound.le for bound in field.metadata if getattr(bound, "le", None) is not None), None)
    if kind is int and most is not None:
        return f"{next((one for one in least if one is not None), 1):,} to {most:,}"
    return _KINDS[kind]


def _section_of(annotation: Any) -> type[BaseModel] | None:
    kinds = [annotation, *get_args(annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _setting_rows(model: type[BaseModel], path: str) -> Iterable[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        section = _section_of(field.annotation)
        if section is None:
            yield f"`{path}{name.upper()}`", _value(field), _default(field.default), field.description or ""
    for name, field in model.model_fields.items():
        section = _section_of(field.annotation)
        if section is not None:
            yield from _setting_rows(section, f"{path}{name.upper()}__")


def settings_table() -> str:
    """Every setting: its name in the environment, what it may be, its default, its description."""
    meaning = "The same names as sections, in YAML; the environment takes precedence."
    file = (f"`{CONFIG_FILE}`", "file", "", meaning)
    return _table(("Setting", "Value", "Default", "Meaning"), [file, *_setting_rows(Settings, PREFIX)])


def metrics_table() -> str:
    """Every metric: its name as scraped, its kind, its labels, its help text."""
    metrics = Metrics(CollectorRegistry())
    rows = []
    for collector in vars(metrics).values():
        if isinstance(collector, CollectorRegistry):
            continue
        described = next(iter(collector.describe()))
        suffix = "_total" if described.type == "counter" else ""
        labels = ", ".join(collector._labelnames)
        rows.append((f"`{described.name}{suffix}`", described.type, labels, described.documentation))
    return _table(("Metric", "Kind", "Labels", "Meaning"), rows)


def alerts_table() -> str:
    """Every alert: its name, how urgent it is, when it fires, what that means (the beginning of its description)."""
    rows = []
    for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"]:
        for alert in group["rules"]:
            summary, description = alert["annotations"]["summary"], alert["annotations"]["description"]
            first = re.split(r"(?<=\.) (?=[A-Z])", description, maxsplit=1)[0]
            said = [_in_words(text, alert["expr"]) for text in (summary, first)]
            after = str(alert.get("for", "at once")).replace("m", " min").replace("h", " h")
            rows.append((f"`{alert['alert']}`", f"{alert['labels']['severity']}, {after}", *said))
    return _table(("Alert", "Severity, after", "Fires when", "What it means"), rows)


def _in_words(template: str, expr: str) -> str:
    """An annotation with the labels' names for the labels, and the threshold for the value."""
    text = re.sub(r"\{\{ with .*?\{\{ end \}\}", "", template)
    text = re.sub(r"\{\{ \$labels\.(\w+) \}\}", r"*\1*", text)
    bounds = {math.prod(map(float, found.split(" * "))) for found in re.findall(r"> ([\d.]+(?: \* [\d.]+)*)", expr)}
    bound = bounds.pop() if len(bounds) == 1 else None
    text = re.sub(r"\{\{ \$value(?: \| (\w+))? \}\}", lambda found: _over(bound, found[1]), text)
    text = re.sub(r"(?<!`)\b((?:PIPELINE|decision_pipeline)_\w+)", r"`\1`", text)
    assert "{{" not in text, f"a template that nobody renders here: {text}"
    return text[0].upper() + text[1:]


def _over(bound: float | None, form: str | None) -> str:
    if bound is None:
        return "*n*"
    if form == "humanizePercentage":
        return f"more than {bound * 100:g} %"
    if form == "humanizeDuration":
        seconds, unit = next(one for one in ((86400, "days"), (60, "min"), (1, "s")) if bound >= one[0])
        return f"more than {bound / seconds:g} {unit}"
    return f"more than {bound:g}" if bound else "some"


def limits_table() -> str:
    """The bounds that somebody may meet, and whose each is."""
    defaults = Settings()
    kafka, odp, cmab, logx = defaults.kafka, defaults.odp, defaults.cmab, defaults.logx
    longest_id = DECIDE_REQUEST.schema["properties"]["requestId"]["maxLength"]
    connections = inspect.signature(Transport).parameters["max_connections"].default
    return _table(
        ("Limit", "Whose"),
        [
            (
                f"{_size(kafka.max_record_bytes)} a record read, and a result written "
                f"(`{PREFIX}KAFKA__MAX_RECORD_BYTES`); {MAX_NESTING} levels of nesting; "
                f"`requestId` {longest_id:,} characters",
                "record",
            ),
            (f"{kafka.window_records:,} records under way (logx: {kafka.logx_window_records:,})", "partition"),
            (f"{_size(kafka.held_bytes)} of records under way", "role in a process"),
            (f"{odp.max_waiting_users:,} users waiting for segments, {odp.cache_size:,} remembered", "process"),
            (
                f"{odp.max_in_flight} GraphQL requests under way, {odp.max_users_per_query} users in each; where ODP "
                "refuses that size, fewer, found by halving",
                "ODP account, in each process",
            ),
            (
                f"{cmab.max_in_flight} prediction requests under way, {cmab.max_waiting:,} predictions waited for, "
                f"{cmab.cache_size:,} remembered",
                "process",
            ),
            (f"{defaults.profiles.max_users:,} sticky profiles in memory, where they are not in Redis", "process"),
            (
                f"{logx.max_in_flight} requests with events under way to logx, {odp.event_max_in_flight} to ODP",
                "process",
            ),
            (f"{logx.batch_events:,} events and {logx.batch_bytes / 10**6:g} MB a request", "logx"),
            (f"{odp.event_batch_size} events and {_size(ODP_EVENTS_BYTES)} a request", "ODP events"),
            (
                f"{_size(defaults.optimizely.max_datafile_bytes)} a datafile, {_size(MAX_ANSWER_BYTES)} any other "
                f"answer, {connections} HTTP connections",
                "process",
            ),
        ],
    )


def _size(octets: int) -> str:
    return f"{octets / 1024**2:g} MiB"


TABLES = {"settings": settings_table, "metrics": metrics_table, "alerts": alerts_table, "limits": limits_table}


def current(text: str) -> str:
    """The README's `text` with its tables made anew. Raises SystemExit when a marker is missing."""
    for name, made in TABLES.items():
        table = made()
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise SystemExit(f"README.md must hold {begin} and {end} once each")
        text = re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{table}\n{end}", text, flags=re.DOTALL)  # noqa: B023
    return text


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.readme", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if the tables are out of date")
    check: bool = parser.parse_args().check
    old = README.read_text("utf-8")
    new = current(old)
    if not check:
        README.write_text(new, "utf-8")
    elif new != old:
        changes = difflib.unified_diff(old.splitlines(), new.splitlines(), "README.md", "now", lineterm="")
        print("\n".join(changes))
        print("README.md is out of date: run `make readme`")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
