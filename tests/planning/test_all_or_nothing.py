"""A rewrite is done whole or not at all: what fails, is broken off, or breaks a contract leaves the model as it was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
import torchvision
from helpers import assert_unchanged, image, output, random_state, snapshot, timm_model
from torch import nn

import rewriter
from rewriter import (
    ContractError,
    PlanError,
)
from rewriter.edit import edits as edits_module
from rewriter.edit.edits import AddBehaviour, AddModule, SetAttribute
from rewriter.guideline.base import Contract, Pass, Site, Skipped
from rewriter.guideline.registry import installed_passes
from rewriter.layers.registry import register_layer
from rewriter.passes import Dropout
from rewriter.planning import verify
from rewriter.tracing.trace import Trace


@pytest.mark.slow
@pytest.mark.parametrize("failing", ["first", "last"])
def test_an_edit_that_fails_half_way_leaves_the_model_unchanged(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm_model("densenet121", drop_rate=0.1)
    plan = rewriter.plan(model, Dropout(p=0.1))
    classes = len(edits_module.class_edits(plan.edits))
    assert classes > 10 and any(isinstance(edit, AddModule) for edit in plan.edits)
    before, calls = snapshot(model), []

    def derive(*arguments: Any) -> type:
        calls.append(arguments)
        if len(calls) == (1 if failing == "first" else classes):
            raise rewriter.SourceError("on purpose")
        return real(*arguments)

    real = edits_module.derive
    monkeypatch.setattr(edits_module, "derive", derive)
    with pytest.raises(rewriter.SourceError, match="on purpose"):
        plan.apply(model, inplace=True, verify=False)
    assert len(calls) == (1 if failing == "first" else classes)
    assert_unchanged(model, before)


def test_a_set_that_fails_takes_the_earlier_ones_back() -> None:
    model = timm_model("test_resnet")
    before = snapshot(model)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    edits = [*(SetAttribute(name, "eps", 0.5) for name in names), SetAttribute("no.such.module", "eps", 0.5)]
    with pytest.raises(PlanError, match=r"no\.such\.module"):
        edits_module.apply_edits(model, edits)
    assert_unchanged(model, before)


def test_an_interrupt_while_verifying_restores_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm_model("test_vit", drop_rate=0.1)
    plan = rewriter.plan(model)
    before = snapshot(model)
    calls = []

    def observe(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    real = verify.observe
    monkeypatch.setattr(verify, "observe", observe)
    with pytest.raises(KeyboardInterrupt):
        plan.apply(model, inplace=True)
    assert_unchanged(model, before)


# Passes that break their contract


@register_layer("test/scaled")
class Scaled(nn.Module):
    """Behaviour that changes the output a little."""

    def forward(self, *args: Any) -> Any:
        return super().forward(*args) * 1.001


@register_layer("test/detached")
class Detached(nn.Module):
    """Behaviour that cuts gradients off and changes no value."""

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x.detach())


@register_layer("test/fails-in-training")
class FailsInTraining(nn.Module):
    """Behaviour that raises in training mode, on tensors with values only: no recording shows it."""

    def forward(self, *args: Any) -> Any:
        if self.training and not args[0].is_meta:
            raise ZeroDivisionError("on purpose")
        return super().forward(*args)


@register_layer("test/fails")
class Fails(nn.Module):
    """Behaviour that always raises on tensors with values."""

    def forward(self, *args: Any) -> Any:
        if not args[0].is_meta:
            raise ZeroDivisionError("on purpose")
        return super().forward(*args)


@register_layer("test/never-runs")
class NeverRuns(nn.Module):
    """Behaviour that always raises."""

    def forward(self, *args: Any) -> Any:
        raise ZeroDivisionError("on purpose")


@register_layer("test/writes-weights")
class WritesWeights(nn.Module):
    """Behaviour that changes a value of the model when it is run."""

    def forward(self, *args: Any) -> Any:
        with torch.no_grad():
            self.weight.mul_(1.5)
        return super().forward(*args)


register_layer("test/linear")(nn.Linear)


@dataclass(frozen=True)
class Naughty(Pass):
    """A pass that promises everything and does one thing that breaks a promise."""

    name: ClassVar[str] = "naughty"
    summary: ClassVar[str] = "breaks its contract"
    paper: ClassVar[str] = "none"
    contract: ClassVar[Contract] = Contract()

    deed: str = "scaled"

    def find(self, trace: Trace) -> Iterator[Site | Skipped]:
        if self.deed == "linear":
            edit: Any = AddModule("", "extra", "test/linear", {"in_features": 2, "out_features": 2})
        elif self.deed == "eps":
            edit = SetAttribute("bn1", "eps", 0.5)
        else:
            edit = AddBehaviour("layer2" if self.deed == "detached" else "bn1", f"test/{self.deed}")
        yield Site(self.name, edit.path, "whatever", f"do {self.deed}", "on purpose", (edit,))


@dataclass(frozen=True)
class Honest(Naughty):
    """The same deeds, and none of the promises."""

    name: ClassVar[str] = "honest"
    contract: ClassVar[Contract] = Contract(eval_output=False, state_dict=False, gradients=False)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The passes of this file are registered as an installed package would register them."""
    import importlib.metadata

    real = importlib.metadata.entry_points

    def entry_points(**selection: Any) -> Any:
        found = list(real(**selection))
        if selection.get("group") == "rewriter.passes":
            found += [
                importlib.metadata.EntryPoint(cls.name, f"{__name__}:{cls.__name__}", "rewriter.passes")
                for cls in (Naughty, Honest)
            ]
        return found

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    installed_passes.cache_clear()
    yield
    installed_passes.cache_clear()


_BROKEN = [
    ("scaled", "eval output"),
    ("eps", "eval output"),
    ("detached", "gradients"),
    ("linear", "state dict"),
    ("fails-in-training", "training: ZeroDivisionError"),
    ("fails", "ZeroDivisionError"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("deed", "what"), _BROKEN)
@pytest.mark.parametrize("inplace", [False, True])
def test_an_installed_pass_that_breaks_its_contract_is_named(
    deed: str, what: str, inplace: bool, installed: None
) -> None:
    _expect_broken({"naughty": {"deed": deed}}, what, inplace)


@pytest.mark.slow
@pytest.mark.parametrize(("deed", "what"), _BROKEN)
def test_a_pass_instance_that_breaks_its_contract_is_named(deed: str, what: str) -> None:
    _expect_broken(Naughty(deed), what, inplace=True)


def test_a_behaviour_with_which_the_model_does_not_run_is_left_out_and_said() -> None:
    plan = rewriter.plan(timm_model("test_resnet"), Naughty("never-runs"))
    (skip,) = plan.skipped
    assert not plan.sites and skip.reason is rewriter.Reason.NOT_IN_FORCE
    assert skip.pass_name == "naughty" and "ZeroDivisionError: on purpose" in skip.detail


def _expect_broken(request: Any, what: str, inplace: bool) -> None:
    model = timm_model("test_resnet", drop_rate=0.1)
    before = snapshot(model)
    with pytest.raises(ContractError, match=f"pass naughty broke its contract.*{what}"):
        rewriter.rewrite(model, ["dropout", request], inplace=inplace)
    assert_unchanged(model, before)


def test_verify_false_does_not_check_the_contract(installed: None) -> None:
    model = timm_model("test_resnet")
    changed = rewriter.rewrite(model, {"naughty": {}}, verify=False)
    assert not torch.equal(output(model, image()), output(changed, image()))
    assert rewriter.report(changed).verified is None


@pytest.mark.slow
@pytest.mark.parametrize("as_instance", [False, True])
def test_a_pass_is_held_only_to_what_it_promises(as_instance: bool, installed: None) -> None:
    model = timm_model("test_resnet")
    changed = rewriter.rewrite(model, Honest("scaled") if as_instance else {"honest": {"deed": "scaled"}})
    assert not torch.equal(output(model, image()), output(changed, image()))


def test_an_instance_of_a_pass_that_is_not_installed_is_held_only_to_what_it_promises() -> None:
    assert "honest" not in installed_passes()
    model = timm_model("test_resnet")
    changed = rewriter.rewrite(model, Honest("scaled"))
    assert not torch.equal(output(model, image()), output(changed, image()))


@pytest.mark.slow
@pytest.mark.parametrize("preserve", ["eval", "auto"])
def test_weights_that_a_rewritten_model_writes_while_it_is_verified_are_restored(
    preserve: str, installed: None
) -> None:
    model = timm_model("test_resnet")
    before = snapshot(model)
    with pytest.raises(ContractError):
        rewriter.rewrite(model, {"naughty": {"deed": "writes-weights"}}, preserve=preserve, inplace=True)
    assert_unchanged(model, before)


# What a rewrite may not touch when it succeeds


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "torchvision"])
def test_a_rewrite_of_a_copy_leaves_the_model_and_the_process_unchanged(name: str) -> None:
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v2() if name == "torchvision" else timm_model(name, drop_rate=0.1)
    model.train()
    x = image(96) if name == "torchvision" else image(160)
    model(x).sum().backward()
    first = next(iter(model.children()))
    first.eval()
    before = snapshot(model)
    rewritten = rewriter.rewrite(model, Dropout(p=0.1), example_inputs=x)
    assert rewriter.report(rewritten).applied
    assert_unchanged(model, before)
    assert {id(p) for p in model.parameters()}.isdisjoint(id(p) for p in rewritten.parameters())


def test_a_rewrite_in_place_keeps_tensors_modes_gradients_and_random_numbers() -> None:
    model = timm_model("test_vit", drop_rate=0.1)
    model(image(160)).sum().backward()
    model.blocks[1].eval()
    before = snapshot(model)
    assert rewriter.rewrite(model, "dropout", inplace=True) is model
    after = snapshot(model)
    for part in ("modules", "training", "tensors", "hooks", "globals"):
        assert getattr(after, part) == getattr(before, part), part
    assert after.random == before.random == random_state()
    rewriter.undo(model, inplace=True)
    assert_unchanged(model, before)
