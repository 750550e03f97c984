"""Typed reading of a datafile's JSON: a wrong type is refused with its place in the document.

A field that is absent or null has the zero value of its type, a section that is absent is empty, a field nobody
knows is ignored. `compile_datafile` is the only caller; DatafileRefused is the only thing raised.
"""

from __future__ import annotations

from typing import Any

from pipeline.errors import DatafileRefused

_KINDS = {str: "text", bool: "true or false", int: "a whole number", list: "a list", dict: "an object"}


class Entry:
    """One object of the document and where it stands."""

    __slots__ = ("_index", "_name", "_parent", "fields")

    def __init__(self, fields: object, parent: Entry | None = None, name: str = "", index: int | None = None) -> None:
        """`name` is its member of `parent`, and where that is a list, `index` its place in it."""
        self._parent, self._name, self._index = parent, name, index
        if not isinstance(fields, dict):
            raise _refused(self.where, dict)
        self.fields: dict[str, Any] = fields

    @property
    def where(self) -> str:
        """As `experiments[0].variations[1]`; empty for the whole. Put together when it is asked for: few are told."""
        if self._parent is None:
            return ""
        place = self._parent._place(self._name)
        return place if self._index is None else f"{place}[{self._index}]"

    def text(self, name: str) -> str:
        return self.nullable(name) or ""

    def nullable(self, name: str) -> str | None:
        """Text, or None where there is none: not the same as an empty one."""
        value: object = self.fields.get(name)
        if value is None or isinstance(value, str):
            return value
        raise _refused(self._place(name), str)

    def required(self, name: str) -> str:
        """Text that must be there; it may be empty, as the datafile's own format allows."""
        value: object = self.fields.get(name)
        if isinstance(value, str):
            return value
        if value is None:
            raise DatafileRefused(f"{self._place(name)} is missing")
        raise _refused(self._place(name), str)

    def boolean(self, name: str) -> bool | None:
        value: object = self.fields.get(name)
        if value is None or isinstance(value, bool):
            return value
        raise _refused(self._place(name), bool)

    def number(self, name: str) -> int | None:
        value: object = self.fields.get(name)
        # True is an int in Python, never in a datafile.
        if value is None or type(value) is int:
            return value
        raise _refused(self._place(name), int)

    def texts(self, name: str) -> list[str]:
        values = self._list(name)
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise _refused(f"{self._place(name)}[{index}]", str)
        return values

    def entries(self, name: str) -> list[Entry]:
        return [Entry(value, self, name, index) for index, value in enumerate(self._list(name))]

    def entry(self, name: str) -> Entry | None:
        value = self.fields.get(name)
        return None if value is None else Entry(value, self, name)

    def _list(self, name: str) -> list[Any]:
        values: object = self.fields.get(name)
        if values is None:
            return []
        if isinstance(values, list):
            return values
        raise _refused(self._place(name), list)

    def _place(self, name: str) -> str:
        where = self.where
        return f"{where}.{name}" if where else name


def _refused(place: str, wanted: type) -> DatafileRefused:
    return DatafileRefused(f"{place or 'the datafile'} is not {_KINDS[wanted]}")
