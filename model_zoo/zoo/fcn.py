"""FCN: Long et al., "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015, in mmsegmentation's layout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from rewriter.zoo.zoo.blocks import ConvBlock, DecodeHead, resize_like


class FCNHead(DecodeHead):
    """Convolutions on the last level, or on all levels resized to the first and concatenated.

    Args:
        in_channels: channels of the levels.
        num_classes, channels, dropout: as in :class:`DecodeHead`.
        num_convs: number of convolutions.
        kernel_size: of the convolutions.
        concat_input: concatenate input and output of the convolutions, and fuse both with one more.
        input_transform: ``None`` reads the last level, ``"resize_concat"`` all of them.

    Raises:
        ValueError: another ``input_transform``, or no convolution although the channels do not match.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int = 19,
        channels: int = 512,
        dropout: float = 0.1,
        num_convs: int = 2,
        kernel_size: int = 3,
        concat_input: bool = True,
        input_transform: str | None = None,
    ) -> None:
        if input_transform not in (None, "resize_concat"):
            raise ValueError(f"input_transform: expected None or 'resize_concat', found {input_transform!r}")
        read = in_channels[-1] if input_transform is None else sum(in_channels)
        if num_convs < 1 and not concat_input and channels != read:
            raise ValueError(f"num_convs={num_convs}: without convolutions channels must be {read}, found {channels}")
        super().__init__(num_classes, channels, dropout)
        self.input_transform = input_transform
        widths = [read] + [channels] * num_convs
        self.convs = nn.Sequential(*(ConvBlock(width, channels, kernel_size) for width in widths[:-1]))
        self.fusion = ConvBlock(read + widths[-1], channels, kernel_size) if concat_input else None

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Map the levels to logits at the height and width of the level read, or of the first."""
        if self.input_transform is None:
            x = features[-1]
        else:
            x = torch.cat([features[0], *(resize_like(x, features[0]) for x in features[1:])], dim=1)
        y = self.convs(x)
        if self.fusion is not None:
            y = self.fusion(torch.cat([x, y], dim=1))
        return self.classify(y)
