"""A dropout before the batch norm of a head is in nobody's place: it shifts that norm's statistics."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rewriter
from rewriter import Reason


class EndingInNorm(nn.Module):
    """A pre-activation network: its last norm stands between the blocks and the pooling."""

    def __init__(self, before: float | None = None, after: float | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.before = nn.Identity() if before is None else nn.Dropout(before)
        self.norm, self.pool = nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1)
        self.after = nn.Identity() if after is None else nn.Dropout(after)
        self.classifier = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.before(self.stem(x))))
        return self.classifier(self.after(self.pool(x).flatten(1)))


@pytest.mark.parametrize(("rate", "p", "actions"), [
    (0.2, None, []), (0.2, 0.2, []), (0.0, None, []), (0.0, 0.2, ["insert dropout before pool"]),
])  # fmt: skip
def test_it_is_neither_done_nor_switched_on(rate: float, p: float | None, actions: list[str]) -> None:
    """With a rate the head has its dropout, though out of place; a dropout of rate 0 is none."""
    made = rewriter.plan(EndingInNorm(before=rate), {"dropout": {"p": p}}, input_size=16)
    (skip,) = made.skipped
    assert [site.action for site in made.sites] == actions
    assert skip.reason is Reason.NORM_BETWEEN and skip.path == "before" and skip.inactive is (rate == 0)
    assert "shifts the statistics of norm" in skip.detail


def test_it_displaces_none_behind_the_pooling() -> None:
    model = EndingInNorm(before=0.2, after=0.2)
    rewritten = rewriter.rewrite(model, "dropout", input_size=16)
    (site,) = rewriter.report(rewritten).applied
    assert site.action == "move after before pool"
    assert [skip.path for skip in rewriter.report(rewritten).skipped] == ["before"]


class DroppingItsSum(nn.Module):
    """A pre-activation block that drops its sum."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv, self.drop = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1), nn.Dropout(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(x + self.conv(F.relu(self.norm(x))))


def test_that_of_the_last_block_moves_into_its_branch_as_in_the_others() -> None:
    """A dropout between the last sum and the norm of the head is on the trunk, and of the block that calls it."""
    blocks = [nn.Conv2d(3, 8, 3, padding=1), DroppingItsSum(), DroppingItsSum()]
    model = nn.Sequential(*blocks, nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    made = rewriter.plan(model, "dropout", input_size=16)
    assert [(site.path, site.action) for site in made.sites] == [
        (path, "move drop from the trunk before conv") for path in ("1", "2")
    ]
