"""The tables of README.md, made from the settings and the metrics themselves, so that they cannot be out of date.

`python -m tests.readme` writes them between their markers; with `--check` it only says whether they are current and
ends with 1 if they are not (part of `make check`).
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from prometheus_client import CollectorRegistry
from pydantic import BaseModel, ByteSize
from pydantic_core import PydanticUndefined

from pipeline.metrics import Metrics
from pipeline.settings import CONFIG_FILE, PREFIX, Settings

README = Path(__file__).parents[1] / "README.md"


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


def _section_of(annotation: Any) -> type[BaseModel] | None:
    kinds = [annotation, *get_args(annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _setting_rows(model: type[BaseModel], path: str) -> Iterable[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        section = _section_of(field.annotation)
        if section is None:
            yield f"`{path}{name.upper()}`", _default(field.default), field.description or ""
    for name, field in model.model_fields.items():
        section = _section_of(field.annotation)
        if section is not None:
            yield from _setting_rows(section, f"{path}{name.upper()}__")


def settings_table() -> str:
    """Every setting: its name in the environment, its default, its description."""
    file = (f"`{CONFIG_FILE}`", "", "YAML file with the same names as sections; the environment goes first.")
    return _table(("Setting", "Default", "Meaning"), [file, *_setting_rows(Settings, PREFIX)])


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


def current(text: str) -> str:
    """The README's `text` with its tables made anew. Raises SystemExit when a marker is missing."""
    for name, table in (("settings", settings_table()), ("metrics", metrics_table())):
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
