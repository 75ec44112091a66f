"""Predicted results are those of the operation itself: shape, strides, type, and the error where inputs do not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rewriter.tracing.shapes import PredictedCalls, call


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


IMAGE, TOKENS, CHANNELS = _meta(2, 8, 5, 5), _meta(2, 7, 8), _meta(8)
LAST = IMAGE.to(memory_format=torch.channels_last)

CALLS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = {
    "gelu": (F.gelu, (TOKENS,), {"approximate": "tanh"}),
    "gelu of a view": (F.gelu, (TOKENS.transpose(1, 2),), {}),
    "gelu by keyword": (F.gelu, (), {"input": TOKENS}),
    "normalize": (F.normalize, (TOKENS,), {"dim": -1}),
    "layer norm": (F.layer_norm, (TOKENS, (8,), CHANNELS, CHANNELS), {}),
    "layer norm by keyword": (F.layer_norm, (), {"input": IMAGE, "normalized_shape": [8, 5, 5]}),
    "group norm": (F.group_norm, (IMAGE, 4, CHANNELS, CHANNELS), {"eps": 1e-3}),
    "batch norm, eval": (F.batch_norm, (IMAGE, CHANNELS, CHANNELS), {"training": False}),
    "batch norm, train": (F.batch_norm, (LAST, None, None, CHANNELS, CHANNELS, True, 0.1, 1e-5), {}),
    "add": (torch.Tensor.add, (IMAGE, IMAGE), {}),
    "add a number": (torch.add, (IMAGE, 2), {}),
    "add with a factor": (torch.add, (IMAGE, IMAGE), {"alpha": 2}),
    "add other types": (torch.add, (IMAGE, IMAGE.double()), {}),
    "add two layouts": (torch.add, (IMAGE, LAST), {}),
    "add a longer tensor": (torch.add, (CHANNELS, TOKENS), {}),
    "add by keyword": (torch.add, (), {"input": IMAGE, "other": IMAGE}),
    "add integers": (torch.add, (_meta(3, dtype=torch.int64), 2.5), {}),
    "multiply by a gate": (torch.mul, (IMAGE, _meta(2, 8, 1, 1)), {}),
    "multiply by a scale": (torch.Tensor.mul, (TOKENS, CHANNELS), {}),
    "multiply two that stretch": (torch.mul, (_meta(2, 1, 5), _meta(2, 7, 1)), {}),
    "attention": (F.scaled_dot_product_attention, (_meta(2, 3, 7, 4), _meta(2, 3, 9, 4), _meta(2, 3, 9, 6)), {}),
    "attention of views": (F.scaled_dot_product_attention, (_meta(2, 7, 3, 4).transpose(1, 2),) * 3, {}),
    "masked attention": (
        F.scaled_dot_product_attention,
        (_meta(2, 3, 7, 4),) * 3,
        {"attn_mask": _meta(7, 7), "scale": 0.5},
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_predicted_result_is_like_the_real_one(name: str) -> None:
    function, args, kwargs = CALLS[name]
    predicted, real = call(function, args, kwargs), function(*args, **kwargs)
    assert (predicted.shape, predicted.stride(), predicted.dtype) == (real.shape, real.stride(), real.dtype)
    assert predicted.device.type == "meta"


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (F.layer_norm, (TOKENS, (7,))),
        (F.group_norm, (IMAGE, 3)),
        (F.group_norm, (_meta(1, 4), 4)),
        (F.batch_norm, (IMAGE, _meta(4), _meta(4))),
        (F.batch_norm, (IMAGE, None, None)),
        (F.batch_norm, (_meta(1, 8), CHANNELS, CHANNELS, None, None, True)),
        (torch.add, (IMAGE, _meta(3))),
        (torch.add, (IMAGE, torch.zeros(5))),
        (F.scaled_dot_product_attention, (_meta(2, 3, 7, 4), _meta(2, 3, 9, 5), _meta(2, 3, 9, 5))),
    ],
)
def test_inputs_that_do_not_fit_raise_the_error_of_the_operation(function: Any, args: tuple[Any, ...]) -> None:
    with pytest.raises(Exception) as real:
        function(*args)
    with pytest.raises(type(real.value)) as predicted:
        call(function, args, {})
    assert str(predicted.value) == str(real.value)


def test_real_tensors_are_computed() -> None:
    x = torch.randn(2, 3)
    with PredictedCalls():
        assert torch.equal(x + x, 2 * x)
