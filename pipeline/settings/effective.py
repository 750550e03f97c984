"""The settings in effect, one by one, for `pipeline check-config`: value, default, and where each comes from.

Secrets are masked here, so that no way of showing them can forget it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import ByteSize, SecretStr

from pipeline.settings.loading import Loaded
from pipeline.settings.masking import HIDDEN, masked, without_password
from pipeline.settings.names import SETTINGS, variable

DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Effective:
    """One setting, its value and default as JSON knows them, secrets masked."""

    setting: str
    value: Any
    default: Any
    changed: bool
    place: str

    @property
    def variable(self) -> str:
        return variable(self.setting)

    @property
    def text(self) -> str:
        """The value for a person, in a form that could be set; `-` for none."""
        return _text(self.setting, self.value)

    def document(self) -> dict[str, Any]:
        return {
            "name": self.variable, "setting": self.setting, "value": self.value, "default": self.default,
            "changed": self.changed, "from": self.place,
        }  # fmt: skip


def effective_settings(loaded: Loaded) -> Iterator[Effective]:
    """All settings, in the order of README's table."""
    for setting, field in SETTINGS.items():
        value: Any = loaded.settings
        for name in setting.split("."):
            value = getattr(value, name)
        origin = loaded.origins.get(setting)
        yield Effective(
            setting, _shown(setting, value), _shown(setting, field.default), value != field.default,
            DEFAULT if origin is None else origin.place,
        )  # fmt: skip


def _shown(setting: str, value: Any) -> Any:
    if setting == "optimizely.sdk_keys":
        return [masked(key) for key in value]
    if isinstance(value, SecretStr):
        return HIDDEN
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, str):
        return without_password(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value)


def _text(setting: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(value) or "-"
    if SETTINGS[setting].annotation is ByteSize:
        unit, name = next(
            ((unit, name) for unit, name in ((2**20, "MiB"), (2**10, "KiB")) if value % unit == 0), (1, "")
        )
        return f"{value // unit}{name}"
    if isinstance(value, float):
        return f"{value:.12g}"
    return "-" if value is None else str(value) or '""'
