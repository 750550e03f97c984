"""Compiling a datafile in a thread so that the event loop hardly notices.

Compiling makes up to a million objects that live as long as the revision. The garbage collector would walk them again
and again, and nothing else runs while it does: the loop stood still for over half a second with a datafile of 5 MB.
So it pauses meanwhile, and what was made is taken out of its sight; the objects hold no cycles and are freed all the
same once nobody refers to them. Called by the poller, in its one thread: the collector is the process's.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def compiled(compile: Callable[[bytes], _T], raw: bytes) -> _T:  # noqa: A002 - what it does
    """`compile(raw)`, and whatever it raises, without a collection in between."""
    # What is garbage now stays for ever. The youngest is looked for; more would hold the loop itself where thousands of
    # requests wait. Requests leave no cycles behind, and there are few revisions in the life of a process.
    gc.collect(0)
    enabled = gc.isenabled()
    gc.disable()
    try:
        return compile(raw)
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
