"""Survivors that no test can or should kill, each with its reason. They count as survivors all the same."""

from __future__ import annotations

from typing import NamedTuple

from tests.mutation.finding import Mutant


class Accepted(NamedTuple):
    """`change` as the report shows it: before => after."""

    file: str
    function: str
    change: str
    reason: str


ACCEPTED: tuple[Accepted, ...] = (
    Accepted(
        "pipeline/decision/answers.py",
        "decide_flags",
        "if not options and visitor.bypassed is None: => if False:",
        "a shortcut: without options the long way writes the same bytes",
    ),
    Accepted(
        "pipeline/decision/decider.py",
        "decide",
        "…ome = forced_flag(flag, visitor) if visitor.forced is not None else None"
        " => …ome = forced_flag(flag, visitor) if True else None",
        "a shortcut: what is called asks the same",
    ),
    Accepted(
        "pipeline/decision/experiments.py",
        "experiments",
        "if experiment.plain and unasked: => if False:",
        "a shortcut: the long way comes down to the same",
    ),
    Accepted(
        "pipeline/decision/holdouts.py",
        "_global",
        "if visitor.held is None or visitor.infos is not None: => if True:",
        "a shortcut: whoever is looked for again is found again",
    ),
    Accepted(
        "pipeline/decision/holdouts.py",
        "_global",
        "visitor.held = () => pass",
        "a shortcut: whoever is in none is looked for again, in vain",
    ),
    Accepted(
        "pipeline/decision/holdouts.py",
        "holdouts_of_delivery_rule",
        "why: list[str] | None = None if visitor.infos is None else []"
        " => why: list[str] | None = None if False else []",
        "a shortcut: reasons that nobody asked for are made and dropped",
    ),
    Accepted(
        "pipeline/decision/rollouts.py",
        "_before_audience",
        "…forced_rule(flag, rule, visitor) if visitor.forced is not None else None"
        " => …forced_rule(flag, rule, visitor) if True else None",
        "a shortcut: what is called asks the same",
    ),
    Accepted(
        "pipeline/decision/visitor.py",
        "visitor_of",
        "…_key for item in request.forced} if request.forced else None, profile, facts.predictio…"
        " => …_key for item in request.forced} if True else None, profile, facts.predictio…",
        "a shortcut: forced decisions that are none force nothing",
    ),
    Accepted(
        "pipeline/project/allocation.py",
        "compile_allocation",
        "if ends[0] >= HASHES: => if ends[0] > HASHES:",
        "a shortcut: the table gives everybody the same",
    ),
    Accepted(
        "pipeline/project/attributes.py",
        "",
        "MOST_REMEMBERED = 4096 => MOST_REMEMBERED = 4095",
        "how many are remembered is a matter of memory; that there is a bound is tested",
    ),
    Accepted(
        "pipeline/project/compiler.py",
        "Compiler.__init__",
        "self._global_holdouts: tuple[Holdout, ...] = () => pass",
        "always set before it is read; it is there for its type",
    ),
    Accepted(
        "pipeline/project/compiler.py",
        "Compiler._cmab",
        "…or attribute_id, key in keys.items() if key is not None)) => …or attribute_id, key in keys.items()))",
        "no user has an attribute whose key is None",
    ),
    Accepted(
        "pipeline/project/conditions.py",
        "compile_tree",
        "if len(tests) == 1: => if False:",
        "a shortcut: `and` and `or` of one operand are that operand",
    ),
    Accepted(
        "pipeline/project/datafile.py",
        "_conditions",
        "return None => pass",
        "the end of the function is reached, which returns None",
    ),
    Accepted(
        "pipeline/project/semver.py",
        "_part_order",
        "return 0 => pass",
        "None is as false as 0 to the only caller; mypy refuses it",
    ),
    Accepted(
        "pipeline/project/semver.py",
        "parse",
        "prerelease = dash >= 0 and (plus < 0 or dash < plus) => prerelease = dash >= 1 and (plus < 0 or dash < plus)",
        "a text that begins with a hyphen is no version either way",
    ),
    Accepted(
        "pipeline/project/semver.py",
        "parse",
        "prerelease = dash >= 0 and (plus < 0 or dash < plus) => prerelease = dash >= 0 and (plus < 1 or dash < plus)",
        "a text that begins with a plus is no version either way",
    ),
    Accepted(
        "pipeline/project/semver.py",
        "parse",
        "… = dash >= 0 and (plus < 0 or dash < plus) => … = dash >= 0 and (plus < 0 or dash <= plus)",
        "a hyphen and a plus are never in one place",
    ),
    Accepted(
        "pipeline/decision/reasons.py",
        "_bad_bucketing_id",
        "…sitor.attributes.get(BUCKETING_ID, '') => …sitor.attributes.get(BUCKETING_ID, '!')",
        "any text: only what is there and is no text is bad",
    ),
    Accepted(
        "pipeline/project/allocation.py",
        "compile_allocation",
        "…0 and (not ends or first_hash(end) > ends[-1]): => …0 and (not ends or first_hash(end) >= ends[-1]):",
        "of two ranges with one end the later is not reached either way",
    ),
    Accepted(
        "pipeline/project/allocation.py",
        "compile_allocation",
        "return lambda _bucketing: certain => pass",
        "a shortcut: the table gives everybody the same",
    ),
    Accepted(
        "pipeline/project/compiler.py",
        "",
        "_WHOLE_TRAFFIC = 10000 => _WHOLE_TRAFFIC = 10001",
        "no bucket is larger than 9999",
    ),
    Accepted(
        "pipeline/project/matchers.py",
        "",
        "_VERSIONS_REMEMBERED = 128 => _VERSIONS_REMEMBERED = 129",
        "how many are remembered is a matter of memory",
    ),
    Accepted(
        "pipeline/project/semver.py",
        "parse",
        "prerelease = dash >= 0 and (plus < 0 or dash < plus) => prerelease = dash >= 0 and (plus <= 0 or dash < plus)",
        "a text that begins with a plus is no version either way",
    ),
    Accepted(
        "pipeline/project/semver.py",
        "parse",
        "build = plus >= 0 and (not prerelease) => build = plus > 0 and (not prerelease)",
        "a text that begins with a plus is no version either way",
    ),
    Accepted(
        "pipeline/project/allocation.py",
        "compile_allocation",
        "if ends[0] >= HASHES: => if False:",
        "a shortcut: the table gives everybody the same",
    ),
    Accepted(
        "pipeline/project/document.py",
        "",
        "_LARGE = 50000 => _LARGE = 49999",
        "how large a step may be is a matter of time; that there is a bound is tested",
    ),
    Accepted(
        "pipeline/project/document.py",
        "Document._read",
        "if levels and len(text) > _LARGE: => if levels and len(text) >= _LARGE:",
        "as above",
    ),
    Accepted(
        "pipeline/project/matchers.py",
        "",
        "_VERSIONS_REMEMBERED = 128 => _VERSIONS_REMEMBERED = 127",
        "how many are remembered is a matter of memory",
    ),
    Accepted(
        "pipeline/project/matchers.py",
        "",
        "_LONGEST_REMEMBERED = 128 => _LONGEST_REMEMBERED = 129",
        "as above: one that is not remembered is compared, with the same verdict",
    ),
    Accepted(
        "pipeline/project/matchers.py",
        "_version.matcher.test",
        "…eturn verdict(value) if len(value) <= _LONGEST_REMEMBERED else compared(v…"
        " => …eturn verdict(value) if len(value) < _LONGEST_REMEMBERED else compared(v…",
        "as above",
    ),
)


def reason_for(mutant: Mutant) -> str:
    """Empty if the survivor is not accepted."""
    place = (mutant.file, mutant.function, mutant.change)
    return next((one.reason for one in ACCEPTED if one[:3] == place), "")
