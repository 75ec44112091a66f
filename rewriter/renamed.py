"""Moved modules: for one release their old names give the same module objects.

Deep imports (``from rewriter.calibration import calibrate``), pickles and third-party passes refer to modules by their
old names. Each old name is resolved here to the present module, with a warning. Names that another package provides are
left alone: a folder ``passes`` of the user's own stays theirs.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.abc import Loader, MetaPathFinder
else:
    Loader = MetaPathFinder = object  # importing them takes a third of the time that importing rewriter takes

MOVED = {
    "adapters": "model", "contents": "model", "copier": "model", "copy_rules": "model", "copying": "model",
    "generators": "model", "hooks": "model", "iterators": "model", "mutable_state": "model",
    "reach": "model", "resources": "model", "state": "model", "surroundings": "model", "whole_state": "model",
    "wrappers": "model", "input_description": "tracing", "skeleton": "tracing",
    "analysis.dataflow": "tracing.dataflow", "freshness": "analysis.trained_weights", "measured": "layers",
    "scripting": "layers", "manager": "guideline.registry", "plan_making": "planning.make",
    "plan_applying": "planning.apply", "plan_file": "planning", "plan_mark": "planning.mark",
    "selection": "planning", "in_force": "planning",
    "hidden_branches": "planning", "effects": "planning", "ranks": "planning", "parameter_kinds": "planning",
    "remembered_inputs": "planning", "calibration": "constants", "folding": "constants", "batches": "constants",
    "moments": "constants", "optimizer_groups": "optimizer.groups", "grouped_parameters": "optimizer",
    "optimizer_check": "optimizer.check", "savable": "storage", "original_recipe": "storage", "pretrained": "storage",
    "checkpoint": "storage", "extra_state": "storage", "settings": "storage", "progress": "reporting",
    "memory": "reporting", "result_file": "reporting", "cli_compare": "cli.compare", "cli_encoding": "cli.encoding",
    "cli_model": "cli.model", "cli_options": "cli.options", "cli_output": "cli.output", "cli_stdout": "cli.stdout",
    "cli_sweep": "cli.sweep", "grouping": "text",
    "comparison.data": "comparison.findings", "comparison.run": "comparison.findings",
    "comparison.plain": "comparison.findings", "comparison.units": "comparison.number_format",
    "comparison.figure": "comparison.figures", "comparison.differences": "comparison.figures",
    "comparison.learning_curves": "comparison.figures", "comparison.sections": "comparison.report",
    "comparison.tables": "comparison.report", "comparison.files": "comparison.run_directory",
    "comparison.reports": "comparison.run_directory", "comparison.run_file": "comparison.run_directory",
    "comparison.run_progress": "comparison.experiment", "comparison.without_training": "comparison.verdict",
    "comparison.place": "comparison.devices", "comparison.subject": "comparison.model_pairs",
    "comparison.question": "comparison.identity", "comparison.fitting": "comparison.scoring",
    "comparison.idle": "comparison.notes", "data.small_images": "data.packaged", "data.photos": "data.packaged",
    "data.mri": "data.packaged", "data.nuclei": "data.packaged",
}  # fmt: skip
"""Old names below ``rewriter`` → the package that has the module now, or its new name."""

DIVIDED = {
    "inputs": ("tracing.containers", "tracing.inputs"),
    "guard": ("model.refusal", "model.random_state", "model.collector"),
    "record": ("planning.record", "planning.report", "planning.checks", "planning.staleness"),
    "verification": ("planning.verify", "planning.observe", "planning.checks"),
    "comparison.plots": ("comparison.figures", "comparison.run_directory"),
}
"""Old names of modules that were split; the old name has the contents of all parts."""

FOLDERS = {"passes": "rewriter.passes", "model_zoo": "rewriter.zoo"}
"""Folders of a checkout that are installed as parts of ``rewriter``."""


def new_name(name: str) -> str | None:
    """The present name of the module that was called ``name``; None if it was not moved."""
    first, _, rest = name.partition(".")
    if first in FOLDERS:
        return f"{FOLDERS[first]}.{rest}".rstrip(".") if not rest or _is_ours(sys.modules.get(first)) else None
    place = MOVED.get(rest) if first == "rewriter" else None
    if place is None:
        return None
    inside = place in _ROOMS and "." not in rest and place != "text"
    return f"rewriter.{place}.{rest}" if inside else f"rewriter.{place}"


_ROOMS = frozenset(place for place in MOVED.values() if "." not in place)


def forward(package: str, *modules: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module with the name of an old one: it finds the old names in ``modules``."""

    def get(name: str) -> Any:
        for module in () if name.startswith("__") else modules:
            found = getattr(importlib.import_module(module), name, _MISSING)
            if found is not _MISSING:
                _warn(f"{package}.{name}", f"{module}.{name}")
                return found
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get


def forward_names(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module whose contents were renamed: it maps their old to their new ``names``."""

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        _warn(f"{module}.{name}", f"{module}.{names[name]}")
        return getattr(sys.modules[module], names[name])

    return get


_MISSING = object()


def install() -> None:
    """Install the finder for old module names."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        parts = DIVIDED.get(name.removeprefix("rewriter."))
        if parts is not None and name.startswith("rewriter."):
            return importlib.machinery.ModuleSpec(name, _Divided([f"rewriter.{part}" for part in parts]))
        found = new_name(name)
        if found is None or (name in FOLDERS and _is_of_somebody_else(name)):
            return None
        return importlib.machinery.ModuleSpec(name, _Alias(found), is_package=name in FOLDERS)


class _Alias(Loader):
    """Loads the module of another name, and leaves its metadata as it is."""

    def __init__(self, name: str) -> None:
        self._name = name

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        _warn(spec.name, self._name)
        module = importlib.import_module(self._name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


class _Divided(Loader):
    """Creates a module with the names of several others."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__getattr__"] = forward(module.__name__, *self._names)


def _is_of_somebody_else(folder: str) -> bool:
    spec = importlib.machinery.PathFinder.find_spec(folder)
    return spec is not None and not _same_file(spec.origin, folder)


def _is_ours(module: ModuleType | None) -> bool:
    return module is not None and _same_file(getattr(module, "__file__", None), module.__name__.rpartition(".")[2])


def _same_file(file: str | None, folder: str) -> bool:
    ours = os.path.join(os.path.dirname(__file__), FOLDERS.get(folder, "").rpartition(".")[2] or folder, "__init__.py")
    return file is not None and os.path.realpath(file) == os.path.realpath(ours)


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is {new} now; the old name goes with the next release", DeprecationWarning, stacklevel=2)
