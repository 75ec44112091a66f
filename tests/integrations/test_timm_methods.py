"""After a rewrite timm's own methods work and give what they gave before."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from typing import Any

import pytest
import timm
import timm.optim
import torch
from families import saved_bytes
from torch import nn

import rewriter
from rewriter.passes import Dropout
from rewriter.tracing.inputs import Inputs, Origin

pytestmark = pytest.mark.slow

NAMES = [
    "test_resnet", "test_vit", "test_convnext", "test_efficientnet", "densenet121", "resnetv2_18", "regnetx_002",
]  # fmt: skip


@pytest.fixture(params=NAMES)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """A model, the same model rewritten, and an image batch for both."""
    model, rewritten = copy.deepcopy(made(request.param))
    convolutional = request.param in ("densenet121", "resnetv2_18", "regnetx_002")
    size = 64 if convolutional else model.pretrained_cfg["input_size"][-1]
    return model.eval(), rewritten.eval(), torch.randn(2, 3, size, size)


@functools.cache
def made(name: str) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    try:
        model = timm.create_model(name, drop_rate=0.2, drop_path_rate=0.1)
    except TypeError:
        model = timm.create_model(name, drop_rate=0.2)
    rewritten = rewriter.rewrite(model, [Dropout(p=0.1)])
    assert rewriter.report(rewritten).applied
    return model, rewritten


Pair = tuple[nn.Module, nn.Module, torch.Tensor]


def same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))
    return bool(first == second)


@torch.no_grad()
def test_features_head_and_pre_logits(pair: Pair) -> None:
    model, rewritten, x = pair
    features = [m.forward_features(x) for m in (model, rewritten)]
    assert same(*features)
    assert same(*(m.forward_head(f) for m, f in zip((model, rewritten), features, strict=True)))
    assert same(*(m.forward_head(f, pre_logits=True) for m, f in zip((model, rewritten), features, strict=True)))
    assert same(*(m.forward_intermediates(x, intermediates_only=True) for m in (model, rewritten)))


@torch.no_grad()
def test_classifier_can_be_replaced(pair: Pair) -> None:
    model, rewritten, x = pair
    assert type(rewritten.get_classifier()) is type(model.get_classifier())
    for classes in (7, 0):
        for m in (model, rewritten):
            torch.manual_seed(1)
            m.reset_classifier(classes)
        assert same(model.eval()(x), rewritten.eval()(x))
        assert list(model.state_dict()) == list(rewritten.state_dict())
    assert isinstance(rewritten, type(model)) and type(rewritten).__name__ == type(model).__name__


def test_parameter_groups_and_configuration_are_the_same(pair: Pair) -> None:
    model, rewritten, _ = pair
    assert rewritten.pretrained_cfg == model.pretrained_cfg
    assert [n for n, _ in rewritten.named_parameters()] == [n for n, _ in model.named_parameters()]
    if hasattr(model, "no_weight_decay"):
        assert rewritten.no_weight_decay() == model.no_weight_decay()
    matchers = [m.group_matcher(coarse=True) for m in (model, rewritten)]
    assert matchers[0] == matchers[1]
    decay = [timm.optim.param_groups_weight_decay(m, 0.1) for m in (model, rewritten)]
    assert [len(g["params"]) for g in decay[0]] == [len(g["params"]) for g in decay[1]]


def test_gradient_checkpointing_saves_the_same_memory(pair: Pair) -> None:
    model, rewritten, x = pair
    inputs = Inputs((x,), {}, Origin.EXAMPLE_INPUTS)
    before = [saved_bytes(m, inputs) for m in (model, rewritten)]
    try:
        for m in (model, rewritten):
            m.set_grad_checkpointing(True)
    except AssertionError:
        pytest.skip("this family has no gradient checkpointing")
    saved = [bytes_before - saved_bytes(m, inputs) for m, bytes_before in zip((model, rewritten), before, strict=True)]
    assert saved[0] > 0
    assert saved[1] >= saved[0]


@torch.no_grad()
def test_feature_wrappers_can_be_rewritten(pair: Pair) -> None:
    model, _, x = pair
    name = model.pretrained_cfg["architecture"]
    torch.manual_seed(0)
    wrapper = timm.create_model(name, features_only=True).eval()
    rewritten = rewriter.rewrite(wrapper, [Dropout(p=0.1)], example_inputs=x)
    assert same(wrapper(x), rewritten(x))
    assert rewritten.feature_info.channels() == wrapper.feature_info.channels()


def test_hooks_fire_as_often_as_before(pair: Pair) -> None:
    model, rewritten, x = pair
    named = {edit.path for site in rewriter.report(rewritten).applied for edit in site.edits}
    counts: list[list[str]] = []
    for m in (model, rewritten):
        fired: list[str] = []
        for path, module in m.named_modules():
            if path not in named and not path.endswith("dropout"):
                module.register_forward_hook(lambda *_, path=path, fired=fired: fired.append(path))
        with torch.no_grad():
            m.train()(x)
        counts.append(fired)
    assert Counter(counts[0]) == Counter(counts[1]) and counts[0]  # a moved dropout fires earlier, not more often


def test_checkpoints_load_both_ways(pair: Pair) -> None:
    model, rewritten, _ = pair
    rewritten.load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(rewriter.original_state_dict(rewritten), strict=True)
    model.load_state_dict(rewritten.state_dict(), strict=True)
