"""timm's optimizers with our groups, and the plan in timm's checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2, optimizer_kwargs

import rewriter
from rewriter.errors import OptimizerError, PlanError, SelectorError, StorageError
from rewriter.integrations.timm import CheckpointHook, create_optimizer, param_group_fn


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


class TestCheckpointHook:
    @staticmethod
    def fresh() -> torch.nn.Module:
        return timm.create_model("test_efficientnet_gn", num_classes=4, drop_rate=0.2)

    def saved(self, folder: Path, args: argparse.Namespace, passes: Any = None) -> tuple[torch.nn.Module, Path]:
        model = CheckpointHook(args).rewrite(self.fresh(), passes, input_size=64)
        saver = timm.utils.CheckpointSaver(model, create_optimizer(model, args), args, checkpoint_dir=str(folder))
        saver.save_checkpoint(0, metric=1.0)
        return model, folder / "last.pth.tar"

    @pytest.mark.slow
    @pytest.mark.parametrize("option", ["resume", "checkpoint"])
    def test_a_checkpoint_has_the_plan_and_a_run_that_loads_it_goes_by_that(self, tmp_path: Path, option: str) -> None:
        model, file = self.saved(tmp_path, options(model="test_efficientnet_gn"))
        fresh = self.fresh()
        with torch.no_grad():
            for parameter in fresh.parameters():
                parameter.add_(torch.randn_like(parameter))  # weights that look trained hold nothing back
        found = CheckpointHook(options(**{option: str(file)})).rewrite(fresh, input_size=96)
        timm.models.load_checkpoint(found, str(file))
        assert all(map(torch.equal, found.state_dict().values(), model.state_dict().values()))
        assert [str(e) for e in rewriter.report(found).applied] == [str(e) for e in rewriter.report(model).applied]
        again = CheckpointHook(options(**{option: str(file)}))
        assert again.rewrite(found) is found

    def test_other_passes_than_those_of_the_checkpoint_are_refused(self, tmp_path: Path) -> None:
        _, file = self.saved(tmp_path, options(model="test_efficientnet_gn"), "dropout")
        with pytest.raises(PlanError, match=r"checkpoint .*last.pth.tar is a plan of dropout; asked for: group-count"):
            CheckpointHook(options(resume=str(file))).rewrite(self.fresh(), "group-count")

    def test_a_checkpoint_without_a_plan_is_refused_with_what_to_do(self, tmp_path: Path) -> None:
        args = options(model="test_efficientnet_gn")
        model = self.fresh()
        timm.utils.CheckpointSaver(
            model, create_optimizer(model, args), args, checkpoint_dir=str(tmp_path)
        ).save_checkpoint(0, metric=1.0)
        with pytest.raises(PlanError, match=r"has no plan.*plan_file=.*--initial-checkpoint"):
            CheckpointHook(options(resume=str(tmp_path / "last.pth.tar"))).rewrite(self.fresh())
        torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pth")
        with pytest.raises(PlanError, match="has no plan"):
            CheckpointHook(options(checkpoint=str(tmp_path / "weights.pth"))).rewrite(self.fresh())

    @pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 broken"])
    def test_what_is_no_checkpoint_is_an_error_of_ours(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "last.pth.tar").write_bytes(content)
        with pytest.raises(StorageError, match="cannot be read"):
            CheckpointHook(options(resume=str(tmp_path / "last.pth.tar"))).rewrite(self.fresh())
        with pytest.raises(StorageError, match="cannot be read"):
            CheckpointHook(options(resume=str(tmp_path / "absent"))).rewrite(self.fresh())

    def test_what_are_no_options_is_refused(self) -> None:
        with pytest.raises(StorageError, match="args: expected the options of timm"):
            CheckpointHook("last.pth.tar")  # type: ignore[arg-type]
