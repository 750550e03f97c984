"""Settings that are good alone and do not fit together. `sections.py` looks for them once each value is good.

A text names other settings as `{section.name}`; `loading.py` puts their names as the person wrote them in its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationInfo

if TYPE_CHECKING:
    from pipeline.settings.sections import KafkaSettings, ProfilesSettings, Settings, TopicsSettings

# For the last commit of a hand-over, after the drain.
_HANDOVER_MARGIN = 15.0


class Conflict(NamedTuple):
    """A mistake in the first of `names`; if the value of any of them is wrong by itself, only that is told."""

    names: tuple[str, ...]
    text: str


def report(conflicts: Iterable[Conflict], info: ValidationInfo) -> None:
    """Add the conflicts to the list in the validation's context; without a context, raise ValueError."""
    found = list(conflicts)
    if info.context is not None:
        info.context["conflicts"].extend(found)
    elif found:
        raise ValueError("; ".join(f"{names[0]}: {text}" for names, text in found))


def of_kafka(kafka: KafkaSettings) -> Iterator[Conflict]:
    protocol = "kafka.security_protocol"
    needed = f"is needed with {{{protocol}}}={kafka.security_protocol}"
    user, password, file = "kafka.sasl_username", "kafka.sasl_password", "kafka.sasl_password_file"
    if kafka.security_protocol.startswith("SASL"):
        if kafka.sasl_username is None:
            yield Conflict((user, protocol), needed)
        if kafka.sasl_password is None and kafka.sasl_password_file is None:
            yield Conflict((password, file, protocol), f"{needed}, or {{{file}}}")
    if kafka.sasl_password is not None and kafka.sasl_password_file is not None:
        yield Conflict((password, file), f"is set, and {{{file}}} too: leave one of them out")
    session, heartbeat = "kafka.session_timeout", "kafka.heartbeat_interval"
    if kafka.heartbeat_interval * 3 > kafka.session_timeout:
        least = f"{kafka.heartbeat_interval:g} s"
        yield Conflict((session, heartbeat), f"must be at least three times {{{heartbeat}}} ({least})")
    certificate, key = "kafka.ssl_certfile", "kafka.ssl_keyfile"
    if (kafka.ssl_certfile is None) != (kafka.ssl_keyfile is None):
        missing, given = (certificate, key) if kafka.ssl_certfile is None else (key, certificate)
        yield Conflict((missing, given), f"is needed with {{{given}}}")


def of_topics(topics: TopicsSettings) -> Iterator[Conflict]:
    used: dict[str, str] = {}
    for field, topic in topics:
        name = f"topics.{field}"
        if isinstance(topic, str) and (before := used.setdefault(topic, name)) != name:
            yield Conflict((name, before), f"{topic} is the name of {{{before}}}, too")


def of_profiles(profiles: ProfilesSettings) -> Iterator[Conflict]:
    alone, redis = "profiles.single_worker", "profiles.redis_url"
    if profiles.redis_url is not None and profiles.single_worker:
        yield Conflict((alone, redis), f"is set, and {{{redis}}} too: leave one of them out")


def of_all(settings: Settings) -> Iterator[Conflict]:
    if settings.kafka.rebalance_timeout < settings.ops.drain + _HANDOVER_MARGIN:
        text = (
            f"must be at least {_HANDOVER_MARGIN:g} s more than {{ops.drain}} ({settings.ops.drain:g} s): partitions "
            "are drained and committed before they are given back"
        )
        yield Conflict(("kafka.rebalance_timeout", "ops.drain"), text)
