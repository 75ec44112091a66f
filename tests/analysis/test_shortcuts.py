"""Where gammas act: in blocks whose shortcut has weights, in parallel kernels, in attention, and where shared."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import gamma_categories as positions
from torch import nn

import rewriter
from rewriter.analysis.gammas import find_gammas


def conv(kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(8, 8, kernel, stride, kernel // 2, groups=groups)
    return nn.Sequential(layer, nn.BatchNorm2d(8))


SHORTCUTS: dict[str, Callable[[], tuple[nn.Module, ...]]] = {
    "pointwise": lambda: (conv(1, 2),),
    "3x3": lambda: (conv(3, 2),),
    "depthwise, then pointwise": lambda: (conv(3, 2, groups=8), conv(1)),
    "pooled, then pointwise": lambda: (nn.AvgPool2d(2), conv(1)),
    "with an activation": lambda: (conv(1, 2), nn.ReLU()),
}


class Block(nn.Module):
    """A bottleneck with a projection, whose operations are called as modules or as functions."""

    def __init__(self, shortcut: str, function: bool) -> None:
        super().__init__()
        self.function = function
        self.stem, self.first, self.second = nn.Conv2d(3, 8, 3, 1, 1), conv(3, 2), conv(3)
        self.shortcut, self.head = nn.Sequential(*SHORTCUTS[shortcut]()), nn.Linear(8, 4)

    def run(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if isinstance(layer, nn.Conv2d) and self.function:
            return F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, groups=layer.groups)
        if isinstance(layer, nn.BatchNorm2d) and self.function:
            return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, self.training)
        if isinstance(layer, nn.Sequential):
            for inner in layer:
                x = self.run(inner, x)
            return x
        return layer(x)  # type: ignore[no-any-return]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.run(self.second, self.run(self.first, x).relu())
        return self.head((y + self.run(self.shortcut, x)).relu().mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("function", [False, True])
@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_a_shortcut_may_have_any_weights(shortcut: str, function: bool) -> None:
    found = positions(Block(shortcut, function))
    assert {path.split(".")[0]: category for path, category in found.items()} == {
        "first": "branch_other",
        "second": "branch_last",
        "shortcut": "shortcut",
    }


class Kernels(nn.Module):
    """One linear layer in parallel kernels, with or without the identity (RepVGG)."""

    def __init__(self, identity: bool) -> None:
        super().__init__()
        self.stem, self.large, self.small, self.head = nn.Conv2d(3, 8, 3), conv(3), conv(1), nn.Linear(8, 4)
        self.identity = nn.BatchNorm2d(8) if identity else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.large(x) + self.small(x)
        y = y if self.identity is None else y + self.identity(x)
        return self.head(y.relu().mean((2, 3)))  # type: ignore[no-any-return]


def test_parallel_kernels_are_one_layer() -> None:
    assert positions(Kernels(identity=False)) == {"large.1": "main", "small.1": "main"}


def test_parallel_kernels_beside_the_identity_are_its_branch() -> None:
    found = positions(Kernels(identity=True))
    assert found == {"large.1": "branch_last", "small.1": "branch_last", "identity": "shortcut"}


class Shared(nn.Module):
    """A linear part of the branch that others read, too: no shortcut, though what is added came by it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.value, self.local = nn.Conv2d(3, 8, 3), conv(1), conv(3, groups=8)
        self.mix, self.head = conv(1), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = self.value(self.stem(x))
        return self.head((self.mix(value.relu()).relu() * value.sigmoid() + self.local(value)).mean((2, 3)))  # type: ignore[no-any-return]


def test_what_others_read_too_is_no_projection() -> None:
    assert positions(Shared())["value.1"] == "main"


class Reattention(nn.Module):
    """Attention weights that are mixed over the heads and normalised (DeepViT)."""

    def __init__(self, function: bool) -> None:
        super().__init__()
        self.function = function
        self.embed, self.norm, self.qkv = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, 24)
        self.mix, self.again = nn.Parameter(torch.randn(2, 2)), nn.LayerNorm(2)
        self.out, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        weights = torch.einsum("bhij,hg->bgij", (q @ k.transpose(2, 3)).softmax(-1), self.mix).permute(0, 2, 3, 1)
        if self.function:
            weights = F.layer_norm(weights, (2,), self.again.weight, self.again.bias)
        else:
            weights = self.again(weights)
        y = (weights.permute(0, 3, 1, 2) @ v).transpose(1, 2).flatten(2)
        return self.head((x + self.out(y)).mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("function", [False, True])
def test_a_norm_of_attention_weights_scales_no_output(function: bool) -> None:
    gammas = {
        gamma.path: str(gamma.position) for gamma in find_gammas(rewriter.trace(Reattention(function), input_size=16))
    }
    assert gammas == {"norm": "last norm of a residual branch", "again": "norm of a gate or of attention weights"}


class Long(nn.Module):
    """A decoder at one resolution that adds projected features of an encoder's layers, as CLIPSeg's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.encoder = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True) for _ in range(4)
        )
        self.decoder = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(3))
        self.reduces, self.head = nn.ModuleList(nn.Linear(8, 8) for _ in range(3)), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, features = self.embed(x).flatten(2).transpose(1, 2), []
        for layer in self.encoder:
            x = layer(x)
            features.append(x)
        y = torch.zeros_like(x)
        for reduce, layer, feature in zip(self.reduces, self.decoder, features[::-1], strict=False):
            y = layer(y + reduce(feature))
        return self.head(y.mean(1))  # type: ignore[no-any-return]


def test_equal_layers_of_a_decoder_are_of_equal_classes() -> None:
    found = positions(Long())
    for norm in ("norm1", "norm2"):
        assert {found[f"decoder.{number}.{norm}"] for number in range(3)} == {"main"}
        assert {found[f"encoder.{number}.{norm}"] for number in range(4)} == {"branch_last"}


class Tied(nn.Module):
    """One norm in two blocks, and once more behind them."""

    def __init__(self, also_outside: bool) -> None:
        super().__init__()
        self.also_outside = also_outside
        self.stem, self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.norm(self.one(x).relu())
        x = x + self.norm(self.two(x).relu())
        x = self.norm(x) if self.also_outside else x
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_a_shared_gamma_has_the_class_of_all_its_uses_or_the_most_careful() -> None:
    (gamma,) = find_gammas(rewriter.trace(Tied(also_outside=False), input_size=16))
    assert (gamma.category, gamma.uses) == ("branch_last", 2)
    (gamma,) = find_gammas(rewriter.trace(Tied(also_outside=True), input_size=16))
    assert (gamma.category, gamma.uses) == ("main", 3)


def test_a_frozen_gamma_has_its_place_and_decides_about_others() -> None:
    model = Block("3x3", function=False)
    for norm in (model.second[1], model.shortcut[0][1]):
        norm.weight.requires_grad_(False)
    plan = rewriter.plan(model, "weight-decay", input_size=16)
    assert {skip.path: (skip.pattern, str(skip.reason)) for skip in plan.skipped} == {
        "second.1": ("last norm of a residual branch", "frozen"),
        "shortcut.0.1": ("norm on a shortcut", "frozen"),
    }
    assert [advice.path for advice in plan.advice] == ["first.1"]
    decided = {decision.name for decision in rewriter.param_groups(model, input_size=16).decisions}
    assert "first.1.weight" in decided and not {"second.1.weight", "shortcut.0.1.weight"} & decided
