"""Names of settings: `kafka.group_id` in YAML and in texts, `PIPELINE_KAFKA__GROUP_ID` in the environment.

A setting is known in this package by its first name. A name that nobody knows gets the likeliest known one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from typing import get_args

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from pipeline.settings.sections import PREFIX, Section, Settings
from pipeline.settings.values import MayBeEmpty

CONFIG_FILE = f"{PREFIX}CONFIG_FILE"
# So alike that the variable is a slip of the pen, and not another program's.
_ALIKE = 0.85
_REFERENCE = re.compile(r"\{(\w+\.\w+)\}")


def _section(field: FieldInfo) -> type[Section] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _all() -> dict[str, FieldInfo]:
    found = {}
    for name, field in Settings.model_fields.items():
        section = _section(field)
        if section is None:
            found[name] = field
        else:
            found |= {f"{name}.{inner}": one for inner, one in section.model_fields.items()}
    return found


SETTINGS = _all()
SECTIONS = tuple(name for name, field in Settings.model_fields.items() if _section(field) is not None)


def _plain(name: str) -> str:
    """A name in any spelling, so that two spellings of one name are equal."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_").removeprefix(PREFIX.lower())


_PLAIN = {_plain(name): name for name in SETTINGS}


def variable(setting: str) -> str:
    """The name in the environment."""
    return PREFIX + setting.replace(".", "__").upper()


def likely(name: str, alike: float = _ALIKE) -> str | None:
    """The setting that an unknown name means, if one is nearly the same."""
    found = get_close_matches(_plain(name), _PLAIN, 1, alike)
    return _PLAIN[found[0]] if found else None


def likely_variable(name: str, alike: float = _ALIKE) -> str | None:
    """The same for a variable, by its name in the environment."""
    setting = likely(name, alike)
    if setting is None:
        return CONFIG_FILE if get_close_matches(name, [CONFIG_FILE], 1, _ALIKE) else None
    return variable(setting)


def likely_in(section: str, name: str) -> str | None:
    """The setting that an unknown name in a known section means: one of the section, or the same name in another."""
    inside = [one.removeprefix(f"{section}.") for one in SETTINGS if one.startswith(f"{section}.")]
    found = get_close_matches(name.replace("-", "_").lower(), inside, 1)
    if found:
        return f"{section}.{found[0]}"
    return next((one for one in SETTINGS if one.endswith(f".{name}")), None)


def likely_section(name: str) -> str | None:
    found = get_close_matches(name.lower(), SECTIONS, 1)
    return found[0] if found else None


def may_be_empty(setting: str) -> bool:
    return any(isinstance(mark, MayBeEmpty) for mark in SETTINGS[setting].metadata)


def is_password(setting: str) -> bool:
    """Whether any character may belong to a value, and none may be shown."""
    kinds = get_args(SETTINGS[setting].annotation)
    return any(SecretStr in (kind, *get_args(kind)) for kind in kinds)


def with_names(text: str, named: Callable[[str], str]) -> str:
    """The text with `named(setting)` for each `{setting}` in it."""
    return _REFERENCE.sub(lambda found: named(found[1]) if found[1] in SETTINGS else found[0], text)
