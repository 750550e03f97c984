"""Compiling a datafile, and freeing what it replaces, in a thread so that the event loop hardly notices.

Compiling makes up to a million objects that live as long as the revision. The garbage collector would walk them again
and again, and nothing else runs while it does: the loop stood still for over half a second with a datafile of 5 MB.
So it pauses meanwhile, and what was made is taken out of its sight; the objects hold no cycles and are freed all the
same once nobody refers to them. Called by the poller, in its one thread: the collector is the process's, and so is the
time after which a thread must let another one run.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from pipeline.project import ProjectConfig

_T = TypeVar("_T")

_TURN_SECONDS = 0.0005
"""At Python's own 5 ms each look at the sockets costs the loop so much, and it does a quarter of its work meanwhile."""


def compiled(compile: Callable[[bytes], _T], raw: bytes) -> _T:  # noqa: A002 - what it does
    """`compile(raw)`, and whatever it raises, without a collection in between."""
    # What is garbage now stays for ever. The youngest is looked for; more would hold the loop itself where thousands of
    # requests wait. Requests leave no cycles behind, and there are few revisions in the life of a process.
    gc.collect(0)
    enabled = gc.isenabled()
    gc.disable()
    try:
        with _short_turns():
            return compile(raw)
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


def free(replaced: list[ProjectConfig]) -> None:
    """Empty the list, whose projects nobody else refers to, flag by flag: freed at once, one of 5 MB takes 30 ms."""
    with _short_turns():
        while replaced:
            flags = list(replaced.pop().flags.values())
            while flags:
                flags.pop()


@contextmanager
def _short_turns() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(_TURN_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
