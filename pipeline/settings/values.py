"""How a value may be written, by its kind: lists, durations, sizes, broker addresses, URLs.

The environment knows only text and YAML has types of its own; both arrive here as the file or the environment gave
them. Plain other forms are taken (`5s`, `64Mi`, `a,b`, `INFO`); a refusal names the right form.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import orjson
from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, SecretStr

SDK_KEY_PATTERN = r"^[A-Za-z0-9+/=_-]{1,128}$"
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
# Kafka's protocol holds a duration as milliseconds and a size as bytes, in 32 bits with a sign.
_KAFKA_SECONDS = 2_147_483
_KAFKA_BYTES = 2**30
_DURATION = "must be seconds, or a number with a unit: 500ms, 5s, 1m, 2h, 7d"
_SIZE = "must be bytes, or a number with a unit: 64KiB, 64MiB, 64Mi, 64MB"
_EMPTY_ITEM = "holds an empty item: check the commas"
_SERVERS = "must be host:port, or several separated by commas"
# A longer wrong value is not quoted.
_QUOTED = 40
_REDIS = re.compile(r"(rediss?|unix)://")
_SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"": 1, "b": 1} | {
    f"{letter}{end}": base**power
    for power, letter in enumerate("kmgt", 1)
    for base, ends in ((1000, ("", "b")), (1024, ("i", "ib")))
    for end in ends
}
_TIMED = re.compile(r"(\d+\.?\d*|\.\d+)\s*(us|µs|ms|s|m|h|d)\s*")
_SIZED = re.compile(r"(\d+\.?\d*|\.\d+)\s*([a-z]*)")


class MayBeEmpty:
    """Marks a setting whose empty text is a value; elsewhere an empty text is a mistake."""


def choice(words: Iterable[str], value: str) -> str:
    """The one of `words` that is meant, in any case. Raises ValueError with the words and the likeliest of them."""
    known = list(words)
    found = next((word for word in known if word.casefold() == value.strip().casefold()), None)
    if found is not None:
        return found
    meant = _likeliest(value.strip().casefold(), {word.casefold(): word for word in known})
    said = value if len(value) <= _QUOTED and value.isprintable() else "it"
    raise ValueError(f"{said} is none of {', '.join(known)}{f'; did you mean {meant}?' if meant else ''}")


def _likeliest(value: str, known: dict[str, str]) -> str | None:
    longer = [word for plain, word in known.items() if value and plain.startswith(value)]
    if longer:
        # Of several that begin so, SASL_PLAINTEXT and SASL_SSL, none is the likelier; nor is SSL, which looks alike.
        return longer[0] if len(longer) == 1 else None
    alike = get_close_matches(value, known, 1)
    return known[alike[0]] if alike else None


def one_of(*words: str) -> BeforeValidator:
    """Takes a word in any case."""
    return BeforeValidator(lambda value: choice(words, value) if isinstance(value, str) else value)


def _listed(value: object) -> object:
    """A list as text: JSON, or words separated by commas."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("["):
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            raise ValueError('not a JSON list; write ["one","two"], or one,two') from None
    words = [word.strip() for word in text.split(",")] if text else []
    if "" in words:
        raise ValueError(_EMPTY_ITEM)
    return words


def words_of(known: Iterable[str]) -> Callable[[object], object]:
    """Reads a list of `known` words, in any case and none of them twice."""
    allowed = list(known)

    def read(value: object) -> object:
        words = _listed(value)
        if not isinstance(words, list | tuple):
            return words
        found = [choice(allowed, word) if isinstance(word, str) else word for word in words]
        twice = next((word for number, word in enumerate(found) if word in found[:number]), None)
        if twice is not None:
            raise ValueError(f"holds {twice} twice")
        return found

    return read


def _duration(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(_DURATION)
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    try:
        return float(text)
    except ValueError:
        pieces = _TIMED.findall(text)
        if not pieces or _TIMED.sub("", text):
            raise ValueError(_DURATION) from None
    return sum(float(number) * _SECONDS[unit] for number, unit in pieces)


def _size(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(_SIZE)
    if not isinstance(value, str):
        return value
    sized = _SIZED.fullmatch(value.strip().lower())
    if sized is None or sized[2] not in _BYTES:
        raise ValueError(_SIZE)
    return int(float(sized[1]) * _BYTES[sized[2]])


def _whole(value: object) -> object:
    # Pydantic would take YAML's `true` for 1.
    if isinstance(value, bool):
        raise ValueError("must be a whole number")
    return value.strip() if isinstance(value, str) else value


def _text(value: object) -> object:
    return value.strip() if isinstance(value, str) else value


def _secret(value: object) -> object:
    # A file made by `echo`, or a Secret made from one, ends with a newline that belongs to no password.
    return value.rstrip("\r\n") if isinstance(value, str) else value


def servers(value: str) -> str:
    """Broker addresses as Kafka's clients want them. Raises ValueError that says what is wrong with which."""
    if not value.strip():
        raise ValueError(_SERVERS)
    return ",".join([_server(one.strip()) for one in value.split(",")])


def _server(address: str) -> str:
    if not address:
        raise ValueError(_EMPTY_ITEM)
    if "@" in address:
        # Not quoted: a password may stand before an `@`.
        raise ValueError(_SERVERS)
    if re.search(r"\s", address):
        raise ValueError(f"{' '.join(address.split())} holds a blank; write host:port, several separated by commas")
    if "://" in address:
        bare = address.split("://", 1)[1]
        meant = bare if re.search(r":\d+$", bare) else f"{bare}:9092"
        raise ValueError(f"{address} begins with a protocol; did you mean {meant}?")
    host, colon, port = address.rpartition(":")
    if not colon or (address.startswith("[") and address.endswith("]")):
        raise ValueError(f"{address} has no port; did you mean {address}:9092?")
    if ":" in host and not re.fullmatch(r"\[[^\]]+\]", host):
        raise ValueError(f"{address}: an IPv6 address stands in brackets, as in [::1]:9092")
    if not host:
        raise ValueError(f"{address} has no host")
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(f"{address}: {port or 'nothing'} is no port (1 to 65535)")
    return address


def _servers_given(value: object) -> object:
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        value = ",".join(value)
    return servers(value) if isinstance(value, str) else value


def url(value: str) -> str:
    """An HTTP address. Raises ValueError that does not quote it, for it may hold a password."""
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError("is no address: check the host and the port (1 to 65535)") from None
    if parts.scheme not in ("https", "http"):
        raise ValueError("must begin with https:// or http://")
    if not host or re.search(r"\s", value):
        raise ValueError("must be an address such as https://host/path")
    return value


def template(thing: str) -> AfterValidator:
    """Takes an address with one place for `thing`."""

    def check(value: str) -> str:
        if value.count("%s") != 1:
            raise ValueError(f"must hold %s once, where {thing} goes")
        return value

    return AfterValidator(check)


def _host(value: str) -> str:
    if "/" in value or (value.count(":") == 1):
        raise ValueError(f"{value}: only the name of the host, without https://, port and path")
    if not re.fullmatch(r"(\*\.)?[A-Za-z0-9._:-]+", value):
        raise ValueError(f"{value}: must be the name of a host; `*.` at its beginning stands for any subdomain")
    return value


def _topic(value: str) -> str:
    # Kafka's own rule.
    if not _TOPIC.fullmatch(value) or value in (".", ".."):
        raise ValueError("may hold letters, digits and . _ -, at most 249 of them")
    return value


def _hosts(value: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(_host(one) for one in value)


def _redis(secret: SecretStr) -> SecretStr:
    """Raises ValueError, without any of the address in it: it may hold a password."""
    # Only where there is one: it takes a tenth of a second.
    from redis.asyncio import ConnectionPool

    url = secret.get_secret_value()
    if not _REDIS.match(url):
        raise ValueError("must begin with redis://, rediss:// or unix://")
    try:
        # Made, not connected: only this looks at all of its parts.
        ConnectionPool.from_url(url).make_connection()  # type: ignore[no-untyped-call]
    except Exception:  # noqa: BLE001 - whatever the library makes of it, it cannot be used
        advice = "encode / @ : ? # % in a password as %2F %40 %3A %3F %23 %25, and check the rest"
        raise ValueError(f"cannot be used: {advice}") from None
    return secret


Seconds = Annotated[float, BeforeValidator(_duration), Field(gt=0, le=10**9, allow_inf_nan=False)]
SecondsOrZero = Annotated[float, BeforeValidator(_duration), Field(ge=0, le=10**9, allow_inf_nan=False)]
KafkaSeconds = Annotated[float, BeforeValidator(_duration), Field(ge=0.001, le=_KAFKA_SECONDS, allow_inf_nan=False)]
Size = Annotated[ByteSize, BeforeValidator(_size), Field(gt=0)]
KafkaSize = Annotated[ByteSize, BeforeValidator(_size), Field(gt=0, le=_KAFKA_BYTES)]
Whole = Annotated[int, BeforeValidator(_whole)]
Count = Annotated[int, BeforeValidator(_whole), Field(gt=0)]
Flag = Annotated[bool, BeforeValidator(_text)]
Text = Annotated[str, BeforeValidator(_text), Field(min_length=1, max_length=255)]
Topic = Annotated[str, BeforeValidator(_text), AfterValidator(_topic)]
Url = Annotated[str, BeforeValidator(_text), AfterValidator(url)]
File = Annotated[Path, BeforeValidator(_text)]
Secret = Annotated[SecretStr, BeforeValidator(_secret), Field(min_length=1)]
RedisUrl = Annotated[Secret, AfterValidator(_redis)]
Servers = Annotated[str, BeforeValidator(_servers_given)]
Names = Annotated[tuple[str, ...], BeforeValidator(_listed), MayBeEmpty()]
Hosts = Annotated[tuple[str, ...], BeforeValidator(_listed), AfterValidator(_hosts), MayBeEmpty()]
SdkKeys = Annotated[tuple[Annotated[str, Field(pattern=SDK_KEY_PATTERN)], ...], BeforeValidator(_listed), MayBeEmpty()]
