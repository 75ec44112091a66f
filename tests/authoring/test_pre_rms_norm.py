"""The pass ``pre-rms-norm`` of ``examples/third_party``: equal outputs and gradients, and what it leaves alone."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn

import rewriter
from rewriter import Reason
from rewriter.testing import check_contract

sys.path.append(str(Path(__file__).parents[2] / "examples" / "third_party"))

from companion_passes.pre_rms_norm import Centre, CentredLinear, PreRMSNorm, RootMeanSquareNorm


def vision_transformer(**options: object) -> nn.Module:
    """A small ViT whose parameters are drawn, so that no mean is 0 by chance of initialisation."""
    model = timm.create_model("test_vit", img_size=32, patch_size=8, depth=3, num_classes=7, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1 + 0.05)
    return model


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


def seen_by_norms(model: nn.Module, x: torch.Tensor) -> float:
    """The largest mean over the channels that a layer norm sees, of a map of about unit size."""
    means: list[float] = []
    hooks = [
        module.register_forward_hook(lambda _, inputs, __: means.append(inputs[0].mean(-1).abs().max().item()))
        for module in model.modules()
        if isinstance(module, nn.LayerNorm)
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return max(means)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(16), nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.first(self.norm(x)).relu())


class Tokens(nn.Module):
    """Two blocks on a sequence; ``form`` says what else is done with the trunk."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.embed = form, nn.Linear(3, 16)
        self.blocks, self.norm, self.head = nn.Sequential(Block(), Block()), nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> object:
        tokens = self.embed(x.flatten(2).transpose(1, 2))
        deep = self.blocks(tokens)
        if self.form == "kept":
            self.last = deep
        if self.form == "post-norm":
            deep = self.norm(deep + self.norm.weight)
        out = self.head(self.norm(deep) if self.form != "post-norm" else deep)
        return (out, deep) if self.form == "returned" else out


def reasons(model: nn.Module) -> list[str]:
    """Why trunks are left alone; nothing may be applied."""
    found = rewriter.plan(model, PreRMSNorm(), example_inputs=torch.zeros(2, 3, 32, 32))
    assert not found.sites, str(found)
    return [str(skipped.reason) for skipped in found.skipped]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"drop_path_rate": 0.2, "pos_drop_rate": 0.1, "reg_tokens": 2}])
def test_the_contract_holds(options: dict[str, object]) -> None:
    model = check_contract(vision_transformer(**options), PreRMSNorm(), must_find=True)
    kinds = [sum(isinstance(m, kind) for m in model.modules()) for kind in (Centre, CentredLinear, RootMeanSquareNorm)]
    assert kinds == [1, 6, 7]


@pytest.mark.slow
def test_the_contract_holds_for_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(image_size=32, patch_size=8, **sizes))
    rewritten = check_contract(model, PreRMSNorm(), example_inputs=torch.randn(2, 3, 32, 32), must_find=True)
    assert sum(isinstance(module, RootMeanSquareNorm) for module in rewritten.modules()) == 5


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_the_output_is_equal_up_to_rounding(dtype: torch.dtype, bound: float) -> None:
    original, x = vision_transformer().to(dtype).eval(), torch.randn(2, 3, 32, 32, dtype=dtype)
    model = rewriter.rewrite(original, PreRMSNorm(), example_inputs=x, verify=False)
    assert list(model.state_dict()) == list(original.state_dict())
    assert relative(model(x), original(x)) < bound
    assert seen_by_norms(original, x) > 0.1 and seen_by_norms(model, x) < bound * 10


def test_training_goes_as_without_it() -> None:
    original, x = vision_transformer().double().train(), torch.randn(4, 3, 32, 32, dtype=torch.float64)
    start = copy.deepcopy(original.state_dict())
    rewritten = rewriter.rewrite(original, PreRMSNorm(), example_inputs=x, verify=False)
    for model in (original, rewritten):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), torch.arange(4)).backward()
            optimizer.step()
    for (name, ours), theirs in zip(rewritten.named_parameters(), original.parameters(), strict=True):
        assert relative(ours.grad, theirs.grad) < 1e-8 or theirs.grad.abs().max() < 1e-12, name
        assert relative(ours, theirs) < 1e-8, name
    moved = rewritten.get_parameter("blocks.0.attn.proj.weight")
    assert relative(moved, start["blocks.0.attn.proj.weight"]) > 1e-2  # three steps are seen


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"init_values": 0.1}, "pre-rms-norm/writer"),  # layer scale
        ({"proj_drop_rate": 0.1}, "pre-rms-norm/writer"),
        ({"global_pool": "avg"}, "pre-rms-norm/reader"),
    ],
    ids=str,
)
def test_where_it_is_not_certain_it_is_left_alone(options: dict[str, object], reason: str) -> None:
    assert reasons(vision_transformer(**options)) == [reason]


def test_other_readers_and_fused_attention() -> None:
    assert rewriter.plan(Tokens("plain"), PreRMSNorm(), example_inputs=torch.zeros(2, 3, 4, 4)).sites
    assert reasons(Tokens("returned")) == ["pre-rms-norm/reader"]
    assert reasons(Tokens("kept")) == [Reason.OTHER_READERS]
    assert reasons(Tokens("post-norm")) == ["pre-rms-norm/reader"]
    fused = torchvision.models.VisionTransformer(32, 16, 1, 2, 16, 32)
    assert reasons(fused) == ["pre-rms-norm/writer"]
