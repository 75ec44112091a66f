"""Several dropout masks for each image in front of the classifier.

Rule: Inoue, "Multi-Sample Dropout for Accelerated Training and Better Generalization", arXiv:1905.09788. Dropout and
what follows it run several times in training, with the same weights and other masks, and the loss is the mean over
these samples. Evaluation runs them once, as ever.

Ours: a rewrite of a model has no loss, so the predictions are averaged. For a convex loss such as cross entropy that is
at most the paper's mean of losses (Jensen), equal at rate 0; its gradient is another one. Only the classifier itself is
repeated, not hidden layers in front of it.

Pattern::

    features ── dropout ── linear ── output

Edit: ``fc(drop(x))`` becomes ``mean(fc(drop(repeat(x))))``, also inside an ``nn.Sequential``. The samples are a
dimension in front; in evaluation mode both layers return what they get. The dropout stays where it is, and so does its
rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import fx, nn

from rewriter.authoring import Change, Kind, Pass, Place, Reason, Refused, Trace, drop_rate, has_weight, register_layer


@register_layer("multi-sample-dropout/repeat")
class Repeat(nn.Module):
    """``(N, …)`` to ``(samples, N, …)`` in training."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.samples = samples

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x] * self.samples) if self.training else x

    def extra_repr(self) -> str:
        return f"samples={self.samples}"


@register_layer("multi-sample-dropout/mean")
class MeanOfSamples(nn.Module):
    """``(samples, N, …)`` to ``(N, …)``, which has ``dimensions`` dimensions; anything else stays as it is."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.dimensions = dimensions

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(0) if x.dim() > self.dimensions else x


@dataclass(frozen=True)
class MultiSampleDropout(Pass):
    """``samples`` is the number of masks; it can be changed afterwards."""

    name: ClassVar[str] = "multi-sample-dropout"
    summary: ClassVar[str] = "several dropout masks for each image in front of the classifier"
    paper: ClassVar[str] = "Inoue, Multi-Sample Dropout, arXiv:1905.09788"

    samples: int = 8

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ValueError(f"samples: expected at least 2, found {self.samples!r}")

    def candidates(self, trace: Trace) -> Iterator[Place[fx.Node]]:
        for linear in trace.operations(Kind.LINEAR):
            source = trace.flow.sources(linear)[0]
            behind = trace.flow.reachable(linear)
            if source.meta["kind"] is Kind.DROPOUT and not any(has_weight(node, trace.flow) for node in behind):
                yield Place(trace, source, "dropout of a classifier", linear)

    def decide(self, place: Place[fx.Node]) -> Change:
        dropout, linear, trace = place.node, place.subject, place.trace
        features = place.flow.sources(dropout)[0]
        if isinstance(trace.owner_of(features), Repeat):
            raise Refused(Reason.ALREADY_DONE, "it has several masks")
        if place.flow.users(dropout) != [linear]:
            raise Refused(Reason.OTHER_READERS, "others than the classifier read what it drops out")
        if not isinstance(trace.module_of(dropout), nn.Dropout) and dropout.target is not F.dropout:
            raise Refused(Reason.DROPOUT_KIND, "it does not drop single elements")
        if drop_rate(dropout, place.model) == 0:
            raise Refused("multi-sample-dropout/no-rate", "at rate 0 all samples are equal; give a rate", inactive=True)
        place.edit.insert_before(dropout, features, Repeat, samples=self.samples)
        repeat = ".".join(filter(None, (place.edits[0].path, place.edits[0].name)))
        place.edit.insert_after(linear, MeanOfSamples, dimensions=len(trace.shape(linear)))
        return Change(
            f"average the predictions of {self.samples} dropout masks",
            "more masks are seen for each image, at the cost of the classifier alone",
            setting=f"{self.samples} ({repeat}.samples)",
        )
