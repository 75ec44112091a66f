"""Arguments for torchvision models that take more than one batch of images, from torchvision's own metadata."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

import torch

_BATCH = 2
"""Batch norm in training needs more than one value per channel."""

_SIDE = 64
"""Height and width in pixels for models that take any size: the smallest that all of torchvision's models run on."""

_FRAMES = 8
"""Length of a clip for models that take any: a network of depth 5 halves it three times."""


def example_inputs(models: Any, local: str, model: Any, given: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """Return positional arguments for one run in either mode, on the CPU; None if the model takes one batch of images.

    Detection takes a list of images ``(3, H, W)`` and, for training, a list of targets; video a batch of clips
    ``(N, 3, T, H, W)``; optical flow two batches of images ``(N, 3, H, W)``.

    Args:
        models: the module ``torchvision.models``.
        local: the model's name in it.
        model: the model.
        given: options that its constructor was called with.
    """
    weights = models.get_model_weights(local).DEFAULT
    make = _MAKERS.get(type(weights.transforms()).__name__)
    with torch.device("cpu"):  # models are also created under the meta device
        return None if make is None else make(model, weights.meta, given)


def quick_options(models: Any, local: str) -> dict[str, Any]:
    """Return options that make a run fast without changing the structure: detection models enlarge images to 800."""
    made = typing.get_type_hints(models.get_model_builder(local)).get("return")
    accepted = inspect.signature(made).parameters if inspect.isclass(made) else {}
    return {"min_size": _SIDE, "max_size": _SIDE} if {"min_size", "max_size"} <= set(accepted) else {}


def _detection(model: Any, metadata: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[Any, ...]:
    """One object per image; the content of its description depends on the model's heads."""
    heads = getattr(model, "roi_heads", None)
    target: dict[str, torch.Tensor] = {
        "boxes": torch.tensor([[_SIDE / 8, _SIDE / 8, _SIDE * 7 / 8, _SIDE * 7 / 8]]),
        "labels": torch.ones(1, dtype=torch.int64),
    }
    if heads is not None and heads.has_mask():
        target["masks"] = torch.ones(1, _SIDE, _SIDE, dtype=torch.uint8)
    if heads is not None and heads.has_keypoint():
        count = int(given.get("num_keypoints") or len(metadata["keypoint_names"]))
        target["keypoints"] = torch.tensor([[_SIDE / 2, _SIDE / 2, 1.0]]).repeat(1, count, 1)
    images = [_noise(3, _SIDE, _SIDE, seed=seed) for seed in range(_BATCH)]
    return images, [{name: value.clone() for name, value in target.items()} for _ in images]


def _video(model: Any, metadata: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[Any, ...]:
    height, width = (max(_SIDE, side) for side in metadata["min_size"])
    return (_noise(_BATCH, 3, max(_FRAMES, metadata.get("min_temporal_size", 1)), height, width),)


def _optical_flow(model: Any, metadata: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[Any, ...]:
    height, width = metadata["min_size"]
    return tuple(_noise(_BATCH, 3, height, width, seed=seed) for seed in range(2))


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


_MAKERS: dict[str, Callable[[Any, Mapping[str, Any], Mapping[str, Any]], tuple[Any, ...]]] = {
    "ObjectDetection": _detection,
    "VideoClassification": _video,
    "OpticalFlow": _optical_flow,
}
"""By the class of the transforms that torchvision ships with a model's weights, which identifies the kind of task."""
