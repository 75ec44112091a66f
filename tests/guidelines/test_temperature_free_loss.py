"""The log-odds of similarities, and the loss of the paper: its gradient, its numbers, and half precision."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rewriter.passes.temperature_free import LogOdds, TemperatureFreeInfoNCE, log_odds


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_twice_atanh_is_the_log_odds_of_the_rescaled_similarity() -> None:
    s = torch.linspace(-0.9, 0.9, 10_001)
    probability = (1 + s.double()) / 2
    assert (log_odds(s) - (torch.log1p(s) - torch.log1p(-s))).abs().max() <= 2e-7 * 2  # one ulp of values above 2
    relative = (log_odds(s) / (torch.log1p(s) - torch.log1p(-s)) - 1)[s.abs() > 1e-3]
    assert relative.abs().max() <= 2e-7
    torch.testing.assert_close(log_odds(s).double(), torch.logit(probability), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("eps", "largest"), [(1e-6, 14.5), (1e-3, 7.6)])
def test_the_clamp_bounds_the_logits(eps: float, largest: float) -> None:
    found = log_odds(torch.tensor([-2.0, -1.0, 1.0, 1.0000001, 3.0]), eps=eps)
    assert torch.equal(found.sign(), torch.tensor([-1.0, -1.0, 1.0, 1.0, 1.0]))
    torch.testing.assert_close(found.abs(), torch.full((5,), largest), rtol=0, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_goes_through_single_precision(dtype: torch.dtype) -> None:
    s = torch.tensor([0.25, 0.5, 1.0], dtype=dtype)
    found = log_odds(s)
    assert found.dtype == dtype and found.isfinite().all()
    assert torch.equal(found, log_odds(s.float()).to(dtype))
    within = 2 * torch.atanh(s.clamp(1e-6 - 1, 1 - 1e-6))  # 1 - 1e-6 is 1 in half precision
    assert within[-1].isinf()


def test_double_precision_stays_and_gradients_are_exact() -> None:
    s = torch.linspace(-0.99, 0.99, 7, dtype=torch.float64, requires_grad=True)
    assert log_odds(s).dtype == torch.float64
    assert torch.autograd.gradcheck(LogOdds(), (s,))


def slope(angle: float, negatives: int, logits_of: Any) -> float:
    """The derivative of the loss by the angle of a pair, beside negatives at a right angle."""
    turned = torch.tensor(angle, dtype=torch.float64, requires_grad=True)
    logits = torch.cat([logits_of(torch.cos(turned)).view(1), torch.zeros(negatives, dtype=torch.float64)])
    F.cross_entropy(logits.view(1, -1), torch.tensor([0])).backward()
    assert turned.grad is not None
    return float(turned.grad)


@pytest.mark.parametrize("negatives", [1, 15, 4095])
@pytest.mark.parametrize("angle", [3e-3, 0.01, 0.1, 0.5, 1.0, 1.5, 2.5])
def test_the_gradient_is_that_of_the_closed_form(angle: float, negatives: int) -> None:
    # 2 atanh(cos t) = -2 log tan(t / 2), so the loss is log(1 + n tan(t / 2)^2)
    tan = math.tan(angle / 2)
    expected = negatives * tan * (1 + tan**2) / (1 + negatives * tan**2)
    assert slope(angle, negatives, log_odds) == pytest.approx(expected, rel=1e-6)
    assert expected > 0


def test_the_gradient_vanishes_at_perfect_alignment_and_not_before() -> None:
    assert slope(0.0, 15, log_odds) == 0
    cut = math.acos(1 - 1e-6)  # 1.4 mrad, from where on the clamp holds
    assert slope(cut * 0.99, 15, log_odds) == 0 < slope(cut * 1.01, 15, log_odds)
    assert slope(cut * 1.01, 15, log_odds) == pytest.approx(15 * cut / 2, rel=0.02)  # in proportion to the angle
    for temperature in (0.05, 0.07):  # a temperature: it is gone long before
        with_temperature = slope(0.2, 15, lambda s, t=temperature: s / t)
        assert with_temperature < 1e-4 < 1 < slope(0.2, 15, log_odds)


def test_low_temperatures_flatten_both_ends_and_the_log_odds_none() -> None:
    angles = [0.2, 0.8, 1.4, 2.0, 2.6]
    free = [slope(angle, 1, log_odds) for angle in angles]
    cold = [slope(angle, 1, lambda s: s / 0.05) for angle in angles]
    hot = [slope(angle, 1, lambda s: s / 5.0) for angle in angles]
    assert max(free) / min(free) < 40 < max(cold) / min(cold) and min(free) > max(hot[0], cold[0])
    assert free == sorted(free)  # the worse the alignment, the larger the gradient


def reference(rows: torch.Tensor, columns: torch.Tensor, targets: torch.Tensor, left_out: torch.Tensor) -> float:
    """The loss, term by term."""
    total = 0.0
    for i, row in enumerate(rows):
        odds = [
            0.0 if left_out[i, j] else float((1 + s) / (1 - s))
            for j, s in enumerate(F.cosine_similarity(row.double().unsqueeze(0), columns.double()))
        ]
        total -= math.log(odds[targets[i]] / sum(odds))
    return total / len(rows)


def test_the_loss_is_the_mean_over_rows_of_odds_over_the_sum_of_odds() -> None:
    a, b, queue = noise(5, 8), noise(5, 8, seed=1), noise(7, 8, seed=2)
    own = torch.arange(5)
    none = torch.zeros(5, 12, dtype=torch.bool)
    across = reference(a, torch.cat([b, queue]), own, none)
    back = reference(b, torch.cat([a, queue]), own, none)
    rows = torch.cat([a, b])
    every = reference(rows, rows, torch.arange(10).roll(5), torch.eye(10, dtype=torch.bool))
    assert float(TemperatureFreeInfoNCE()(a, b, queue)) == pytest.approx(across, rel=1e-5)
    assert float(TemperatureFreeInfoNCE("symmetric")(a, b, queue)) == pytest.approx((across + back) / 2, rel=1e-5)
    assert float(TemperatureFreeInfoNCE("all")(a, b)) == pytest.approx(every, rel=1e-5)
    further = TemperatureFreeInfoNCE("all")(a, b, queue)
    assert further > TemperatureFreeInfoNCE("all")(a, b)


@pytest.mark.parametrize("contrast", ["across", "symmetric", "all"])
def test_equal_pairs_give_a_finite_loss_and_gradient(contrast: Any) -> None:
    torch.manual_seed(0)
    a = torch.randn(64, 48)
    rows = F.normalize(a, dim=1)
    assert ((rows @ rows.T).diagonal() > 1).sum() > 5  # of 64
    a.requires_grad_()
    loss = TemperatureFreeInfoNCE(contrast)(a, a.detach().clone())
    loss.backward()
    assert loss.isfinite() and a.grad is not None and a.grad.isfinite().all()
    assert loss < 0.01


def test_under_autocast_similarities_are_not_rounded() -> None:
    a = noise(8, 16)
    b = a + 0.02 * noise(8, 16, seed=1)
    loss = TemperatureFreeInfoNCE()
    expected = loss(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(a, b), expected)
        rounded = F.cross_entropy(log_odds(F.normalize(a, dim=1) @ F.normalize(b, dim=1).T), torch.arange(8))
    assert abs(rounded - expected) / expected > 0.05


def test_training_aligns_pairs() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(16, 8, requires_grad=True), torch.randn(16, 8)
    loss = TemperatureFreeInfoNCE("symmetric")
    optimizer = torch.optim.Adam([a], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loss(a, b).backward()
        optimizer.step()
    assert F.cosine_similarity(a, b).min() > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contrast": "both"}, "contrast: expected one of 'across', 'symmetric', 'all', found 'both'"),
        ({"scale": 0.0}, "scale: expected a number above 0"),
        ({"eps": 0.0}, "eps: expected a number between 0 and 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TemperatureFreeInfoNCE(**options)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((noise(4, 8), noise(5, 8)), r"one shape \(N, D\), found \(4, 8\) and \(5, 8\)"),
        ((noise(4, 2, 8), noise(4, 2, 8)), "give one row a sample"),
        ((noise(4, 8), noise(4, 8), noise(6, 7)), r"negatives: expected rows of shape \(K, 8\), found \(6, 7\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(inputs: tuple[torch.Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TemperatureFreeInfoNCE()(*inputs)
