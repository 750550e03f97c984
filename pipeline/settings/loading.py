"""How settings are read: the environment (`PIPELINE_<SECTION>__<NAME>`) over an optional YAML file.

A name that nothing reads is an error, and all mistakes are reported at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.errors import ConfigurationError
from pipeline.settings.sections import PREFIX, SERVERS, Settings

CONFIG_FILE = "PIPELINE_CONFIG_FILE"
_LOOKS = {SERVERS: "must be host:port, or several separated by commas"}


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, text in environ.items():
        if not name.startswith(PREFIX) or name == CONFIG_FILE:
            continue
        path = name.removeprefix(PREFIX).lower().split("__")
        inner = values
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigurationError([f"{name}: set together with a name that it is part of"])
        inner[path[-1]] = text
    return values


def _from_file(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigurationError([f"{path}: cannot be read: {error.strerror}"]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError([f"{path}: not YAML: {error}"]) from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigurationError([f"{path}: must be a mapping of sections"])
    return document


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        old = merged.get(name)
        merged[name] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _mistakes(error: ValidationError) -> list[str]:
    found = []
    for item in error.errors(include_url=False, include_input=False):
        path = [str(part) for part in item["loc"]]
        name = PREFIX + "__".join(path[:2]).upper()
        text = item["msg"].removeprefix("Value error, ")
        if item["type"] == "string_pattern_mismatch":
            text = _LOOKS.get(item["ctx"]["pattern"], text)
        if item["type"] == "extra_forbidden":
            text = "no such setting (see `pipeline check-config`)"
        # What does not fit together across sections names its settings itself.
        found += [f"{name}: {text}"] if path else text.splitlines()
    return found


def load_settings(environ: Mapping[str, str] | None = None, file: Path | None = None) -> Settings:
    """Settings from `file` (or the file named by PIPELINE_CONFIG_FILE) under the environment.

    Raises ConfigurationError with every mistake found.
    """
    environ = os.environ if environ is None else environ
    if file is None and environ.get(CONFIG_FILE):
        file = Path(environ[CONFIG_FILE])
    values = _merged(_from_file(file) if file else {}, _from_environment(environ))
    mistakes: list[str] = []
    while True:
        try:
            settings = Settings.model_validate(values)
        except ValidationError as error:
            mistakes += [mistake for mistake in _mistakes(error) if mistake not in mistakes]
            # What does not fit together is only looked for among good values: it is asked for again without the bad.
            if not _without_mistaken(values, error):
                raise ConfigurationError(mistakes) from error
        else:
            break
    if mistakes:
        raise ConfigurationError(mistakes)
    return settings


def _without_mistaken(values: dict[str, Any], error: ValidationError) -> bool:
    """Take the values found bad out of `values`; False if there is none left to take out."""
    taken = False
    for item in error.errors(include_url=False, include_input=False):
        inner: Any = values
        *sections, name = [str(part) for part in item["loc"][:2]] or [""]
        for section in sections:
            inner = inner.get(section) if isinstance(inner, dict) else None
        # A section whose values do not fit together is named as a whole: it goes last, as a whole.
        if isinstance(inner, dict) and name in inner:
            del inner[name]
            taken = True
    return taken
