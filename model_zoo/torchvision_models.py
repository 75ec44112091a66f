"""Models of torchvision: everything in ``torchvision.models.list_models()``."""

from __future__ import annotations

import inspect
from typing import Any

from rewriter.image_size import configured_size
from rewriter.zoo import torchvision_inputs
from rewriter.zoo.entry import Entry, InputSize, Source, build, require, unknown

_SEGMENTATION_SIDE = 224
"""Segmentation models take any size; the 520 of their weights only makes a trial run slow."""


def _create(name: str, local: str, pretrained: bool, kwargs: dict[str, Any]) -> Entry:
    models = require("torchvision.models")
    if local not in models.list_models():
        raise unknown(name, local, models.list_models(), prefix="torchvision:")
    options: dict[str, Any] = {"weights": "DEFAULT" if pretrained else None}
    if "weights_backbone" in inspect.signature(models.get_model_builder(local)).parameters:
        options["weights_backbone"] = None  # its default would download
    model = build(name, lambda **given: models.get_model(local, **given), options, kwargs)
    rebuild = {key: value for key, value in kwargs.items() if key not in ("weights", "weights_backbone")}
    if (options | kwargs)["weights"] is not None:
        rebuild = _chosen_by_weights(model) | rebuild
    examples = torchvision_inputs.example_inputs(models, local, model, kwargs)
    return Entry(model, name, _input_size(models, local, model), rebuild, examples)


def _chosen_by_weights(model: Any) -> dict[str, Any]:
    """Return the options that torchvision sets by itself when weights are requested."""
    chosen: dict[str, Any] = {}
    for name in ("transform_input", "aux_logits"):
        if hasattr(model, name):
            chosen[name] = getattr(model, name)
    if getattr(model, "aux_classifier", None) is not None:
        chosen["aux_loss"] = True
    return chosen


def _input_size(models: Any, local: str, model: Any) -> InputSize | None:
    found = configured_size(model)
    if found is not None:
        return 3, *found.height_and_width
    transforms = models.get_model_weights(local).DEFAULT.transforms()
    kind = type(transforms).__name__
    if kind == "ImageClassification":
        side = transforms.crop_size[0]
    elif kind == "SemanticSegmentation":
        side = _SEGMENTATION_SIDE
    else:  # lists of images, clips, pairs of images: see torchvision_inputs
        return None
    return 3, side, side


def _names() -> list[str]:
    return list(require("torchvision.models").list_models())


def _quick_options(local: str) -> dict[str, Any]:
    models = require("torchvision.models")
    return torchvision_inputs.quick_options(models, local) if local in models.list_models() else {}


SOURCE = Source(_create, _names, "num_classes", quick_options=_quick_options)
