"""Keep the variance of positional embeddings: when they are resampled, and in the configuration of a training.

Rule (Kim and Kim, *Configuring Data Augmentations to Reduce Variance Shift in Positional Embedding of Vision
Transformers*, arXiv:2405.14115; we read summaries): the first layer norm of a vision transformer reads the sum of the
patch embedding and the positional embedding, so the effect of a position depends on the ratio of their variances, which
has to be the same in training and test. Upsampling lowers the variance of a positional embedding: divide by the root of
``k = Var(upsampled) / Var(original)``. Mixup lowers the variance of images, CutMix does not; random erasing keeps it
with noise for every pixel (mode "pixel") on images of mean 0 and standard deviation 1.

Why, in short (our derivation): for independent images, Mixup leaves ``lam^2 + (1 - lam)^2`` of the variance, which is
``1 - 2 a^2 / ((2 a) (2 a + 1))`` on average over Beta(a, a); erasing a part ``s`` by a constant leaves ``1 - s``. From
14x14 on, a table without any structure keeps 0.46 to 0.48 bilinearly and 0.75 to 0.76 by torch's bicubic (0.68 to 0.70
with ``antialias=True``, which is another cubic); trained tables are smoother and keep more, so ``k`` is measured.

Not from the paper: that ``k`` is taken over all channels and positions of the grid (not class tokens), counts as a
constant for gradients, and serves smaller grids likewise; how a table is recognised that was resized when its
checkpoint was loaded; that a norm of each sample before the sum makes the training configuration harmless.

Dataflow::

    image ─ projection ─ … ─────────────── sum ─ … ─ layer norm
    table ─[select]─ resample [rescale] ───┘
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewriter.authoring import Change, Contract, Lint, Pass, Place, Recommendation

if TYPE_CHECKING:
    import torch

    from rewriter.tracing.trace import Trace


@dataclass(frozen=True)
class PositionVariance(Pass):
    """Rescale resampled positional embeddings to the variance of the original.

    Where a model resamples its table in forward, a layer does both; where the table was resized when a checkpoint was
    loaded, its values are scaled once, for which the original is needed.

    Attributes:
        original: the table as it was before it was resized, the state dict that holds it, or the path of a file with
            that (safetensors, or of ``torch.save``); None without.
    """

    name = "position-variance"
    summary = "the variance of a resampled positional embedding, and of images in the configuration of a training"
    paper = (
        "Kim and Kim, Configuring Data Augmentations to Reduce Variance Shift in Positional Embedding of Vision "
        "Transformers, arXiv:2405.14115"
    )
    contract = Contract(eval_output=False, state_dict=True, gradients=True)
    layers = ("rewriter.passes.position_variance.layers",)
    codes = (
        Lint("RW1101", "a resampled positional embedding has another variance"),
        Lint("RW1102", "Mixup with positions that are added"),
        Lint("RW1103", "random erasing without noise in each pixel"),
        Lint("RW1104", "random erasing in images that are not normalised to mean 0 and standard deviation 1"),
        Lint("RW1105", "images that are not normalised to mean 0 and standard deviation 1", "note"),
    )

    original: torch.Tensor | Mapping[str, Any] | str | Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.original is not None:
            from rewriter.passes.position_variance.originals import read_original

            object.__setattr__(self, "original", read_original(self.original))
            object.__setattr__(self, "contract", Contract(eval_output=False, state_dict=False))  # a table is scaled

    @property
    def measures(self) -> bool:
        return self.original is not None

    @property
    def needs_values(self) -> bool:
        return self.original is not None

    def options(self) -> dict[str, Any]:
        """The options as plain data: of the original, what it is."""
        if self.original is None:
            return {"original": None}
        from rewriter.passes.position_variance.originals import described

        assert not isinstance(self.original, (str, Path))
        return {"original": described(self.original)}

    def candidates(self, trace: Trace) -> Iterator[Place[Any]]:
        from rewriter.passes.position_variance.tables import find_places

        return find_places(trace)

    def decide(self, place: Place[Any]) -> Change | Recommendation | None:
        from rewriter.passes.position_variance.tables import rescale

        assert not isinstance(self.original, (str, Path))
        return rescale(place, self.original)

    def check_training(self, trace: Trace, training: Mapping[str, Any]) -> Iterator[Recommendation]:
        from rewriter.passes.position_variance.training import faults

        return faults(trace, training)
