"""The dropout pass on models of torchvision, segmentation_models_pytorch and Hugging Face."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
import transformers
from torch import nn

import rewriter
from rewriter.passes import Dropout
from rewriter.testing import check_contract

pytestmark = pytest.mark.slow

TINY_VIT: dict[str, Any] = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "image_size": 64,
    "patch_size": 16, "hidden_dropout_prob": 0.1,
}  # fmt: skip

HUGGING_FACE: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "vit": (lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**TINY_VIT)), 4),
    "dinov2": (
        lambda: transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**{**TINY_VIT, "hidden_size": 96})),
        4,
    ),
    "swin": (
        lambda: transformers.SwinForImageClassification(
            transformers.SwinConfig(embed_dim=24, depths=[1, 1], num_heads=[2, 2], image_size=64, window_size=4)
        ),
        5,
    ),
    "convnext": (
        lambda: transformers.ConvNextForImageClassification(
            transformers.ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2, image_size=64)
        ),
        3,
    ),
    "resnet": (
        lambda: transformers.ResNetForImageClassification(
            transformers.ResNetConfig(hidden_sizes=[16, 32], depths=[1, 1], embedding_size=16)
        ),
        1,
    ),
}


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_hugging_face_models_keep_their_contract(name: str, tmp_path: Any) -> None:
    make, sites = HUGGING_FACE[name]
    torch.manual_seed(0)
    model = make()
    rewritten = check_contract(model, [Dropout(p=0.1)], input_size=64)
    assert len(rewriter.report(rewritten).applied) >= sites
    rewritten.save_pretrained(tmp_path)
    assert rewritten.config.architectures == [type(model).__name__]
    again = type(model).from_pretrained(tmp_path).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(x).logits, rewritten.eval()(x).logits)


def test_a_dropout_module_that_a_layer_calls_twice_is_moved_at_both_calls() -> None:
    model = HUGGING_FACE["vit"][0]()
    rewritten = rewriter.rewrite(model)
    layer = rewritten.vit.layers[0]
    layer.dropout.p = 0.5
    moved = [module for module in layer.modules() if type(module).__name__ == "MovedDropout"]
    assert [module.p for module in moved] == [0.5, 0.5]


def test_language_models_are_traced_on_what_they_need() -> None:
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, vocab_size=100
    )
    model = transformers.BertForSequenceClassification(config)
    tokens = torch.randint(0, 90, (2, 7))
    plan = rewriter.plan(model, example_inputs={"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
    assert any(note.startswith("traced on ") for note in plan.notes)


@pytest.mark.parametrize(
    ("name", "patterns"),
    [
        ("vit_b_16", {"residual branch": 12}),
        ("convnext_tiny", {"residual branch": 18, "head": 1}),
        ("efficientnet_b0", {"residual branch": 9, "head": 1}),
        ("maxvit_t", {"residual branch": 54}),
        ("mnasnet0_5", {"residual branch": 10, "head": 1}),
        ("deeplabv3_mobilenet_v3_large", {"residual branch": 10}),
    ],
)
def test_torchvision_models_show_their_sites(name: str, patterns: dict[str, int]) -> None:
    with torch.device("meta"):
        options = {"weights_backbone": None} if "deeplab" in name else {}
        model = torchvision.models.get_model(name, weights=None, **options)
    plan = rewriter.plan(model, [Dropout(p=0.1)], input_size=224)
    for pattern, count in patterns.items():
        assert len([site for site in plan.sites if site.pattern == pattern]) >= count


def test_detection_models_take_lists_of_images_and_targets() -> None:
    model = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    images = [torch.rand(3, 64, 64), torch.rand(3, 64, 48)]
    target = {"boxes": torch.tensor([[1.0, 1.0, 20.0, 20.0]]), "labels": torch.tensor([1])}
    plan = rewriter.plan(model, example_inputs=(images, [target, target]))
    assert plan.skipped and not plan.sites


ARCHITECTURES = [
    "Unet", "UnetPlusPlus", "FPN", "PSPNet", "DeepLabV3", "DeepLabV3Plus", "Linknet", "MAnet", "PAN", "UPerNet",
    "Segformer",
]  # fmt: skip


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_segmentation_models_trace_and_plan_in_both_modes(architecture: str) -> None:
    with torch.device("meta"):
        model = getattr(smp, architecture)(encoder_name="resnet18", encoder_weights=None)
    trace = rewriter.trace(model, input_size=128)
    assert trace.backend == "meta"
    assert trace.eval.graph.find_nodes(op="output")[0].meta["shape"] == (2, 1, 128, 128)
    plan = rewriter.plan(model, [Dropout(p=0.1)], input_size=128)
    branches = [site for site in plan.sites if site.pattern == "residual branch"]
    assert len(branches) >= 4, "the encoder has basic blocks in every architecture"


def test_segmentation_head_dropout_stays_where_it_is_with_the_reason() -> None:
    with torch.device("meta"):
        model = smp.FPN("resnet18", encoder_weights=None)
    plan = rewriter.plan(model, input_size=64)
    assert [skip for skip in plan.skipped if skip.path.startswith("decoder.dropout")]
