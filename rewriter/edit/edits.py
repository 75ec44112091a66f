"""The edits that a plan consists of, and how they are applied and undone: all of them, or none.

Every edit is plain data and reversible. Module objects are never replaced: a module keeps its identity, and so its
parameters, hooks and position; what changes is an attribute, a child, or the class of that one object.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from rewriter.edit.classes import ClassEdit, MethodEdit, derive, is_generated
from rewriter.edit.computations import Compute, Given, Keep
from rewriter.edit.held_methods import rebind, replaced_by_class, restored_with_class
from rewriter.edit.operations import (
    Adopt,
    CallMethod,
    Move,
    Operation,
    Redirect,
    RedirectBinary,
    Remove,
    RemoveBinary,
    Replace,
    Wrap,
    WrapTogether,
)
from rewriter.edit.source import Span
from rewriter.edit.tensors import Changed, change_tensor
from rewriter.errors import PlanError, RewriterError
from rewriter.layers.registry import layer_class
from rewriter.model.wrappers import module_inside
from rewriter.plain_data import Codec


@dataclass(frozen=True)
class Edit:
    """Base class of edits; ``path`` is the module that is edited ("" is the model itself)."""

    kind: ClassVar[str]
    path: str


@dataclass(frozen=True)
class SetAttribute(Edit):
    """Set a hyper-parameter: ``module.name = value``."""

    kind: ClassVar[str] = "set"
    name: str
    value: Any

    def __post_init__(self) -> None:
        if isinstance(self.value, list):  # JSON has no tuples, and hyper-parameters are never lists
            object.__setattr__(self, "value", tuple(self.value))


@dataclass(frozen=True)
class ChangeTensor(Edit):
    """Scale, pad or shorten a parameter or buffer; the object, which an optimizer may hold, stays the same.

    Attributes:
        name: name of the parameter or buffer.
        how: ``"scale"``, ``"pad"`` or ``"drop"``.
        options: options of the change, see :mod:`rewriter.edit.tensors`.
    """

    kind: ClassVar[str] = "tensor"
    name: str
    how: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Freeze(Edit):
    """Keep the parameter ``name`` from training; it stays where it is, and in the state dict."""

    kind: ClassVar[str] = "freeze"
    name: str


@dataclass(frozen=True)
class AddModule(Edit):
    """Add a child module: a registered layer, built with ``options`` and the modules at ``references``."""

    kind: ClassVar[str] = "add"
    name: str
    layer: str
    options: Mapping[str, Any] = field(default_factory=dict)
    references: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class AddBehaviour(Edit):
    """Put a registered behaviour in front of the module's class, and set its hyper-parameters to ``options``."""

    kind: ClassVar[str] = "behave"
    behaviour: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EditMethod(Edit):
    """Apply one operation to the source of one method of the module.

    Attributes:
        owner: the class that defines the method, as ``module.Class``.
        method: its name.
        digest: digest of the source that the operation was planned for.
        operation: the change to the text.
        condition: what has to hold for the operation to run, if it is on another control-flow path than the one that
            ran when the plan was made; otherwise empty.
    """

    kind: ClassVar[str] = "edit"
    owner: str
    method: str
    digest: str
    operation: Operation
    condition: str = ""


_EDITS: dict[str, type[Edit]] = {
    cls.kind: cls for cls in (SetAttribute, ChangeTensor, Freeze, AddModule, AddBehaviour, EditMethod)
}
_OPERATIONS: dict[str, type[Operation]] = {
    cls.kind: cls
    for cls in (
        Move,
        Remove,
        RemoveBinary,
        Wrap,
        WrapTogether,
        Redirect,
        RedirectBinary,
        Replace,
        Keep,
        Compute,
        Adopt,
        CallMethod,
    )
}

CODEC = Codec(
    {Edit: _EDITS, Operation: _OPERATIONS}, lists=(Span, Given), names={"Edit": Edit},
    added_since=frozenset({
        "condition", "rates", "parameters", "adds_parameters", "freezes_parameters", "rounding", "inactive",
        "code", "location",
    }),
)  # fmt: skip
"""Converts edits, and what holds them, to plain data and back."""


def class_edits(edits: Sequence[Edit]) -> dict[str, ClassEdit]:
    """Merge all class changes of each module, so that generated code is compiled once per module, not once per edit."""
    behaviours: dict[str, dict[str, None]] = {}
    methods: dict[str, dict[tuple[str, str, str], list[Operation]]] = {}
    for edit in edits:
        if isinstance(edit, AddBehaviour):
            behaviours.setdefault(edit.path, {})[edit.behaviour] = None
        elif isinstance(edit, EditMethod):
            key = (edit.owner, edit.method, edit.digest)
            operations = methods.setdefault(edit.path, {}).setdefault(key, [])
            if edit.operation not in operations:
                operations.append(edit.operation)
    return {
        path: ClassEdit(
            tuple(behaviours.get(path, ())),
            tuple(MethodEdit(*key, tuple(operations)) for key, operations in methods.get(path, {}).items()),
        )
        for path in {**behaviours, **methods}
    }


@dataclass(frozen=True)
class Applied:
    """What was done to a model, sufficient to undo it. It is copied and pickled with the model."""

    edits: tuple[Edit, ...]
    previous: tuple[tuple[str, str, Any], ...]
    edited_classes: tuple[str, ...]
    tensors: tuple[Changed, ...] = ()
    frozen: tuple[tuple[str, str], ...] = ()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({"tensors": (), "frozen": (), **state})  # a pickle from before there were such edits


def apply_edits(model: nn.Module, edits: Sequence[Edit]) -> Applied:
    """Apply ``edits`` to ``model`` in place; if one fails, all are undone before the error is raised.

    Raises:
        PlanError: an edit does not fit the model.
        SourceError: a method cannot be edited.
    """
    undo: list[Callable[[], None]] = []
    previous: list[tuple[str, str, Any]] = []
    tensors: list[Changed] = []
    frozen: list[tuple[str, str]] = []
    try:
        for edit in edits:
            module = find_module(model, edit.path)
            if isinstance(edit, AddModule):
                _add(model, module, edit)
                undo.append(lambda module=module, name=edit.name: delattr(module, name))  # type: ignore[misc]
            elif isinstance(edit, SetAttribute):
                old = value_now(module, edit)
                previous.append((edit.path, edit.name, old))
                setattr(module, edit.name, edit.value)
                undo.append(lambda module=module, name=edit.name, old=old: setattr(module, name, old))  # type: ignore[misc]
            elif isinstance(edit, ChangeTensor):
                changed = change_tensor(module, edit.path, edit.name, edit.how, edit.options)
                tensors.append(changed)
                undo.append(lambda module=module, changed=changed: changed.take_back(module))  # type: ignore[misc]
            elif isinstance(edit, Freeze) and (parameter := parameter_of(module, edit)).requires_grad:
                parameter.requires_grad_(False)
                frozen.append((edit.path, edit.name))
                undo.append(lambda parameter=parameter: parameter.requires_grad_())  # type: ignore[misc]
        by_path = class_edits(edits)
        for path, edit_of_class in by_path.items():
            module = find_module(model, path)
            old_class = type(module)
            _check_new_methods(module, path, edit_of_class)
            module.__class__ = derive(old_class, edit_of_class)
            undo.append(lambda module=module, old=old_class: setattr(module, "__class__", old))  # type: ignore[misc]
        edited = [find_module(model, path) for path in by_path]
        undo += rebind(model, {module: replaced_by_class(module) for module in edited})
        for edit in edits:
            if isinstance(edit, AddBehaviour) and edit.options:
                module = find_module(model, edit.path)
                _check_options(module, edit)
                undo.append(lambda module=module, edit=edit: _unset(module, edit))  # type: ignore[misc]
                for name, value in edit.options.items():
                    setattr(module, name, value)
    except BaseException as error:
        for step in reversed(undo):
            step()
        if isinstance(error, RewriterError) or not isinstance(error, Exception):
            raise
        raise PlanError(f"the plan cannot be carried out: {type(error).__name__}: {error}") from error
    return Applied(tuple(edits), tuple(previous), tuple(by_path), tuple(tensors), tuple(frozen))


def take_back(model: nn.Module, applied: Applied) -> None:
    """Undo ``applied``; what the user has replaced since (a new classifier, say) is left alone."""
    found = {path: module_inside(model, path) for path in applied.edited_classes}
    restored = {path: module for path, module in found.items() if module is not None and is_generated(type(module))}
    rebind(model, {module: restored_with_class(module) for module in restored.values()})
    for restoring in dict.fromkeys(restored.values()):
        restoring.__class__ = type(restoring)._rewriter_base  # type: ignore[attr-defined]
    for path, name, value in reversed(applied.previous):
        module = module_inside(model, path)
        if module is not None:
            setattr(module, name, value)
    for changed in reversed(applied.tensors):
        module = module_inside(model, changed.path)
        if module is not None:
            changed.take_back(module)
    for path, name in applied.frozen:
        parameter = getattr(module_inside(model, path), name, None)
        if isinstance(parameter, nn.Parameter):
            parameter.requires_grad_()
    for edit in applied.edits:
        module = module_inside(model, edit.path)
        if isinstance(edit, AddModule) and module is not None and edit.name in module._modules:
            delattr(module, edit.name)
        elif isinstance(edit, AddBehaviour) and module is not None and edit.path in restored:
            _unset(module, edit)


def find_module(model: nn.Module, path: str) -> nn.Module:
    """The module at ``path``.

    Raises:
        PlanError: there is none.
    """
    found = module_inside(model, path)
    if found is None:
        raise PlanError(f"the plan names module {path!r}, which {type(model).__name__} does not have")
    return found


def edit_to_data(edit: Edit) -> dict[str, Any]:
    """JSON-ready form of an edit."""
    data: dict[str, Any] = CODEC.to_plain(edit)
    return data


def edit_from_data(data: Any) -> Edit:
    """Rebuild the edit that :func:`edit_to_data` described.

    Raises:
        PlanError: the data does not describe an edit.
    """
    try:
        return CODEC.from_plain(Edit, data, "edit")
    except (ValueError, TypeError) as error:
        raise PlanError(f"the plan is damaged: {error}") from error


def value_now(module: nn.Module, edit: SetAttribute) -> Any:
    """The current value of the hyper-parameter that ``edit`` sets.

    Raises:
        PlanError: the module has no such hyper-parameter.
    """
    plain = edit.name in module.__dict__ or isinstance(getattr(type(module), edit.name, None), property)
    value = getattr(module, edit.name, None)
    if not plain or edit.name.startswith("_") or callable(value) or isinstance(value, torch.Tensor | dict | list):
        raise PlanError(f"module {edit.path!r} has no hyper-parameter {edit.name!r} that can be set")
    return value


def parameter_of(module: nn.Module, edit: Freeze) -> nn.Parameter:
    """The parameter that ``edit`` freezes.

    Raises:
        PlanError: the module has no such parameter.
    """
    found = module._parameters.get(edit.name)
    if found is None:
        raise PlanError(f"module {edit.path!r} ({type(module).__name__}) has no parameter {edit.name!r}")
    return found


def _check_new_methods(module: nn.Module, path: str, edit: ClassEdit) -> None:
    for operation in (operation for method in edit.methods for operation in method.operations):
        called_as_it_is = isinstance(operation, CallMethod) and operation.method == operation.attribute
        name = operation.method if isinstance(operation, (Adopt, CallMethod)) and not called_as_it_is else None
        if name is not None and hasattr(module, name):
            raise PlanError(f"module {path!r} already has an attribute {name!r}")


def _check_options(module: nn.Module, edit: AddBehaviour) -> None:
    behaviour = layer_class(edit.behaviour)
    for name in edit.options:
        option = getattr(behaviour, name, None)
        if not isinstance(option, property) or option.fset is None:
            raise PlanError(f"{edit.behaviour} has no option {name!r}")
        if name in module.__dict__:
            raise PlanError(f"module {edit.path!r} already has an attribute {name!r}")


def _unset(module: nn.Module, edit: AddBehaviour) -> None:
    for name in edit.options:
        module.__dict__.pop(name, None)


def _add(model: nn.Module, module: nn.Module, edit: AddModule) -> None:
    if not edit.name.isidentifier() or hasattr(module, edit.name):
        raise PlanError(f"module {edit.path!r} already has an attribute {edit.name!r}")
    references = {name: find_module(model, path) for name, path in edit.references.items()}
    child = layer_class(edit.layer)(**edit.options, **references)
    child.train(module.training)
    near = next(itertools.chain(module.parameters(), module.buffers(), model.parameters()), None)
    if near is not None:
        child.to(near.device)
    if any(True for _ in child.parameters()):
        _fit_parameters(child, module, model)
    module.add_module(edit.name, child)


def _fit_parameters(child: nn.Module, module: nn.Module, model: nn.Module) -> None:
    """Give the parameters of a new ``child`` the dtype of the module around it, and freeze them if that is frozen."""
    near = itertools.chain(module.parameters(), model.parameters())
    floating = next((parameter.dtype for parameter in near if parameter.is_floating_point()), None)
    if floating is not None:
        child.to(floating)
    frozen = any(True for _ in module.parameters()) and not any(p.requires_grad for p in module.parameters())
    for parameter in child.parameters():
        parameter.requires_grad_(not frozen)
