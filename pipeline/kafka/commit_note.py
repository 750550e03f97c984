"""What a commit says besides the offset, in its metadata: a note to whoever owns the partition next. Pure.

`floor`: where to read the results from (see `progress.py`). `topic`, `results`: ids of the topics that offset and floor
belong to, since another topic may have the name by then. `unclean`: how often in a row the partition's owner ended
without giving it back; from the third time on records go one at a time. `alone`: the offset of the one in hand then. A
record that was alone in hand when its process died is what killed it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_NUMBER = r"([0-9]{1,19})"
_TOPIC_ID = r"([A-Za-z0-9_-]{22})"
_NOTE = re.compile(
    rf"(?:floor={_NUMBER})?(?:(?:^| )unclean={_NUMBER})?(?:(?:^| )alone={_NUMBER})?"
    rf"(?:(?:^| )topic={_TOPIC_ID})?(?:(?:^| )results={_TOPIC_ID})?"
)


@dataclass(frozen=True, slots=True)
class CommitNote:
    floor: int | None = None
    unclean: int = 0
    alone: int | None = None
    topic: str | None = None
    results: str | None = None

    def encode(self) -> str:
        parts = (
            ("floor", self.floor), ("unclean", self.unclean or None), ("alone", self.alone),
            ("topic", self.topic), ("results", self.results),
        )  # fmt: skip
        return " ".join(f"{name}={value}" for name, value in parts if value is not None)

    @classmethod
    def decode(cls, metadata: str | None) -> CommitNote:
        """The note in a commit's metadata; an empty one where somebody else committed, or nobody did."""
        found = _NOTE.fullmatch(metadata or "")
        if found is None:
            return cls()
        floor, unclean, alone = (None if text is None else int(text) for text in found.groups()[:3])
        return cls(floor, unclean or 0, alone, *found.groups()[3:])
