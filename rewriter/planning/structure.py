"""For which models a plan is: those with the same tree of modules."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from torch import nn

from rewriter.edit.classes import class_name, original_class
from rewriter.edit.edits import find_module
from rewriter.errors import PlanError
from rewriter.planning.data import PlanData


def check_fits(plan: PlanData, model: nn.Module) -> None:
    """Refuse a model of another structure than ``plan`` was made for.

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
    """Whether ``model`` has the tree of modules that ``plan`` was made for."""
    return plan.structure in fingerprints(_original_classes(model))


def fingerprint(model: nn.Module) -> str:
    """Changes with the tree of modules (paths and classes), not with weights or shapes.

    A class counts by its name without its module, which is another one where a script is imported or spawned.
    """
    return fingerprints(_original_classes(model))[0]


def named_fingerprint(model: nn.Module) -> str:
    """The fingerprint with the modules of the classes, as version 0.1.0 made it."""
    return fingerprints(_original_classes(model))[1]


def fingerprints(classes: Iterable[tuple[str, type]]) -> tuple[str, str]:
    """Both fingerprints, of modules by path and class."""
    pairs = list(classes)
    return (
        _digest(f"{path}:{cls.__qualname__}" for path, cls in pairs),
        _digest(f"{path}:{class_name(cls)}" for path, cls in pairs),
    )


def _original_classes(model: nn.Module) -> Iterator[tuple[str, type]]:
    return ((path, original_class(type(module))) for path, module in model.named_modules())


def _digest(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()[:16]
