"""The front door of passes: what the driver stamps, refuses and names, and what each verb does to a model."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

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
    Recommendation,
    Refused,
    Trace,
    register_layer,
)
from rewriter.testing import check_contract


@dataclass(frozen=True)
class Acting(Pass):
    """Does at each operation of a kind what a test says."""

    name = "acting"
    summary = "what a test says"
    paper = "none"
    contract = Contract(eval_output=False, state_dict=False, gradients=False)

    kind: Kind = Kind.CONV
    act: Callable[[Place[Any]], Any] = lambda place: None

    def candidates(self, trace: Trace) -> Iterator[Place[Any]]:
        return (Place(trace, node, "a place") for node in trace.operations(self.kind))

    def decide(self, place: Place[Any]) -> Any:
        return self.act(place)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        z = self.second(x)
        y = y + z
        y += z
        return torch.maximum(y, z)


class Sums(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(x + self.first(x))
        z = y + 0 * x
        z += 1
        return z * y


def plan(act: Callable[[Place[Any]], Any], kind: Kind = Kind.CONV) -> rewriter.Plan:
    return rewriter.plan(Small(), Acting(kind, act), input_size=8)


class TestDriver:
    def test_it_stamps_the_name_and_the_place(self) -> None:
        def act(place: Place[Any]) -> Any:
            if place.path == "first":
                raise Refused("acting/too-early", "it comes first")
            return Recommendation("leave it", "because")

        made = plan(act)
        (skip,), (advice,) = made.skipped, made.advice
        assert (skip.pass_name, skip.path, skip.pattern, skip.reason) == (
            "acting", "first", "a place", "acting/too-early",
        )  # fmt: skip
        assert (advice.pass_name, advice.path, advice.advice) == ("acting", "second", "leave it")
        assert rewriter.Plan.from_json(made.to_json()) == made

    def test_what_was_said_before_a_refusal_stands(self) -> None:
        def act(place: Place[Any]) -> Iterator[Any]:
            yield Refused(Reason.FROZEN, "one", path="elsewhere", pattern="another place")
            raise Refused(Reason.OUTSIDE, "two")

        found = [(skip.path, skip.pattern, str(skip.reason)) for skip in plan(act).skipped]
        assert found[:2] == [("elsewhere", "another place", "frozen"), ("first", "a place", "outside")]

    @pytest.mark.parametrize(
        ("act", "words"),
        {
            "an error of its own": (lambda place: 1 / 0, "pass 'acting' failed at a place first: ZeroDivisionError"),
            "no edit": (lambda place: Change("does nothing", "no reason"), "describes a change at a place first and"),
            "no outcome": (lambda place: "done", "decides 'done'"),
            "an edit that nothing describes": (
                lambda place: place.edit.set("first", "groups", 1) and None, "made 1 edit at a place first and returned"
            ),
            "no class of a layer": (lambda place: place.edit.insert_after(place.node, nn.Tanh()), "found Tanh()"),
            "a reason that is none": (lambda place: Refused("no reason", "detail"), "'no reason' is no reason"),
            "a layer that is not registered": (
                lambda place: place.edit.insert_after(place.node, nn.Tanh), "torch.nn.modules.activation.Tanh is not"
            ),
            "two changes": (
                lambda place: place.edit.set("first", "groups", 1) and [Change("a", "b"), Change("a", "b")],
                "several changes at a place first",
            ),
        }.values(),
    )  # fmt: skip
    def test_a_defect_names_the_pass(self, act: Any, words: str) -> None:
        with pytest.raises(rewriter.RewriterError) as caught:
            plan(act)
        assert words in str(caught.value)

    def test_the_line_of_an_error_is_told(self) -> None:
        def act(place: Place[Any]) -> Any:
            raise ValueError("too narrow")

        with pytest.raises(PassError, match=r"ValueError: too narrow \(.*test_authoring\.py:\d+\)\. Mend it there"):
            plan(act)

    def test_a_candidate_is_a_place(self) -> None:
        @dataclass(frozen=True)
        class Nodes(Acting):
            def candidates(self, trace: Trace) -> Any:
                return trace.operations(Kind.CONV)

        with pytest.raises(PassError, match=r"candidates\(\) gave .*; expected Place\(trace, node, pattern\)"):
            rewriter.plan(Small(), Nodes(), input_size=8)

    def test_a_pass_without_a_name_is_none_yet(self) -> None:
        @dataclass(frozen=True)
        class Nameless(Pass):
            def find(self, trace: Trace) -> Iterator[Any]:
                yield from ()

        with pytest.raises(rewriter.SelectorError, match=r"Nameless is no pass yet: .* has no text as its name"):
            rewriter.plan(Small(), Nameless(), input_size=8)

    @pytest.mark.parametrize("name", ["blur", "Blur/layer", "blur/", "a/b/c"])
    def test_a_layer_is_named_after_its_pass(self, name: str) -> None:
        with pytest.raises(rewriter.InstallationError, match="expected 'pass-name/layer-name'"):
            register_layer(name)

    def test_a_pass_of_the_first_kind_gives_all_findings_at_once(self) -> None:
        @dataclass(frozen=True)
        class Old(Pass):
            name, summary, paper = "old", "old", "none"
            stranger: bool = False

            def find(self, trace: Trace) -> Iterator[rewriter.Skipped]:
                yield rewriter.Skipped("other" if self.stranger else self.name, "", "root", Reason.OUTSIDE, "as before")

        assert [skip.detail for skip in rewriter.plan(Small(), Old(), input_size=8).skipped] == ["as before"]
        with pytest.raises(PassError, match="expected a finding of its own"):
            rewriter.plan(Small(), Old(stranger=True), input_size=8)


@register_layer("acting/twice")
class Twice(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


@register_layer("acting/swap")
class Swap(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return y, x * 0


def at(path: str, act: Callable[[Place[Any]], Any]) -> Callable[[Place[Any]], Any]:
    def only(place: Place[Any]) -> Any:
        if place.path == path:
            act(place)
            return Change("as asked", "for a test")
        return None

    return only


def rewritten(act: Callable[[Place[Any]], Any], kind: Kind, method: str) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = Small()
    made = rewriter.plan(model, Acting(kind, act), input_size=8)
    assert rewriter.Plan.from_json(made.to_json()) == made
    result = made.apply(model)
    assert method in made.diff(model)
    x = torch.randn(2, 3, 8, 8)
    restored = rewriter.undo(result)
    assert torch.equal(restored(x), model(x)) and type(restored) is Small
    assert torch.equal(pickle.loads(pickle.dumps(result))(x), result(x))
    return model, result


class TestVerbs:
    def test_several_arguments_go_through_one_layer(self) -> None:
        def act(place: Place[Any]) -> Any:
            place.edit.wrap_together(place.node, place.flow.sources(place.node), Swap)

        def only(place: Place[Any]) -> Any:
            if getattr(place.node.target, "__name__", "") != "maximum":
                return None
            act(place)
            return Change("swap", "for a test")

        model, result = rewritten(only, Kind.OTHER, "return torch.maximum(*self.swap(y, z))")
        x = torch.randn(2, 3, 8, 8)
        z = model.second(x)
        assert torch.equal(result(x), torch.maximum(z, (model.first(x) + 2 * z) * 0))

    @pytest.mark.parametrize("keep", [0, 1])
    def test_a_binary_operation_is_removed(self, keep: int) -> None:
        def act(place: Place[Any]) -> Any:
            place.edit.remove(place.node, keep=place.flow.sources(place.node)[keep])
            return Change("keep one", "for a test")

        def of_two(place: Place[Any]) -> Any:
            return act(place) if len(place.flow.sources(place.node)) == 2 else None

        model = Sums()
        made = rewriter.plan(model, Acting(Kind.ADD, of_two), input_size=8)
        assert len(made.sites) == 1 and made.diff(model).count("\n+") == 2
        x = torch.randn(2, 3, 8, 8)
        y = model.second(model.first(x) if keep else x)
        assert torch.allclose(made.apply(model)(x), (y + 1) * y)
        (skip,) = made.skipped
        assert skip.reason is Reason.WRITTEN_IN_PLACE, "z would be y, and z is written to"

    @pytest.mark.parametrize("written", ["self.act(x)", "F.relu(x)", "x.relu()", "self.inner.act(x)"])
    def test_a_layer_takes_the_place_of_another_or_of_a_function(
        self, written: str, import_text: Callable[[str], Any]
    ) -> None:
        net = import_text(f"""
            import torch.nn.functional as F
            from torch import nn
            class Inner(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.act = nn.ReLU()
            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.act, self.inner = nn.ReLU(), Inner()
                def forward(self, x):
                    return {written}
        """).Net()
        act = lambda place: place.edit.redirect(place.node, Twice) and Change("double", "for a test")  # noqa: E731
        made = rewriter.plan(net, Acting(Kind.ACTIVATION, act), input_size=8)
        x = torch.randn(2, 3, 8, 8)
        assert torch.equal(made.apply(net)(x), 2 * x) and "return self.twice(x)" in made.diff(net)

    def test_what_an_assignment_in_place_reads_gets_its_layer_where_it_is_made(
        self, import_text: Callable[[str], Any]
    ) -> None:
        net = import_text("""
            from torch import nn
            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.conv = nn.Conv2d(3, 3, 1)
                def forward(self, x):
                    y = self.conv(x)
                    y += x
                    return y
        """).Net()

        def act(place: Place[Any]) -> Any:
            place.edit.insert_before(place.node, place.flow.sources(place.node)[0], Twice)
            return Change("double", "for a test")

        made = rewriter.plan(net, Acting(Kind.ADD, act), input_size=8)
        x = torch.randn(2, 3, 8, 8)
        assert "y = self.twice(self.conv(x))" in made.diff(net)
        assert torch.allclose(made.apply(net)(x), 2 * net.conv(x) + x)

    def test_a_layer_behind_and_before(self) -> None:
        def act(place: Place[Any]) -> Any:
            place.edit.insert_after(place.node, Twice)
            place.edit.insert_before(place.node, place.flow.sources(place.node)[0], "acting/twice")

        model, result = rewritten(at("first", act), Kind.CONV, "y = self.twice(self.first(self.twice_1(x)))")
        x = torch.randn(2, 3, 8, 8)
        y, z = 2 * model.first(2 * x), model.second(x)
        assert torch.allclose(result(x), torch.maximum(y + 2 * z, z))


class TestTensors:
    """Changes of parameters and buffers, on a convolution of a real model."""

    VERBS: ClassVar[dict[str, Callable[[Any], Any]]] = {
        "scaled": lambda edit: edit.scale("conv1.0", "weight", 3.0),
        "scaled by channel": lambda edit: edit.scale("conv1.0", "weight", [0.3 + i for i in range(24)], dim=0),
        "a buffer": lambda edit: edit.scale("bn1", "running_var", 7.0),
        "padded": lambda edit: (edit.pad("conv1.0", "weight", 3, 1, 1), edit.pad("conv1.0", "weight", 2, 1, 1)),
    }

    @staticmethod
    def rewrite(verb: Callable[[Any], Any]) -> tuple[nn.Module, nn.Module]:
        def act(place: Place[Any]) -> Any:
            if place.path != "conv1.0":
                return None
            verb(place.edit)
            return Change("change", "for a test")

        torch.manual_seed(0)
        model = timm.create_model("resnet10t", num_classes=4)
        nn.init.normal_(model.bn1.running_var, 2, 0.1)
        made = rewriter.plan(model, Acting(Kind.CONV, act), input_size=64)
        assert rewriter.Plan.from_json(made.to_json()) == made
        return model, made.apply(model, verify=False)

    @pytest.mark.parametrize("verb", VERBS.values(), ids=list(VERBS))
    def test_undo_is_exact(self, verb: Callable[[Any], Any]) -> None:
        model, result = self.rewrite(verb)
        changed = [
            name for name, value in result.state_dict().items()
            if name in model.state_dict() and not _same(value, model.state_dict()[name])
        ]  # fmt: skip
        assert len(changed) == 1
        restored = rewriter.undo(pickle.loads(pickle.dumps(result)))
        assert all(_same(value, model.state_dict()[name]) for name, value in restored.state_dict().items())

    @pytest.mark.parametrize("verb", VERBS.values(), ids=list(VERBS))
    def test_the_state_dict_of_the_original_is_exact(self, verb: Callable[[Any], Any]) -> None:
        model, result = self.rewrite(verb)
        state = rewriter.original_state_dict(nn.ModuleDict({"net": result}))
        assert all(_same(state[f"net.{name}"], value) for name, value in model.state_dict().items())
        model.load_state_dict(rewriter.original_state_dict(result))

    def test_what_was_trained_stays_and_the_optimizer_goes_on(self) -> None:
        model, result = self.rewrite(self.VERBS["scaled"])
        held = dict(result.named_parameters())["conv1.0.weight"]
        with torch.no_grad():
            held[0] += 6.0
        rewriter.undo(result, inplace=True)
        after = dict(result.named_parameters())["conv1.0.weight"]
        original = dict(model.named_parameters())["conv1.0.weight"]
        assert after is held and torch.equal(after[1:], original[1:])
        assert torch.allclose(after[0], original[0] + 2.0, atol=1e-5)

    def test_entries_that_were_dropped_come_back(self) -> None:
        layer = nn.Linear(3, 6)
        old = layer.weight.detach().clone()
        from rewriter.edit.tensors import change_tensor

        changed = change_tensor(layer, "", "weight", "drop", {"dim": 0, "indices": [1, 4]})
        assert torch.equal(layer.weight, old[[0, 2, 3, 5]])
        changed.take_back(layer)
        assert torch.equal(layer.weight, old)

    @pytest.mark.parametrize(
        "verb",
        [
            lambda edit: edit.scale("conv1.0", "nothing", 2.0),
            lambda edit: edit.scale("conv1.0", "weight", [1.0, 2.0], dim=0),
            lambda edit: edit.drop("conv1.0", "weight", 0, [1000]),
        ],
    )
    def test_one_that_does_not_fit_is_left_out_with_the_reason(self, verb: Callable[[Any], Any]) -> None:
        with pytest.warns(rewriter.PlaceLeftAlone, match="the model does not run with this edit"):
            _, result = self.rewrite(verb)
        assert not rewriter.report(result).applied


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first, second)


@register_layer("acting/norm")
class Norm(AddedLayer, nn.BatchNorm2d):
    pass


def add_norm(place: Place[Any]) -> Any:
    if place.path != "conv1.0" or any(node.meta["kind"] is Kind.NORM for node in place.flow.users(place.node)):
        return None
    place.edit.insert_after(place.node, Norm, num_features=place.trace.shape(place.node)[1])
    return Change("normalise", "for a test")


@dataclass(frozen=True)
class Adding(Acting):
    name = "adding"
    contract = Contract(eval_output=False, adds_parameters=True)
    act: Callable[[Place[Any]], Any] = add_norm


class NoNorms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv1(x).mean((2, 3)))


class TestLayersWithParameters:
    def test_the_contract_holds(self) -> None:
        check_contract(NoNorms(), Adding(Kind.CONV), input_size=8)

    def test_it_takes_after_its_place(self) -> None:
        model = NoNorms().to(torch.float64).eval()
        model.conv1.requires_grad_(False)
        (norm,) = (m for m in rewriter.rewrite(model, Adding(), input_size=8).modules() if isinstance(m, Norm))
        assert norm.weight.dtype is torch.float64 and not norm.weight.requires_grad and not norm.training
        (norm,) = (m for m in rewriter.rewrite(NoNorms(), Adding(), input_size=8).modules() if isinstance(m, Norm))
        assert norm.weight.dtype is torch.float32 and norm.weight.requires_grad and norm.training

    @pytest.mark.parametrize("assign", [False, True])
    def test_a_checkpoint_of_the_original_loads_and_the_other_way_round(self, assign: bool) -> None:
        original = NoNorms()
        model = rewriter.rewrite(original, Adding(), input_size=8)
        nn.init.constant_(next(m for m in model.modules() if isinstance(m, Norm)).weight, 3.0)
        model.load_state_dict(original.state_dict(), strict=True, assign=assign)
        assert all((m.weight == 3).all() for m in model.modules() if isinstance(m, Norm))
        NoNorms().load_state_dict(rewriter.original_state_dict(model), strict=True)

    def test_from_meta_it_has_the_values_of_before_training(self) -> None:
        with torch.device("meta"):
            model = rewriter.rewrite(NoNorms(), Adding(), input_size=8)
        model.load_state_dict(NoNorms().state_dict(), strict=True, assign=True)
        (norm,) = (m for m in model.modules() if isinstance(m, Norm))
        assert (norm.weight == 1).all() and (norm.running_var == 1).all() and (norm.bias == 0).all()
        with torch.device("meta"):
            again = rewriter.rewrite(NoNorms(), Adding(), input_size=8)
        (norm,) = (m for m in again.to_empty(device="cpu").modules() if isinstance(m, Norm))
        assert (norm.weight == 1).all() and (norm.running_mean == 0).all()

    def test_its_parameters_are_in_the_groups_of_the_optimizer(self) -> None:
        model = rewriter.rewrite(NoNorms(), Adding(), input_size=8)
        groups = rewriter.param_groups(model, weight_decay=0.1)
        names = {name: group["weight_decay"] for group, of in zip(groups, groups.names, strict=True) for name in of}
        (norm,) = (name for name, module in model.named_modules() if isinstance(module, Norm))
        assert names[f"{norm}.weight"] == names[f"{norm}.bias"] == 0
        assert set(names) == {name for name, _ in model.named_parameters()}
