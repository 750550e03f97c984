"""The example files, which are documentation for others and test data here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from pipeline.messages import contracts
from pipeline.messages.contracts import Contract

CONTRACTS: dict[str, Contract] = {
    contract.name: contract
    for contract in (
        contracts.DECIDE_REQUEST,
        contracts.DECIDE_RESULT,
        contracts.TRACK_EVENT,
        contracts.ODP_EVENT,
        contracts.DEAD_LETTER,
    )
}
SCHEMAS = Path(__file__).parents[2] / "schemas"
MAX_BYTES = 1024**2


def files(kind: str, message: str) -> dict[str, Path]:
    """Examples of a message, `valid` or `invalid`, by their name."""
    return {path.stem: path for path in sorted((SCHEMAS / "examples" / kind / message).glob("*.json"))}


def document(kind: str, message: str, name: str) -> Any:
    return orjson.loads(files(kind, message)[name].read_bytes())


def value(kind: str, message: str, name: str) -> bytes:
    return files(kind, message)[name].read_bytes()


def nested(levels: int) -> dict[str, Any]:
    """An object with so many levels, itself included."""
    inner: dict[str, Any] = {}
    for _ in range(levels - 1):
        inner = {"a": inner}
    return inner
