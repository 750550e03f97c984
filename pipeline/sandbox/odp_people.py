"""The people of one account of the data platform: who is who, and in which segments. Pure.

The 5,000 of `project_data` are known from the start, by user id and by e-mail address. An event makes its identifiers
known; with several of them it says that they are one person, who then has the segments of all, whichever identifier
asks. Used by the stand-in for ODP.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pipeline.sandbox.project_data import email_of, segments_of

USER_ID = "fs_user_id"
Identifier = tuple[str, str]
"""Name and value."""


class People:
    """Persons are what their identifiers say; everyone is known by one identifier at least."""

    def __init__(self, told: Mapping[str, list[str]]) -> None:
        """`told`, user id -> segments, goes before the 5,000; may be replaced at any time."""
        self.told = told
        # Only of persons that an event spoke of; the others need not be written down.
        self._person_of: dict[Identifier, set[Identifier]] = {}

    def segments(self, identifier: Identifier) -> tuple[str, ...] | None:
        """All segments of whom an identifier belongs to; None if nobody has it."""
        person = self._person_of.get(identifier)
        if person is None:
            user = self._known_user(identifier)
            if user is None:
                return None
            person = self._person_of.get((USER_ID, user))
            if person is None:
                return self._own(user)
        found: dict[str, None] = {}
        for name, value in sorted(person):
            if name == USER_ID:
                found |= dict.fromkeys(self._own(value) or ())
        return tuple(found)

    def meet(self, identifiers: Iterable[Identifier]) -> None:
        """An event with these identifiers, at least one: they are known from now on, and of one person."""
        named = set(identifiers)
        named |= {(USER_ID, user) for identifier in named if (user := self._known_user(identifier)) is not None}
        known = [self._person_of[identifier] for identifier in named if identifier in self._person_of]
        person = max(known, key=len) if known else set()
        for other in known:
            named |= other
        for identifier in named - person:
            person.add(identifier)
            self._person_of[identifier] = person

    @property
    def stitched(self) -> int:
        """Persons of whom events brought several identifiers."""
        return len({id(person) for person in self._person_of.values() if len(person) > 1})

    def _own(self, user: str) -> tuple[str, ...] | None:
        return tuple(self.told[user]) if user in self.told else segments_of(user)

    def _known_user(self, identifier: Identifier) -> str | None:
        """The user id that an identifier belongs to without any event."""
        name, value = identifier
        user = value if name == USER_ID else value.partition("@")[0]
        if name != USER_ID and (name, value) != ("email", email_of(user)):
            return None
        return None if self._own(user) is None else user
