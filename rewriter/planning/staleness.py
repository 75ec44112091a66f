"""Where a rewrite is no longer in a model because the model was changed after it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from rewriter.edit.classes import carries_edit
from rewriter.edit.edits import AddModule, Applied, EditMethod
from rewriter.edit.held_methods import hides
from rewriter.layers.registry import layer_class
from rewriter.model.wrappers import named_modules_inside


def stale(model: nn.Module, applied: Applied) -> Iterator[str]:
    """Yield the paths of modules where nothing, or not all, of what was applied is left."""
    for look in (replaced, _hidden, _exchanged):
        yield from look(model, applied)


def replaced(model: nn.Module, applied: Applied) -> list[str]:
    """Return where a module that was edited is no longer there."""
    modules = dict(named_modules_inside(model, remove_duplicate=False))
    return [path for path in applied.edited_classes if not carries_edit(type(modules.get(path)))]


def _hidden(model: nn.Module, applied: Applied) -> list[str]:
    """Return where a ``forward`` set on the instance hides an edited method."""
    modules = dict(named_modules_inside(model, remove_duplicate=False))
    methods = [edit for edit in applied.edits if isinstance(edit, EditMethod) and edit.path in modules]
    return [edit.path for edit in methods if hides(modules[edit.path], edit.method)]


def _exchanged(model: nn.Module, applied: Applied) -> list[str]:
    """Return where an added child has another class now, or is gone, while the module that calls it is still there."""
    modules = dict(named_modules_inside(model, remove_duplicate=False))
    added = [
        edit for edit in applied.edits if isinstance(edit, AddModule) and carries_edit(type(modules.get(edit.path)))
    ]
    children = {f"{edit.path}.{edit.name}".lstrip("."): layer_class(edit.layer) for edit in added}
    return [path for path, layer in children.items() if not isinstance(modules.get(path), layer)]
