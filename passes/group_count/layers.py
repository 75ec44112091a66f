"""The layer that replaces a call of ``F.group_norm`` with a hard-coded number of groups."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from rewriter.layers.registry import register_layer
from rewriter.tracing.kinds import Kind


@register_layer("group-count/function")
class GroupNormFunction(nn.Module):
    """``F.group_norm`` with the arguments of the call, except for the number of groups, which is the layer's own.

    Args:
        num_groups: the number of groups; it can be changed at any time.
    """

    operation_kind = Kind.NORM

    def __init__(self, num_groups: int) -> None:
        super().__init__()
        self.num_groups = num_groups

    def forward(
        self,
        input: torch.Tensor,
        num_groups: int,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        eps: float = 1e-5,
    ) -> torch.Tensor:
        return F.group_norm(input, self.num_groups, weight, bias, eps)

    def extra_repr(self) -> str:
        return f"num_groups={self.num_groups}"
