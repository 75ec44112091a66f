"""What the author of a pass gets wrong is told to the author, at the line where it was written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import timm
import torch
from torch import nn

import rewriter
from rewriter import PassError
from rewriter.authoring import (
    AddedLayer,
    Change,
    Contract,
    Kind,
    Pass,
    Place,
    Reason,
    Trace,
    find_branches,
    register_layer,
)
from rewriter.testing import check_contract


@register_layer("mistaken/layer")
class Layer(nn.Module):
    def __init__(self, size: int = 1) -> None:
        super().__init__()
        if size > 5:
            raise ValueError("size: expected 5 at most")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1


@register_layer("mistaken/norm")
class Norm(nn.LayerNorm):
    """Has parameters, and is no AddedLayer."""


@register_layer("mistaken/nested")
class Nested(AddedLayer):
    """Holds a layer with parameters that is no AddedLayer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)


@dataclass(frozen=True)
class Mistaken(Pass):
    """Does at the first convolution what a test says."""

    name = "mistaken"
    summary = "what a test says"
    paper = "none"
    contract = Contract(eval_output=False)

    act: Callable[[Place[Any]], Any] = lambda place: None

    def candidates(self, trace: Trace) -> Iterator[Place[Any]]:
        return (Place(trace, node, "convolution") for node in [*trace.operations(Kind.CONV)][:1])

    def decide(self, place: Place[Any]) -> Change:
        self.act(place)
        return Change("what a test says", "it does")


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda place: place.edit.insert_after(place.node, Layer, sizes=3), "unexpected keyword argument 'sizes'"),
        (lambda place: place.edit.insert_after(place.node, Layer, size=7), "size: expected 5 at most"),
        (lambda place: place.edit.insert_after(place.node, Layer, size={1: 2}), "dicts by texts, found the key 1"),
        (lambda place: place.edit.insert_after(place.node, Layer, size=torch.ones(1)), r"options\['size'\].*Tensor"),
        (lambda place: place.edit.insert_after(place.node, Norm, normalized_shape=3), "Norm: it has weight, bias"),
        (lambda place: place.edit.insert_after(place.node, Nested), "Nested: its inner, Linear, has weight, bias"),
        (lambda place: place.edit.set(place.path, "strides", 2), "no hyper-parameter 'strides'"),
        (lambda place: place.edit.set(place.path, "stride", object()), "stride: a plan holds numbers"),
    ],
)
def test_an_edit_that_can_never_be_made_names_the_line(act: Callable[[Place[Any]], Any], words: str) -> None:
    with pytest.raises(PassError, match=rf"(?s)'mistaken' failed at convolution .*{words}.*authors_mistakes\.py:\d+\)"):
        rewriter.plan(timm.create_model("test_resnet"), Mistaken(act))


@register_layer("doubling/twice")
class Twice(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


@dataclass(frozen=True)
class Doubling(Pass):
    """Doubles what branches add, and says that it changes nothing."""

    name = "doubling"
    summary = "breaks its promise"
    paper = "none"

    factor: float | None = 2.0
    where: Literal["branch", "nowhere"] = "branch"
    colours: tuple[str, ...] = ()

    def candidates(self, trace: Trace) -> Iterator[Place[Any]]:
        for branch in find_branches(trace.flow, trace.model):
            yield Place(trace, branch.join, "residual branch", branch)

    def decide(self, place: Place[Any]) -> Change | None:
        if self.where == "nowhere":
            return None
        place.edit.insert_before(place.subject.join, place.subject.operand, Twice)
        return Change("double it", "no reason")


class TestGainsOfZero:
    """The last gammas of timm's fresh ResNets are zero, so their branches add nothing yet."""

    @pytest.mark.slow
    def test_they_hide_no_broken_promise(self) -> None:
        model = timm.create_model("test_resnet")
        zero = [name for name, parameter in model.named_parameters() if name.endswith("weight") and not parameter.any()]
        assert zero, "this test needs a model that begins with gains of zero"
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(rewriter.ContractError, match="doubling broke its contract"):
            rewriter.rewrite(model, Doubling())
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())

    def test_they_are_zero_again_and_their_version_counters_did_not_move(self) -> None:
        model = timm.create_model("test_resnet", drop_rate=0.1)
        versions = [parameter._version for parameter in model.parameters()]
        rewritten = rewriter.rewrite(model, "dropout", inplace=True)
        assert rewriter.report(rewritten).verified and not dict(model.named_parameters())["layer1.0.bn2.weight"].any()
        assert [parameter._version for parameter in model.parameters()] == versions

    @pytest.mark.thorough
    def test_a_layer_that_is_added_keeps_its_own(self) -> None:
        model = check_contract(timm.create_model("test_resnet"), Gated(), must_find=True)
        assert not any(parameter.any() for name, parameter in model.named_parameters() if name.endswith("gate.gain"))


@register_layer("gated/gate")
class Gate(AddedLayer):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(()))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.gain)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.gain * torch.tanh(x)


@dataclass(frozen=True)
class Gated(Pass):
    """Adds nothing at first, by a gain of its own that begins at zero."""

    name = "gated"
    summary = "begins as the identity"
    paper = "none"
    contract = Contract(adds_parameters=True)

    def candidates(self, trace: Trace) -> Iterator[Place[Any]]:
        return (Place(trace, node, "convolution") for node in [*trace.operations(Kind.CONV)][:1])

    def decide(self, place: Place[Any]) -> Change | None:
        if any(isinstance(place.trace.owner_of(reader), Gate) for reader in place.flow.users(place.node)):
            return None
        place.edit.insert_after(place.node, Gate)
        return Change("gate it", "a test")


class TestCheckContract:
    def test_a_pass_that_finds_nothing_is_told(self) -> None:
        model = timm.create_model("test_resnet")
        check_contract(model, Doubling(where="nowhere"))
        with pytest.raises(AssertionError, match="nothing is applied to this ResNet"):
            check_contract(model, Doubling(where="nowhere"), must_find=True)


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"factor": "much"}, "option factor: expected a number or None, found 'much'"),
            ({"factor": True}, "option factor: expected a number or None, found True"),
            ({"where": "here"}, "option where: expected 'branch' or 'nowhere', found 'here'"),
        ],
    )
    def test_one_of_another_type_is_told(self, options: dict[str, Any], words: str, registered: None) -> None:
        with pytest.raises(rewriter.SelectorError, match=words):
            rewriter.plan(timm.create_model("test_resnet"), {"doubling": options})

    @pytest.mark.parametrize("options", [{"factor": 1}, {"factor": None}, {"colours": ("red",)}, {"where": "nowhere"}])
    def test_one_that_fits_is_taken(self, options: dict[str, Any], registered: None) -> None:
        assert not rewriter.plan(timm.create_model("test_resnet"), {"doubling": {"where": "nowhere", **options}}).sites

    def test_one_that_no_plan_can_hold_is_told(self) -> None:
        with pytest.raises(rewriter.SelectorError, match=r"option colours: a plan holds .* found a set"):
            rewriter.plan(timm.create_model("test_resnet"), Doubling(colours={"red"}))  # type: ignore[arg-type]

    @pytest.fixture
    def registered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from rewriter.guideline import registry

        monkeypatch.setattr(registry, "installed_passes", lambda: {"doubling": Doubling})


def test_every_reason_says_what_it_means() -> None:
    assert all(reason.meaning and Reason(str(reason)) is reason for reason in Reason)


class Shared(nn.Module):
    """Calls one pooling twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 4, 1), nn.MaxPool2d(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(torch.relu(self.pool(self.conv(x))))


@pytest.mark.parametrize(
    "edit",
    [
        lambda place, **options: place.edit.set("pool", "stride", 1, **options),
        lambda place, **options: place.edit.behave("pool", "rewriter/layer-behind", **options),
    ],
)
def test_what_would_act_on_several_calls_is_refused_unless_it_is_meant(edit: Callable[..., Any]) -> None:
    (skip,) = rewriter.plan(Shared(), Mistaken(edit), input_size=16).skipped
    assert skip.reason is Reason.SHARED_MODULE and "'pool' (MaxPool2d) is called 2 times" in skip.detail
    made = rewriter.plan(
        Shared(), Mistaken(lambda place: place.edit.set("pool", "stride", 1, all_calls=True)), input_size=16
    )
    assert made.sites


class TestPassesThatAreNone:
    def test_options_need_a_dataclass(self) -> None:
        class Undecorated(Doubling):
            more: float = 1.0

        with pytest.raises(rewriter.SelectorError, match=r"Undecorated is no dataclass: decorate it with @dataclass"):
            rewriter.plan(Shared(), Undecorated(), input_size=16)

    def test_a_subclass_without_options_needs_none(self) -> None:
        class Renamed(Doubling):
            name = "renamed"

        made = rewriter.plan(timm.create_model("test_resnet"), Renamed())
        assert made.sites and {site.pass_name for site in made.sites} == {"renamed"}

    def test_candidates_are_places(self) -> None:
        @dataclass(frozen=True)
        class WithoutReturn(Mistaken):
            def candidates(self, trace: Trace) -> Any:
                return None

        with pytest.raises(PassError, match=r"candidates\(\) gave None; expected places"):
            rewriter.plan(Shared(), WithoutReturn(), input_size=16)

    def test_a_layer_is_registered_by_its_name(self) -> None:
        with pytest.raises(rewriter.InstallationError, match="with the name of the layer"):
            register_layer(Layer)  # type: ignore[arg-type]
        with pytest.raises(rewriter.InstallationError, match="expected a class of modules, found <function"):
            register_layer("mistaken/function")(lambda x: x)  # type: ignore[type-var]

    def test_the_type_of_an_option_is_looked_at_in_an_instance_too(self) -> None:
        with pytest.raises(rewriter.SelectorError, match="option factor: expected a number or None, found 'much'"):
            rewriter.plan(Shared(), Doubling(factor="much"), input_size=16)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "options"), [("test_resnet", {"drop_path_rate": 0.2}), ("test_vit", {"drop_path_rate": 0.2})]
)
def test_a_layer_stands_behind_stochastic_depth_too(name: str, options: dict[str, Any]) -> None:
    made = rewriter.plan(timm.create_model(name, **options), Doubling())
    assert made.sites and not made.skipped


@register_layer("swapping/act")
class Act(nn.SiLU):
    """Takes the place of a ReLU."""


@dataclass(frozen=True)
class Swapping(Pass):
    """Puts a SiLU in the place of every ReLU."""

    name = "swapping"
    summary = "SiLU for ReLU"
    paper = "none"
    contract = Contract(eval_output=False)

    def candidates(self, trace: Trace) -> Iterator[Place[Any]]:
        return (Place(trace, node, "activation") for node in trace.operations(Kind.ACTIVATION))

    def decide(self, place: Place[Any]) -> Change | None:
        if isinstance(place.module, Act) or isinstance(place.trace.owner_of(place.node), Act):
            return None
        place.edit.redirect(place.node, Act)
        return Change("SiLU for ReLU", "a test")


def test_a_layer_takes_the_place_of_one_in_a_sequential() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True))
    x = torch.randn(2, 3, 8, 8)
    rewritten = check_contract(model, Swapping(), example_inputs=x, must_find=True)
    assert len(rewriter.report(rewritten).applied) == 2
    silu = nn.functional.silu
    assert torch.equal(rewritten(x), silu(model[2](silu(model[0](x)))))
    assert "runs act instead" in str(rewritten)
