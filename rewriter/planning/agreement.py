"""Check that all processes of one training run have the same plan."""

from __future__ import annotations

import json

from rewriter.edit.edits import edit_to_data
from rewriter.planning.data import PlanData
from rewriter.planning.ranks import check_alike, several_ranks


def check_same_plan(made: PlanData, *, all_ranks: bool) -> None:
    """Refuse a plan that differs from the other processes' if ``torch.distributed`` is initialised.

    Raises:
        RewriterError: in all processes, naming the first difference, or a process that does not make the call.
    """
    if all_ranks and several_ranks():
        remedy = "Give plan_file= to rewriter.rewrite: the first process plans, and the others apply its plan."
        check_alike("rewriter.rewrite", _decisions(made), _first_difference, remedy)


def _decisions(made: PlanData) -> str:
    """Return what a plan does, without descriptions and measured figures, which may differ in the last digit."""
    decided = [["model", made.model, made.structure]]
    for site in made.sites:
        decided += [[site.pass_name, edit.path, json.dumps(edit_to_data(edit), sort_keys=True)] for edit in site.edits]
    return json.dumps(decided)


def _first_difference(first: str, other: str) -> str:
    ours, theirs = json.loads(first), json.loads(other)
    if ours[0] != theirs[0]:
        return f"its model is another one ({theirs[0][1]}, structure {theirs[0][2]}, not {ours[0][1]}, {ours[0][2]})"
    missing = [line for line in ours if line not in theirs]
    extra = [line for line in theirs if line not in ours]
    name, path, _ = (missing or extra or ours[-1:])[0]
    told = [f"rank 0 {_what(missing, name, path)}", f"the other {_what(extra, name, path)}"]
    return f"{name} at {path or 'the root'}: {', '.join(told)} ({len(ours) - 1} edits, {len(theirs) - 1} there)"


def _what(lines: list[list[str]], name: str, path: str) -> str:
    edits = [json.loads(edit) for found, place, edit in lines if (found, place) == (name, path)]
    if not edits:
        return "leaves it"
    edit = edits[0]
    return f"sets {edit['name']} = {edit['value']}" if "value" in edit and "name" in edit else "edits it otherwise"
