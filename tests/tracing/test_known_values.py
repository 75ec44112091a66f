"""A run on meta tensors is told the values that no input reaches; what an input reaches it cannot be told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import rewriter

Read = Callable[["Detector", torch.Tensor], Any]

KNOWN: dict[str, Read] = {
    "a plain attribute": lambda m, x: x[:, : int(m.stride[1])],
    "in a list": lambda m, x: x[:, : int(m.held[0])],
    "a buffer": lambda m, x: x if m.flag.item() else x[:, :1],
    "gone through": lambda m, x: [x * float(stride) for stride in m.stride],
    "a list": lambda m, x: x[:, : m.stride.tolist()[0]],
    "as a size": lambda m, x: torch.zeros(m.held[0], 2),
    "to fill": lambda m, x: torch.full((2, 1), m.stride[0], dtype=x.dtype, device=x.device) * x.mean(),
    "computed": lambda m, x: x[:, : int((m.stride.cumsum(0) - 1)[0])],
    "made of numbers": lambda m, x: x[:, : int(torch.as_tensor(x.shape, device=x.device).prod() // x.numel())],
    "in a slice": lambda m, x: x[:, m.stride[0] - 2 : m.stride[0]],
    "sizes of levels": lambda m, x: [x[:, :h] for h, _ in torch.tensor([[1, 2], [2, 2]], device=x.device)],
    "written, then made anew": lambda m, x: x[:, : int(torch.arange(4, device=x.device)[2])],
    "a comparison": lambda m, x: x if torch.equal(m.stride, m.stride + 0) else x[:, :1],
}

UNKNOWN: dict[str, Read] = {
    "of the input": lambda m, x: x[:, : int(x.abs().max() * 0) + 1],
    "written to": lambda m, x: x[:, : int(m.count.add_(1))],
    "a parameter": lambda m, x: x[:, : int(m.weight)],
    "random": lambda m, x: x[:, : 1 + int(torch.rand(1, device=x.device))],
}


class Detector(nn.Module):
    def __init__(self, read: Read) -> None:
        super().__init__()
        self.read, self.conv = read, nn.Conv2d(3, 8, 3)
        self.stride, self.held = torch.tensor([2, 4]), [torch.tensor(3)]
        self.register_buffer("flag", torch.tensor(True))
        self.register_buffer("count", torch.tensor(1))
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> Any:
        return self.read(self, self.conv(x))


def shapes_of(result: Any) -> list[tuple[int, ...]]:
    return [tuple(t.shape) for t in (result if isinstance(result, list) else [result])]


@pytest.mark.parametrize("how", KNOWN)
def test_values_that_no_input_reaches_are_known(how: str) -> None:
    model = Detector(KNOWN[how])
    trace = rewriter.trace(model, input_size=16)
    assert trace.backend == "meta", trace.notes
    assert shapes_of(trace.eval.result) == shapes_of(model.eval()(torch.rand(2, 3, 16, 16)))
    assert (model.stride.tolist(), int(model.held[0]), int(model.count)) == ([2, 4], 3, 1)


@pytest.mark.parametrize("how", UNKNOWN)
def test_other_values_need_a_run_on_real_tensors(how: str) -> None:
    model = Detector(UNKNOWN[how])
    trace = rewriter.trace(model, input_size=16)
    assert trace.backend == "cpu"
    assert (int(model.count), float(model.weight)) == (1, 2.0)


def test_a_model_without_values_is_told_nothing() -> None:
    with torch.device("meta"):
        model = Detector(KNOWN["a list"])
    assert rewriter.trace(model, input_size=16).backend == "cpu"
