"""Standardise the weights of convolutions in front of group norms, and normalise by estimates of the batches.

Rule: Qiao, Wang, Liu, Shen and Yuille, "Micro-Batch Training with Batch-Channel Normalization and Weight
Standardization", arXiv:1903.10520. The weights of each output channel have mean 0 and variance 1 when they are used,
and gradients pass through that. Batch-channel normalisation puts a batch norm in front of the normalisation of groups;
for small batches it uses running estimates in training, too, through which no gradient passes.

Ours: convolutions with one weight per output channel are left alone (its variance is 0). The group norm that is there
stays as it is, with a gain for every channel.

Pattern::

    conv ── group norm                        standardised conv ── [estimated batch norm ──] group norm

Edit: the convolution keeps its parameters and gets a behaviour; the batch norm is a new layer in front of the group
norm. Checkpoints of the original load, but their outputs change: it is for training from the beginning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from rewriter.authoring import AddedLayer, Change, Contract, Kind, Pass, Place, Reason, Refused, Trace, register_layer


@register_layer("weight-standardization/conv")
class StandardizedConv(nn.Module):
    """Behaviour of an ``nn.Conv2d``: runs it with standardised weights. ``(N, C, H, W)``, the same in both modes."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        weight = (self.weight - mean) * torch.rsqrt(variance + 1e-10)
        return self._conv_forward(input, weight, self.bias)


@register_layer("weight-standardization/estimated-batch-norm")
class EstimatedBatchNorm(AddedLayer):
    """A batch norm that normalises by its running estimates in both modes; training moves them by ``rate`` first."""

    def __init__(self, channels: int, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.weight, self.bias = nn.Parameter(torch.empty(channels)), nn.Parameter(torch.empty(channels))
        self.register_buffer("mean", torch.empty(channels))
        self.register_buffer("var", torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            for tensor, value in ((self.weight, 1), (self.bias, 0), (self.mean, 0), (self.var, 1)):
                tensor.fill_(value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            with torch.no_grad():
                var, mean = torch.var_mean(x.to(self.mean.dtype), dim=(0, 2, 3), correction=0)
                self.mean.lerp_(mean, self.rate)
                self.var.lerp_(var, self.rate)
        factor = self.weight * torch.rsqrt(self.var + 1e-5)
        shift = self.bias - self.mean * factor
        return x * factor.to(x.dtype)[:, None, None] + shift.to(x.dtype)[:, None, None]


@dataclass(frozen=True)
class WeightStandardization(Pass):
    """``batch_channel`` adds the estimated batch norm; ``rate`` is how far a batch moves its estimates."""

    name: ClassVar[str] = "weight-standardization"
    summary: ClassVar[str] = "standardise the weights of convolutions in front of group norms"
    paper: ClassVar[str] = "Qiao et al., Micro-Batch Training with Batch-Channel Normalization, arXiv:1903.10520"
    contract: ClassVar[Contract] = Contract(eval_output=False, adds_parameters=True, adds_buffers=True)

    batch_channel: bool = True
    rate: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate: expected a number above 0 and at most 1, found {self.rate!r}")

    def candidates(self, trace: Trace) -> Iterator[Place[nn.Module]]:
        for node in trace.operations(Kind.NORM):
            norm = trace.module_of(node) or trace.owner_of(node)  # a norm with an activation issues it itself
            conv = trace.flow.sources(node)[0]
            if isinstance(conv_module := trace.module_of(conv), nn.Conv2d) and isinstance(norm, nn.GroupNorm):
                yield Place(trace, node, "convolution and group norm", conv_module, path=str(conv.target))

    def decide(self, place: Place[nn.Module]) -> Change:
        conv = place.subject
        if isinstance(conv, StandardizedConv):
            raise Refused(Reason.ALREADY_DONE, "its weights are standardised")
        if type(conv).forward is not nn.Conv2d.forward:
            raise Refused(Reason.OWN_FORWARD, f"{type(conv).__name__} has a forward of its own")
        if conv.weight[0].numel() == 1:
            raise Refused("weight-standardization/one-weight", "an output channel has one weight, of variance 0")
        source = place.flow.sources(place.node)[0]
        place.interference.refuse_other_readers([source], [place.node], "be that of other weights")
        place.edit.behave(place.path, StandardizedConv)
        if not self.batch_channel:
            return Change("standardise its weights", "the loss is smoother in them, also with small batches")
        place.edit.insert_before(
            place.node, source, EstimatedBatchNorm, channels=conv.out_channels, rate=float(self.rate)
        )
        return Change(
            "standardise its weights, and normalise the map by estimates of the batches",
            "group norms let channels become constant; what batches estimate keeps them apart",
        )
