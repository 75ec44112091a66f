"""Predicted results are those of the operation itself: shape, strides, type, and the error where inputs do not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rewriter.tracing.shape_rules import RULES
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
    "subtract": (torch.Tensor.sub, (IMAGE, _meta(2, 8, 1, 1)), {}),
    "divide": (torch.div, (IMAGE, 2), {}),
    "divide, rounding": (torch.div, (IMAGE, 2), {"rounding_mode": "floor"}),
    "divide integers": (torch.div, (_meta(3, dtype=torch.int64), 2), {}),
    "linear": (F.linear, (TOKENS, _meta(4, 8), _meta(4)), {}),
    "linear of a view": (F.linear, (TOKENS.transpose(0, 1), _meta(4, 8)), {}),
    "rms norm": (F.rms_norm, (TOKENS, (8,), CHANNELS), {}),
    "instance norm": (F.instance_norm, (IMAGE, None, None, CHANNELS, CHANNELS), {}),
    "instance norm, channels last": (F.instance_norm, (LAST,), {}),
    "softmax": (F.softmax, (TOKENS,), {"dim": -1}),
    "softmax of a view": (torch.softmax, (TOKENS.transpose(1, 2), 1), {}),
    "softmax to another type": (torch.Tensor.softmax, (TOKENS, 1), {"dtype": torch.float64}),
    "log softmax": (F.log_softmax, (IMAGE, 1), {}),
    "concatenate": (torch.cat, ([IMAGE, _meta(2, 3, 5, 5)], 1), {}),
    "concatenate from the end": (torch.cat, ((TOKENS, TOKENS),), {"dim": -1}),
    "concatenate with nothing": (torch.cat, ([_meta(0), TOKENS],), {"dim": 1}),
    "concatenate two layouts": (torch.cat, ([IMAGE, LAST], 1), {}),
    "concatenate two types": (torch.cat, ([TOKENS, TOKENS.double()],), {}),
    "upsample": (F.upsample, (IMAGE,), {"scale_factor": 2, "mode": "bilinear"}),
    "sample": (F.grid_sample, (IMAGE, _meta(2, 3, 4, 2)), {"align_corners": False}),
    "sample by a spline": (F.grid_sample, (IMAGE, _meta(2, 3, 4, 2), "bicubic", "border", True), {}),
    "sample a volume": (F.grid_sample, (_meta(2, 8, 5, 5, 5), _meta(2, 3, 4, 2, 3)), {"align_corners": False}),
    **{
        f"activation {function.__name__}": (function, (IMAGE,), {})
        for function in (
            F.relu, F.relu6, F.leaky_relu, F.elu, F.celu, F.selu, F.silu, F.mish, F.hardswish, F.hardsigmoid,
            F.hardtanh, F.softplus, F.logsigmoid,
        )
    },
    "leaky relu with a slope": (F.leaky_relu, (LAST, 0.2), {}),
    "relu of integers": (torch.relu, (_meta(3, dtype=torch.int64),), {}),
    "clamp": (torch.clamp, (IMAGE, 0, 6), {}),
    "clamp by a tensor": (torch.Tensor.clamp, (TOKENS, CHANNELS), {}),
    **{
        f"resize {len(shape) - 2} dimensions, {mode}, {sorted(options)}": (F.interpolate, (_meta(*shape),), options)
        for shape, modes in {
            (2, 8, 5): ("nearest", "nearest-exact", "area", "linear"),
            (2, 8, 5, 6): ("nearest", "nearest-exact", "area", "bilinear", "bicubic"),
            (2, 8, 4, 5, 6): ("nearest", "nearest-exact", "area", "trilinear"),
        }.items()
        for mode in modes
        for options in (
            {"mode": mode, "scale_factor": 1.7},
            {"mode": mode, "size": (7, 8, 9)[: len(shape) - 2]},
            {"mode": mode, "size": 3, "align_corners": None},
            {"mode": mode, "scale_factor": 0.5, "recompute_scale_factor": True},
        )
    },
    "resize, channels last": (F.interpolate, (LAST,), {"scale_factor": 2, "mode": "bilinear"}),
    "resize with corners": (F.interpolate, (IMAGE, (9, 9), None, "bicubic", True), {}),
    "resize, smoothed": (F.interpolate, (IMAGE,), {"size": 3, "mode": "bilinear", "antialias": True}),
}  # fmt: skip

COSTLY = [name for name in CALLS if name.startswith(("resize", "sample", "instance norm", "activation", "upsample"))]
"""What costs tens of milliseconds on meta, or is called everywhere."""


@pytest.mark.parametrize("name", CALLS)
def test_a_predicted_result_is_like_the_real_one(name: str) -> None:
    function, args, kwargs = CALLS[name]
    predicted, real = call(function, args, kwargs), function(*args, **kwargs)
    assert (predicted.shape, predicted.stride(), predicted.dtype) == (real.shape, real.stride(), real.dtype)
    assert predicted.device.type == "meta"


@pytest.mark.parametrize("name", [name for name in COSTLY if "channels last" not in name])
def test_costly_operations_are_not_run(name: str) -> None:
    function, args, kwargs = CALLS[name]
    assert RULES[function](*args, **kwargs) is not None


@pytest.mark.parametrize("function", [F.relu, F.hardswish, F.elu])
def test_what_works_in_place_is_run(function: Any) -> None:
    x = _meta(2, 3)
    assert call(function, (x,), {"inplace": True}) is x
    assert RULES[function](x, inplace=True) is None


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
        (F.interpolate, (IMAGE, None, None)),
        (F.interpolate, (IMAGE, 3, 2)),
        (F.interpolate, (IMAGE, (3, 3, 3))),
        (F.interpolate, (IMAGE, 3, None, "linear")),
        (F.interpolate, (IMAGE, 3, None, "nearest", True)),
        (F.grid_sample, (IMAGE, _meta(3, 4, 4, 2))),
        (F.grid_sample, (IMAGE, _meta(2, 4, 4, 3))),
        (F.grid_sample, (IMAGE, _meta(2, 4, 4, 2), "cubic")),
        (F.instance_norm, (_meta(1, 8, 1),)),
        (F.linear, (TOKENS, _meta(4, 7))),
        (F.rms_norm, (TOKENS, (7,))),
        (torch.cat, ([TOKENS, _meta(2, 6, 7)], 1)),
        (torch.cat, ([TOKENS, CHANNELS],)),
        (torch.Tensor.sub, (IMAGE, _meta(3))),
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
