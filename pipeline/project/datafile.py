"""A datafile's bytes become a ProjectConfig, or are refused with the place and the fault.

Only format version 4 is read, and a revision must be there: results name it. Everything else that is missing counts
as empty. Costs up to a second for the largest datafiles, so the poller calls it off the event loop.
"""

from __future__ import annotations

from types import MappingProxyType

import orjson

from pipeline.errors import DatafileRefused
from pipeline.messages.contracts import fault_of, in_utf8
from pipeline.project.attributes import EventAttributes
from pipeline.project.compiler import Compiler
from pipeline.project.conditions import Audience, compile_tree, read_conditions
from pipeline.project.config import OdpIntegration, ProjectConfig, Written
from pipeline.project.document import Document
from pipeline.project.reader import Entry

_VERSION = "4"
_DEFAULT_REGION = "US"


def compile_datafile(raw: bytes) -> ProjectConfig:
    """Raises DatafileRefused, and nothing else, for bytes that are not a datafile that can be decided with."""
    try:
        raw = in_utf8(raw)
        document = Document(raw)
    except UnicodeDecodeError as error:
        raise DatafileRefused(f"not JSON: not {error.encoding.upper()} at byte {error.start}") from None
    except orjson.JSONDecodeError as error:
        raise DatafileRefused(f"not JSON: {fault_of(raw, error)}") from None
    try:
        return _checked(Entry(document.root))
    finally:
        document.free()


def _checked(document: Entry) -> ProjectConfig:
    version = document.text("version")
    if version != _VERSION:
        raise DatafileRefused(f'version is "{version[:20]}"; only "{_VERSION}" can be read')
    revision = document.text("revision")
    if not revision:
        raise DatafileRefused("revision is missing")
    return _compile(document, revision)


def _compile(document: Entry, revision: str) -> ProjectConfig:
    segments: list[str] = []
    send_flag_decisions = bool(document.boolean("sendFlagDecisions"))
    attributes = [(entry.required("id"), entry.required("key")) for entry in document.entries("attributes")]
    compiler = Compiler(_audiences(document, segments), dict(attributes), send_flag_decisions=send_flag_decisions)
    compiler.add_experiments(document.entries("experiments"))
    compiler.add_rollouts(document.entries("rollouts"))
    compiler.add_groups(document.entries("groups"))
    compiler.add_holdouts(document.entries("holdouts"), document.entries("localHoldouts"))
    bot_filtering = document.boolean("botFiltering")
    return ProjectConfig(
        written=_written(document, revision),
        account_id=document.text("accountId"),
        project_id=document.text("projectId"),
        revision=revision,
        sdk_key=document.text("sdkKey"),
        environment_key=document.text("environmentKey"),
        region=_region(document),
        anonymize_ip=bool(document.boolean("anonymizeIP")),
        bot_filtering=bot_filtering,
        send_flag_decisions=send_flag_decisions,
        flags=MappingProxyType(compiler.flags(document.entries("featureFlags"))),
        odp=_odp(document, segments),
        events=MappingProxyType({entry.required("key"): entry.required("id") for entry in document.entries("events")}),
        attributes=EventAttributes({key: entity_id for entity_id, key in attributes}, bot_filtering),
    )


def _region(document: Entry) -> str:
    return (document.text("region") or _DEFAULT_REGION).upper()


def _written(document: Entry, revision: str) -> Written:
    tracking = {
        "accountId": document.text("accountId"),
        "projectId": document.text("projectId"),
        "region": _region(document),
        "anonymizeIp": bool(document.boolean("anonymizeIP")),
    }
    return Written(
        decisions=b',"revision":' + orjson.dumps(revision) + b',"decisions":[',
        tracking=b'],"tracking":' + orjson.dumps(tracking)[:-1] + b',"attributes":[',
    )


def _audiences(document: Entry, segments: list[str]) -> dict[str, Audience]:
    """Audiences by id. A typed audience takes the place of a plain one, which is a stand-in for old SDKs."""
    by_id = {entry.required("id"): entry for entry in document.entries("audiences")}
    by_id.update((entry.required("id"), entry) for entry in document.entries("typedAudiences"))
    audiences: dict[str, Audience] = {}
    for audience_id, entry in by_id.items():
        tree = read_conditions(_conditions(entry), entry.where, segments)
        audiences[audience_id] = Audience(audience_id, tree, compile_tree(tree))
    return audiences


def _conditions(entry: Entry) -> object:
    """Conditions as JSON: plain audiences hold them as text. Text that is no JSON makes an audience unknown."""
    conditions = entry.fields.get("conditions")
    if not isinstance(conditions, str):
        return conditions
    try:
        return orjson.loads(conditions)
    except orjson.JSONDecodeError:
        return None


def _odp(document: Entry, segments: list[str]) -> OdpIntegration | None:
    integrations = {entry.required("key"): entry for entry in reversed(document.entries("integrations"))}
    odp = integrations.get("odp")
    if odp is None or not odp.text("host") or not odp.text("publicKey"):
        return None
    return OdpIntegration(odp.text("host"), odp.text("publicKey"), tuple(dict.fromkeys(segments)))
