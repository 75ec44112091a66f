"""Run a pass: decide its candidates one by one, and label the findings with its name."""

from __future__ import annotations

import os
import sysconfig
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import fx

from rewriter.edit.free_names import FreeNames
from rewriter.edit.positions import positions
from rewriter.errors import PassError, RewriterError
from rewriter.guideline.base import Advice, Change, Finding, Outcome, Pass, Recommendation, Site, Skipped
from rewriter.guideline.lint import Location
from rewriter.guideline.place import Place
from rewriter.reasons import Refused
from rewriter.text import counted
from rewriter.tracing.trace import Trace


def findings_of(item: Pass, trace: Trace) -> list[Finding]:
    """All findings of a pass in a trace.

    Raises:
        PassError: it raised an error other than a :class:`RewriterError`, or returned neither findings nor outcomes.
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
    """The findings about all candidates of a pass, in order."""
    names = FreeNames(trace.model)
    candidates = item.candidates(trace)
    if not isinstance(candidates, Iterable):
        raise PassError(f"pass {item.name!r}: candidates() gave {candidates!r}; expected places, or an empty list")
    for place in candidates:
        if not isinstance(place, Place):
            raise PassError(f"pass {item.name!r}: candidates() gave {place!r}; expected Place(trace, node, pattern)")
        place.share_names(names)
        outcomes: list[Outcome] = []
        try:
            for outcome in _several(item.decide(place)):
                outcomes.append(outcome)  # outcomes before a refusal stand
        except Refused as refused:
            outcomes.append(refused)
        except RewriterError:
            raise
        except Exception as error:
            raise PassError(_failed(item, f" at {_shown(place)}", error)) from error
        _check(item, place, outcomes)
        for outcome in outcomes:
            yield _stamped(item, place, outcome)


def _several(outcomes: Outcome | Iterable[Outcome] | None) -> Iterable[Outcome]:
    if outcomes is None:
        return ()
    return outcomes if isinstance(outcomes, Iterable) and not isinstance(outcomes, str) else (outcomes,)


def _check(item: Pass, place: Place[object], outcomes: Sequence[Outcome]) -> None:
    """Refuse edits that no change describes, and a change without edits.

    Raises:
        PassError: names the pass and the place.
    """
    changes = sum(isinstance(outcome, Change) for outcome in outcomes)
    made = len(place.edits)
    if changes > 1:
        raise PassError(f"pass {item.name!r} decides on several changes at {_shown(place)}; give each a place")
    if changes and not made:
        raise PassError(f"pass {item.name!r} describes a change at {_shown(place)} and made no edit")
    if made and not changes and not any(isinstance(outcome, Refused) for outcome in outcomes):
        raise PassError(
            f"pass {item.name!r} made {counted(made, 'edit')} at {_shown(place)} and returned no Change; "
            "return one that says what was done and why"
        )


def _stamped(item: Pass, place: Place[object], outcome: Outcome) -> Finding:
    if not isinstance(outcome, (Change, Recommendation, Refused)):
        raise PassError(
            f"pass {item.name!r} decides {outcome!r} at {_shown(place)}; "
            "expected a Change, a Recommendation, Refused or None"
        )
    code, location = checked_code(item, outcome.code), _location_of(outcome.at or place.node)
    match outcome:
        case Change(action, reason, setting, claim, rates):
            edits = tuple(place.edits)
            return Site(
                item.name, place.path, place.pattern, action, reason, edits, setting, claim, rates, code, location
            )
        case Recommendation(advice, reason):
            return Advice(item.name, place.path, place.pattern, advice, reason, code, location)
        case Refused():
            path = place.path if outcome.path is None else outcome.path
            pattern = place.pattern if outcome.pattern is None else outcome.pattern
            inactive = outcome.inactive
            return Skipped(item.name, path, pattern, outcome.reason, outcome.detail, inactive, code, location)


def checked_code(item: Pass, code: str) -> str:
    """Return ``code``, which has to be empty or one of the pass's.

    Raises:
        PassError: it is neither.
    """
    if code and code not in {lint.code for lint in item.codes}:
        known = ", ".join(lint.code for lint in item.codes) or "none"
        raise PassError(f"pass {item.name!r} finds a fault {code!r} that is not among its codes ({known})")
    return code


def _location_of(node: fx.Node | None) -> Location | None:
    """The innermost line outside torch's own code that led to ``node``; None for code that is in no file."""
    frames = [position.frame for position in positions(node)] if node is not None else []
    in_files = [frame for frame in frames if os.path.isfile(frame.code.co_filename)]
    own = (frame for frame in in_files if not Path(frame.code.co_filename).is_relative_to(_TORCH))
    found = next(own, in_files[0] if in_files else None)
    return Location(os.path.abspath(found.code.co_filename), found.line) if found is not None else None


def _shown(place: Place[object]) -> str:
    return f"{place.pattern} {place.path or '(the root)'}"


def _failed(item: Pass, where: str, error: Exception) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_library(Path(frame.filename))]
    line = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return (
        f"pass {item.name!r} failed{where}: {type(error).__name__}: {error}{line}. Mend it there, "
        "or ask for other passes"
    )


_REWRITER = Path(__file__).parent.parent
_STDLIB, _TORCH = Path(sysconfig.get_path("stdlib")), Path(torch.__file__).parent


def _is_library(file: Path) -> bool:
    """Whether ``file`` is library code: neither a pass nor other code of its author."""
    if file.is_relative_to(_REWRITER):
        return not file.is_relative_to(_REWRITER / "passes")
    in_stdlib = file.is_relative_to(_STDLIB) and "site-packages" not in file.parts
    return in_stdlib or file.is_relative_to(_TORCH)
