"""Edits that let one layer stand for several operations, and edits that freeze a parameter."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import rewriter
from rewriter.authoring import Change, Contract, Kind, Pass, Place, register_layer
from rewriter.edit.edits import Freeze, apply_edits, take_back
from rewriter.edit.operations import Replace
from rewriter.errors import PlanError, SourceError
from rewriter.reasons import Reason

X = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))


@register_layer("standing-in/negated")
class Negated(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -x


@dataclass(frozen=True)
class StandingIn(Pass):
    """A layer stands for every multiplication by a number at once, or behind what they read."""

    name = "standing-in"
    summary, paper = "a test", "none"
    contract = Contract(eval_output=False, gradients=False)

    behind: bool = False

    def candidates(self, trace: Any) -> Any:
        found = [node for node in trace.operations(Kind.MULTIPLY) if not isinstance(trace.owner_of(node), Negated)]
        if found:
            yield Place(trace, found[0], "multiplications", found)

    def decide(self, place: Place[Any]) -> Change:
        operands = {node: place.flow.sources(node)[0] for node in place.subject}
        if self.behind:
            place.edit.insert_behind(dict.fromkeys(operands.values()), Negated, removed=operands)
        else:
            place.edit.replace(operands, Negated)
        return Change("negate", "a test")


def scaled(x: torch.Tensor, by: float = 2.0) -> torch.Tensor:
    y = x + 1
    return y * 2.0 if by else y


def scaled_below(x: torch.Tensor) -> torch.Tensor:
    return scaled(x)


class Forms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("by", torch.tensor(3.0))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        a = (x + 1) / 4
        b = 0.5 * (x + 2)
        c = torch.div(x + 3, 2)
        d = (x + 4).mul(self.by)
        e = x + 5
        e /= 3
        f = self.by.exp() * (x + 6)
        return a, b, c, d, e, f


class Twice(nn.Module):
    def once(self, x: torch.Tensor) -> torch.Tensor:
        return (x + 1) / 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.once(x) + self.once(x - 7)


class Looped(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = []
        for number in (0.0, 1.0, 2.0):
            found.append((x + number) / 4)
        return torch.stack(found)


class Helped(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return scaled(x) + scaled(x - 7, by=1.0)


class HelpedBelow(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return scaled_below(x)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Twice()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + self.inner(x + 1)


def ways(x: torch.Tensor) -> dict[Callable[[], nn.Module], Any]:
    return {
        Forms: tuple(-(x + number) for number in range(1, 7)),
        Twice: -(x + 1) - (x - 6),
        Looped: torch.stack([-(x + number) for number in (0.0, 1.0, 2.0)]),
        Helped: -(x + 1) - (x - 6),
        Shared: -(x + 1) - (x - 6) - (x + 2) - (x - 5),
    }


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("create", ways(X))
def test_a_layer_stands_for_all_of_them(create: Callable[[], nn.Module], behind: bool) -> None:
    original = create()
    plan = rewriter.plan(original, StandingIn(behind=behind), example_inputs=X)
    assert len(plan.sites) == 1, str(plan)
    assert rewriter.Plan.from_json(plan.to_json()) == plan
    model = plan.apply(original)
    torch.testing.assert_close(model(X), ways(X)[create])
    assert sum(isinstance(module, Negated) for module in model.modules()) == 1
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(X), ways(X)[create])
    torch.testing.assert_close(rewriter.undo(model)(X), original(X), rtol=0, atol=0)


def test_the_helper_itself_does_not_change() -> None:
    before = scaled(X)
    model = rewriter.rewrite(Helped(), StandingIn(), example_inputs=X)
    model(X)
    assert torch.equal(scaled(X), before)


def test_a_helper_of_a_helper_is_refused() -> None:
    (skip,) = rewriter.plan(HelpedBelow(), StandingIn(), example_inputs=X).skipped
    assert skip.reason == Reason.HELPER_FUNCTION and "scaled_below" in skip.detail


class OneOfTwo(StandingIn):
    """Only the first of the operations that a line issues."""

    def candidates(self, trace: Any) -> Any:
        for place in super().candidates(trace):
            place.subject = place.subject[:1]
            yield place


def test_a_line_that_does_more_is_refused() -> None:
    for model in (Twice(), Looped()):
        (skip,) = rewriter.plan(model, OneOfTwo(), example_inputs=X).skipped
        assert skip.reason in (Reason.SHARED_MODULE, Reason.IN_A_LOOP)


class Unclear(nn.Module):
    """Which factor is the tensor does not show in the text: the recording of both is the same."""

    def forward(self, x: torch.Tensor, by: float = 2.0) -> torch.Tensor:
        return by * x


def test_a_factor_that_the_text_does_not_show_is_refused() -> None:
    (skip,) = rewriter.plan(Unclear(), StandingIn(), example_inputs=X).skipped
    assert skip.reason == Reason.NOT_MOVABLE and "`by * x`" in skip.detail


def test_a_statement_that_assigns_to_a_part_is_refused() -> None:
    from rewriter.edit.source import read_source

    def halved(self: Any, x: Any) -> Any:
        x[0] /= 2
        return x

    source = read_source(halved)
    span = next(source.span(node) for node in source.tree.body if hasattr(node, "op"))
    with pytest.raises(SourceError, match="does not assign to a plain name"):
        tuple(Replace(span, 0, "layer").splices(source))


class TestFreeze:
    def test_it_keeps_the_object_and_is_taken_back(self) -> None:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        weight = model[0].weight
        applied = apply_edits(model, [Freeze("0", "weight")])
        assert model[0].weight is weight and not weight.requires_grad and model[0].bias.requires_grad
        take_back(model, applied)
        assert model[0].weight is weight and weight.requires_grad

    def test_what_was_frozen_stays_frozen(self) -> None:
        model = nn.Linear(3, 3)
        model.weight.requires_grad_(False)
        take_back(model, apply_edits(model, [Freeze("", "weight")]))
        assert not model.weight.requires_grad

    def test_a_parameter_that_is_gone_is_no_error_of_undo(self) -> None:
        model = nn.Sequential(nn.Linear(3, 3))
        applied = apply_edits(model, [Freeze("0", "weight")])
        model[0] = nn.ReLU()
        take_back(model, applied)

    def test_if_a_later_edit_fails_it_trains_again(self) -> None:
        model = nn.Linear(3, 3)
        with pytest.raises(PlanError, match="has no parameter 'gain'"):
            apply_edits(model, [Freeze("", "weight"), Freeze("", "gain")])
        assert model.weight.requires_grad

    @pytest.mark.parametrize("told", [True, False])
    def test_the_contract_has_to_say_so(self, told: bool) -> None:
        @dataclass(frozen=True)
        class Freezing(Pass):
            name = "freezing"
            summary, paper = "a test", "none"
            contract = Contract(freezes_parameters=told)

            def candidates(self, trace: Any) -> Any:
                if trace.model[0].weight.requires_grad:
                    yield Place(trace, "0", "first layer")

            def decide(self, place: Place[Any]) -> Change:
                with pytest.raises(ValueError, match="has no parameter 'gain'"):
                    place.edit.freeze("0", "gain")
                place.edit.freeze("0", "weight")
                return Change("freeze", "a test")

        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        if told:
            assert not rewriter.rewrite(model, Freezing(), example_inputs=X)[0].weight.requires_grad
        else:
            with pytest.raises(rewriter.ContractError, match=r"gradients: none for 0\.weight"):
                rewriter.rewrite(model, Freezing(), example_inputs=X)
