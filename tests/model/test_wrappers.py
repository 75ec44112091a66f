"""Verbs that run nothing look through wrappers; edits belong to modules, whatever path a wrapper gives them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from helpers import image, slow_but
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.optim.swa_utils import AveragedModel

import rewriter
from rewriter.edit.classes import is_generated
from rewriter.model.wrappers import inside, named_modules_inside


def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_vit", img_size=64, proj_drop_rate=0.2)  # type: ignore[no-any-return]


def checkpointed(model: Any) -> nn.Module:
    apply_activation_checkpointing(model, check_fn=lambda module: type(module).__name__ == "Block")
    return model  # type: ignore[no-any-return]


def compiled_in_place(model: Any) -> nn.Module:
    model.compile(backend="eager")
    return model  # type: ignore[no-any-return]


def with_compiled_blocks(model: Any) -> nn.Module:
    for block in model.blocks:
        block.compile(backend="eager")
    return model  # type: ignore[no-any-return]


def in_bfloat16(model: Any) -> nn.Module:
    """As accelerate prepares a model for mixed precision: the forward of the instance calls that of the class."""
    forward = model.forward.__func__

    def autocasting(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return forward(self, *args, **kwargs)

    autocasting.__wrapped__ = forward  # type: ignore[attr-defined]
    model.forward = MethodType(autocasting, model)
    return model  # type: ignore[no-any-return]


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "nothing": lambda model: model,
    "torch.compile": lambda model: torch.compile(model, backend="eager"),
    "compiled in place": compiled_in_place,
    "compiled blocks": with_compiled_blocks,
    "activation checkpointing": checkpointed,
    "data parallel": nn.DataParallel,
    "checkpointing, compiled": lambda model: torch.compile(checkpointed(model), backend="eager"),
    "bfloat16": in_bfloat16,
}


@pytest.fixture(params=slow_but(["nothing", "torch.compile", "activation checkpointing", "bfloat16"], WRAPPERS))
def wrapped(request: pytest.FixtureRequest) -> Iterator[tuple[nn.Module, nn.Module]]:
    """A rewritten model, and the same one wrapped."""
    model = rewriter.rewrite(vit(), ["dropout", "weight-decay"])
    yield copy.deepcopy(model), WRAPPERS[request.param](model)
    torch.compiler.reset()


def edited(model: nn.Module) -> int:
    return sum(is_generated(type(module)) for module in model.modules())


def test_nothing_is_stale_and_nothing_is_lost(wrapped: tuple[nn.Module, nn.Module]) -> None:
    plain, model = wrapped
    assert str(rewriter.report(model)) == str(rewriter.report(plain)) and not rewriter.report(model).stale
    assert len(rewriter.report(model).applied) == 12
    assert list(rewriter.original_state_dict(model)) == list(vit().state_dict())


@pytest.mark.slow
def test_groups_are_those_of_the_plain_model(wrapped: tuple[nn.Module, nn.Module]) -> None:
    plain, model = wrapped
    names = {id(parameter): name for name, parameter in inside(model).named_parameters()}
    expected = {id(parameter): name for name, parameter in plain.named_parameters()}
    groups, of_plain = rewriter.param_groups(model, 0.05), rewriter.param_groups(plain, 0.05)
    for group, other in zip(groups, of_plain, strict=True):
        found = [names[id(parameter)].replace("_checkpoint_wrapped_module.", "") for parameter in group["params"]]
        assert found == [expected[id(parameter)] for parameter in other["params"]]
    rewriter.check_optimizer(model, torch.optim.SGD(groups, lr=0.1))
    with pytest.raises(rewriter.OptimizerError, match="lacks 80 of 80"):
        rewriter.check_optimizer(model, torch.optim.SGD(of_plain, lr=0.1))


@pytest.mark.parametrize("inplace", [True, False])
def test_undo_acts_on_what_is_inside_and_returns_the_wrapper(
    wrapped: tuple[nn.Module, nn.Module], inplace: bool
) -> None:
    _, model = wrapped
    undone = rewriter.undo(model, inplace=inplace)
    assert type(undone) is type(model) or inside(model) is model
    assert (undone is model) is inplace and edited(undone) == 0
    assert edited(model) == (0 if inplace else 12)
    paths = [path for path, _ in named_modules_inside(undone)]
    assert paths == [path for path, _ in vit().named_modules()]


def test_what_is_saved_loads(wrapped: tuple[nn.Module, nn.Module], tmp_path: Path) -> None:
    plain, model = wrapped
    rewriter.save(model, tmp_path / "saved")
    loaded = rewriter.load(tmp_path / "saved", vit())
    assert len(rewriter.report(loaded).applied) == 12
    assert torch.equal(loaded.eval()(image()), plain.eval()(image()))


@pytest.mark.parametrize("verb", [rewriter.plan, rewriter.rewrite, rewriter.trace])
@pytest.mark.parametrize("wrapper", [name for name in WRAPPERS if name not in ("nothing", "bfloat16")])
def test_what_runs_the_model_is_refused_with_when_to_do_it(verb: Callable[..., Any], wrapper: str) -> None:
    with pytest.raises(rewriter.ModelError, match=r"Rewrite first, then compile and wrap. Build the optimizer last"):
        verb(WRAPPERS[wrapper](vit()))


def test_an_average_is_looked_into_and_not_planned() -> None:
    model = AveragedModel(rewriter.rewrite(vit(), "dropout"))
    assert len(rewriter.report(model).applied) == 12
    assert list(rewriter.original_state_dict(model)) == list(vit().state_dict())
    with pytest.raises(rewriter.ModelError, match=r"wrapped in AveragedModel; give its \.module"):
        rewriter.plan(model)
    undone = rewriter.undo(model)
    assert isinstance(undone, AveragedModel) and edited(undone) == 0


class Task(nn.Module):
    """As training libraries hold a model: beside a loss, in a module of their own."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.loss = net, nn.CrossEntropyLoss()

    def forward(self, x: torch.Tensor) -> Any:
        return self.net(x)


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrap", [lambda model: model, lambda model: torch.compile(model, backend="eager"), checkpointed]
)
def test_a_model_that_holds_a_rewritten_one_is_looked_into(wrap: Callable[[nn.Module], Any]) -> None:
    torch.manual_seed(0)
    original = smp.UPerNet("resnet18", encoder_weights=None)
    rewritten = rewriter.rewrite(original, "scale-equalizer", input_size=64)
    task, plain = Task(wrap(rewritten)), Task(wrap(original))
    assert len(rewriter.report(task).applied) == len(rewriter.report(rewritten).applied) > 0
    assert rewriter.report(task).uncalibrated == tuple(
        f"net.{path}" for path in rewriter.report(rewritten).uncalibrated
    )
    assert len(task.state_dict()) > len(plain.state_dict())
    assert list(rewriter.original_state_dict(task)) == list(plain.state_dict())
    undone = rewriter.undo(task, inplace=True)
    assert undone is task and edited(task) == 0 and list(task.state_dict()) == list(plain.state_dict())
    with pytest.raises(rewriter.UndoError, match="Task was not rewritten"):
        rewriter.undo(task)


def test_a_parametrization_on_an_edited_layer_is_not_stale_and_comes_off_before_undo() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 3)]
    model: Any = rewriter.rewrite(nn.Sequential(*layers, nn.ReLU()), "dropout", input_size=16)
    path = rewriter.report(model).records[0].applied.edited_classes[0]
    module = model.get_submodule(path)
    module.register_parameter("scale", nn.Parameter(torch.ones(2)))
    nn.utils.parametrize.register_parametrization(module, "scale", nn.Identity())
    assert not rewriter.report(model).stale
    with pytest.raises(rewriter.UndoError, match="take its parametrizations off first"):
        rewriter.undo(model)
    nn.utils.parametrize.remove_parametrizations(module, "scale")
    assert edited(rewriter.undo(model)) == 0


class Pair(Task):
    """Two rewritten models in one, as a teacher and a student."""

    def __init__(self, net: nn.Module, teacher: nn.Module) -> None:
        super().__init__(net)
        self.teacher = teacher


def told(model: nn.Module) -> list[str]:
    """The report, without times, which are rounded when they are saved."""
    return [line for line in str(rewriter.report(model)).splitlines() if not line.startswith("time:")]


@pytest.mark.slow
def test_what_holds_rewritten_models_is_saved_whole_and_loaded(tmp_path: Path) -> None:
    def nets() -> tuple[nn.Module, nn.Module]:
        small = {"in_channels": 3, "encoder_weights": None}
        return smp.PSPNet("resnet18", **small), timm.create_model("test_efficientnet_gn", num_classes=4)

    net, teacher = (rewriter.rewrite(net, input_size=64, verify=index == 0) for index, net in enumerate(nets()))
    rewriter.calibrate(net, [image()], progress=False)
    pair = Pair(net, teacher)
    rewriter.save(pair, tmp_path / "saved")
    loaded = rewriter.load(tmp_path / "saved", Pair(*nets()))
    assert all(map(torch.equal, loaded.state_dict().values(), pair.state_dict().values()))
    assert torch.equal(loaded.eval()(image()), pair.eval()(image()))
    assert told(loaded.net) == told(net) and told(loaded.teacher) == told(teacher)
    with pytest.raises(rewriter.StorageError, match=r"a plan for 'teacher', which this Task does not have"):
        rewriter.load(tmp_path / "saved", Task(nets()[0]))
    recipe = json.loads((tmp_path / "saved" / "recipe.json").read_text())
    for damaged in (["net"], "net", ["net", 3]):
        (tmp_path / "saved" / "recipe.json").write_text(json.dumps({**recipe, "parts": damaged}))
        with pytest.raises(rewriter.StorageError):
            rewriter.load(tmp_path / "saved", Pair(*nets()))
