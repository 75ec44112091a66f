"""The reference models: each decode head has the operations of its paper, on any backbone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rewriter
from rewriter import zoo
from rewriter.testing import check_contract
from rewriter.zoo.zoo.preact_resnet import PreActResNet

pytestmark = pytest.mark.slow


def on_meta(name: str, **options: Any) -> zoo.Entry:
    with torch.device("meta"):
        return zoo.create(name, **options)


def of_head(entry: zoo.Entry, function: Any) -> list[Any]:
    """Calls of ``function`` in the decode head, in order."""
    graph = rewriter.trace(entry.model, input_size=entry.input_size).graph
    calls = graph.find_nodes(op="call_function", target=function)
    return [node for node in calls if node.meta["module_stack"][1:2] == ("decode_head",)]


RESIZE_CONCAT = {"input_transform": "resize_concat", "concat_input": False, "num_convs": 1, "kernel_size": 1}


@pytest.mark.parametrize(
    ("name", "options", "concatenated", "resized", "side"),
    [
        # pyramid of four pools beside the last level; four levels of 32 channels; 4 pools, 3 sums, 3 levels resized
        ("uperhead", {}, [[512, 32, 32, 32, 32], [32] * 4], 10, 16),
        ("psphead", {}, [[512, 32, 32, 32, 32]], 4, 8),
        ("psphead", {"pool_sizes": (1, 2)}, [[512, 32, 32]], 2, 8),
        ("aspphead", {}, [[32] * 5], 1, 8),
        ("aspphead", {"output_stride": 16}, [[32] * 5], 1, 4),
        ("sepaspphead", {}, [[32] * 5, [32, 48]], 2, 16),
        ("fcnhead", {}, [[512, 32]], 0, 8),
        ("fcnhead", {"concat_input": False}, [], 0, 8),
        ("fcnhead", RESIZE_CONCAT, [[64, 128, 256, 512]], 3, 16),
    ],
)  # fmt: skip
def test_layout(name: str, options: dict[str, Any], concatenated: list[list[int]], resized: int, side: int) -> None:
    entry = on_meta(f"zoo:{name}", img_size=64, channels=32, num_classes=7, **options)
    found = [[x.meta["shape"][1] for x in call.args[0]] for call in of_head(entry, torch.cat)]
    assert found == concatenated
    assert all(call.kwargs == {"dim": 1} for call in of_head(entry, torch.cat))
    resizes = of_head(entry, F.interpolate)
    assert len(resizes) == resized
    assert {call.kwargs["mode"] for call in resizes} <= {"bilinear"}
    head_output = entry.model.decode_head(entry.model.backbone(torch.empty(2, 3, 64, 64, device="meta"))[1:])
    assert head_output.shape == (2, 7, side, side)
    assert entry.model(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 7, 64, 64)


def test_convolutions_of_the_atrous_heads() -> None:
    """One 1x1 branch and one 3x3 branch a dilation; DeepLabV3+ convolves each channel alone."""
    for name, groups in (("aspphead", 1), ("sepaspphead", 512)):
        aspp = on_meta(f"zoo:{name}", channels=32).model.decode_head.aspp
        wide = [m for m in aspp.atrous.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        assert [(m.dilation, m.padding, m.groups) for m in wide] == [((d, d), (d, d), groups) for d in (12, 24, 36)]
        assert aspp.point[0].kernel_size == (1, 1)
    assert on_meta("zoo:aspphead", dilations=(6, 12)).model.decode_head.aspp.bottleneck[0].in_channels == 4 * 512


def test_uper_head_sums_top_down() -> None:
    graph = rewriter.trace(on_meta("zoo:uperhead", img_size=64, channels=32).model, input_size=64).graph
    in_head = [node for node in graph.nodes if node.meta["module_path"] == "decode_head"]
    assert [node.meta["shape"][2:] for node in in_head if "add" in str(node.target)] == [(4, 4), (8, 8), (16, 16)]


@pytest.mark.parametrize(
    ("name", "options", "channels", "strides"),
    [
        ("zoo:psphead", {}, [64, 128, 256, 512], [4, 8, 8, 8]),
        ("zoo:uperhead", {}, [64, 128, 256, 512], [4, 8, 16, 32]),
        ("zoo:uperhead-convnext_atto", {}, [40, 80, 160, 320], [4, 8, 16, 32]),
        ("zoo:aspphead-convnext_atto", {}, [40, 80, 160, 320], [4, 8, 8, 8]),
        ("zoo:sepaspphead-mobilenetv3_small_050", {}, [8, 16, 24, 288], [4, 8, 8, 8]),
        ("zoo:psphead-vgg11", {}, [256, 512, 512, 512], [4, 8, 16, 32]),  # it cannot be dilated
        ("zoo:uperhead-swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}, [96, 192, 384, 768], [4, 8, 16, 32]),
        ("zoo:uperhead-test_vit", {"img_size": 64}, [64] * 3, [16] * 3),
        ("zoo:fcnhead-hrnet_w18_small", {**RESIZE_CONCAT, "feature_location": ""}, [16, 32, 64, 128], [4, 8, 16, 32]),
    ],
)  # fmt: skip
def test_levels(name: str, options: dict[str, Any], channels: list[int], strides: list[int]) -> None:
    """The head gets ``(N, C, H, W)`` from the stride of 4 on, whatever the backbone returns."""
    entry = on_meta(name, **{"channels": 32, **options})
    assert entry.input_size is not None
    side = entry.input_size[1]
    received: list[Any] = []
    entry.model.decode_head.register_forward_pre_hook(lambda _, args: received.extend(args[0]))
    logits = entry.model(torch.empty(2, *entry.input_size, device="meta"))
    assert [tuple(x.shape) for x in received] == [
        (2, width, side // stride, side // stride) for width, stride in zip(channels, strides, strict=True)
    ]
    assert logits.shape == (2, 19, side, side)


@pytest.mark.parametrize("name", ["zoo:uperhead", "zoo:sepaspphead", "zoo:preact_resnet18"])
def test_passes_keep_their_contract(name: str) -> None:
    torch.manual_seed(0)
    options = {} if "preact" in name else {"channels": 16, "img_size": 64}
    entry = zoo.create(name, **options)
    rewritten = check_contract(entry.model, ["dropout", "stochastic-pooling"], input_size=entry.input_size)
    assert rewriter.report(rewritten).applied


def test_pre_activation_resnets() -> None:
    """Weighted layers as the name says, and an identity that nothing follows but the next block's sum."""
    for name in zoo.names("zoo:preact*"):
        entry = on_meta(name)
        convolutions = [m for m in entry.model.modules() if isinstance(m, nn.Conv2d)]
        shortcuts = [path for path, _ in entry.model.named_modules() if path.endswith("shortcut")]
        assert len(convolutions) - len(shortcuts) + 1 == int(name.removeprefix("zoo:preact_resnet")), name
        assert entry.input_size == (3, 32, 32)
        assert entry.model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)
    block = PreActResNet(depths=(1,), widths=(4,)).eval().stages[0][0]
    for conv in block.convs:
        nn.init.zeros_(conv.weight)
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("zoo:uperhed", {}, zoo.UnknownModel, "zoo:uperhead"),
        ("zoo:uperhead-resnt18", {}, zoo.UnknownModel, "zoo:uperhead-resnet18"),
        ("zoo:uperhead", {"no_such": 1}, zoo.CreationError, "no_such"),
        ("zoo:preact_resnet18", {"no_such": 1}, zoo.CreationError, "no_such"),
        ("zoo:preact_resnet18", {"pretrained": True}, zoo.CreationError, "no pretrained weights"),
        ("zoo:fcnhead", {"input_transform": "sum"}, zoo.CreationError, "resize_concat"),
        (
            "zoo:fcnhead",
            {"num_convs": 0, "concat_input": False, "channels": 64},
            zoo.CreationError,
            "channels must be 512",
        ),
        ("zoo:psphead-vgg11", {"output_stride": 8}, zoo.CreationError, "output_stride=8"),
    ],
)
def test_errors(name: str, options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        on_meta(name, **options)
