"""Values of headers, read also where a producer's serializer dressed them: in quotes, with blanks, as a number's bytes.

Kafka says nothing of what a header's bytes mean. Spring writes texts as JSON, quotes included; Java's LongSerializer
writes eight bytes. Each of these can be nothing else, so it is read; what a caller cannot read it reports.
"""

from __future__ import annotations

_BLANKS = b" \t\r\n"
_LONG_BYTES = 8
# The first byte of every long that is a time of the next 2 million years, or -1; no text begins with either.
_LONG_BEGINS = (b"\x00", b"\xff")
_MOST_DIGITS = 15


def plain(value: bytes | None) -> bytes:
    """The text of a header without blanks and quotes around it; empty for Kafka's null and for JSON's."""
    text = (value or b"").strip(_BLANKS)
    if len(text) > 1 and text.startswith(b'"') and text.endswith(b'"'):
        return text[1:-1].strip(_BLANKS)
    return b"" if text == b"null" else text


def integer(value: bytes | None) -> bytes:
    """The text of a header that holds a whole number, also where it is a big-endian long."""
    if value is not None and len(value) == _LONG_BYTES and value.startswith(_LONG_BEGINS):
        return b"%d" % int.from_bytes(value, "big", signed=True)
    return plain(value)


def milliseconds(value: bytes | None) -> int | None:
    """A time in milliseconds since the epoch; None for an empty header, and for 0: nothing was set.

    Raises ValueError, which quotes nothing, for anything else than up to 15 digits.
    """
    text = integer(value)
    if not text:
        return None
    if not text.isdigit() or len(text) > _MOST_DIGITS:
        raise ValueError("no time in milliseconds")
    return int(text) or None
