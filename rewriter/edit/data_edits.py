"""Edits that do not depend on the source: attributes, behaviours, parameters and buffers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from torch import nn

from rewriter.edit.edits import AddBehaviour, ChangeTensor, Edit, Freeze, SetAttribute, parameter_of, value_now
from rewriter.edit.expressions import Expressions
from rewriter.edit.free_names import FreeNames
from rewriter.edit.new_layer import LayerName, NewLayer
from rewriter.errors import PlanError
from rewriter.layers.registry import layer_name
from rewriter.plain_data import json_value
from rewriter.reasons import Reason, Refused

_Editing = TypeVar("_Editing", bound=Callable[..., list[Edit]])


def making(method: _Editing) -> _Editing:
    """Record the edits that ``method`` makes, plus those of methods that call an edited one by its class."""

    @functools.wraps(method)
    def edits(self: DataEdits, *args: Any, **kwargs: Any) -> list[Edit]:
        made = self._at.explicit_calls.followed(method(self, *args, **kwargs))
        self.edits += made
        return made

    return cast(_Editing, edits)


class DataEdits:
    """Makes edits of attributes and tensors; see :class:`~rewriter.edit.editor.Editor`."""

    def __init__(self, expressions: Expressions, names: FreeNames) -> None:
        self._at, self._names = expressions, names
        self.edits: list[Edit] = []

    @making
    def set(self, path: str, name: str, value: Any, *, all_calls: bool = False) -> list[Edit]:
        """Set a hyper-parameter of the module at ``path``.

        Args:
            all_calls: whether it may act on several calls of the module.

        Raises:
            Refused: the module is called more than once in one forward, and ``all_calls`` is not set.
            ValueError: the module has no such hyper-parameter.
            TypeError: the value cannot be stored in a plan.
        """
        self._refuse_several_calls(path, all_calls)
        held = json_value(value, name)
        edit = SetAttribute(path, name, tuple(held) if isinstance(held, list) else held)
        try:
            value_now(self._names.module(path), edit)
        except PlanError as error:
            raise ValueError(str(error)) from None
        return [edit]

    @making
    def behave(
        self, path: str, behaviour: str | type[nn.Module], *, all_calls: bool = False, **options: Any
    ) -> list[Edit]:
        """Put a registered behaviour in front of the class of the module at ``path``.

        A behaviour is a class with a ``forward`` of its own, which may call ``super().forward``; the module gets its
        methods and keeps everything else. ``options`` are properties of it that can be set.

        Raises:
            Refused: the module is called more than once in one forward, and ``all_calls`` is not set.
        """
        self._refuse_several_calls(path, all_calls)
        name = behaviour if isinstance(behaviour, str) else layer_name(behaviour)
        return [AddBehaviour(path, name, json_value(options, "options"))]

    @making
    def behave_with(
        self,
        path: str,
        behaviour: str | type[nn.Module],
        layer: LayerName,
        *,
        name: str,
        references: Mapping[str, str] | None = None,
        **options: Any,
    ) -> list[Edit]:
        """Give the module at ``path`` a new layer as its child ``name``, and a registered behaviour that uses it.

        Args:
            path, behaviour: as for :meth:`behave`.
            layer, name, references, options: the layer; see :meth:`~rewriter.edit.editor.Editor.insert_before`.

        Raises:
            Refused: the module is called more than once in one forward, or has an attribute of that name.
        """
        self._refuse_several_calls(path, False)
        new = NewLayer(layer, name, options, references)
        if self._names.take(path, name) != name:
            raise Refused(Reason.NOT_MOVABLE, f"{path or 'the model'} has an attribute {name!r} already")
        return [
            new.child(path, name),
            AddBehaviour(path, behaviour if isinstance(behaviour, str) else layer_name(behaviour)),
        ]

    def _refuse_several_calls(self, path: str, allowed: bool) -> None:
        if not allowed:
            self._at.repeated.refuse_module(path)

    @making
    def freeze(self, path: str, name: str) -> list[Edit]:
        """Keep a parameter of the module at ``path`` from training; undo lets one that was trained train again.

        The contract of the pass says so: ``Contract(freezes_parameters=True)``.

        Raises:
            ValueError: the module has no such parameter.
        """
        edit = Freeze(path, name)
        try:
            parameter_of(self._names.module(path), edit)
        except PlanError as error:
            raise ValueError(str(error)) from None
        return [edit]

    @making
    def scale(self, path: str, name: str, by: float | Sequence[float], dim: int | None = None) -> list[Edit]:
        """Multiply a parameter or buffer of the module at ``path`` by a number, or by one per entry along ``dim``."""
        factors = float(by) if isinstance(by, (int, float)) else [float(factor) for factor in by]
        return [ChangeTensor(path, name, "scale", {"by": factors, "dim": dim})]

    @making
    def pad(self, path: str, name: str, dim: int, before: int, after: int, value: float = 0.0) -> list[Edit]:
        """Add entries at both ends of dimension ``dim`` of a parameter or buffer."""
        return [ChangeTensor(path, name, "pad", {"dim": dim, "before": before, "after": after, "value": value})]

    @making
    def drop(self, path: str, name: str, dim: int, indices: Sequence[int]) -> list[Edit]:
        """Remove entries of dimension ``dim`` from a parameter or buffer."""
        return [ChangeTensor(path, name, "drop", {"dim": dim, "indices": sorted(set(indices))})]
