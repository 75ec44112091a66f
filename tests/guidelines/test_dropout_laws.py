"""The propositions of the dropout paper (Kim et al., UAI 2023, arXiv:2302.06112) with its constants, simulated.

*Inconsistency* is the variance of what a norm reads at test time over that in training: 1 is ideal; ``keep`` is the
probability to keep. Over twelve seeds a variance spreads by a standard deviation of 0.4 %, a ratio by 0.2 % or less:
both are checked within 1.5 %, more than three of them.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

KEPT = (0.9, 0.8, 0.5)
UNITS, SAMPLES, OUTPUTS = 1024, 4096, 256


def dropped(x: torch.Tensor, keep: float) -> torch.Tensor:
    return F.dropout(x, 1 - keep, training=True)


def branch(gamma: float = 1.0, mean: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """What a norm with ``gamma`` gives, behind ReLU, and a weight by He's initialisation, shifted by ``mean``."""
    torch.manual_seed(0)
    features = (gamma * torch.randn(SAMPLES, UNITS)).relu()
    return features, torch.randn(UNITS, OUTPUTS) * math.sqrt(2 / UNITS) + mean


def variance(outputs: torch.Tensor) -> float:
    """Over samples, the mean over outputs."""
    return outputs.var(0).mean().item()


@pytest.mark.parametrize("keep", KEPT)
def test_proposition_1_relu_and_dropout_commute(keep: float) -> None:
    x = torch.randn(64, 64)
    for activation, alike in ((F.relu, True), (F.gelu, False), (F.silu, False)):
        torch.manual_seed(0)
        before = activation(dropped(x, keep))
        torch.manual_seed(0)
        assert torch.equal(before, dropped(activation(x), keep)) == alike


@pytest.mark.parametrize(("mean", "before_is_better"), [(0.01, True), (0.0, None)])
def test_proposition_2_before_the_weight_is_better_if_its_weights_agree(
    mean: float, before_is_better: bool | None
) -> None:
    """Behind ReLU, weights of a mean that is not zero; with a mean of zero the two cannot be told apart."""
    features, weight = branch(mean=mean)
    before = variance(features @ weight) / variance(dropped(features, 0.5) @ weight)
    after = variance(features @ weight) / variance(dropped(features @ weight, 0.5))
    if before_is_better is None:
        assert before == pytest.approx(after, rel=0.015)
    else:
        assert after < 0.9 * before < before < 1


@pytest.mark.parametrize(("keep", "ratio"), zip(KEPT, (0.860, 0.732, 0.405), strict=True))
@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_proposition_3_the_variance_of_a_branch(keep: float, ratio: float, gamma: float) -> None:
    features, weight = branch(gamma)
    at_test, in_training = variance(features @ weight), variance(dropped(features, keep) @ weight)
    assert at_test == pytest.approx((math.pi - 1) / math.pi * gamma**2, rel=0.015)
    assert in_training == pytest.approx((math.pi / keep - 1) / math.pi * gamma**2, rel=0.015)
    assert (math.pi - 1) / (math.pi / keep - 1) == pytest.approx(ratio, abs=5e-4)
    assert at_test / in_training == pytest.approx(ratio, rel=0.015)


@pytest.mark.parametrize(("keep", "ratio"), zip(KEPT, (0.938, 0.871, 0.627), strict=True))
@pytest.mark.parametrize("gammas", [(1.0,), (0.5,) * 4])
def test_proposition_4_the_shortcut_dilutes_it(keep: float, ratio: float, gammas: tuple[float, ...]) -> None:
    """Of a block input of variance 1, behind blocks whose squared gammas sum to 1."""
    torch.manual_seed(1)
    at_test = in_training = torch.randn(SAMPLES, OUTPUTS)
    for number, gamma in enumerate(gammas):
        torch.manual_seed(10 + number)
        features = (gamma * torch.randn(SAMPLES, UNITS)).relu()
        weight = torch.randn(UNITS, OUTPUTS) * math.sqrt(2 / UNITS)
        at_test = at_test + features @ weight
        in_training = in_training + dropped(features, keep) @ weight
    assert variance(at_test) / variance(in_training) == pytest.approx(ratio, rel=0.015)


@pytest.mark.parametrize(("signs", "before_is_better"), [("of ReLU", True), ("opposed", False)])
def test_proposition_5_the_head_is_steadier_with_dropout_before_pooling(signs: str, before_is_better: bool) -> None:
    """If products of two positions are positive on average, as behind ReLU; else the other way round."""
    torch.manual_seed(0)
    positions = torch.randn(64, 49).abs()
    if signs == "opposed":
        positions = positions * torch.where(torch.arange(49) % 2 == 0, 1.0, -1.0)
    drawn = positions.expand(4000, -1, -1)
    before, after = dropped(drawn, 0.8).mean(-1), dropped(drawn.mean(-1), 0.8)
    noise = before.var(0).mean().item(), after.var(0).mean().item()
    assert (noise[0] < noise[1]) == before_is_better
    total = positions.sum(-1).square().mean().item()
    assert noise[1] / noise[0] == pytest.approx(total / positions.square().sum(-1).mean().item(), rel=0.05)
