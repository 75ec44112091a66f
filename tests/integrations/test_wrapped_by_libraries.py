"""Rewritten models under FSDP, adapters of peft, accelerate and parametrizations: looked through, or refused."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from helpers import LastInSequential, image
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import rewriter
from rewriter.edit.classes import is_generated
from rewriter.model.wrappers import inside, named_modules_inside

REFUSED = (rewriter.plan, rewriter.rewrite, rewriter.fold, lambda model: rewriter.calibrate(model, image()))


def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_vit", img_size=64, proj_drop_rate=0.2)  # type: ignore[no-any-return]


@pytest.fixture
def plain() -> nn.Module:
    return rewriter.rewrite(vit(), ["dropout", "weight-decay"], verify=False)


def edited(model: nn.Module) -> int:
    return sum(is_generated(type(module)) for module in model.modules())


def in_training(model: Any) -> torch.Tensor:
    torch.manual_seed(1)
    return model.train()(image()).detach()  # type: ignore[no-any-return]


def assert_reported_on(model: nn.Module, plain: nn.Module) -> None:
    assert str(rewriter.report(model)) == str(rewriter.report(plain)) and not rewriter.report(model).stale
    assert len(rewriter.report(model).applied) == 12


def assert_refused(model: nn.Module, remedy: str) -> None:
    for verb in REFUSED:
        with pytest.raises(rewriter.ModelError, match=remedy):
            verb(model)


class TestFSDP:
    """The first form; the second is in test_integrations."""

    @pytest.fixture
    def process_group(self, tmp_path: Path) -> Iterator[None]:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
        torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
        yield
        torch.distributed.destroy_process_group()

    @pytest.fixture(params=[(True, False), (True, True), (False, False), (False, True)], ids=str)
    def sharded(self, request: pytest.FixtureRequest, process_group: None, plain: nn.Module) -> nn.Module:
        from torch.distributed.fsdp import FullyShardedDataParallel

        original_parameters, nested = request.param

        def policy(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
            return recurse or (nested and type(module).__name__ == "Attention")

        return FullyShardedDataParallel(
            copy.deepcopy(plain),
            use_orig_params=original_parameters,
            device_id=torch.device("cpu"),
            auto_wrap_policy=policy,
        )

    def test_report_and_undo_look_through(self, sharded: nn.Module, plain: nn.Module) -> None:
        assert_reported_on(sharded, plain)
        assert_refused(sharded, "sharded by FSDP.*Rewrite first")
        with pytest.raises(rewriter.ModelError, match=r"cannot be copied: rewriter.undo\(model, inplace=True\)"):
            rewriter.undo(sharded)
        assert edited(sharded) == 12
        assert rewriter.undo(sharded, inplace=True) is sharded and edited(sharded) == 0
        assert torch.equal(in_training(sharded), in_training(vit()))

    def test_the_state_of_the_original_is_whole(self, sharded: nn.Module) -> None:
        state, expected = rewriter.original_state_dict(sharded), vit().state_dict()
        assert list(state) == list(expected)
        assert all(torch.equal(state[key], expected[key]) for key in expected)

    def test_the_state_of_the_original_has_nothing_that_was_added(self, process_group: None) -> None:
        from torch.distributed.fsdp import FullyShardedDataParallel

        original = smp.PSPNet("resnet18", encoder_weights=None)
        model = rewriter.rewrite(original, "scale-equalizer", input_size=64, verify=False)
        sharded = FullyShardedDataParallel(
            model,
            device_id=torch.device("cpu"),
            auto_wrap_policy=lambda module, recurse, nonwrapped_numel: recurse or type(module).__name__ == "PSPDecoder",
        )
        assert len(sharded.state_dict()) > len(original.state_dict())
        assert list(rewriter.original_state_dict(sharded)) == list(original.state_dict())
        assert rewriter.report(sharded).uncalibrated == rewriter.report(model).uncalibrated != ()

    def test_saving_says_how_to_gather(self, sharded: nn.Module, tmp_path: Path) -> None:
        with pytest.raises(rewriter.ModelError, match=r"get_model_state_dict.*without FSDP, and save that"):
            rewriter.save(sharded, tmp_path / "saved")
        assert not (tmp_path / "saved").exists()

    def test_groups_that_were_made_before_hold_with_original_parameters(
        self, process_group: None, plain: nn.Module
    ) -> None:
        from torch.distributed.fsdp import FullyShardedDataParallel

        groups = rewriter.param_groups(plain, 0.05)
        sharded = FullyShardedDataParallel(plain, use_orig_params=True, device_id=torch.device("cpu"))
        rewriter.check_optimizer(sharded, torch.optim.SGD(groups, lr=0.1))

    def test_flat_parameters_have_no_groups(self, process_group: None, plain: nn.Module) -> None:
        from torch.distributed.fsdp import FullyShardedDataParallel

        sharded = FullyShardedDataParallel(plain, use_orig_params=False, device_id=torch.device("cpu"))
        with pytest.raises(rewriter.ModelError, match=r"made before FSDP.*use_orig_params=True. hold"):
            rewriter.param_groups(sharded)


class TestPeft:
    @pytest.fixture(params=["get_peft_model", "inject_adapter_in_model"])
    def adapted(self, request: pytest.FixtureRequest, plain: nn.Module) -> nn.Module:
        return self.with_adapters(copy.deepcopy(plain), request.param == "get_peft_model", ["qkv", "fc1"])

    def with_adapters(self, model: nn.Module, whole: bool, targets: list[str], **options: Any) -> Any:
        peft = pytest.importorskip("peft")
        configuration = peft.LoraConfig(target_modules=targets, r=2, **options)
        if whole:
            return peft.get_peft_model(model, configuration)
        return peft.inject_adapter_in_model(configuration, model)

    def test_what_is_inside_is_reported_on_and_the_rest_is_refused(
        self, adapted: nn.Module, plain: nn.Module, tmp_path: Path
    ) -> None:
        assert_reported_on(adapted, plain)
        assert_refused(adapted, r"adapters of peft.*Rewrite first.*merge_and_unload")
        with pytest.raises(rewriter.ModelError, match="adapters of peft"):
            rewriter.plan(plain, only="blocks.0*").apply(adapted)
        with pytest.raises(rewriter.StorageError, match=r"attn.qkv' has adapters of peft.*merge_and_unload"):
            rewriter.save(adapted, tmp_path / "saved")
        assert not (tmp_path / "saved").exists()

    def test_adapters_are_what_is_trained(self, adapted: nn.Module) -> None:
        groups = rewriter.param_groups(adapted, 0.05)
        trained = {id(parameter) for parameter in adapted.parameters() if parameter.requires_grad}
        assert {id(parameter) for group in groups for parameter in group["params"]} == trained and len(trained) == 24
        rewriter.check_optimizer(adapted, torch.optim.SGD(groups, lr=0.1))

    def test_the_state_has_the_adapters_and_not_the_names_of_the_wrapper(self, adapted: nn.Module) -> None:
        expected = self.with_adapters(vit(), False, ["qkv", "fc1"]).state_dict()
        assert list(rewriter.original_state_dict(adapted)) == list(expected)

    @pytest.mark.parametrize("inplace", [True, False])
    def test_undo_leaves_the_adapters(self, adapted: nn.Module, inplace: bool) -> None:
        undone = rewriter.undo(adapted, inplace=inplace)
        assert type(undone) is type(adapted) and (undone is adapted) is inplace
        assert (edited(undone), edited(adapted)) == (0, 0 if inplace else 12)
        expected = self.with_adapters(vit(), False, ["qkv", "fc1"])
        expected.load_state_dict(inside(undone).state_dict())
        assert torch.equal(in_training(undone), in_training(expected))

    @pytest.mark.thorough
    def test_what_was_merged_is_as_before(self, plain: nn.Module, tmp_path: Path) -> None:
        merged = self.with_adapters(copy.deepcopy(plain), True, ["qkv", "fc1"]).merge_and_unload()
        assert_reported_on(merged, plain)
        rewriter.save(merged, tmp_path / "saved")
        loaded = rewriter.load(tmp_path / "saved", vit())
        assert torch.equal(loaded.eval()(image()), merged.eval()(image()))

    @pytest.mark.parametrize("whole", [True, False])
    def test_an_edited_layer_under_an_adapter_is_found(self, whole: bool) -> None:
        original = LastInSequential()
        rewritten = rewriter.rewrite(original, "dropout", input_size=64, verify=False)
        assert rewriter.report(rewritten).records[0].applied.edited_classes == ("branch.4", "branch.3")
        expected = self.with_adapters(copy.deepcopy(original), whole, ["branch.1", "branch.3"])
        adapted = self.with_adapters(rewritten, whole, ["branch.1", "branch.3"])
        assert len(rewriter.report(adapted).applied) == 1 and not rewriter.report(adapted).stale
        undone = rewriter.undo(adapted)
        assert edited(undone) == 0 and edited(adapted) == 2
        assert list(undone.state_dict()) == list(expected.state_dict())
        expected.load_state_dict(undone.state_dict())
        assert torch.equal(in_training(undone), in_training(expected))

    def test_a_trained_copy_of_an_edited_module_is_not_taken_back_by_half(self, plain: nn.Module) -> None:
        adapted = self.with_adapters(plain, True, ["qkv"], modules_to_save=["blocks.0.mlp"])
        assert len(rewriter.report(adapted).applied) == 12 and not rewriter.report(adapted).stale
        with pytest.raises(rewriter.UndoError, match=r"blocks.0.mlp' was edited, and peft trains a copy"):
            rewriter.undo(adapted)
        merged = adapted.merge_and_unload()
        assert edited(rewriter.undo(merged)) == 0

    def test_a_trained_copy_of_what_was_not_edited_is_no_matter(self, plain: nn.Module) -> None:
        adapted = self.with_adapters(plain, True, ["qkv"], modules_to_save=["head"])
        assert edited(rewriter.undo(adapted)) == 0

    def test_a_model_that_was_never_rewritten_is_told_when_to(self) -> None:
        with pytest.raises(rewriter.ModelError, match="Rewrite first"):
            rewriter.plan(self.with_adapters(vit(), True, ["qkv"]), [{"dropout": {"p": 0.1}}])


def offloaded(model: nn.Module, folder: Path) -> Any:
    return pytest.importorskip("accelerate").cpu_offload(model, execution_device=torch.device("cpu"))


def on_disk(model: nn.Module, folder: Path) -> Any:
    places = {name: "disk" if name == "blocks" else "cpu" for name, _ in model.named_children()}
    places |= {name: "cpu" for name, _ in model.named_parameters(recurse=False)}
    return pytest.importorskip("accelerate").dispatch_model(model, places, main_device="cpu", offload_dir=folder)


def aligned(model: nn.Module, folder: Path) -> Any:
    hooks = pytest.importorskip("accelerate.hooks")
    hooks.attach_align_device_hook(model, execution_device=torch.device("cpu"))
    return model


PLACED: dict[str, Callable[[nn.Module, Path], Any]] = {"cpu_offload": offloaded, "disk": on_disk, "aligned": aligned}


class TestAccelerate:
    @pytest.fixture(params=PLACED)
    def placed(self, request: pytest.FixtureRequest, plain: nn.Module, tmp_path: Path) -> Any:
        return PLACED[request.param](copy.deepcopy(plain), tmp_path / "offloaded")

    def test_report_and_undo_look_through(self, placed: Any, plain: nn.Module) -> None:
        assert_reported_on(placed, plain)
        assert torch.equal(in_training(placed), in_training(plain))
        undone = rewriter.undo(placed)
        assert (edited(undone), edited(placed)) == (0, 12)
        assert torch.equal(in_training(undone), in_training(vit()))
        assert rewriter.undo(placed, inplace=True) is placed and edited(placed) == 0
        assert torch.equal(in_training(placed), in_training(vit()))

    def test_what_is_stored_has_all_values(self, placed: Any, plain: nn.Module, tmp_path: Path) -> None:
        state, expected = rewriter.original_state_dict(placed), vit().state_dict()
        assert list(state) == list(expected)
        assert all(torch.equal(state[key], expected[key]) for key in expected)
        rewriter.save(placed, tmp_path / "saved")
        loaded = rewriter.load(tmp_path / "saved", vit())
        assert torch.equal(in_training(loaded), in_training(plain))

    @pytest.mark.parametrize("way", ["cpu_offload", "disk"])
    def test_what_needs_the_weights_is_refused(self, way: str, plain: nn.Module, tmp_path: Path) -> None:
        placed = PLACED[way](plain, tmp_path / "offloaded")
        assert_refused(placed, "offloaded by accelerate.*Rewrite first, then offload; .*remove_hook_from_submodules")
        with pytest.raises(rewriter.ModelError, match="offloaded by accelerate"):
            rewriter.param_groups(placed)

    @pytest.mark.thorough
    def test_hooks_that_offload_nothing_are_no_matter(self, tmp_path: Path) -> None:
        model = aligned(vit(), tmp_path)
        rewritten = rewriter.rewrite(model, ["dropout", "weight-decay"])
        assert len(rewriter.report(rewritten).applied) == 12 and not rewriter.report(rewritten).stale
        assert torch.equal(in_training(rewritten), in_training(rewriter.rewrite(vit(), "dropout", verify=False)))


class TestMixedPrecision:
    """accelerate puts a function around the forward that a model has when it is prepared."""

    def prepared(self, model: nn.Module) -> tuple[Any, Any]:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(mixed_precision="bf16", cpu=True)
        return accelerator, accelerator.prepare(model)

    @pytest.mark.parametrize("make", [LastInSequential, None], ids=["within", "the root"])
    def test_it_is_not_stale_and_not_taken_back_by_half(self, make: Any) -> None:
        plain = rewriter.rewrite(make(), "dropout", input_size=64, verify=False) if make else self.rooted()
        expected = len(rewriter.report(plain).applied)
        accelerator, model = self.prepared(plain)
        found = rewriter.report(model)
        assert not found.stale and len(found.applied) == expected > 0
        if make is None:
            with pytest.raises(rewriter.UndoError, match=r"its forward was set to .* keep_fp32_wrapper=False"):
                rewriter.undo(model)
            assert edited(model)
        bare = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        undone = rewriter.undo(bare)
        assert edited(undone) == 0 and edited(bare)
        original = make() if make else Rooted()
        original.load_state_dict(undone.state_dict())
        assert torch.equal(undone.eval()(image()), original.eval()(image()))

    def rooted(self) -> nn.Module:
        model = rewriter.rewrite(Rooted(), "dropout", input_size=64, verify=False)
        assert "" in rewriter.report(model).records[0].applied.edited_classes
        return model

    def test_a_prepared_model_is_not_rewritten(self) -> None:
        accelerator, model = self.prepared(Rooted())
        for verb in (rewriter.plan, rewriter.rewrite):
            with pytest.raises(rewriter.ModelError, match=r"prepared by accelerate .* Rewrite first, then prepare"):
                verb(model, "dropout", input_size=64)
        bare = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        assert rewriter.report(rewriter.rewrite(bare, "dropout", input_size=64)).applied


class Rooted(nn.Module):
    """Its own forward is edited: the dropout stands in a residual branch that it writes out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 8, 8)
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.drop, self.head = nn.BatchNorm2d(8), nn.Dropout(0.2), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.stem(x)
        x = x + self.drop(self.second(self.first(self.norm(x)).relu()))
        return self.head(x).mean((2, 3))


class TestParametrizations:
    """Of layers of an edited model; see test_wrappers for those of an edited layer."""

    def parametrized(self, model: Any) -> Any:
        for block in model.blocks:
            parametrizations.weight_norm(block.mlp.fc1)
        return model

    def test_put_on_after_the_rewrite(self, plain: nn.Module, tmp_path: Path) -> None:
        model = self.parametrized(copy.deepcopy(plain))
        assert_reported_on(model, plain)
        groups = rewriter.param_groups(model, 0.05)
        rewriter.check_optimizer(model, torch.optim.SGD(groups, lr=0.1))
        assert list(rewriter.original_state_dict(model)) == list(self.parametrized(vit()).state_dict())
        with pytest.raises(rewriter.StorageError, match=r"fc1' was given parametrizations after.*Take them off first"):
            rewriter.save(model, tmp_path / "saved")
        assert not (tmp_path / "saved").exists()
        undone = rewriter.undo(model)
        assert edited(undone) == 0
        assert torch.equal(in_training(undone), in_training(self.parametrized(vit())))
        for block in model.blocks:
            parametrize.remove_parametrizations(block.mlp.fc1, "weight")
        rewriter.save(model, tmp_path / "saved")
        assert torch.equal(in_training(rewriter.load(tmp_path / "saved", vit())), in_training(model))

    @pytest.mark.thorough
    def test_put_on_before_it(self, tmp_path: Path) -> None:
        model = rewriter.rewrite(self.parametrized(vit()), "dropout", verify=False)
        assert len(rewriter.report(model).applied) == 12
        rewriter.save(model, tmp_path / "saved")
        loaded = rewriter.load(tmp_path / "saved", self.parametrized(vit()))
        assert torch.equal(in_training(loaded), in_training(model))

    def test_put_on_an_edited_module(self, tmp_path: Path) -> None:
        model = rewriter.rewrite(LastInSequential(), "dropout", input_size=64, verify=False)
        parametrizations.weight_norm(model.branch[3])
        assert not rewriter.report(model).stale
        with pytest.raises(rewriter.StorageError, match=r"branch.3' was given parametrizations after"):
            rewriter.save(model, tmp_path / "saved")
        with pytest.raises(rewriter.UndoError, match="take its parametrizations off first"):
            rewriter.undo(model)

    def test_beside_layers_that_were_added(self, tmp_path: Path) -> None:
        model = rewriter.rewrite(smp.PSPNet("resnet18", encoder_weights=None), input_size=64, verify=False)
        parametrizations.weight_norm(model.segmentation_head[0])
        with pytest.raises(rewriter.StorageError, match="was given parametrizations after"):
            rewriter.save(model, tmp_path / "saved")


def test_paths_are_those_without_wrappers(plain: nn.Module) -> None:
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(copy.deepcopy(plain), peft.LoraConfig(target_modules=["qkv"], r=2))
    assert [path for path, _ in named_modules_inside(adapted)] == [path for path, _ in plain.named_modules()]
