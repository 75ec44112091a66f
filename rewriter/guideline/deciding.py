"""A pass at work: its candidates are decided one by one, and what it says is stamped with its name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rewriter.edit.free_names import FreeNames
from rewriter.errors import PassError, RewriterError
from rewriter.guideline.base import Advice, Change, Finding, Outcome, Pass, Recommendation, Site, Skipped
from rewriter.guideline.place import Place
from rewriter.reasons import Refused
from rewriter.tracing.trace import Trace


def findings_of(item: Pass, trace: Trace) -> list[Finding]:
    """What a pass finds in a trace.

    Raises:
        PassError: it raised an error that is none of ours, or what it gave is no finding or no outcome.
    """
    found: list[Finding] = []
    try:
        all_at_once = item.find(trace)
        for finding in _decided(item, trace) if all_at_once is None else all_at_once:
            if not isinstance(finding, (Site, Skipped, Advice)) or finding.pass_name != item.name:
                raise PassError(f"pass {item.name!r} gave {finding!r}; expected a finding of its own")
            found.append(finding)
    except RewriterError:
        raise
    except Exception as error:
        where = f" after {len(found)} findings" if found else ""
        raise PassError(_failed(item, where, error)) from error
    return found


def _decided(item: Pass, trace: Trace) -> Iterator[Finding]:
    """The findings about all candidates of a pass, in their order."""
    names = FreeNames(trace.model)
    for place in item.candidates(trace):
        place.share_names(names)
        outcomes: list[Outcome] = []
        try:
            for outcome in _several(item.decide(place)):
                outcomes.append(outcome)  # what was said before a refusal stands
        except Refused as refused:
            outcomes.append(refused)
        except RewriterError:
            raise
        except Exception as error:
            raise PassError(_failed(item, f" at {_shown(place)}", error)) from error
        if sum(isinstance(outcome, Change) for outcome in outcomes) > 1:
            raise PassError(f"pass {item.name!r} decides on several changes at {_shown(place)}; give each a place")
        for outcome in outcomes:
            yield _stamped(item, place, outcome)


def _several(outcomes: Outcome | Iterable[Outcome] | None) -> Iterable[Outcome]:
    if outcomes is None:
        return ()
    return (outcomes,) if isinstance(outcomes, (Change, Recommendation, Refused)) else outcomes


def _stamped(item: Pass, place: Place[object], outcome: Outcome) -> Finding:
    match outcome:
        case Change(action, reason, setting, claim, rates):
            if not place.edit.edits:
                raise PassError(f"pass {item.name!r} describes a change at {_shown(place)} and made no edit")
            edits = tuple(place.edit.edits)
            return Site(item.name, place.path, place.pattern, action, reason, edits, setting, claim, rates)
        case Recommendation(advice, reason):
            return Advice(item.name, place.path, place.pattern, advice, reason)
        case Refused():
            path = place.path if outcome.path is None else outcome.path
            pattern = place.pattern if outcome.pattern is None else outcome.pattern
            return Skipped(item.name, path, pattern, outcome.reason, outcome.detail)
    raise PassError(
        f"pass {item.name!r} decides {outcome!r} at {_shown(place)}; "
        "expected a Change, a Recommendation, Refused or None"
    )


def _shown(place: Place[object]) -> str:
    return f"{place.pattern} {place.path or '(the root)'}"


def _failed(item: Pass, where: str, error: Exception) -> str:
    return (
        f"pass {item.name!r} failed{where}: {type(error).__name__}: {error}. It is a defect of the pass; leave it out "
        "with passes=, or tell its authors"
    )
