"""The loss itself: InfoNCE without a temperature, for who writes a training from the start."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from rewriter.passes.temperature_free.layers import EPS, log_odds

Contrasted = Literal["across", "symmetric", "all"]
_KINDS = ("across", "symmetric", "all")


class TemperatureFreeInfoNCE(nn.Module):
    """InfoNCE on log-odds of cosine similarities.

    Row ``i`` of one side and row ``i`` of the other are a pair; all other rows of the other side are its negatives. The
    loss is the mean cross entropy of ``scale * atanh(cosine)``. It has no parameters, and both modes are alike.

    Similarities are computed in single precision at least, also under autocast: half precision rounds those above
    0.998 to 1. They are clamped to ``eps`` from -1 and 1, so value and gradient are finite for any rows.

    Args:
        contrast: ``"across"`` takes rows of the first side as queries, as MoCo does; ``"symmetric"`` averages over both
            directions, as CLIP does; ``"all"`` contrasts each of all rows with all others, as SimCLR does, and leaves
            out the similarity of a row to itself before the logits are computed.
        scale: the factor; 2 gives the log-odds.
        eps: how far from -1 and 1 similarities are kept.

    Raises:
        ValueError: an option is not one of these.
    """

    def __init__(self, contrast: Contrasted = "across", *, scale: float = 2.0, eps: float = EPS) -> None:
        super().__init__()
        if contrast not in _KINDS:
            raise ValueError(f"contrast: expected one of {', '.join(map(repr, _KINDS))}, found {contrast!r}")
        if not scale > 0:
            raise ValueError(f"scale: expected a number above 0 (2 for the log-odds), found {scale!r}")
        if not 0 < eps < 1:
            raise ValueError(f"eps: expected a number between 0 and 1, found {eps!r}")
        self.contrast, self.scale, self.eps = contrast, scale, eps

    def forward(self, first: torch.Tensor, second: torch.Tensor, negatives: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the loss.

        Args:
            first, second: the pairs, each of shape ``(N, D)``; they need not be normalised.
            negatives: further rows that no row is a pair of, of shape ``(K, D)``: a queue.

        Returns:
            The loss, a scalar in the type of the computation.

        Raises:
            ValueError: the shapes do not fit.
        """
        if first.ndim != 2 or first.shape != second.shape:
            shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
            raise ValueError(f"expected two tensors of one shape (N, D), found {shapes}; give one row a sample")
        if negatives is not None and (negatives.ndim != 2 or negatives.shape[1] != first.shape[1]):
            expected = f"(K, {first.shape[1]})"
            raise ValueError(f"negatives: expected rows of shape {expected}, found {tuple(negatives.shape)}")
        with torch.autocast(first.device.type, enabled=False):
            first, second = _unit(first), _unit(second)
            further = None if negatives is None else _unit(negatives)
            if self.contrast == "all":
                return self._all(first, second, further)
            loss = self._across(first, second, further)
            if self.contrast == "symmetric":
                loss = (loss + self._across(second, first, further)) / 2
            return loss

    def _across(self, queries: torch.Tensor, keys: torch.Tensor, further: torch.Tensor | None) -> torch.Tensor:
        keys = keys if further is None else torch.cat([keys, further])
        logits = log_odds(queries @ keys.T, self.scale, self.eps)
        return F.cross_entropy(logits, torch.arange(len(queries), device=logits.device))

    def _all(self, first: torch.Tensor, second: torch.Tensor, further: torch.Tensor | None) -> torch.Tensor:
        rows = torch.cat([first, second])
        itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
        similarity = (rows @ rows.T).masked_fill(itself, 0.0)
        logits = log_odds(similarity, self.scale, self.eps).masked_fill(itself, -torch.inf)
        if further is not None:
            logits = torch.cat([logits, log_odds(rows @ further.T, self.scale, self.eps)], dim=1)
        return F.cross_entropy(logits, torch.arange(len(rows), device=rows.device).roll(len(first)))

    def extra_repr(self) -> str:
        return f"{self.contrast!r}, scale={self.scale:g}, eps={self.eps:g}"


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return F.normalize(rows if rows.dtype == torch.float64 else rows.float(), dim=1)
