"""One plan for every process and every run of a training: distributed, compared, and stored in a file."""

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
    """Return the plan in ``file``, or the one that ``make`` makes, which is written there.

    If ``torch.distributed`` is initialised, only the first process reads, plans and writes, and it sends its plan to
    the others: they need no access to its disk.

    Args:
        file: where the plan is stored; missing directories are created.
        make: makes a plan if there is none.
        passes: the passes the caller requests.
        all_ranks: False for a process that acts alone.

    Raises:
        PlanError: the file is not a plan, or one with other passes or options.
        RewriterError: in all processes, what the first one raised.
    """
    path = checked_path("plan_file", file)
    resolve_passes(passes)  # before anything is read

    def text() -> str:
        if not path.exists():
            made = make().to_json()
            if _written(path, made):
                return made
        return read_plan(path).to_json()

    found = from_first_rank("rewriter.rewrite(plan_file=)", text) if all_ranks and several_ranks() else text()
    plan = Plan.from_json(found)
    check_passes(plan, passes, f"plan_file {path}")
    return plan


def rewritten_by(model: nn.Module, kept: Any, holder: str, *, all_ranks: bool = True) -> nn.Module:
    """Return ``model`` rewritten by the plan in a checkpoint, or ``model`` itself if it already is.

    Args:
        model: an original, or a model rewritten by that plan.
        kept: the plan in the checkpoint, as text.
        holder: the name of the checkpoint in errors.
        all_ranks: as for :meth:`rewriter.Plan.apply`.

    Raises:
        PlanError: it is not a plan, or does not fit the model.
        RewriterError: every other refusal; the model is unchanged.
    """
    plan = plan_of_text(kept, holder)
    return model if is_rewritten_by(model, plan) else plan.apply(model, all_ranks=all_ranks)


def plan_of_text(text: Any, holder: str) -> Plan:
    """Return the plan that ``holder`` holds as ``text``.

    Raises:
        PlanError: it is not a plan; naming the holder.
    """
    try:
        return Plan.from_json(text)
    except PlanError as error:
        raise PlanError(f"{holder}: {error}") from error


def is_rewritten_by(model: nn.Module, plan: Plan) -> bool:
    """Whether a rewrite of ``model`` made the edits of ``plan``."""
    return any(record.plan.edits == plan.edits and record.plan.passes == plan.passes for record in records_of(model))


def plan_files_in(folder: Path, besides: Collection[str]) -> list[Path]:
    """Return the plans that :func:`plan_of_file` wrote into ``folder``, except files with the given names."""
    found = []
    for path in folder.glob("*.json") if folder.is_dir() else ():
        with contextlib.suppress(PlanError):
            if path.name not in besides:
                read_plan(path)
                found.append(path)
    return found


def read_plan(path: Path) -> Plan:
    """Return the plan in a file.

    Raises:
        PlanError: there is no such file, or it holds no plan.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"plan_file {path} cannot be read: {type(error).__name__}: {error}") from error
    return plan_of_text(text, f"plan_file {path}")


def _written(path: Path, text: str) -> bool:
    """Write a new file atomically; False if another process has written it meanwhile."""
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
    """Refuse a plan whose passes or options differ from those requested.

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
        for option, there in written.items():  # an option added to the pass after the plan was written is not in it
            here = PLAIN.to_plain(options.get(option))
            if there != here:
                raise PlanError(f"{holder} has {name}:{option}={there}; asked for: {here}. {remedy}.")
