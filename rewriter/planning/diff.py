"""The source changes of a plan, as a unified diff."""

from __future__ import annotations

import difflib

from torch import nn

from rewriter.edit.classes import MethodEdit, adopted_source, source_of
from rewriter.edit.edited_text import adoptions, edited_text
from rewriter.edit.edits import class_edits, find_module
from rewriter.edit.source import text_in_file
from rewriter.planning.data import PlanData
from rewriter.text import joined_groups


def diff_of(plan: PlanData, model: nn.Module) -> str:
    """Return the diff by method; methods with the same change are shown once, under the paths of their modules."""
    changes: dict[str, list[str]] = {}
    for path, edit in class_edits(plan.edits).items():
        for method in edit.methods:
            changes.setdefault(_method_diff(find_module(model, path), method), []).append(path)
    return "\n".join(f"# {joined_groups(paths)}\n{text}" for text, paths in changes.items())


def _method_diff(module: nn.Module, edit: MethodEdit) -> str:
    name = f"{edit.owner}.{edit.method}"
    source = source_of(type(module), edit.owner, edit.method, edit.digest)
    old = text_in_file(source)
    if old != source.text:  # a function, of which the edit makes a method
        name = f"{source.function.__module__}.{source.function.__qualname__}"
    text = _diff(name, old, edited_text(source, edit.operations))
    for adopt, changes in adoptions(edit.operations):
        helper = adopted_source(source, adopt)
        function = f"{helper.function.__module__}.{helper.function.__qualname__}"
        text += _diff(function, helper.text, adopt.text_of_method(helper, changes))
    return text


def _diff(name: str, old: str, new: str) -> str:
    lines = (old.splitlines(keepends=True), new.splitlines(keepends=True))
    return "".join(difflib.unified_diff(*lines, name, "rewritten", n=2))
