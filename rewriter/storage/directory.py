"""Save a rewritten model to a directory: plans and settings as JSON, weights as safetensors. No code is stored.

A directory holds

- ``recipe.json``: how the original is made, settings not stored in weights, extra state of modules, and checksums,
- ``plan.json``: the plans, oldest first,
- ``report.json``: what was done and verified,
- ``model.safetensors``: the weights; shared tensors are listed in its metadata.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from rewriter import libraries
from rewriter.argument_checks import checked_path
from rewriter.edit.classes import class_name, is_called, original_class
from rewriter.errors import PlanError, StorageError, listed
from rewriter.model.checkpoint_file import read_safetensors
from rewriter.model.copying import WITHOUT, copy_model
from rewriter.model.differences import difference
from rewriter.model.refusal import check_model
from rewriter.model.whole_state import whole_state_dict
from rewriter.model.wrappers import looked_through, module_inside
from rewriter.plain_data import PLAIN
from rewriter.planning.checks import Check, Verification
from rewriter.planning.codec import from_data, to_data
from rewriter.planning.data import PlanData
from rewriter.planning.mark import MARK, has_mark
from rewriter.planning.plan import Plan
from rewriter.planning.plan_file import plan_files_in
from rewriter.planning.record import Record, records_in_force, records_of, rewritten_parts, set_records
from rewriter.planning.report import make_report
from rewriter.storage.checkpoint import check_weights
from rewriter.storage.damage import damage_of, read_json
from rewriter.storage.extra_state import extra_state_to_store, stored_extra_state
from rewriter.storage.original_recipe import checked_recipe, original_of
from rewriter.storage.savable import check_savable
from rewriter.storage.settings import restore_settings, restore_types, settings_of

FORMAT = 2
"""Version of the directory format."""

RECIPE, PLAN, REPORT, WEIGHTS = "recipe.json", "plan.json", "report.json", "model.safetensors"
_FILES = (RECIPE, PLAN, REPORT, WEIGHTS)
_VERSIONED = ("rewriter", *(name.replace("_", "-") for name in libraries.MODEL_LIBRARIES))

_SHAPE: dict[str, Any] = {
    "model": str | None, "kwargs": dict[str, Any], "class": str, "versions": dict[str, str],
    "rates": dict[str, dict[str, float]], "options": dict[str, dict[str, Any]], "training": bool,
    "in_other_mode": list[str], "frozen": list[str], "memory_order": dict[str, list[int]], "types": dict[str, str],
    "sha256": dict[str, str],
}  # fmt: skip
"""The entries of a recipe."""


def save(model: nn.Module, directory: str | Path, *, recipe: Mapping[str, Any] | None = None) -> None:
    """Write a rewritten model to ``directory`` atomically.

    Args:
        model: the model, in any mode, on any device; a wrapped or compiled one is unwrapped.
        directory: a new or empty directory, or one that was saved before, which is replaced.
        recipe: how the original is made: ``{"model": "resnet18", "kwargs": {"drop_rate": 0.2}}``, with a name that
            ``rewriter.zoo.create`` knows. Without it, :func:`load` needs a fresh original.

    Raises:
        ModelError: ``model`` is not a model, or is sharded or has wrapped submodules.
        StorageError: the directory holds something else or cannot be written, or the model cannot be stored.

    Example:
        >>> model = rewriter.rewrite(timm.create_model("test_resnet", drop_rate=0.2), "dropout")
        >>> rewriter.save(model, "rewritten", recipe={"model": "test_resnet", "kwargs": {"drop_rate": 0.2}})
        >>> model = rewriter.load("rewritten")
    """
    outer, model = model, looked_through(model)
    check_savable(outer, model)
    target = check_target(directory)
    name, options = checked_recipe(recipe or {})
    tensors, shared = _tensors_to_store(whole_state_dict(model))
    extra = extra_state_to_store(model)
    in_force = [(path, record) for path, part in rewritten_parts(model) for record in records_in_force(part)]
    records = [record for _, record in in_force]
    contents = {
        PLAN: json.dumps([to_data(record.plan) for record in records], indent=2),
        REPORT: make_report(model).to_json(),
    }
    partial = target.parent / f".{target.name}.{uuid.uuid4().hex[:12]}.partial"
    try:
        partial.mkdir(parents=True)
        for path in plan_files_in(target, besides=_FILES):
            shutil.copy2(path, partial)
        for file, text in contents.items():
            (partial / file).write_text(text, encoding="utf-8")
        safetensors.torch.save_file(tensors, str(partial / WEIGHTS), metadata=shared)
        (partial / WEIGHTS).chmod((partial / PLAN).stat().st_mode)  # created readable by its owner only
        description = {
            "format": FORMAT,
            "model": name,
            "kwargs": options,
            "class": class_name(original_class(type(model))),
            "versions": libraries.versions(_VERSIONED),
            "rewrites": [_request(record.plan) for record in records],
            "parts": [path for path, _ in in_force],
            **settings_of(model),
            "extra_state": extra,
            "sha256": {file: _sha256(partial / file) for file in (PLAN, REPORT, WEIGHTS)},
        }
        (partial / RECIPE).write_text(json.dumps(description, indent=2), encoding="utf-8")
        _put_in_place(partial, target)
    except (OSError, safetensors.SafetensorError, ValueError, RuntimeError) as error:
        raise StorageError(f"{target} cannot be written: {type(error).__name__}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load(directory: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Return the model that :func:`save` wrote, with the same structure, weights, drop rates and mode.

    It is on the CPU, or on the device of ``model``.

    Args:
        directory: the directory passed to :func:`save`.
        model: a fresh original, made like the original of the saved model. It is not modified; a copy is returned. None
            makes the original from the name in the recipe.

    Raises:
        StorageError: a file is missing, damaged or has another format version, no original can be made, or the weights
            do not fit it.
        PlanError: the plans were made for another model.
        ModelError: ``model`` is not a model, or is wrapped or compiled.

    Example:
        >>> model = rewriter.rewrite(timm.create_model("test_resnet", drop_rate=0.2), "dropout")
        >>> rewriter.save(model, "rewritten")
        >>> model = rewriter.load("rewritten", timm.create_model("test_resnet", drop_rate=0.2))
    """
    source = checked_path("directory", directory)
    recipe = read_recipe(source)
    plans = read_plans(source)
    state = _read_weights(source / WEIGHTS)
    if model is None:
        target = original_of(recipe, source)
    else:
        check_model(model)
        if rewritten_parts(model):
            raise StorageError("the model given was already rewritten; give a fresh original, or rewriter.undo(model)")
        target = copy_model(model, WITHOUT)
    if any(tensor.is_meta for tensor in (*target.parameters(), *target.buffers())):
        raise StorageError("the model given has tensors on the meta device; create it on the device it shall run on")
    versions = _version_note(recipe)
    parts = recipe.get("parts", [""] * len(plans))
    if not isinstance(parts, list) or len(parts) != len(plans):
        raise StorageError(f"{source / RECIPE} is damaged: 'parts' does not name a part for each plan")
    for path, plan in zip(parts, plans, strict=True):
        try:
            plan.apply(_part_of(target, path, source), inplace=True, verify=False, all_ranks=False)
        except PlanError as error:
            raise PlanError(f"{error}{versions}") from error
    found = original_class(type(target))
    if not is_called(found, recipe["class"]):
        here = class_name(found)
        raise StorageError(f"{source} holds a {recipe['class']}, found a {here}; give a fresh original of that class")
    with damage_of(source / RECIPE):
        extra = stored_extra_state(recipe.get("extra_state", {}))
    for path, part in rewritten_parts(target):
        if has_mark(part):  # directories of earlier versions have none, and their plans are here
            state[f"{path}.{MARK}".lstrip(".")] = part.state_dict()[MARK]
    check_weights(target, {**state, **extra}, f"the weights in {source}", versions)
    with damage_of(source / RECIPE):
        restore_types(target, state, recipe)
        with torch.no_grad():
            target.load_state_dict({**state, **extra}, strict=True)
        _check_loaded(target, state, source)
        restore_settings(target, recipe)
    _restore_verdicts(target, source)
    return target


def check_target(directory: str | Path) -> Path:
    """Return the absolute path of a directory that may be written.

    Raises:
        StorageError: it holds something that :func:`save` did not write.
    """
    target = checked_path("directory", directory).resolve()
    if not target.exists():
        return target
    if not target.is_dir():
        raise StorageError(f"{target} is a file; give a directory")
    others = plan_files_in(target, besides=_FILES)
    foreign = sorted(path.name for path in target.iterdir() if path.name not in _FILES and path not in others)
    if foreign:
        raise StorageError(f"{target} is not empty and was not written by rewriter.save ({', '.join(foreign[:5])})")
    if any(path not in others for path in target.iterdir()):
        try:
            read_json(target / RECIPE)["format"]
        except (StorageError, KeyError, TypeError) as error:
            raise StorageError(
                f"{target} is not empty and was not written by rewriter.save; remove it first"
            ) from error
    return target


def _tensors_to_store(state: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return each tensor once, contiguous, and the other names of shared ones."""
    tensors: dict[str, torch.Tensor] = {}
    shared: dict[str, str] = {}
    known: dict[Any, str] = {}
    for key, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            continue  # extra state, which is in the recipe
        if tensor.is_meta:
            raise StorageError(f"{key} is on the meta device: it has no values to store")
        tensor = tensor.detach()
        if tensor.layout is not torch.strided or tensor.is_quantized or type(tensor) is not torch.Tensor:
            raise StorageError(
                f"{key} is a {type(tensor).__name__} ({tensor.layout}); only plain tensors can be stored: save the "
                "model before its tensors are quantized or wrapped, and do that again to what rewriter.load gives"
            )
        identity = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and identity in known:
            shared[key] = known[identity]
            continue
        known[identity] = key
        tensors[key] = tensor.cpu().contiguous()
    storages: set[int] = set()
    for key, tensor in tensors.items():  # safetensors refuses different views of the same memory
        if tensor.untyped_storage().data_ptr() in storages:
            tensors[key] = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
    return tensors, shared


def _part_of(model: nn.Module, path: Any, source: Path) -> nn.Module:
    """Return what a plan was made for: ``model`` itself, or a submodule, as in a LightningModule."""
    part = module_inside(model, path) if isinstance(path, str) else None
    if part is None:
        raise StorageError(f"{source} has a plan for {path!r}, which this {type(model).__name__} does not have")
    return part


def _restore_verdicts(model: nn.Module, source: Path) -> None:
    """Restore what was verified and the durations, so that a loaded model has the report it was saved with."""
    with damage_of(source / REPORT):
        entries = read_json(source / REPORT)
        parts = [(part, record) for _, part in rewritten_parts(model) for record in records_of(part)]
        told: dict[nn.Module, list[Record]] = {part: [] for part, _ in parts}
        for (part, record), entry in zip(parts, entries, strict=True):
            checks = entry["verified"]
            verdict = None if checks is None else Verification(tuple(map(Check.from_data, checks)))
            seconds = {str(step): float(value) / 1000 for step, value in entry["milliseconds"].items()}
            told[part].append(replace(record, verdict=verdict, seconds=seconds))
        for part, records in told.items():
            set_records(part, tuple(records))


def _check_loaded(model: nn.Module, state: Mapping[str, torch.Tensor], source: Path) -> None:
    """Check the value of every key: wrong if the original ties weights that were saved untied, or casts them."""
    found = model.state_dict()
    pairs = ((key, found[key].detach().cpu(), value.cpu()) for key, value in state.items())
    wrong = [key for key, there, saved in pairs if there.dtype != saved.dtype or difference(there, saved) > 0]
    if wrong:
        raise StorageError(
            f"{source}: the weights loaded differ from those saved: {listed(wrong)}. "
            "The original given ties or converts weights in another way."
        )


def read_recipe(source: Path) -> dict[str, Any]:
    """Return how the model in a directory was made; its files are checked.

    Raises:
        StorageError: a file is missing, damaged, or of another version.
    """
    if not source.is_dir():
        raise StorageError(f"{source}: no such directory")
    missing = [file for file in _FILES if not (source / file).is_file()]
    if missing:
        raise StorageError(f"{source} is incomplete: {', '.join(missing)} is missing")
    recipe = read_json(source / RECIPE)
    if not isinstance(recipe, dict) or recipe.get("format") != FORMAT:
        found = recipe.get("format") if isinstance(recipe, dict) else type(recipe).__name__
        raise StorageError(f"{source / RECIPE}: expected format {FORMAT}, found {found!r}; save the model again")
    for key, kind in _SHAPE.items():
        with damage_of(source / RECIPE):
            PLAIN.from_plain(kind, recipe.get(key), key)
    for file in (PLAN, REPORT, WEIGHTS):
        with damage_of(source / file):
            found = _sha256(source / file)
        if recipe["sha256"].get(file) != found:
            raise StorageError(f"{source / file} is damaged, or was changed after it was saved (checksum)")
    return recipe


def read_plans(source: Path) -> list[Plan]:
    """Return the plans of a directory, oldest first."""
    with damage_of(source / PLAN):
        return [from_data(Plan, item) for item in list(read_json(source / PLAN))]


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    with damage_of(path):
        return read_safetensors(path)


def _put_in_place(partial: Path, target: Path) -> None:
    """Rename, restoring the previous content if that fails."""
    old = target.parent / f"{partial.name}.old"
    try:
        if target.exists():
            target.rename(old)
        partial.rename(target)
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def _request(plan: PlanData) -> dict[str, Any]:
    return {"passes": [{name: options} for name, options in plan.passes], **plan.request}


def _version_note(recipe: Mapping[str, Any]) -> str:
    """Return which libraries have changed version since the model was saved, the likeliest reason for a mismatch."""
    here = libraries.versions(_VERSIONED)
    other = [f"{n} {v}, here {here.get(n, 'none')}" for n, v in recipe["versions"].items() if v != here.get(n)]
    return f" (saved with {'; '.join(other)})" if other else ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
