"""gaussian-attention-bias where a relative position bias is read, returned or kept by others, too."""

from __future__ import annotations

import pytest
import torch
from attention_models import closed_form
from torch import nn

import rewriter
from rewriter.passes import GaussianAttentionBias


class Attention(nn.Module):
    """Attention over 4 x 4 positions, whose bias is also used as ``how`` says."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.qkv = nn.Linear(8, 24)
        self.table = nn.Parameter(torch.randn(49))
        line = torch.arange(16)
        down, across = line[:, None] // 4 - line // 4 + 3, line[:, None] % 4 - line % 4 + 3
        self.register_buffer("index", down * 7 + across)
        self.last: torch.Tensor | None = None

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        query, key, value = self.qkv(tokens).chunk(3, dim=-1)
        bias = self.table[self.index].unsqueeze(0)
        scores = query @ key.transpose(1, 2) + bias
        found = scores.softmax(-1) @ value
        other = found
        if self.how == "returned":
            other = bias * 1
        elif self.how == "kept":
            self.last = bias
        elif self.how == "used twice":
            other = bias @ value
        return found, other


class Network(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.stem, self.attention = nn.Conv2d(3, 8, 8, 8), Attention(how)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.attention(self.stem(images).flatten(2).transpose(1, 2))  # type: ignore[no-any-return]


@pytest.mark.parametrize("how", ["alone", "returned", "kept", "used twice"])
def test_other_readers_get_the_bias_as_it_was(how: str) -> None:
    torch.manual_seed(0)
    model = Network(how).eval()
    images = torch.randn(2, 3, 32, 32)
    edited = rewriter.rewrite(model, GaussianAttentionBias(1.5, 2.0), input_size=32, verify=False)
    with torch.no_grad():
        expected, other = model(images)
        found, other_found = edited(images)
        attention = model.attention
        tokens = attention.qkv(model.stem(images).flatten(2).transpose(1, 2))
        query, key, value = tokens.chunk(3, dim=-1)
        bias = attention.table[attention.index] + closed_form(4, 4, 0, 1.5, 2.0).float()
        by_hand = (query @ key.transpose(1, 2) + bias).softmax(-1) @ value
    assert (found - by_hand).abs().max() < 1e-5
    assert (found - expected).abs().max() > 1e-3
    if how != "alone":
        assert torch.equal(other_found, found if how == "kept" else other)
    if how == "kept":
        assert torch.equal(edited.attention.last, attention.table[attention.index].unsqueeze(0))
