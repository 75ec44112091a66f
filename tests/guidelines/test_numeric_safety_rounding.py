"""numeric-safety: roots of what rounding makes negative, which are nan; and of what is negative as such, which stay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import unsafe_losses as losses
from torch import nn

import rewriter
from rewriter.passes.numeric_safety.layers import SafePower, SafeSqrt
from rewriter.testing import check_contract

Inputs = tuple[torch.Tensor, torch.Tensor]


def _inputs(seed: int = 0, dtype: torch.dtype = torch.float32) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    x, depth = (torch.rand(4, 6, generator=generator) + 0.1 for _ in range(2))
    return x.to(dtype).requires_grad_(), depth.to(dtype)


def _multiples(dtype: torch.dtype = torch.float32) -> Iterator[Inputs]:
    for seed in range(20, 26):
        _, depth = _inputs(seed, dtype)
        for factor in (1.0, 1.3, 5.0, 0.6, 2.2):
            yield (factor * depth).requires_grad_(), depth


def _is_finite(module: nn.Module, inputs: Inputs) -> bool:
    value = module(*inputs)
    (gradient,) = torch.autograd.grad(value, inputs[0])
    return bool(value.isfinite() and gradient.isfinite().all())


def _clamps(module: nn.Module) -> list[bool]:
    return [layer.clamp for layer in module.modules() if isinstance(layer, (SafeSqrt, SafePower))]


BY_MEANS = [losses.ScaleInvariantLogByMeans, losses.ScaleInvariantLogOfAMask]


@pytest.mark.parametrize("loss", BY_MEANS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_multiple_of_the_depth_gives_a_finite_loss(loss: Any, dtype: torch.dtype) -> None:
    module = loss()
    rewritten = rewriter.rewrite(module, "numeric-safety", example_inputs=_inputs(0, dtype))
    before = [module(*inputs) for inputs in _multiples(dtype)]
    assert any(value.isnan() for value in before)
    assert all(_is_finite(rewritten, inputs) for inputs in _multiples(dtype))
    assert _clamps(rewritten) == [True]
    for seed in range(5):
        assert torch.equal(rewritten(*_inputs(seed, dtype)), module(*_inputs(seed, dtype)))
    assert not list(rewriter.check(rewritten, "numeric-safety", example_inputs=_inputs(0, dtype)))


@pytest.mark.parametrize("loss", BY_MEANS)
def test_the_contract_holds(loss: Any) -> None:
    check_contract(loss(), "numeric-safety", example_inputs=_inputs(), must_find=True)


def test_what_is_never_negative_is_not_clamped() -> None:
    module = losses.ScaleInvariantLogByMeans(0.85)
    rewritten = rewriter.rewrite(module, "numeric-safety", example_inputs=_inputs())
    assert _clamps(rewritten) == [False]
    assert all(_is_finite(rewritten, inputs) for inputs in _multiples())


class ConstantDeviation(nn.Module):
    """A deviation of one tensor: 0 where that is constant."""

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.sqrt((x * x).sum() - x.sum() ** 2 / x.numel()) + target.mean()


def test_a_constant_that_is_no_binary_fraction() -> None:
    module = ConstantDeviation()
    rewritten = rewriter.rewrite(module, "numeric-safety", example_inputs=_inputs())
    inputs = [
        (torch.full((4, 6), 0.1 + 0.05 * step, requires_grad=True), torch.zeros(4, 6)) for step in range(20)
    ]  # fmt: skip
    assert any(module(*each).isnan() for each in inputs)
    assert all(_is_finite(rewritten, each) for each in inputs)


class SquaredDistances(nn.Module):
    """Distances by a product of matrices, each of which may be zero but for rounding."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        squares = x.pow(2).sum(1)[:, None] + y.pow(2).sum(1)[None] - 2 * x @ y.t()
        return squares.sqrt().mean()


def test_distances_by_a_product_of_matrices() -> None:
    module = SquaredDistances()
    rewritten = rewriter.rewrite(module, "numeric-safety", example_inputs=_inputs())
    equal = [(y.clone().requires_grad_(), y) for _, y in map(_inputs, range(8))]
    assert not all(_is_finite(module, inputs) for inputs in equal)
    assert all(_is_finite(rewritten, inputs) for inputs in equal)


class Difference(nn.Module):
    """The root of a plain difference, which is negative for half of all inputs."""

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.sqrt(x.mean() - target.mean())


WRONG: dict[str, Any] = {"a weight above 1": lambda: losses.ScaleInvariantLogByMeans(1.5), "a difference": Difference}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_negative_as_such_stays_nan(name: str) -> None:
    module = WRONG[name]()
    rewritten = rewriter.rewrite(module, "numeric-safety", example_inputs=_inputs())
    assert _clamps(rewritten) == [False]
    _, depth = _inputs()
    negative = ((0.6 * depth).requires_grad_(), depth)
    assert module(*negative).isnan()
    assert rewritten(*negative).isnan()


class OneRootForTwo(nn.Module):
    """A method whose operand is a variance at one call and a plain difference at the other."""

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        d = torch.log(x) - torch.log(target)
        return self.root(d.pow(2).mean(), d.mean() ** 2) + self.root(x.mean(), target.mean())

    def root(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return torch.sqrt(one - other)


def test_one_call_that_is_negative_as_such_is_enough() -> None:
    rewritten = rewriter.rewrite(OneRootForTwo(), "numeric-safety", example_inputs=_inputs())
    assert _clamps(rewritten) == [False]


@pytest.mark.parametrize("layer", [SafeSqrt, SafePower])
def test_only_a_clamping_guard_hides_what_is_negative(layer: Any) -> None:
    arguments = (0.5,) if layer is SafePower else ()
    for clamp in (False, True):
        x = torch.tensor([-1e-8, 0.0, 4.0, torch.nan], requires_grad=True)
        value = layer(clamp)(x, *arguments)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        assert torch.equal(value[1:3], torch.tensor([0.0, 2.0]))
        assert torch.equal(gradient[1:3], torch.tensor([0.0, 0.25]))
        assert value[3].isnan()
        assert bool(value[0] == 0) is bool(gradient[0] == 0) is clamp
        assert bool(value[0].isnan()) is not clamp
