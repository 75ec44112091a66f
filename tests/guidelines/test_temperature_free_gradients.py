"""Softmaxes of similarities that are no contrast: no gradient passes them, or they weight features."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import rewriter

A, B = (torch.randn(4, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))


def similarity(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T


def detached_softmax(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    w = (similarity(a, b) * 5.0).softmax(1).detach()
    return ((a - b).pow(2).sum(1) * w.diag()).mean()


def detached_before(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    s = similarity(a, b).detach()
    return ((a - b).pow(2).sum(1) * (s * 5.0).softmax(1).diag()).mean()


def detached_scaled(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    w = torch.exp((similarity(a, b) / 0.2).detach())
    return ((a - b).pow(2).sum(1) * (w / w.sum(1)).log().diag()).mean()


def nearest(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(a, b[(similarity(a, b) / 0.1).softmax(1).argmax(1)])


def attached_weights(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return ((a - b).pow(2).sum(1) * (similarity(a, b) * 5.0).softmax(1).diag()).mean()


def pooled(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    scores = F.normalize(a, dim=-1) @ F.normalize(b[0], dim=-1) / 0.1
    return (scores.softmax(0)[:, None] * a).sum(0)


def pooled_values(a: torch.Tensor, b: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return (values * (similarity(a, b) / 0.1).softmax(1).unsqueeze(-1)).sum(1)


def slots(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (torch.softmax(similarity(a, b) / 0.1, dim=1).unsqueeze(2) * b.unsqueeze(0)).sum(1).square().mean()


NOTHING: list[Callable[..., torch.Tensor]] = [
    detached_softmax,
    detached_before,
    detached_scaled,
    nearest,
    attached_weights,
    pooled,
    slots,
]


@pytest.mark.parametrize("function", NOTHING)
def test_what_trains_nothing_by_a_contrast_is_not_even_mentioned(function: Callable[..., torch.Tensor]) -> None:
    plan = rewriter.plan(function, "temperature-free", example_inputs=(A, B))
    assert not plan.sites and not plan.skipped, str(plan)


def test_features_from_elsewhere_are_features() -> None:
    plan = rewriter.plan(pooled_values, "temperature-free", example_inputs=(A, B, torch.randn(4, 4, 8)))
    assert not plan.sites and not plan.skipped, str(plan)


def hard_negatives(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    s = similarity(a, b)
    w = (0.5 * s).softmax(1).detach()
    return F.cross_entropy(s / 0.1 + w.log(), torch.arange(len(a)))


def weighted_loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    s = similarity(a, b)
    w = (s.detach() * 0.5).softmax(1)
    return (F.cross_entropy(s / 0.1, torch.arange(len(a)), reduction="none") * w.diag()).mean()


@pytest.mark.parametrize("loss", [hard_negatives, weighted_loss])
def test_weights_of_hard_negatives_stay_and_the_loss_is_edited(loss: Callable[..., torch.Tensor]) -> None:
    s = similarity(A, B)
    odds, w = 2 * torch.atanh(s), (0.5 * s).softmax(1)
    if loss is hard_negatives:
        expected = F.cross_entropy(odds + w.log(), torch.arange(4))
    else:
        expected = (F.cross_entropy(odds, torch.arange(4), reduction="none") * w.diag()).mean()
    rewritten = rewriter.rewrite(loss, "temperature-free", example_inputs=(A, B))
    torch.testing.assert_close(rewritten(A, B), expected)


def written_softmax(a: torch.Tensor, b: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    same = (labels[:, None] == labels[None]).float()
    return -((similarity(a, b) / 0.1).softmax(1) * same).sum(1).log().mean()


def soft_labels(a: torch.Tensor, b: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return -((similarity(a, b) / 0.1).softmax(1) * target).sum(1).log().mean()


LABELS = torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(("loss", "given"), [(written_softmax, LABELS), (soft_labels, torch.eye(4).softmax(1))])
def test_a_softmax_that_a_mask_multiplies_is_still_a_loss(
    loss: Callable[..., torch.Tensor], given: torch.Tensor
) -> None:
    mask = given if given.is_floating_point() else (given[:, None] == given[None]).float()
    expected = -((2 * torch.atanh(similarity(A, B))).softmax(1) * mask).sum(1).log().mean()
    rewritten = rewriter.rewrite(loss, "temperature-free", example_inputs=(A, B, given))
    torch.testing.assert_close(rewritten(A, B, given), expected)
