"""Where a rewrite is not in a model any more, since others have changed the model after it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from rewriter.edit.classes import carries_edit
from rewriter.edit.edits import AddModule, Applied, EditMethod
from rewriter.edit.held_methods import hides
from rewriter.layers.registry import layer_class
from rewriter.model.wrappers import named_modules_inside


def stale(model: nn.Module, applied: Applied) -> Iterator[str]:
    """The paths of modules where nothing, or not all, of what was applied is left."""
    for look in (replaced, _hidden, _exchanged):
        yield from look(model, applied)


def replaced(model: nn.Module, applied: Applied) -> list[str]:
    """Where a module that was edited is not there any more."""
    modules = dict(named_modules_inside(model, remove_duplicate=False))
    return [path for path in applied.edited_classes if not carries_edit(type(modules.get(path)))]


def _hidden(model: nn.Module, applied: Applied) -> list[str]:
    """Where a ``forward`` set on the instance hides a method that was edited."""
    modules = dict(named_modules_inside(model, remove_duplicate=False))
    methods = [edit for edit in applied.edits if isinstance(edit, EditMethod) and edit.path in modules]
    return [edit.path for edit in methods if hides(modules[edit.path], edit.method)]


def _exchanged(model: nn.Module, applied: Applied) -> list[str]:
    """Where a child that was added is of another class now, or gone, while the module that calls it is there."""
    modules = dict(named_modules_inside(model, remove_duplicate=False))
    added = [
        edit for edit in applied.edits if isinstance(edit, AddModule) and carries_edit(type(modules.get(edit.path)))
    ]
    children = {f"{edit.path}.{edit.name}".lstrip("."): layer_class(edit.layer) for edit in added}
    return [path for path, layer in children.items() if not isinstance(modules.get(path), layer)]
