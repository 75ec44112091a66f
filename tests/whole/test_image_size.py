"""The size that a model was made for is read in one way, whoever asks: the zoo, a trace, a plan."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

import rewriter
from rewriter import zoo
from rewriter.image_size import ConfiguredSize, configured_channels, configured_size
from rewriter.tracing.inputs import Origin, candidate_inputs


def made(**attributes: Any) -> nn.Module:
    model = nn.Conv2d(3, 4, 3)
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


OF_TIMM = {"input_size": (1, 48, 64)}
PART = SimpleNamespace(image_size=96, num_channels=4)


@pytest.mark.parametrize(
    ("attributes", "sides", "attribute", "channels"),
    [
        ({"pretrained_cfg": OF_TIMM, "image_size": 7}, (48, 64), "model.pretrained_cfg", [1]),
        ({"pretrained_cfg": {}, "default_cfg": OF_TIMM}, (48, 64), "model.default_cfg", [1]),
        (
            {"pretrained_cfg": OF_TIMM, "patch_embed": SimpleNamespace(img_size=(32, 16))},
            (32, 16), "model.pretrained_cfg", [1],
        ),
        ({"config": SimpleNamespace(image_size=[48, 64], num_channels=5)}, (48, 64), "model.config", [5]),
        ({"config": SimpleNamespace(image_size=None, vision=PART)}, 96, "model.config", [4]),
        ({"image_size": 32}, 32, "model.image_size", []),
    ],
)  # fmt: skip
def test_what_a_configuration_says(attributes: Any, sides: Any, attribute: str, channels: list[int]) -> None:
    model = made(**attributes)
    assert configured_size(model) == ConfiguredSize(sides, attribute)
    assert configured_channels(model) == channels
    found = candidate_inputs(model)[0]
    assert found.origin is Origin(attribute)
    assert found.image_size == ((channels or [3])[0], *ConfiguredSize(sides, attribute).height_and_width)


@pytest.mark.parametrize("attributes", [{}, {"pretrained_cfg": {}}, {"config": {"image_size": 3}}, {"image_size": "3"}])
def test_none_is_made_up(attributes: dict[str, Any]) -> None:
    model = made(**attributes)
    assert configured_size(model) is None
    with pytest.raises(rewriter.InputError, match="no input size found: Conv2d has no pretrained_cfg"):
        candidate_inputs(model)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_vit", {"img_size": 64}), ("test_vit", {}), ("resnet18", {"in_chans": 1}), ("test_byobnet", {}),
        ("swin_tiny_patch4_window7_224", {"img_size": (224, 448)}), ("torchvision:vit_b_16", {"image_size": 64}),
        ("hf:ViTForImageClassification", {"image_size": 96}), ("hf:UperNetForSemanticSegmentation", {}),
    ],
)  # fmt: skip
def test_the_zoo_says_what_a_trace_takes(name: str, options: dict[str, Any]) -> None:
    with torch.device("meta"):
        entry = zoo.create(name, **options)
    if configured_size(entry.model) is not None:
        assert entry.input_size in [inputs.image_size for inputs in candidate_inputs(entry.model)]
    expected = options.get("image_size", options.get("img_size", 224 if ":" in name else None))
    sides = (expected, expected) if isinstance(expected, int) else expected
    assert entry.input_size is not None and (sides is None or entry.input_size[1:] == sides)


def test_of_models_that_name_no_size_the_zoo_knows_more() -> None:
    with torch.device("meta"):
        assert configured_size(torchvision.models.resnet18()) is None
    assert zoo.create("torchvision:resnet18").input_size == (3, 224, 224)
    assert configured_size(timm.create_model("resnet18")) == ConfiguredSize((224, 224), "model.pretrained_cfg")
