"""Settings from what is written (`sources.py`), every mistake at once and under the name that the person gave.

Pydantic looks for conflicts only among good values, so the values found wrong are taken out and the rest is looked at
again: conflicts and files are checked for whatever is left, and nothing is told twice.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ByteSize, ValidationError
from pydantic_core import ErrorDetails

from pipeline.errors import ConfigurationError
from pipeline.settings.conflicts import Conflict
from pipeline.settings.names import SETTINGS, with_names
from pipeline.settings.sections import Settings
from pipeline.settings.sources import EMPTY, Origin, Sources, read_sources
from pipeline.settings.values import SDK_KEY_PATTERN

Check = Callable[[Settings], Iterable[Conflict]]
_SHOWN_LENGTH = 40
_SAID = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "float_type": "must be seconds, or a number with a unit: 500ms, 5s, 1m, 2h, 7d",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "path_type": "must be the path of a file",
    "string_too_short": EMPTY,
    "string_type": "must be text: put it in quotes",
    "too_short": "must hold at least one",
    "tuple_type": "must be a list",
}
_KEYS_APART = "holds a blank or a semicolon: separate keys with commas"
_KEYS_LOOK = "may hold letters, digits and + / = _ -, at most 128 of them"


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, where each that is set comes from, and what looks odd without being wrong."""

    settings: Settings
    origins: Mapping[str, Origin]
    warnings: tuple[str, ...]


def load_settings(environ: Mapping[str, str] | None = None, file: Path | None = None) -> Settings:
    """Settings from `file` (or the file named by PIPELINE_CONFIG_FILE) under the environment.

    Raises ConfigurationError with every mistake found.
    """
    return load(environ, file).settings


def load(
    environ: Mapping[str, str] | None = None,
    file: Path | None = None,
    *,
    roles: str | None = None,
    checks: Iterable[Check] = (),
    advice: Iterable[Check] = (),
) -> Loaded:
    """As `load_settings`; `roles` is above both. What `checks` find are mistakes too, what `advice` finds warnings."""
    sources = read_sources(os.environ if environ is None else environ, file, roles)
    settings, conflicts = _validated(sources)
    conflicts += [one for check in checks for one in check(settings)]
    if sources.complete:
        sources.mistakes += [_told(sources, one) for one in conflicts if not sources.refused.intersection(one.names)]
    if sources.mistakes:
        raise ConfigurationError(sources.mistakes, sources.warnings)
    warnings = [*sources.warnings, *(_told(sources, one) for check in advice for one in check(settings))]
    return Loaded(settings, sources.origins, tuple(warnings))


def _validated(sources: Sources) -> tuple[Settings, list[Conflict]]:
    values = {setting: value for setting, value in sources.values.items() if setting not in sources.refused}
    while True:
        conflicts: list[Conflict] = []
        try:
            return Settings.model_validate(_nested(values), context={"conflicts": conflicts}), conflicts
        except ValidationError as error:
            for item in error.errors(include_url=False):
                setting = ".".join(str(part) for part in item["loc"][: 1 if item["loc"][0] in SETTINGS else 2])
                values.pop(setting, None)
                sources.refuse(setting, sources.origins[setting], _sentence(setting, item))


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for setting, value in values.items():
        section, _, name = setting.partition(".")
        if name:
            nested.setdefault(section, {})[name] = value
        else:
            nested[section] = value
    return nested


def _sentence(setting: str, item: ErrorDetails) -> str:
    kind, given, context = item["type"], item["input"], item.get("ctx", {})
    if given is None:
        return EMPTY
    if kind == "value_error":
        text = str(context["error"])
    elif kind == "string_pattern_mismatch" and context["pattern"] == SDK_KEY_PATTERN:
        text = _KEYS_APART if re.search(r"[\s;]", given) else _KEYS_LOOK
    else:
        text = _SAID.get(kind) or item["msg"].replace("Input should", "must").replace("String should", "must")
    if kind == "string_type" and isinstance(given, list | dict):
        text = "must be text"
    places = [part for part in item["loc"] if isinstance(part, int)]
    if places:
        text = f"item {places[0] + 1} {text}"
    numeric = SETTINGS[setting].annotation in (int, float, bool, ByteSize)
    shown = str(given)
    return f"{text}, not {shown}" if numeric and len(shown) <= _SHOWN_LENGTH and shown.isprintable() else text


def _told(sources: Sources, conflict: Conflict) -> str:
    setting = conflict.names[0]
    origin = sources.origins.get(setting)
    name = sources.name_of(setting) if origin is None else origin.name
    return f"{name}: {with_names(conflict.text, sources.name_of)}"
