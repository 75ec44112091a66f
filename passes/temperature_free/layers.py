"""The layer that stands for a division by the temperature."""

from __future__ import annotations

import torch
from torch import nn

from rewriter.layers.registry import register_layer

EPS = 1e-6
"""How far from -1 and 1 a similarity is kept. In single precision it bounds the log-odds of factor 2 by 14.5."""


def log_odds(similarity: torch.Tensor, scale: float = 2.0, eps: float = EPS) -> torch.Tensor:
    """``scale * atanh(similarity)``, finite for any finite similarity, also beyond 1.

    With ``scale=2`` it is the log-odds of ``(1 + s) / 2``, that is ``log((1 + s) / (1 - s))``.

    Args:
        similarity: cosines, of any shape. They are computed with in single precision at least, since half precision
            rounds ``1 - eps`` to 1, and clamped to ``eps`` from -1 and 1, where the gradient is zero.

    Returns:
        A tensor of the same shape and type.
    """
    wide = similarity if similarity.dtype == torch.float64 else similarity.float()
    return (scale * torch.atanh(wide.clamp(eps - 1, 1 - eps))).to(similarity.dtype)


@register_layer("temperature-free/log-odds")
class LogOdds(nn.Module):
    """Turn cosine similarities into logits without a temperature, see :func:`log_odds`.

    It has no parameters and no buffers, and does the same in training and evaluation mode. Takes and returns a tensor
    of any shape and floating-point type.

    Args:
        scale: the factor; 2 gives the log-odds.
        eps: how far from -1 and 1 similarities are kept.
    """

    def __init__(self, scale: float = 2.0, eps: float = EPS) -> None:
        super().__init__()
        self.scale, self.eps = scale, eps

    def forward(self, similarity: torch.Tensor) -> torch.Tensor:
        return log_odds(similarity, self.scale, self.eps)

    def extra_repr(self) -> str:
        return f"scale={self.scale:g}, eps={self.eps:g}"
