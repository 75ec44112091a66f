"""Hooks that belong to a model's own library take part in what it computes; the user's are not to notice a trace."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from timm.models._features import FeatureHookNet
from torch import nn

import rewriter
from rewriter.testing import check_contract


def segformer() -> nn.Module:
    """Its decode head reads hidden states that forward hooks collect, which the first forward registers."""
    torch.manual_seed(0)
    config = transformers.SegformerConfig(hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, decoder_hidden_size=16)
    return transformers.SegformerForSemanticSegmentation(config)


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("ran_before", [False, True])
def test_hidden_states_that_transformers_collects_with_hooks(ran_before: bool) -> None:
    model, x = segformer().eval(), torch.randn(1, 3, 64, 64)
    called: list[Any] = []
    model.decode_head.register_forward_hook(lambda *_: called.append(_))
    if ran_before:
        model(x)
        assert hooks_of(model) > 1 and called
    before, count = hooks_of(model), len(called)
    traced = rewriter.trace(model, input_size=64)
    assert traced.backend == "meta" and hooks_of(model) == before and len(called) == count
    assert traced.eval.graph.find_nodes(op="output")[0].meta["shape"] == (2, 2, 16, 16)


@pytest.mark.slow
def test_verification_leaves_no_hooks() -> None:
    """A second forward would register them again, and collect every state twice."""
    model, x = segformer().eval(), torch.randn(1, 3, 64, 64)
    rewritten = rewriter.rewrite(model, "dropout", input_size=64, inplace=True)
    assert rewriter.report(rewritten).inactive and hooks_of(model) == 0
    first = model(x).logits
    assert torch.equal(first, model(x).logits) and first.shape == (1, 2, 16, 16)
    check_contract(segformer(), ["dropout"], input_size=64)


def test_features_that_timm_collects_with_hooks() -> None:
    names = ["layer2", "layer4"]
    model = FeatureHookNet(timm.create_model("resnet10t"), out_indices=[2, 4], out_map=names, return_dict=True)
    traced = rewriter.trace(model, input_size=64)
    assert [x.shape for x in traced.eval.result.values()] == [(2, 128, 8, 8), (2, 512, 2, 2)]


def test_a_hook_that_users_define_beside_their_model_is_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "their_project"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "net.py").write_text("from torch import nn\n\nclass Net(nn.Sequential):\n    pass\n")
    (package / "log.py").write_text("seen = []\n\ndef log(*call):\n    seen.append(call)\n")
    monkeypatch.syspath_prepend(tmp_path)
    model = importlib.import_module("their_project.net").Net(nn.Conv2d(3, 4, 3), nn.ReLU())
    log = importlib.import_module("their_project.log")
    model.register_forward_hook(log.log)
    rewriter.trace(model, input_size=16)
    assert not log.seen
