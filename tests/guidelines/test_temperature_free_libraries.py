"""temperature-free on the contrastive losses of libraries: what they compute afterwards, written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses
from torch import nn

import rewriter
from rewriter.testing import check_contract

LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])


def features(seed: int = 0) -> torch.Tensor:
    return torch.randn(8, 16, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def log_odds_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return 2 * torch.atanh((F.normalize(x, dim=1) @ F.normalize(y, dim=1).T).clamp(-1 + 1e-6, 1 - 1e-6))


def across_pairs(x: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """NT-Xent: every positive pair against the negatives of its anchor."""
    odds, same = log_odds_of(x, x), LABELS[:, None] == LABELS[None]
    rows = [
        -torch.log_softmax(torch.cat([odds[a, p][None], odds[a][~same[a]]]), dim=0)[0]
        for a, p in positive.nonzero().tolist()
    ]
    return torch.stack(rows).mean()


def positives() -> torch.Tensor:
    return (LABELS[:, None] == LABELS[None]) & ~torch.eye(8, dtype=torch.bool)


@pytest.mark.parametrize("loss", [losses.NTXentLoss, losses.SupConLoss], ids=lambda loss: loss.__name__)
def test_a_loss_of_pytorch_metric_learning_no_longer_depends_on_its_temperature(loss: type[nn.Module]) -> None:
    x = features()
    values = {
        rewriter.rewrite(loss(temperature=t), "temperature-free", example_inputs=(x, LABELS))(x, LABELS).item()
        for t in (0.07, 0.5)
    }
    assert len(values) == 1 and values != {loss(temperature=0.07)(x, LABELS).item()}


def test_nt_xent_is_that_of_the_log_odds() -> None:
    x = features()
    made = check_contract(
        losses.NTXentLoss(temperature=0.1), "temperature-free", example_inputs=(x, LABELS), must_find=True
    )
    torch.testing.assert_close(made(x, LABELS), across_pairs(x, positives()), rtol=1e-4, atol=1e-5)


def test_supervised_contrast_is_that_of_the_log_odds() -> None:
    x = features()
    made = rewriter.rewrite(losses.SupConLoss(temperature=0.1), "temperature-free", example_inputs=(x, LABELS))
    odds = log_odds_of(x, x).masked_fill(torch.eye(8, dtype=torch.bool), -torch.inf)
    expected = -torch.log_softmax(odds, dim=1)[positives()].mean()  # each anchor has one positive here
    torch.testing.assert_close(made(x, LABELS), expected, rtol=1e-4, atol=1e-5)


def test_a_wrapper_of_two_views_is_mended_inside() -> None:
    x, y = features(), features(1)
    loss = losses.SelfSupervisedLoss(losses.NTXentLoss(temperature=0.1))
    made = rewriter.rewrite(loss, "temperature-free", example_inputs=(x, y))
    (site,) = rewriter.report(made).applied
    assert site.path == "loss" and made(x, y).item() != loss(x, y).item()


def test_a_batch_without_pairs_still_takes_the_other_path() -> None:
    made = rewriter.rewrite(losses.NTXentLoss(temperature=0.1), "temperature-free", example_inputs=(features(), LABELS))
    assert made(features(2), torch.arange(8)).item() == 0


def lightly_loss() -> Any:
    return pytest.importorskip("lightly.loss").NTXentLoss(temperature=0.1)


def test_the_loss_of_lightly() -> None:
    loss, x, y = lightly_loss(), features(), features(1)
    made = rewriter.rewrite(loss, "temperature-free", example_inputs=(x, y))
    both = torch.cat([x, y])
    odds = log_odds_of(both, both).masked_fill(torch.eye(16, dtype=torch.bool), -torch.inf)
    expected = F.cross_entropy(odds, torch.arange(16).roll(8))
    torch.testing.assert_close(made(x, y), expected, rtol=1e-4, atol=1e-5)
