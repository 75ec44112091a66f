"""Chains and diffusion models with group norms, and their gains as they are measured."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from helpers import image
from torch import nn

import rewriter
from rewriter.passes import GroupCount
from rewriter.passes.group_count.measuring import measured_gains

MEASURED = GroupCount(rule="measured-isometry")


class Chain(nn.Module):
    """A weight, a group norm with one group, and an activation."""

    def __init__(self, weight: nn.Module, channels: int, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.weight, self.norm, self.activation = weight, nn.GroupNorm(1, channels), activation or nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.norm(self.weight(x)))


def all_measured(model: nn.Module, x: Any) -> dict[Any, dict[int, float]]:
    return measured_gains(rewriter.trace(model, x), lambda place, values: None)


UNET: dict[str, Any] = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 16}


def unet() -> tuple[nn.Module, Any]:
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    model = diffusers.UNet2DModel(sample_size=16, in_channels=3, out_channels=3, **UNET, **blocks)
    return model, (image(16), torch.tensor([1, 500]))


def conditional_unet() -> tuple[nn.Module, Any]:
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    model = diffusers.UNet2DConditionModel(sample_size=16, cross_attention_dim=32, **UNET, **blocks)
    return model, (image(16, 4), torch.tensor([1, 500]), torch.randn(2, 7, 32))


def scale_shift_unet() -> tuple[nn.Module, Any]:
    model, x = unet()
    return diffusers.UNet2DModel(**{**model.config, "resnet_time_scale_shift": "scale_shift"}), x


def autoencoder() -> tuple[nn.Module, Any]:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return diffusers.AutoencoderKL(**UNET, **blocks), image(16)
