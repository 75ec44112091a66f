"""One plan for every process and every run of one training: handed around, compared, and kept in a file."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from torch import nn

from rewriter.argument_checks import checked_path
from rewriter.errors import PlanError
from rewriter.guideline.registry import resolve_passes
from rewriter.plain_data import PLAIN
from rewriter.planning.plan import Plan
from rewriter.planning.ranks import from_first_rank, several_ranks
from rewriter.planning.record import records_of


def plan_of_file(file: Any, make: Callable[[], Plan], passes: Any, *, all_ranks: bool) -> Plan:
    """The plan in ``file``, or the one that ``make`` makes, which is written there.

    Where ``torch.distributed`` is initialised the first process alone looks, plans and writes, and hands its plan to
    the others: they need not see its disk.

    Args:
        file: where the plan is kept; folders are made.
        make: makes a plan where there is none.
        passes: what the caller asks for.
        all_ranks: False for a process that goes its own way.

    Raises:
        PlanError: the file is no plan, or one of other passes or options.
        RewriterError: in all processes, what the first one raised.
    """
    path = checked_path("plan_file", file)
    resolve_passes(passes)  # before anything is read

    def text() -> str:
        if not path.exists():
            made = make().to_json()
            if _written(path, made):
                return made
        return _read(path).to_json()

    found = from_first_rank("rewriter.rewrite(plan_file=)", text) if all_ranks and several_ranks() else text()
    plan = Plan.from_json(found)
    check_passes(plan, passes, f"plan_file {path}")
    return plan


def rewritten_by(model: nn.Module, kept: Any, holder: str, *, all_ranks: bool = True) -> nn.Module:
    """``model`` rewritten by a plan that a checkpoint holds; itself if it is already.

    Args:
        model: an original, or one that was rewritten by that plan.
        kept: what the checkpoint holds, a plan as text.
        holder: the checkpoint, as errors name it.
        all_ranks: as for :meth:`rewriter.Plan.apply`.

    Raises:
        PlanError: it is no plan, or does not fit the model.
        RewriterError: every other refusal; the model is as it was.
    """
    plan = plan_of_text(kept, holder)
    return model if is_rewritten_by(model, plan) else plan.apply(model, all_ranks=all_ranks)


def plan_of_text(text: Any, holder: str) -> Plan:
    """The plan that ``holder`` holds as ``text``.

    Raises:
        PlanError: it is none; naming the holder.
    """
    try:
        return Plan.from_json(text)
    except PlanError as error:
        raise PlanError(f"{holder}: {error}") from error


def is_rewritten_by(model: nn.Module, plan: Plan) -> bool:
    """Whether a rewrite of ``model`` made the edits of ``plan``."""
    return any(record.plan.edits == plan.edits and record.plan.passes == plan.passes for record in records_of(model))


def plan_files_in(folder: Path, besides: Collection[str]) -> list[Path]:
    """Plans that :func:`plan_of_file` wrote into ``folder``, besides files of the names given."""
    found = []
    for path in folder.glob("*.json") if folder.is_dir() else ():
        with contextlib.suppress(PlanError):
            if path.name not in besides:
                _read(path)
                found.append(path)
    return found


def _read(path: Path) -> Plan:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"plan_file {path} cannot be read: {type(error).__name__}: {error}") from error
    return plan_of_text(text, f"plan_file {path}")


def _written(path: Path, text: str) -> bool:
    """Write a file that is not there, whole; False if somebody else has written it meanwhile."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        try:
            os.link(partial, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            os.replace(partial, path)
    except OSError as error:
        raise PlanError(f"plan_file {path} cannot be written: {type(error).__name__}: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return True


def check_passes(plan: Plan, passes: Any, holder: str) -> None:
    """Refuse a plan of other passes, or with other options, than are asked for.

    Raises:
        PlanError: naming what holds the plan, and the first difference.
        RewriterError: there are no such passes.
    """
    asked = [(item.name, item.options()) for item in resolve_passes(passes)]
    remedy = "Ask for what it has, or give another one"
    names, wanted = [name for name, _ in plan.passes], [name for name, _ in asked]
    if names != wanted:
        found, here = (", ".join(which) or "no passes" for which in (names, wanted))
        raise PlanError(f"{holder} is a plan of {found}; asked for: {here}. {remedy}.")
    for (name, written), (_, options) in zip(plan.passes, asked, strict=True):
        for option, there in written.items():  # one that the pass did not have yet when it was written is not in it
            here = PLAIN.to_plain(options.get(option))
            if there != here:
                raise PlanError(f"{holder} has {name}:{option}={there}; asked for: {here}. {remedy}.")
