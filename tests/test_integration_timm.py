"""timm's optimizers with our groups."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2, optimizer_kwargs

import rewriter
from rewriter.errors import OptimizerError, SelectorError
from rewriter.integrations.timm import create_optimizer, param_group_fn


def options(**given: Any) -> argparse.Namespace:
    defaults = {"opt": "adamw", "lr": 1e-3, "weight_decay": 0.05, "momentum": 0.9, "opt_eps": 1e-7, "layer_decay": None}
    return argparse.Namespace(**{**defaults, **given})


def by_parameter(optimizer: Any, model: torch.nn.Module, setting: str) -> dict[str, Any]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group.get(setting) for group in optimizer.param_groups for p in group["params"]}


@pytest.fixture
def model() -> torch.nn.Module:
    return rewriter.rewrite(timm.create_model("test_vit", img_size=64), "dropout")


def test_the_optimizer_is_timms_and_the_groups_are_ours(model: torch.nn.Module) -> None:
    optimizer = create_optimizer(model, options(opt="lookahead_sgd", opt_eps=None))
    assert type(optimizer) is type(create_optimizer_v2(model, "lookahead_sgd"))
    plain = create_optimizer(model, options())
    assert type(plain) is torch.optim.AdamW and plain.defaults["eps"] == 1e-7 and plain.defaults["lr"] == 1e-3
    ours = {d.name: 0.05 if d.decays else 0.0 for d in rewriter.param_groups(model).decisions}
    assert by_parameter(plain, model, "weight_decay") == ours
    rewriter.check_optimizer(model, plain)


@pytest.mark.parametrize("wrap", [lambda model: model, torch.nn.DataParallel])
def test_layerwise_decay_is_combined_with_our_classes(model: torch.nn.Module, wrap: Any) -> None:
    theirs = create_optimizer_v2(model, **optimizer_kwargs(cfg=options(layer_decay=0.5)))
    found = create_optimizer(wrap(model), options(layer_decay=0.5))
    assert by_parameter(found, model, "lr_scale") == by_parameter(theirs, model, "lr_scale")
    assert len(set(by_parameter(found, model, "lr_scale").values())) > 2
    ours = {d.name: 0.05 if d.decays else 0.0 for d in rewriter.param_groups(model).decisions}
    assert by_parameter(found, model, "weight_decay") == ours
    through_timm = create_optimizer_v2(model, "adamw", lr=1e-3, param_group_fn=param_group_fn(0.05, 0.5))
    assert by_parameter(through_timm, model, "lr_scale") == by_parameter(found, model, "lr_scale")
    assert by_parameter(through_timm, model, "weight_decay") == ours


def test_layers_that_timm_freezes_are_left_out(model: torch.nn.Module) -> None:
    found = create_optimizer(model, options(layer_decay=0.5, layer_decay_no_opt_scale=0.3))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen and not frozen & set(by_parameter(found, model, "lr"))


def test_a_refusal_freezes_nothing(model: torch.nn.Module) -> None:
    model.no_weight_decay = lambda: 5
    with pytest.raises(SelectorError, match=r"no_weight_decay\(\): expected names"):
        create_optimizer(model, options(layer_decay=0.5, layer_decay_no_opt_scale=0.3))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_options_may_be_a_dict_of_keywords(model: torch.nn.Module) -> None:
    given = optimizer_kwargs(cfg=options(layer_decay=0.5))
    found, same = create_optimizer(model, given), create_optimizer(model, options(layer_decay=0.5))
    assert found.param_groups == same.param_groups and "layer_decay" in given


def test_no_division_is_timms_own(model: torch.nn.Module) -> None:
    theirs = create_optimizer_v2(model, "sgd", weight_decay=0.1, filter_bias_and_bn=False)
    found = create_optimizer(model, {"opt": "sgd", "weight_decay": 0.1}, filter_bias_and_bn=False)
    assert by_parameter(found, model, "weight_decay") == by_parameter(theirs, model, "weight_decay")
    assert by_parameter(found, model, "weight_decay")["head.bias"] == 0.1


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_parameters_of_the_fallback_are_timms(model: torch.nn.Module, layer_decay: float | None) -> None:
    given = {"fallback_list": ["*head*"], "fallback_no_weight_decay": True, "layer_decay": layer_decay}
    theirs = create_optimizer_v2(model, "muon", lr=0.1, weight_decay=0.1, **given)
    found = create_optimizer(model, {"opt": "muon", "lr": 0.1, "weight_decay": 0.1}, **given)
    assert by_parameter(found, model, "use_fallback") == by_parameter(theirs, model, "use_fallback")
    assert by_parameter(found, model, "use_fallback")["head.weight"]
    ours = {d.name: 0.1 if d.decays else 0.0 for d in rewriter.param_groups(model).decisions}
    assert by_parameter(found, model, "weight_decay") == ours


def test_what_are_no_options_is_refused(model: torch.nn.Module) -> None:
    with pytest.raises(OptimizerError, match="args: expected the options of timm"):
        create_optimizer(model, "sgd")
    with pytest.raises(OptimizerError, match="param_group_fn: the groups are ours here"):
        create_optimizer(model, {"opt": "sgd"}, param_group_fn=rewriter.param_groups)
