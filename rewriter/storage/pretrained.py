"""Save a rewritten model in its own library's format, with the plan beside the weights.

The directory is the library's: its configuration and weight files. The plans are stored with them, and
:func:`from_pretrained` applies them to a fresh original before the weights are loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rewriter import libraries
from rewriter.argument_checks import checked_path
from rewriter.errors import PlanError, RewriterError, StorageError, listed
from rewriter.model.checkpoint_file import read_checkpoint
from rewriter.model.copying import WITHOUT, copy_model
from rewriter.model.refusal import check_model
from rewriter.model.wrappers import looked_through
from rewriter.planning.codec import from_data, to_data
from rewriter.planning.plan import Plan
from rewriter.planning.record import is_folded, records_in_force, records_of
from rewriter.storage.checkpoint import check_weights
from rewriter.storage.damage import damage_of, read_json

PLAN, CONFIG = "rewriter-plan.json", "config.json"
"""The file of the plans, and the library's configuration, which holds them too under :data:`KEY`."""

KEY = "rewriter_plan"

_WEIGHTS = ("model", "diffusion_pytorch_model", "pytorch_model")
_ENDINGS = (".safetensors", ".bin")


def save_pretrained(model: nn.Module, directory: str | Path, **options: Any) -> None:
    """Write a rewritten model as its library does, and the plan beside it.

    For models with their own ``save_pretrained`` (transformers, diffusers, segmentation_models_pytorch) and for timm's.
    :func:`from_pretrained` reads it back. The library's own ``from_pretrained`` makes the original from it and reports
    the keys of the edits (``rewriter_plan``, constants of equalizers) as unexpected, and the weights belong to another
    function.

    Args:
        model: a rewritten model; a wrapped or compiled one is unwrapped.
        directory: as the library takes it.
        **options: for the library's function.

    Raises:
        StorageError: the model was not rewritten, its library does not write such directories, or writing fails.
        ModelError: it is not a model.

    Example:
        >>> model = rewriter.rewrite(timm.create_model("test_resnet", drop_rate=0.2), "dropout")
        >>> rewriter.save_pretrained(model, "rewritten")
    """
    model = looked_through(model)
    check_model(model, may_be_wrapped=True)
    target = checked_path("directory", directory)
    if is_folded(model):
        raise StorageError("the model was folded for export; save the model that it was folded from")
    plans_of(model)
    write = _writer(model)
    try:
        write(target, **options)
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {type(error).__name__}: {error}") from error
    write_plans(model, target)


def plans_of(model: nn.Module) -> list[Any]:
    """Return the plans of the rewrites of ``model`` that are in force, as data.

    Raises:
        StorageError: it was not rewritten.
    """
    if not records_of(model):
        raise StorageError(f"{type(model).__name__} was not rewritten; its library's own function saves it")
    return [to_data(record.plan) for record in records_in_force(model)]


def write_plans(model: nn.Module, directory: Path) -> None:
    """Write the plans of ``model`` into a directory that its library wrote.

    Raises:
        StorageError: the model was not rewritten, or the directory cannot be written.
    """
    plans = plans_of(model)
    try:
        (directory / PLAN).write_text(json.dumps(plans, indent=2), encoding="utf-8")
        _add_to_config(directory / CONFIG, plans)
    except OSError as error:
        raise StorageError(f"{directory} cannot be written: {type(error).__name__}: {error}") from error


def from_pretrained(cls_or_factory: Any, directory: str | Path) -> nn.Module:
    """Return the model that :func:`save_pretrained` wrote, with its weights, in evaluation mode, on the CPU.

    Args:
        cls_or_factory: the class of the original (``SegformerForSemanticSegmentation``, ``UNet2DModel``, ``smp.Unet``,
            an ``AutoModel`` class), built from the configuration in the directory; or a callable without arguments that
            makes a fresh original: ``lambda: timm.create_model("resnet50_gn", num_classes=4)``.
        directory: what :func:`save_pretrained` wrote, or a copy of it.

    Raises:
        StorageError: the directory holds no plan or no weights, they are damaged or do not fit, or the original cannot
            be made.
        PlanError: the plan was made for another model.

    Example:
        >>> model = rewriter.rewrite(timm.create_model("test_resnet", drop_rate=0.2), "dropout")
        >>> rewriter.save_pretrained(model, "rewritten")
        >>> model = rewriter.from_pretrained(lambda: timm.create_model("test_resnet", drop_rate=0.2), "rewritten")
    """
    source = checked_path("directory", directory)
    plans = _read_plans(source)
    state = _read_weights(source)
    try:
        model, is_loaded = _original(cls_or_factory, source)
    except RewriterError:
        raise
    except Exception as error:
        raise StorageError(f"the original of {source} cannot be made: {type(error).__name__}: {error}") from error
    check_model(model)
    loaded = model.state_dict() if is_loaded else {}
    for plan in plans:
        model = plan.apply(model, inplace=True, verify=False, all_ranks=False)
    if is_loaded:  # the library has its own names for everything except what the edits added
        state = {**loaded, **{key: state[key] for key in model.state_dict() if key not in loaded and key in state}}
    _fill_tied(model, state)
    check_weights(model, state, f"the weights in {source}")
    types = _floating_types(state)
    if len(types) == 1 and types != _floating_types(model.state_dict()):  # diffusers warns of any conversion
        model = model.to(types.pop())
    model.load_state_dict(state, strict=True)
    result: nn.Module = model.eval()
    return result


def _floating_types(state: Mapping[str, Any]) -> set[torch.dtype]:
    return {value.dtype for value in state.values() if isinstance(value, torch.Tensor) and value.is_floating_point()}


def _of_transformers(cls: Any, source: Path) -> nn.Module:
    """Return the original with its weights, loaded by transformers, which writes and reads names other than a model's.

    Raises:
        StorageError: weights of the original are missing.
    """
    logging = libraries.load("transformers", libraries.install_command("transformers"), StorageError).utils.logging
    said = logging.get_verbosity()
    logging.set_verbosity_error()  # it would report our keys, which are loaded afterwards
    try:
        model, found = cls.from_pretrained(str(source), output_loading_info=True)
    finally:
        logging.set_verbosity(said)
    if missing := sorted(found["missing_keys"]):
        raise StorageError(f"the weights in {source} do not fit this {cls.__name__}: missing: {listed(missing)}")
    if hasattr(model.config, KEY):
        delattr(model.config, KEY)
    result: nn.Module = model
    return result


def _writer(model: nn.Module) -> Callable[..., Any]:
    if callable(own := getattr(model, "save_pretrained", None)):
        return own  # type: ignore[no-any-return]
    if isinstance(getattr(model, "pretrained_cfg", None), dict):
        hub = libraries.load("timm.models", libraries.install_command("timm"), StorageError, "a model of timm")

        def write(target: Path, **options: Any) -> None:
            hub.save_for_hf(model, str(target), **{"safe_serialization": True, **options})

        return write
    raise StorageError(
        f"{type(model).__name__} has no save_pretrained and is no model of timm; rewriter.save(model, directory) saves "
        "any model"
    )


def _add_to_config(file: Path, plans: list[Any]) -> None:
    if not file.is_file():
        return
    config = read_json(file)
    file.write_text(json.dumps({**config, KEY: plans}, indent=2) + "\n", encoding="utf-8")


def _read_plans(source: Path) -> list[Plan]:
    if not source.is_dir():
        raise StorageError(f"{source}: no such directory")
    with damage_of(source / CONFIG):
        found = read_json(source / PLAN) if (source / PLAN).is_file() else read_json(source / CONFIG).get(KEY)
    if not isinstance(found, list):
        raise StorageError(
            f"{source} has no {PLAN}, and no {KEY} in {CONFIG}: it was not written by rewriter.save_pretrained. The "
            "library's own from_pretrained loads what the library wrote."
        )
    try:
        return [from_data(Plan, item) for item in found]
    except PlanError as error:
        raise PlanError(f"{source}: {error}") from error


def _original(cls_or_factory: Any, source: Path) -> tuple[Any, bool]:
    """Return an original, from the configuration in ``source`` if the class given can read it.

    The second value says whether it has the weights in ``source``; otherwise it is fresh.
    """
    if not callable(cls_or_factory):
        raise StorageError(
            f"expected a class with from_pretrained, or a callable that makes a fresh original; found "
            f"{type(cls_or_factory).__name__}"
        )
    if not isinstance(cls_or_factory, type):
        made = cls_or_factory()
        if isinstance(made, nn.Module) and records_of(made):
            raise StorageError("the original given was already rewritten; give a fresh one")
        if isinstance(made, nn.Module) and _is_of_transformers(type(made)):
            return _of_transformers(type(made), source), True
        return copy_model(made, WITHOUT), False
    if _is_of_transformers(cls_or_factory):
        return _of_transformers(cls_or_factory, source), True
    if hasattr(cls_or_factory, "load_config"):  # diffusers
        config = {key: value for key, value in cls_or_factory.load_config(str(source)).items() if key != KEY}
        return cls_or_factory.from_config(config), False  # type: ignore[attr-defined]
    if hasattr(cls_or_factory, "from_pretrained"):  # the mixin of huggingface_hub wrote the arguments of the class
        config = {
            key: value for key, value in read_json(source / CONFIG).items() if key != KEY and not key.startswith("_")
        }
        if "encoder_weights" in config:
            config["encoder_weights"] = None  # the directory has the weights
        return cls_or_factory(**config), False
    return cls_or_factory(), False


def _is_of_transformers(cls: type) -> bool:
    """Whether it is a transformers model class, or a class that selects one (``AutoModel``)."""
    return hasattr(cls, "config_class") or (hasattr(cls, "from_config") and not hasattr(cls, "load_config"))


def _read_weights(source: Path) -> dict[str, torch.Tensor]:
    for name, ending in ((name, ending) for ending in _ENDINGS for name in _WEIGHTS):
        whole, index = source / f"{name}{ending}", source / f"{name}{ending}.index.json"
        if whole.is_file():
            return read_checkpoint(whole)
        if index.is_file():
            return {key: tensor for part in _parts(index) for key, tensor in read_checkpoint(part).items()}
    names = ", ".join(f"{name}{_ENDINGS[0]}" for name in _WEIGHTS)
    raise StorageError(f"{source} has no weights; expected one of {names}, whole or in parts")


def _parts(index: Path) -> Iterator[Path]:
    with damage_of(index):
        files = dict.fromkeys(read_json(index)["weight_map"].values())
    return (index.parent / Path(str(file)).name for file in files)


def _fill_tied(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Fill in shared tensors, which libraries write once."""
    own = model.state_dict(keep_vars=True)
    first = {id(tensor): key for key, tensor in own.items() if key in state}
    for key, tensor in own.items():
        if key not in state and id(tensor) in first:
            state[key] = state[first[id(tensor)]]
