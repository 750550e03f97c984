"""Typed reading of a datafile's JSON: a wrong type is refused with its place in the document.

A field that is absent or null has the zero value of its type, a section that is absent is empty, a field nobody
knows is ignored. `compile_datafile` is the only caller; DatafileRefused is the only thing raised.
"""

from __future__ import annotations

from typing import Any, cast

from pipeline.errors import DatafileRefused

_KINDS = {str: "text", bool: "true or false", int: "a whole number", list: "a list", dict: "an object"}


class Entry:
    """One object of the document and where it stands."""

    __slots__ = ("fields", "where")

    def __init__(self, fields: object, where: str) -> None:
        if not isinstance(fields, dict):
            raise _refused(where, dict)
        self.fields: dict[str, Any] = fields
        self.where = where

    def text(self, name: str) -> str:
        return cast(str, self._typed(name, str)) or ""

    def nullable(self, name: str) -> str | None:
        """Text, or None where there is none: not the same as an empty one."""
        return cast("str | None", self._typed(name, str))

    def required(self, name: str) -> str:
        """Text that must be there; it may be empty, as the datafile's own format allows."""
        value = self._typed(name, str)
        if value is None:
            raise DatafileRefused(f"{self._place(name)} is missing")
        return cast(str, value)

    def boolean(self, name: str) -> bool | None:
        return cast("bool | None", self._typed(name, bool))

    def number(self, name: str) -> int | None:
        value = self.fields.get(name)
        # True is an int in Python, never in a datafile.
        if value is None or type(value) is int:
            return value
        raise _refused(self._place(name), int)

    def texts(self, name: str) -> list[str]:
        values = self._typed(name, list) or []
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise _refused(f"{self._place(name)}[{index}]", str)
        return cast("list[str]", values)

    def entries(self, name: str) -> list[Entry]:
        values = self._typed(name, list) or []
        place = self._place(name)
        return [Entry(value, f"{place}[{index}]") for index, value in enumerate(values)]

    def entry(self, name: str) -> Entry | None:
        value = self.fields.get(name)
        return None if value is None else Entry(value, self._place(name))

    def _typed(self, name: str, kind: type) -> Any:
        value = self.fields.get(name)
        if value is None or isinstance(value, kind):
            return value
        raise _refused(self._place(name), kind)

    def _place(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name


def _refused(place: str, wanted: type) -> DatafileRefused:
    return DatafileRefused(f"{place or 'the datafile'} is not {_KINDS[wanted]}")
