"""Which models a plan fits: those with the same module tree."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from torch import nn

from rewriter.edit.classes import class_name, original_class
from rewriter.edit.edits import find_module
from rewriter.errors import PlanError
from rewriter.planning.data import PlanData
from rewriter.subjects.function_module import FunctionModule


def check_fits(plan: PlanData, model: nn.Module) -> None:
    """Refuse a model with a structure other than the one ``plan`` was made for.

    Raises:
        PlanError: naming the first module that differs.
    """
    for edit in plan.edits:
        find_module(model, edit.path)
    if not has_structure_of(plan, model):
        raise PlanError(
            f"the plan was made for another {plan.model} (structure {plan.structure}, found {fingerprint(model)} "
            f"in {class_name(original_class(type(model)))}). Make a new plan for this model."
        )


def has_structure_of(plan: PlanData, model: nn.Module) -> bool:
    """Whether ``model`` has the module tree that ``plan`` was made for."""
    return plan.structure in fingerprints(_original_classes(model))


def fingerprint(model: nn.Module) -> str:
    """Return a digest of the module tree (paths and classes), independent of weights and shapes.

    A class counts by its name without its module, which changes when a script is imported or spawned; a function by
    its name and its source.
    """
    return fingerprints(_original_classes(model))[0]


def named_fingerprint(model: nn.Module) -> str:
    """Return the fingerprint with the modules of the classes, as in version 0.1.0."""
    return fingerprints(_original_classes(model))[1]


def fingerprints(classes: Iterable[tuple[str, type]]) -> tuple[str, str]:
    """Return both fingerprints of modules given by path and class."""
    pairs = list(classes)
    return (
        _digest(f"{path}:{cls.__qualname__}{_source_of(cls)}" for path, cls in pairs),
        _digest(f"{path}:{class_name(cls)}{_source_of(cls)}" for path, cls in pairs),
    )


def _source_of(cls: type) -> str:
    return f" {cls.source_digest}" if issubclass(cls, FunctionModule) else ""


def _original_classes(model: nn.Module) -> Iterator[tuple[str, type]]:
    return ((path, original_class(type(module))) for path, module in model.named_modules())


def _digest(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()[:16]
