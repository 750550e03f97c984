"""Verdicts kept in a file of JSON lines, so that a run that was interrupted goes on where it was.

A verdict counts for the very text of its file, and of the tests. Only what was killed is known: what did not end is
tried again, and what survived, as it may have been bad luck.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

from tests.mutation.finding import Mutant
from tests.mutation.running import KILLED, Verdict


class State:
    """Without a path nothing is kept."""

    def __init__(self, path: Path | None, texts: dict[str, str], tests: str) -> None:
        """`tests` is a digest of them."""
        self._path = path
        self._digests = {file: sha256((tests + text).encode()).hexdigest()[:16] for file, text in texts.items()}
        self._known: dict[tuple[str, str, int], Verdict] = {}
        if path is not None and path.exists():
            for line in path.read_text("utf-8").splitlines():
                kept = json.loads(line)
                key = (kept["file"], kept["digest"], kept["number"])
                self._known[key] = Verdict(kept["outcome"], kept["by"], kept["seconds"])

    def verdict(self, mutant: Mutant) -> Verdict | None:
        found = self._known.get(self._key(mutant))
        return found if found is not None and found.outcome == KILLED else None

    def keep(self, mutant: Mutant, verdict: Verdict) -> None:
        if self._path is None:
            return
        file, digest, number = self._key(mutant)
        line = {
            "file": file, "digest": digest, "number": number, "line": mutant.line, "function": mutant.function,
            "change": mutant.change, **verdict._asdict(),
        }  # fmt: skip
        with self._path.open("a", encoding="utf-8") as written:
            written.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _key(self, mutant: Mutant) -> tuple[str, str, int]:
        return mutant.file, self._digests[mutant.file], mutant.number
