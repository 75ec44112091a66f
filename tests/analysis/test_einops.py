"""Poolings and layouts that are written with einops: in its functions, not in the model's methods."""

from __future__ import annotations

from typing import Any

import einops
import pytest
import torch
import torch.nn.functional as F
from einops.layers.torch import Rearrange, Reduce
from helpers import image, positions_read
from torch import nn
from torch.overrides import TorchFunctionMode

import rewriter
from rewriter.passes import Dropout, StochasticPooling
from rewriter.passes.stochastic_pooling.layers import SampledPositions
from rewriter.reasons import Reason
from rewriter.testing import check_contract


class Head(nn.Module):
    """A classifier behind a pooling, which its subclasses write."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, 8, 3, padding=1), Reduce("b c h w -> b c", "mean")
        self.drop, self.head = nn.Dropout(rate), nn.Linear(8, 4)


def as_tokens(x: torch.Tensor) -> torch.Tensor:
    return einops.rearrange(x, "b c h w -> b (h w) c")  # type: ignore[no-any-return]


class Layer(Head):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.pool(self.stem(x).relu())))  # type: ignore[no-any-return]


class Function(Head):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = einops.reduce(self.stem(x).relu(), "b c h w -> b c", "mean")
        return self.head(self.drop(x))  # type: ignore[no-any-return]


class Kept(Head):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = einops.reduce(self.stem(x).relu(), "b c h w -> b c () ()", "mean")
        return self.head(self.drop(x.flatten(1)))  # type: ignore[no-any-return]


class Tokens(Head):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = einops.reduce(as_tokens(self.stem(x).relu()), "b n c -> b c", "mean")
        return self.head(self.drop(x))  # type: ignore[no-any-return]


class TokensByMean(Head):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(as_tokens(self.stem(x).relu()).mean(1)))  # type: ignore[no-any-return]


class InSequential(nn.Sequential):
    def __init__(self, rate: float) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1),
            Rearrange("b c h w -> b (h w) c"),
            nn.LayerNorm(8),
            Reduce("b n c -> b c", "mean"),
            nn.Dropout(rate),
            nn.Linear(8, 4),
        )


HEADS = (Layer, Function, Kept, Tokens, TokensByMean, InSequential)


def stem_of(model: nn.Module) -> nn.Module:
    return model[0] if isinstance(model, nn.Sequential) else model.stem  # type: ignore[return-value]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("scale", ["sqrt", "none"])
def test_such_a_pooling_is_sampled(head: type[nn.Module], scale: str) -> None:
    passes = [StochasticPooling(scale=scale)]
    model = head(rate=0.0)
    rewritten = check_contract(model, passes, example_inputs=image(16))
    (site,) = rewriter.report(rewritten).applied
    assert "average 128 of 256 elements in training" in site.action
    assert positions_read(rewritten, stem_of, image(16)) == [128, 128]
    assert not rewriter.plan(rewritten, passes, input_size=16).sites, "it is done already"


def test_the_sample_has_the_mean_and_the_scale_of_the_others() -> None:
    layer = SampledPositions((2, 3), keep_prob=0.25, scale="sqrt")
    x = torch.full((4096, 1, 4, 4), 3.0)
    assert torch.allclose(layer(x).mean((2, 3)), x.mean((2, 3)) / 2), "the root of the share that is kept"
    layer.scale = "none"
    assert torch.allclose(layer(x).mean((2, 3)), x.mean((2, 3)))
    assert layer.eval()(x) is x


class Dropped(TorchFunctionMode):
    """Notes the shapes of what dropouts drop from."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.dropout and kwargs["training"]:
            self.shapes.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("passes", [[Dropout()], [Dropout(head_p=0.3)]], ids=["moved", "inserted"])
def test_a_dropout_goes_before_such_a_pooling(head: type[nn.Module], passes: list[Dropout]) -> None:
    model = head(rate=0.3 if passes == [Dropout()] else 0.0)
    rewritten = check_contract(model, passes, example_inputs=image(16))
    assert len(rewriter.report(rewritten).applied) == 1
    first, second = rewritten.train()(image(16)), rewritten(image(16))
    assert not torch.equal(first, second)
    with Dropped() as dropped:
        rewritten(image(16))
    assert dropped.shapes in ([(2, 8, 16, 16)], [(2, 256, 8)]), "on the map, not on what is pooled"
    assert not rewriter.plan(rewritten, passes, input_size=16).sites


@pytest.mark.parametrize("head", HEADS)
def test_one_noise_at_one_pooling(head: type[nn.Module]) -> None:
    plan = rewriter.plan(head(rate=0.3), ["dropout", "stochastic-pooling"], input_size=16)
    assert [site.pass_name for site in plan.sites] == ["dropout"]
    assert [(skip.pass_name, skip.reason) for skip in plan.skipped] == [("stochastic-pooling", Reason.HEAD_DROPOUT)]
