"""What a flag can say, written out as JSON when the datafile arrives.

Nothing in a decision depends on the user but `userContext` and the reasons, so the rest is written once for each
rule and variation. Field order is the Agent's, then the fields of ours. Made by the compiler, and by the decider for
the pairs that nobody may ever meet: a rule and a variation that only a forced decision brings together, a holdout and
each of all flags.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import orjson

from pipeline.project.variables import Values, Variable, write_values

EXPERIMENT = "feature-test"
ROLLOUT = "rollout"
HOLDOUT = "holdout"


class Variation(NamedTuple):
    """`values` are its own variable values by variable id, with None for each variable where it has none to give."""

    id: str
    key: str
    enabled: bool
    values: dict[str, str | None]


class Origin(NamedTuple):
    """What a decision comes from: a rule, a holdout, or with empty texts a forced decision or nothing at all."""

    kind: str
    id: str = ""
    key: str = ""
    layer_id: str = ""


class Choice(msgspec.Struct, frozen=True, gc=False):
    """A variation that something gives, written out but for what is the flag's own: its key and its variables.

    `variation` is None for nothing at all. `opening` and `impression` lack the flag's key in their middle.
    """

    origin: Origin
    variation: Variation | None
    opening: bytes
    sent: bytes
    unsent: bytes
    impression: bytes


class Outcome(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One possible decision of one flag.

    A decision is `opening`, the user context, the reasons, `variables.member`, then `sent` or `unsent`. `plain` is
    all that follows the user context when no decide option is given.
    """

    kind: str
    rule_key: str
    enabled: bool
    tracked: bool
    """Whether an impression is due."""
    failed: bool
    """Whether this is an error: it has its reasons only, survives ENABLED_FLAGS_ONLY, and nothing is due for it."""
    variation_key: str
    variation_id: str
    opening: bytes
    variables: Values
    sent: bytes
    unsent: bytes
    plain: bytes
    impression: bytes

    def predicted(self, uuid: str) -> Outcome:
        """The same, its impression carrying the id of the prediction that chose it."""
        return msgspec.structs.replace(
            self, impression=self.impression.removesuffix(b"null}") + orjson.dumps(uuid) + b"}"
        )


class Outcomes:
    """Makes the outcomes of one flag."""

    __slots__ = ("_defaults", "_key", "_send_all", "_variables")

    def __init__(self, flag_key: str, variables: tuple[Variable, ...], *, send_flag_decisions: bool) -> None:
        self._key = orjson.dumps(flag_key)
        self._variables = variables
        self._defaults = write_values(variables, {})
        self._send_all = send_flag_decisions

    def of(self, choice: Choice) -> Outcome:
        """What the flag makes of it."""
        origin, variation = choice.origin, choice.variation
        values = self._values(origin, variation)
        tracked = origin.kind != ROLLOUT or self._send_all
        return Outcome(
            kind=origin.kind,
            rule_key=origin.key,
            enabled=variation is not None and variation.enabled,
            tracked=tracked,
            failed=False,
            variation_key=variation.key if variation else "",
            variation_id=variation.id if variation else "",
            opening=_opening(choice, self._key),
            variables=values,
            sent=choice.sent,
            unsent=choice.unsent,
            plain=_plain(values, choice.sent if tracked else choice.unsent),
            impression=b'{"flagKey":' + self._key + choice.impression,
        )

    def nothing(self) -> Outcome:
        """No rule gave a variation. Its impression is a rollout's, as in the SDKs."""
        return self.of(_NO_RULE)

    def failure(self, reason: str) -> Outcome:
        """The flag could not be decided."""
        values = Values(b"", (reason,))
        return Outcome(
            kind="", rule_key="", enabled=False, tracked=False, failed=True, variation_key="", variation_id="",
            opening=_opening(_NOTHING, self._key), variables=values, sent=_NOTHING.unsent, unsent=_NOTHING.unsent,
            plain=_plain(values, _NOTHING.unsent), impression=b"",
        )  # fmt: skip

    def _values(self, origin: Origin, variation: Variation | None) -> Values:
        if variation is None or not variation.enabled:
            return self._defaults
        if origin.kind == HOLDOUT:
            # The SDK knows values of variations of experiments and rules only; a holdout is never enabled in earnest.
            return write_values(self._variables, {variable.id: None for variable in self._variables})
        return write_values(self._variables, variation.values)


def write_choice(origin: Origin, variation: Variation | None) -> Choice:
    """Costs as much as a decision: do it once for all flags."""
    fields = {
        "variationKey": variation.key if variation else "",
        "enabled": variation is not None and variation.enabled,
        "ruleKey": origin.key,
    }
    closing = _closing(origin, variation)
    return Choice(
        origin, variation, orjson.dumps(fields)[:-1], closing + b"true}", closing + b"false}",
        _impression(origin, variation),
    )  # fmt: skip


def unknown_flag(flag_key: str) -> tuple[bytes, bytes]:
    """What stands before and after the user context in the decision for a key no flag has."""
    values = Values(b"", (f'No flag was found for key "{flag_key}".',))
    return _opening(_NOTHING, orjson.dumps(flag_key)), _plain(values, _NOTHING.unsent)


def _opening(choice: Choice, flag_key: bytes) -> bytes:
    return choice.opening + b',"flagKey":' + flag_key + b',"userContext":'


def _closing(origin: Origin, variation: Variation | None) -> bytes:
    """What ends a decision, up to whether its impression is sent."""
    everyone_else = origin.kind == ROLLOUT and origin.key == origin.id and origin.key.startswith("default-")
    fields = {
        "isEveryoneElseVariation": everyone_else,
        "experimentId": origin.id,
        "variationId": variation.id if variation else "",
        "ruleType": origin.kind,
    }
    return b"," + orjson.dumps(fields)[1:-1] + b',"decisionEventDispatched":'


def _plain(values: Values, closing: bytes) -> bytes:
    return b',"reasons":' + orjson.dumps(values.errors) + values.member + closing


def _impression(origin: Origin, variation: Variation | None) -> bytes:
    """One entry of `tracking.impressions`, after the flag's key, with the ids as they are sent.

    The campaign is the layer, or the experiment if it has none; a variation id that is not all ASCII digits is null.
    """
    numeric = variation is not None and variation.id.isascii() and variation.id.isdigit()
    fields = orjson.dumps(
        {
            "ruleKey": origin.key,
            "ruleType": origin.kind,
            "variationKey": variation.key if variation else "",
            "enabled": variation is not None and variation.enabled,
            "campaignId": origin.layer_id or origin.id,
            "experimentId": origin.id,
            "variationId": variation.id if variation and numeric else None,
            "cmabUuid": None,
        }
    )
    return b"," + fields[1:]


_NOTHING = write_choice(Origin(""), None)
_NO_RULE = write_choice(Origin(ROLLOUT), None)
