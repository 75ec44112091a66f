"""Models of libraries that this project does not know, read by a person: what is decided, and with what reasons.

Each reading was made from the library's source, not from a plan: what the blocks, heads and norms are, and what holds a
place back. A plan has to agree with all of it: no place less, none more, and no other reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from helpers import assert_golden
from torch import nn

import rewriter

pytestmark = pytest.mark.slow

MAIN, SHORTCUT, OTHER, LAST = "main", "shortcut", "branch_other", "branch_last"


@dataclass(frozen=True)
class Reading:
    """A model, and what a person reads in its source.

    Attributes:
        build: makes the model.
        size: side of the images.
        gammas: how many of each category.
        sites: how many places of each pass.
        skipped: how many places are left alone, by pass and reason.
    """

    build: Callable[[], nn.Module]
    size: int
    gammas: dict[str, int]
    sites: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)


def vit(name: str, **options: Any) -> nn.Module:
    import importlib

    module, _, cls = name.rpartition(".")
    small = {"image_size": 64, "patch_size": 8, "num_classes": 10, "dim": 64, "depth": 2, "heads": 2, "mlp_dim": 128}
    return getattr(importlib.import_module(f"vit_pytorch.{module}"), cls)(**small, **options)  # type: ignore[no-any-return]


def cv(name: str) -> nn.Module:
    from pytorchcv.model_provider import get_model

    return get_model(name)  # type: ignore[no-any-return]


def monai(name: str, *args: Any, **options: Any) -> nn.Module:
    from monai.networks import nets

    return getattr(nets, name)(*args, **options)  # type: ignore[no-any-return]


READINGS = {
    # Two layers of pre-norm attention and MLP, norms around the patch embedding and at the end, a mean over tokens.
    "vit-pytorch SimpleViT": Reading(
        lambda: vit("simple_vit.SimpleViT"),
        64,
        {MAIN: 3, LAST: 4},
        {"stochastic-pooling": 1},
        {"dropout nothing-to-move": 5},  # four branches and the head; the model has no dropout
    ),
    # Norms of queries and keys scale attention weights, no output; their gamma is multiplied by a constant.
    "vit-pytorch SimpleViT with norms of queries and keys": Reading(
        lambda: vit("simple_vit_with_qk_norm.SimpleViT"),
        64,
        {MAIN: 4, LAST: 4, OTHER: 4},
        {"stochastic-pooling": 1},
        {"dropout nothing-to-move": 5},
    ),
    # The scores get a term of positions, which is made of the queries: no block.
    "vit-pytorch SimpleViT with projected positions": Reading(
        lambda: vit("simple_vit_with_relative_proj_pos_bias.SimpleViT"),
        64,
        {MAIN: 3, LAST: 4},
        {"stochastic-pooling": 1},
        {"dropout nothing-to-move": 5},
    ),
    # Attention weights are mixed over heads and normalised; the first token is read; a dropout on the embeddings.
    "vit-pytorch DeepViT": Reading(
        lambda: vit("deepvit.DeepViT", dropout=0.1, emb_dropout=0.1),
        64,
        {MAIN: 3, LAST: 4, OTHER: 2},
        {"dropout": 4},
        {"dropout attention-dropout": 2, "dropout outside": 1, "stochastic-pooling class-token": 1},
    ),
    # Blocks of which the first in each stage has a projection with a ReLU behind its norm.
    "pytorchcv SqueezeNext": Reading(
        lambda: cv("sqnxt23_w1"),
        224,
        {MAIN: 2, SHORTCUT: 4, OTHER: 84, LAST: 21},
        {"stochastic-pooling": 1},
        {"dropout nothing-to-move": 22},
    ),
    # Sixteen blocks; five of them have a shortcut of two convolutions with a ReLU between. Ghost modules end in a
    # concatenation of two norms, both of which are the last; each of seven gates averages.
    "pytorchcv GhostNet": Reading(
        lambda: cv("ghostnet"),
        224,
        {MAIN: 3, SHORTCUT: 10, OTHER: 36, LAST: 32},
        {"stochastic-pooling": 1},
        {
            "dropout nothing-to-move": 17,
            "stochastic-pooling squeeze": 7,
        },
    ),
    # Projections around stages and around all of them, besides those of two blocks.
    "pytorchcv RoR": Reading(
        lambda: cv("ror3_56_cifar10"),
        32,
        {MAIN: 1, SHORTCUT: 6, OTHER: 24, LAST: 24},
        {"stochastic-pooling": 1},
        {"dropout nothing-to-move": 25},
    ),
    # A gate that is an LSTM over all blocks of a stage, whose dropout no layer reads.
    "pytorchcv DIA-ResNet": Reading(
        lambda: cv("diaresnet20_cifar10"),
        32,
        {MAIN: 1, SHORTCUT: 2, OTHER: 9, LAST: 9},
        {"stochastic-pooling": 1},
        {
            "dropout nothing-to-move": 10,
            "dropout outside": 3,
            "stochastic-pooling squeeze": 3,
        },
    ),
    # Pre-activation: in the first block of a stage shortcut and branch read the same norm. Gates after the last weight.
    "pytorchcv SE-PreResNet": Reading(
        lambda: cv("sepreresnet10"),
        224,
        {MAIN: 5, OTHER: 1, LAST: 4},
        {"stochastic-pooling": 1},
        {"dropout nothing-to-move": 5, "stochastic-pooling squeeze": 4},
    ),
    # An encoder-decoder with concatenations: no block anywhere.
    "MONAI BasicUNet": Reading(
        lambda: monai("BasicUNet", 2, 3, 2, features=(8, 8, 16, 16, 32, 8), dropout=0.1),
        64,
        {MAIN: 18},
        {},
        {"dropout outside": 16, "dropout no-global-pooling": 2, "stochastic-pooling no-global-pooling": 1},
    ),
    # Blocks of a pre-norm, in an encoder and a decoder whose levels are added.
    "MONAI SegResNet": Reading(
        lambda: monai("SegResNet", 2, 8, 3, 2, dropout_prob=0.1),
        64,
        {MAIN: 1, OTHER: 12, LAST: 12},
        {},
        {
            "dropout nothing-to-move": 12,
            "dropout outside": 1,
            "scale-equalizer norm-follows": 3,
            "stochastic-pooling no-global-pooling": 1,
        },
    ),
    # nnU-Net with residual blocks in the encoder, each with a projection; the decoder has none.
    "MONAI DynUNet": Reading(
        lambda: monai(
            "DynUNet", 2, 3, 2, [3, 3, 3], [1, 2, 2], upsample_kernel_size=[2, 2], dropout=0.1, res_block=True
        ),
        64,
        {MAIN: 4, SHORTCUT: 3, OTHER: 3, LAST: 3},
        {"dropout": 3},
        {
            "dropout no-global-pooling": 2,
            "dropout on-predictions": 1,
            "dropout outside": 7,
            "stochastic-pooling no-global-pooling": 1,
        },
    ),
    # Dense blocks whose dropout drops channels of a map.
    "MONAI DenseNet": Reading(
        lambda: monai("DenseNet", 2, 3, 4, init_features=8, growth_rate=4, block_config=(2, 2), dropout_prob=0.1),
        64,
        {MAIN: 2, OTHER: 9},
        {"stochastic-pooling": 2},
        {"dropout dropout-kind": 4, "dropout nothing-to-move": 1},
    ),
}


@pytest.mark.parametrize("name", READINGS)
def test_a_plan_agrees_with_a_reading_of_the_source(name: str) -> None:
    reading = READINGS[name]
    passes = ["dropout", "stochastic-pooling", "weight-decay", {"scale-equalizer": {"additive": True}}]
    plan = rewriter.plan(reading.build(), passes, input_size=reading.size)
    assert_golden(f"foreign/{name.lower().replace(' ', '-').replace(',', '')}", str(plan))
    assert Counter(advice.pattern.partition(",")[0] for advice in plan.advice) == reading.gammas
    assert Counter(site.pass_name for site in plan.sites) == reading.sites
    assert Counter(f"{skip.pass_name} {skip.reason}" for skip in plan.skipped) == reading.skipped
