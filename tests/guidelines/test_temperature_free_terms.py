"""Losses whose positive logit stands outside the softmax: all their logits are edited, or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rewriter
from rewriter.testing import check_contract

Loss = Callable[[torch.Tensor, torch.Tensor, Any], torch.Tensor]
A, B = (torch.randn(4, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))


def eye(n: int) -> torch.Tensor:
    return torch.eye(n, dtype=torch.bool)


def unit(*sides: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(F.normalize(side, dim=1) for side in sides)


def nt_xent(a: torch.Tensor, b: torch.Tensor, t: Any) -> torch.Tensor:
    a, b = unit(a, b)
    z = torch.cat([a, b])
    sim = z @ z.T / t
    sim = sim.masked_fill(eye(len(z)), -torch.inf)
    pos = (a * b).sum(1) / t
    return (torch.logsumexp(sim, 1) - torch.cat([pos, pos])).mean()


def exponentials(a: torch.Tensor, b: torch.Tensor, t: Any) -> torch.Tensor:
    a, b = unit(a, b)
    z = torch.cat([a, b])
    pos = torch.cat([(a * b).sum(1)] * 2)
    neg = (torch.exp(z @ z.T / t) * (1 - torch.eye(len(z)))).sum(1)
    return (-pos / t + torch.log(neg)).mean()


def two_logarithms(a: torch.Tensor, b: torch.Tensor, t: Any) -> torch.Tensor:
    a, b = unit(a, b)
    z = torch.cat([a, b])
    pos = torch.exp((a * b).sum(1) / t)
    neg = (torch.exp(z @ z.T / t) * (1 - torch.eye(len(z)))).sum(1)
    return torch.log(neg).mean() - torch.log(pos).mean()


def reduced_apart(a: torch.Tensor, b: torch.Tensor, t: Any) -> torch.Tensor:
    a, b = unit(a, b)
    z = torch.cat([a, b])
    sim = (z @ z.T).masked_fill(eye(len(z)), -torch.inf)
    return -(a * b).sum(1).mul(1 / t).mean() + (sim / t).logsumexp(1).mean()


def decoupled(a: torch.Tensor, b: torch.Tensor, t: Any) -> torch.Tensor:
    a, b = unit(a, b)
    pos = (a * b).sum(1) / t
    neg = torch.cat([a @ a.T, a @ b.T], 1) / t
    neg = neg.masked_fill(eye(len(a)).repeat(1, 2), -1e9)
    return (-pos + torch.logsumexp(neg, 1)).mean()


def odds(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return 2 * torch.atanh((a @ b.T).clamp(1e-6 - 1, 1 - 1e-6))


def expected_nt_xent() -> torch.Tensor:
    z = torch.cat(unit(A, B))
    logits = odds(z, z).masked_fill(eye(8), -torch.inf)
    return F.cross_entropy(logits, torch.arange(8).roll(4))


def expected_decoupled() -> torch.Tensor:
    a, b = unit(A, B)
    negatives = torch.cat([odds(a, a), odds(a, b)], 1).masked_fill(eye(4).repeat(1, 2), -torch.inf)
    return (negatives.logsumexp(1) - odds(a, b).diagonal()).mean()


class Given(nn.Module):
    """A loss whose temperature is an attribute: a number, a buffer or a parameter."""

    def __init__(self, t: float, how: str) -> None:
        super().__init__()
        if how == "number":
            self.t: Any = t
        elif how == "buffer":
            self.register_buffer("t", torch.tensor(t))
        else:
            self.t = nn.Parameter(torch.tensor(t))


class NTXent(Given):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return nt_xent(a, b, self.t)


class Exponentials(Given):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return exponentials(a, b, self.t)


class TwoLogarithms(Given):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return two_logarithms(a, b, self.t)


class ReducedApart(Given):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return reduced_apart(a, b, self.t)


class Decoupled(Given):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return decoupled(a, b, self.t)


WHOLE: dict[str, tuple[Loss, type[Given], Callable[[], torch.Tensor]]] = {
    "logsumexp": (nt_xent, NTXent, expected_nt_xent),
    "exponentials": (exponentials, Exponentials, expected_nt_xent),
    "two logarithms": (two_logarithms, TwoLogarithms, expected_nt_xent),
    "means apart": (reduced_apart, ReducedApart, expected_nt_xent),
    "decoupled": (decoupled, Decoupled, expected_decoupled),
}


@pytest.mark.parametrize("how", ["number", "buffer", "parameter"])
@pytest.mark.parametrize("name", WHOLE)
def test_every_logit_is_edited_wherever_the_positive_stands(name: str, how: str) -> None:
    _, create, expected = WHOLE[name]
    for t in (0.1, 0.5):
        model = rewriter.rewrite(create(t, how), "temperature-free", example_inputs=(A, B))
        torch.testing.assert_close(model(A, B), expected(), rtol=1e-5, atol=1e-5)
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", WHOLE)
def test_so_it_is_in_a_function_given_the_temperature(name: str) -> None:
    loss, _, expected = WHOLE[name]
    for t in (torch.tensor(0.1), 0.1):
        rewritten = rewriter.rewrite(loss, "temperature-free", example_inputs=(A, B, t))
        torch.testing.assert_close(rewritten(A, B, t), expected(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(rewritten(A, B, 3 * t), expected(), rtol=1e-5, atol=1e-5)


def test_two_towers_keep_the_contract() -> None:
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.t = nn.Linear(8, 6), nn.Linear(8, 6), nn.Parameter(torch.tensor(0.1))

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return nt_xent(self.first(a), self.second(b), self.t)

    check_contract(Towers(), "temperature-free", example_inputs=(A, B), must_find=True)


def scaled_mean(a: torch.Tensor, b: torch.Tensor, t: Any) -> torch.Tensor:
    a, b = unit(a, b)
    return torch.logsumexp(a @ b.T / t, 1).mean() - (a * b).sum(1).mean() / t


def weighted(a: torch.Tensor, b: torch.Tensor, t: Any) -> torch.Tensor:
    a, b = unit(a, b)
    pos = (a * b).sum(1)
    weight = 2 - 4 * torch.softmax(pos / 0.5, 0).detach()
    return (-weight * pos / t + torch.logsumexp(a @ b.T / t, 1)).mean()


def scaled_logarithm(a: torch.Tensor, b: torch.Tensor, t: Any) -> torch.Tensor:
    a, b = unit(a, b)
    return (t * torch.logsumexp(a @ b.T / t, 1) - (a * b).sum(1)).mean()


def scaled_distance(a: torch.Tensor, b: torch.Tensor, t: Any) -> torch.Tensor:
    a, b = unit(a, b)
    return (torch.logsumexp(a @ b.T / t, 1) + (1 - (a * b).sum(1)) / t).mean()


def other_temperature(a: torch.Tensor, b: torch.Tensor, t: Any) -> torch.Tensor:
    a, b = unit(a, b)
    return (torch.logsumexp(a @ b.T / t, 1) - (a * b).sum(1) / (2 * t)).mean()


def raw_positive(a: torch.Tensor, b: torch.Tensor, t: Any) -> torch.Tensor:
    x, y = unit(a, b)
    return (torch.logsumexp(x @ y.T / t, 1) - (a.relu() * b.relu()).sum(1) / t).mean()


def negative_factor(a: torch.Tensor, b: torch.Tensor, t: Any) -> torch.Tensor:
    a, b = unit(a, b)
    return (torch.logsumexp(a @ b.T / t, 1) + (a * b).sum(1) * (-1 / t)).mean()


def negative_scale(a: torch.Tensor, b: torch.Tensor, t: Any) -> torch.Tensor:
    a, b = unit(a, b)
    return (torch.logsumexp(a @ b.T / t, 1) + (a * b).sum(1) * (-1 / torch.as_tensor(t))).mean()


@pytest.mark.parametrize(
    "loss",
    [
        scaled_mean,
        weighted,
        scaled_logarithm,
        scaled_distance,
        other_temperature,
        raw_positive,
        negative_factor,
        negative_scale,
    ],
)
def test_a_loss_of_which_one_term_cannot_be_edited_is_left_whole(loss: Loss) -> None:
    temperature = torch.tensor(0.1) if loss is negative_scale else 0.1
    plan = rewriter.plan(loss, "temperature-free", example_inputs=(A, B, temperature))
    assert not plan.sites
    assert {str(skip.reason) for skip in plan.skipped} == {"temperature-free/another-term"}, str(plan)


def with_distance(a: torch.Tensor, b: torch.Tensor, t: Any) -> torch.Tensor:
    a, b = unit(a, b)
    pos = (a * b).sum(1)
    neg = torch.cat([a @ a.T, a @ b.T], 1) / t
    neg = neg.masked_fill(eye(len(a)).repeat(1, 2), -1e9)
    return (-pos / t + torch.logsumexp(neg, 1)).mean() + 0.5 * (1 - pos).mean()


def weighted_behind(a: torch.Tensor, b: torch.Tensor, t: Any) -> torch.Tensor:
    a, b = unit(a, b)
    pos = (a * b).sum(1) / t
    weight = 2 - 4 * torch.softmax((a * b).sum(1) / 0.5, 0).detach()
    return (-weight * pos + torch.logsumexp(a @ b.T / t, 1)).mean()


def test_a_positive_that_is_weighted_behind_its_temperature_is_edited() -> None:
    rewritten = rewriter.rewrite(weighted_behind, "temperature-free", example_inputs=(A, B, 0.1))
    a, b = unit(A, B)
    weight = 2 - 4 * torch.softmax((a * b).sum(1) / 0.5, 0)
    expected = (odds(a, b).logsumexp(1) - weight * odds(a, b).diagonal()).mean()
    torch.testing.assert_close(rewritten(A, B, 0.3), expected, rtol=1e-5, atol=1e-5)


def test_a_further_term_of_its_own_stays() -> None:
    rewritten = rewriter.rewrite(with_distance, "temperature-free", example_inputs=(A, B, 0.1))
    distance = 0.5 * (1 - F.cosine_similarity(A, B)).mean()
    torch.testing.assert_close(rewritten(A, B, 0.1), expected_decoupled() + distance, rtol=1e-5, atol=1e-5)
