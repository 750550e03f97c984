"""What is asked in each row: a datafile, and requests that fill a topic before anybody reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tests.benchmarks.project import SEGMENT, datafile, flag_keys, request

PEOPLE = 2000
"""Different users where they are to be in the cache."""
COLD_USERS = 300_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One kind of request."""

    name: str
    title: str
    requests: int
    """In the topic: enough for the fastest contender's measured seconds."""
    flags: int = 1
    """In the datafile."""
    asked: int = 1
    """Flags a request names; 0 names none, which means all."""
    segments: bool = False
    """Whether the audiences ask for a segment, and the requests for it to be fetched."""
    cold: bool = False
    """Every user once."""
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def impressions(self) -> int:
        """Due for each request."""
        return self.asked or self.flags

    @property
    def users(self) -> int:
        return self.requests if self.cold else PEOPLE

    def values(self) -> Iterator[tuple[bytes, bytes]]:
        """Key and value of each request."""
        keys = flag_keys(self.asked) if self.asked else ()
        for number in range(self.requests):
            value = request(number % self.users + 1, keys, fetch_segments=self.segments)
            yield user_key(number % self.users + 1), value

    def datafile(self, odp_host: str | None) -> bytes:
        return datafile(self.flags, segments=self.segments, odp_host=odp_host)


def user_key(number: int) -> bytes:
    """The record key of a user: the user id."""
    return f"user-{number:05d}".encode()


def cold_people() -> dict[str, list[str]]:
    """Users that the data platform has to know for the cold loads, beside its own."""
    return {user_key(number).decode(): [SEGMENT] for number in range(1, COLD_USERS + 1)}


ONE_FLAG = Load(name="one-flag", title="1 flag, no segments", requests=450_000)
CACHED = Load(name="cached", title="1 flag, cached segments", requests=450_000, segments=True)
TWELVE = Load(name="twelve", title="all of 12 flags", requests=90_000, flags=12, asked=0, segments=True)
HUNDRED = Load(name="hundred", title="all of 100 flags", requests=14_000, flags=100, asked=0, segments=True)
MAIN = (ONE_FLAG, CACHED, TWELVE, HUNDRED)


def cold(aliases: int) -> Load:
    """Cold segments, `aliases` users in a query at most."""
    return Load(
        name=f"cold-{aliases}", title=f"1 flag, cold segments, {aliases} users a query", requests=COLD_USERS,
        segments=True, cold=True,
        # In a backlog thousands wait at once: for as long as it takes, so that none is answered by an error.
        settings={"ODP__MAX_USERS_PER_QUERY": str(aliases), "ODP__FETCH_DEADLINE": "120"},
    )  # fmt: skip


COLD = cold(50)
"""With the worker's own number of users in a query."""


def with_flags(flags: int) -> Load:
    """One flag asked of a datafile with many."""
    return Load(name=f"of-{flags}", title=f"1 of {flags} flags", requests=450_000, flags=flags, segments=True)
