"""Normalise half of the channels by the image, and half by the batch: IBN-a.

Rule: Pan, Luo, Shi and Tang, "Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net", ECCV 2018,
arXiv:1807.09441. The first norm of a residual branch becomes an instance norm for the first half of the channels and
stays a batch norm for the others; the last stage keeps its batch norms, for instance norms take out what tells classes
apart.

Ours: the last stage is told by its maps, which are the smallest of all that residual branches add to. Gains and biases
stay those of the batch norm, which goes on estimating the statistics of all channels, so that undo gives a model that
works; the paper has two modules.

Pattern::

    fork ── conv ── batch norm ── … ── norm ── +              in all stages but the last
      └────────────────────────────────────────┘

Edit: the batch norm gets a behaviour. Names and shapes in checkpoints stay, so those of the original load, but their
outputs change: train on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from rewriter.authoring import (
    Change,
    Contract,
    Kind,
    Pass,
    Place,
    Reason,
    Refused,
    Trace,
    find_branches,
    has_weight,
    register_layer,
)


@register_layer("ibn/norm")
class InstanceBatchNorm(nn.Module):
    """Behaviour of an ``nn.BatchNorm2d``: an instance norm for the first half of the channels; ``(N, C, H, W)``."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        half = input.shape[1] // 2
        weight, bias = (None if t is None else t[:half] for t in (self.weight, self.bias))
        by_image = F.instance_norm(input[:, :half], weight=weight, bias=bias, eps=self.eps)
        return torch.cat([by_image, super().forward(input)[:, half:]], dim=1)


@dataclass(frozen=True)
class InstanceBatchNormalization(Pass):
    name: ClassVar[str] = "ibn"
    summary: ClassVar[str] = "normalise half of the channels of early residual branches by the image"
    paper: ClassVar[str] = "Pan et al., Two at Once: IBN-Net, ECCV 2018, arXiv:1807.09441"
    contract: ClassVar[Contract] = Contract(eval_output=False)

    def candidates(self, trace: Trace) -> Iterator[Place[int]]:
        branches = [
            branch
            for branch in find_branches(trace.flow, trace.model)
            if branch.form == "residual" and len(trace.shape(branch.join)) == 4
        ]
        smallest = min((math.prod(trace.shape(branch.join)[2:]) for branch in branches), default=0)
        for branch in branches:
            norms = trace.flow.in_order(n for n in branch.nodes if n.meta["kind"] is Kind.NORM)
            first = next((n for n in norms if has_weight(trace.flow.sources(n)[0], trace.flow)), None)
            if first is not None:
                stage = math.prod(trace.shape(branch.join)[2:]) // smallest
                yield Place(trace, first, "first norm of a residual branch", stage if first is not norms[-1] else 0)

    def decide(self, place: Place[int]) -> Change:
        norm = place.trace.module_of(place.node)
        if isinstance(norm, InstanceBatchNorm):
            raise Refused(Reason.ALREADY_DONE, "it normalises half of the channels by the image")
        if place.subject == 0:
            raise Refused("ibn/last-norm", "it is the last norm of the branch, too")
        if place.subject == 1:
            raise Refused("ibn/last-stage", "its map is that of the last stage, where classes are told apart")
        if not isinstance(norm, nn.BatchNorm2d) or type(norm).forward is not nn.BatchNorm2d.forward:
            raise Refused(Reason.OWN_FORWARD, f"{place.path or 'the model'} is no nn.BatchNorm2d with torch's forward")
        channels, *size = place.trace.shape(place.node)[1:]
        if channels < 2 or math.prod(size) == 1:
            raise Refused("ibn/one-value", "an instance norm has one value, or there is one channel")
        place.edit.behave(place.path, InstanceBatchNorm)
        return Change(
            f"normalise {channels // 2} of {channels} channels by the image",
            "early layers see the appearance of an image, which should not matter",
        )
