"""Models without a timestep have no findings, and what looks like an embedding is none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from helpers import assert_golden, image, slow_but
from time_dependent import TIMES, Added, groups, images
from torch import nn

import rewriter
from rewriter import zoo
from rewriter.passes import TimestepEmbedding

NAMES = [
    "resnet50", "resnet50_gn", "seresnet50", "gcresnet50t", "resnetv2_50", "efficientnet_b0", "vit_tiny_patch16_224",
    "convnext_tiny", "mobilenetv3_large_100", "densenet121", "swin_tiny_patch4_window7_224", "nfnet_f0", "levit_128",
    "mobileone_s0", "coatnet_0_rw_224", "volo_d1_224", "torchvision:deeplabv3_resnet50", "smp:pspnet-resnet18",
    "torchvision:swin_v2_t", "smp:unet-resnet18",
]  # fmt: skip


@pytest.mark.parametrize("name", slow_but(["resnet50", "gcresnet50t"], NAMES))
@pytest.mark.parametrize("fix", ["groups", "position"])
def test_models_of_images_alone(name: str, fix: str) -> None:
    with torch.device("meta"):
        model = zoo.create(name).model
    plan = rewriter.plan(model, TimestepEmbedding(fix), input_size=224)
    assert not plan.sites and not plan.skipped


def bert() -> tuple[nn.Module, Any]:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    ids = torch.randint(0, 50, (2, 7))
    return transformers.BertModel(config), {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
    }


def clip() -> tuple[nn.Module, Any]:
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**small, "vocab_size": 50}, vision_config={**small, "image_size": 32, "patch_size": 16}
    )
    return transformers.CLIPModel(config), {"input_ids": torch.randint(0, 50, (2, 7)), "pixel_values": image(32)}


@pytest.mark.slow
@pytest.mark.parametrize("make", [bert, clip])
def test_models_of_several_inputs(make: Any) -> None:
    model, inputs = make()
    for fix in ("groups", "position"):
        plan = rewriter.plan(model, TimestepEmbedding(fix), example_inputs=inputs)
        assert not plan.sites and not plan.skipped


class Bias(Added):
    """A parameter in the place of the embedding."""

    def __init__(self) -> None:
        super().__init__(groups(32))
        self.bias = nn.Parameter(torch.randn(1, 32, 1, 1))

    def embedding(self, t: torch.Tensor) -> torch.Tensor:
        return self.bias


class Gated(Added):
    """A gate of the timestep: it multiplies."""

    def join(self, h: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        return h * embedding.sigmoid()


class Context(Added):
    """What is added is pooled from a map that has seen the time."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = (self.conv(x) * self.embedding(t)).relu()
        return self.out(self.norm(h + h.mean((2, 3), keepdim=True)))


class Number(Added):
    """A number that is no timestep, but written in the code."""

    def embedding(self, t: torch.Tensor) -> torch.Tensor:
        return self.time(torch.tensor([[0.5]]))[:, :, None, None] + 0 * len(t)


@pytest.mark.parametrize(
    "net", [Bias, lambda: Gated(groups(32)), lambda: Context(groups(32)), lambda: Number(groups(32))]
)
def test_biases_gates_contexts_and_constants_are_no_embeddings(net: Any) -> None:
    torch.manual_seed(0)
    for inputs in (images(Added), (image(8), TIMES)):
        plan = rewriter.plan(net(), TimestepEmbedding(), example_inputs=inputs)
        assert not plan.sites and not plan.skipped


def test_a_class_label_and_a_pooled_prompt_are_embeddings_too() -> None:
    class Labelled(Added):
        def __init__(self) -> None:
            super().__init__(groups(32))
            self.table = nn.Embedding(10, 32)

        def embedding(self, t: torch.Tensor) -> torch.Tensor:
            return self.table(t)[:, :, None, None]

    class Prompted(Added):
        def forward(self, x: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
            return self.out(self.norm(self.conv(x) + prompt.mean(1)[:, :, None, None]))

    torch.manual_seed(0)
    for model, given in ((Labelled(), torch.tensor([1, 3])), (Prompted(groups(32)), torch.randn(2, 5, 32))):
        plan = rewriter.plan(model, TimestepEmbedding(), example_inputs=(image(8), given))
        assert [site.path for site in plan.sites] == ["norm"]


def test_a_frozen_batch_norm_takes_nothing_out() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("running_mean", torch.zeros(32))
            self.register_buffer("running_var", torch.ones(32))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.batch_norm(x, self.running_mean, self.running_var)

    plan = rewriter.plan(Added(lambda _: Frozen()), TimestepEmbedding("position"), example_inputs=images(Added))
    assert not plan.sites and [skip.reason for skip in plan.skipped] == ["timestep-embedding/no-norm-behind"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("UNet2DModel", "groups"),
        ("UNet2DConditionModel", "groups"),
        ("UNet2DConditionModel", "position"),
        ("DiTTransformer2DModel", "groups"),
    ],
)
def test_plans_of_diffusers_read_as_written_down(name: str, fix: str) -> None:
    """Without values, so that the law decides and not this machine."""
    with torch.device("meta"):
        entry = zoo.create(f"diffusers:{name}")
    plan = rewriter.plan(entry.model, TimestepEmbedding(fix), example_inputs=entry.example_inputs)
    assert_golden(f"timestep-embedding/{name.lower()}-{fix}", f"{plan}\n\n{plan.diff(entry.model)}")
