"""A compiled project: what one revision of one datafile says, ready to decide with. Immutable.

Made by `compile_datafile`; the decider reads `flags`, the event roles `events` and `event_attributes`, the segment
client `odp`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.project.attributes import EventAttributes
from pipeline.project.flags import Flag


@dataclass(frozen=True, slots=True)
class OdpIntegration:
    """Where the project's segments are: host (a URL), public key, and the segments its audiences ask for."""

    host: str
    key: str
    segments_to_check: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Written:
    """What is the same in all results of a revision, as JSON."""

    decisions: bytes
    """From `revision`, with its comma in front, up to the first decision."""
    tracking: bytes
    """From the end of the decisions up to the first attribute of `tracking`."""


@dataclass(frozen=True, slots=True)
class ProjectConfig:
    """One revision of a project. Texts are as in the datafile, empty where it has none."""

    account_id: str
    project_id: str
    revision: str
    sdk_key: str
    environment_key: str
    region: str
    """In upper case, `US` where the datafile has none."""
    anonymize_ip: bool
    bot_filtering: bool | None
    send_flag_decisions: bool
    flags: Mapping[str, Flag]
    """By key, in the datafile's order."""
    odp: OdpIntegration | None
    """None unless the integration has both a host and a public key."""
    events: Mapping[str, str]
    """Conversion event key to event id."""
    attributes: EventAttributes
    written: Written

    def event_attributes(self, attributes: Mapping[str, object]) -> list[dict[str, object]]:
        """The visitor attributes an event carries: `{"entity_id", "key", "type": "custom", "value"}` each."""
        return self.attributes.chosen(attributes)
