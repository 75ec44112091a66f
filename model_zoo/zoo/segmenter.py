"""A backbone and a decode head as one model of semantic segmentation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from rewriter.zoo.zoo.blocks import resize_like


class Segmenter(nn.Module):
    """Maps an image to logits for every pixel.

    Args:
        backbone: maps images ``(N, C, H, W)`` to a list of levels, finest first.
        decode_head: maps the levels ``(N, C_i, H_i, W_i)`` to logits.
        levels: indices of the levels that the head takes; None for all.
        channels_last: whether the backbone's levels are ``(N, H_i, W_i, C_i)``.
    """

    def __init__(
        self,
        backbone: nn.Module,
        decode_head: nn.Module,
        levels: Sequence[int] | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.decode_head = decode_head
        self.levels = None if levels is None else list(levels)
        self.channels_last = channels_last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images ``(N, C, H, W)`` to logits ``(N, num_classes, H, W)``."""
        features = self.backbone(x)
        if self.levels is not None:
            features = [features[level] for level in self.levels]
        if self.channels_last:
            features = [feature.permute(0, 3, 1, 2).contiguous() for feature in features]
        return resize_like(self.decode_head(features), x)
