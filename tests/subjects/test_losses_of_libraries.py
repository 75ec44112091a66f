"""Loss functions of torch, torchvision, smp and monai: the same values, signatures and pickles, and the way back."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import slow_but
from losses import LogPass, TemperaturePass
from monai.losses import focal_loss
from segmentation_models_pytorch.losses import _functional as smp
from torchvision import ops

import rewriter


def arguments(kind: str) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randn(4, 3, generator=generator)
    target, corners = torch.rand(4, 3, generator=generator).round(), torch.rand(4, 2, generator=generator)
    labels = torch.randint(0, 3, (4,), generator=generator)
    return {
        "logits": (prediction, target),
        "probabilities": (prediction.sigmoid(), target),
        "log probabilities": (prediction.log_softmax(1), target),
        "boxes": (torch.cat([corners, corners + 1], 1), torch.cat([corners, corners + target[:, :2] + 1], 1)),
        "labels": (prediction, labels),
        "labels of log probabilities": (prediction.log_softmax(1), labels, 0.1),
        "variance": (prediction, target, target + 1),
        "triplet": (prediction, prediction + 1, prediction - 1),
        "tversky": (prediction.sigmoid(), target, 0.5, 0.5),
    }[kind]


LOSSES: dict[str, tuple[Any, str]] = {
    "torchvision focal": (ops.sigmoid_focal_loss, "logits"),
    "torchvision GIoU": (ops.generalized_box_iou_loss, "boxes"),
    "torchvision CIoU": (ops.complete_box_iou_loss, "boxes"),
    "torchvision DIoU": (ops.distance_box_iou_loss, "boxes"),
    "smp focal": (smp.focal_loss_with_logits, "logits"),
    "smp softmax focal": (smp.softmax_focal_loss_with_logits, "labels"),
    "smp dice": (smp.soft_dice_score, "probabilities"),
    "smp jaccard": (smp.soft_jaccard_score, "probabilities"),
    "smp tversky": (smp.soft_tversky_score, "tversky"),
    "smp wing": (smp.wing_loss, "logits"),
    "smp smoothed": (smp.label_smoothed_nll_loss, "labels of log probabilities"),
    "monai softmax focal": (focal_loss.softmax_focal_loss, "logits"),
    "monai focal": (focal_loss.sigmoid_focal_loss, "logits"),
    "torch binary cross entropy": (F.binary_cross_entropy, "probabilities"),
    "torch cross entropy": (F.cross_entropy, "labels"),
    "torch KL": (F.kl_div, "log probabilities"),
    "torch Gaussian": (F.gaussian_nll_loss, "variance"),
    "torch Poisson": (F.poisson_nll_loss, "logits"),
    "torch smooth L1": (F.smooth_l1_loss, "logits"),
    "torch triplet": (F.triplet_margin_with_distance_loss, "triplet"),
}
APPLIED = {"torchvision focal": 1}
"""Where a sigmoid or logarithm is taken by name; in all others nothing applies."""


@pytest.mark.parametrize("name", slow_but(["torchvision focal", "smp focal", "torch KL"], LOSSES))
def test_it_computes_the_same_and_comes_back(name: str) -> None:
    function, kind = LOSSES[name]
    inputs = arguments(kind)
    rewritten: Any = rewriter.rewrite(function, (LogPass(), TemperaturePass()), example_inputs=inputs)
    report = rewriter.report(rewritten)
    assert len(report.applied) == APPLIED.get(name, 0) and report.verified
    for loss in (rewritten, pickle.loads(pickle.dumps(rewritten))):
        assert torch.equal(loss(*inputs), function(*inputs)) and loss.__wrapped__ is function
    assert inspect.signature(rewritten) == inspect.signature(function) and rewriter.undo(rewritten) is function
