"""What a plan says is edited is what runs: each place is recorded once more after the edits."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_unchanged, image, snapshot
from torch import nn

import rewriter
from rewriter import Reason
from rewriter.edit.edits import AddBehaviour, AddModule, SetAttribute
from rewriter.guideline.base import Contract, Pass, Site
from rewriter.layers.registry import register_layer
from rewriter.tracing.trace import Trace


class Base(nn.Module):
    """A classifier whose subclasses say how its head is called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 4)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).relu()


HELD: dict[str, Callable[[Any], torch.Tensor]] = {}


class HeldOutside(Base):
    """Calls a bound method that something outside the model holds, which no edit of the model can reach."""

    def _head(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(x).flatten(1)
        x = self.drop(x)
        return self.fc(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return REGISTERED[0](self, self.features(x))


REGISTERED = [HeldOutside._head]


class HeldPool(Base):
    def _head(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.mean((2, 3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return OF_POOL["head"](self, self.features(x))


OF_POOL = {"head": HeldPool._head}


class HeldNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 3, padding=1)
        self.fc = nn.Linear(64, 3)

    def _norm(self, x: torch.Tensor) -> torch.Tensor:
        return F.group_norm(x, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(F.relu(OF_NORM(self, self.conv(x))).mean((2, 3)))


OF_NORM = functools.partial(HeldNorm._norm)


class HeldFusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.coarse = nn.Conv2d(8, 8, 1)
        self.out = nn.Conv2d(16, 4, 1)

    def _fuse(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.out(torch.cat([a, b], 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        y = F.interpolate(self.coarse(F.avg_pool2d(x, 2)), scale_factor=2, mode="bilinear")
        return OF_FUSION[0](self, x, y)


OF_FUSION = (HeldFusion._fuse,)


class Called(Base):
    """The same head, called as methods are."""

    def _head(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(x).flatten(1)
        x = self.drop(x)
        return self.fc(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._head(self.features(x))


def seen_by(module: nn.Module, model: nn.Module, x: torch.Tensor) -> list[tuple[int, ...]]:
    """The shapes that ``module`` is given in training mode."""
    shapes: list[tuple[int, ...]] = []
    handle = module.register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape)))
    model.train()(x)
    handle.remove()
    return shapes


class TestEditsThatDoNotRun:
    @pytest.mark.parametrize(
        ("cls", "name"),
        [(HeldOutside, "dropout"), (HeldPool, "stochastic-pooling"), (HeldNorm, "group-count"),
         (HeldFusion, "scale-equalizer")],
    )  # fmt: skip
    @pytest.mark.parametrize("verify", [True, False])
    def test_they_are_left_out_and_the_call_is_named(self, cls: type[nn.Module], name: str, verify: bool) -> None:
        model = cls()
        with pytest.warns(rewriter.PlaceLeftAlone, match="not-in-force"):
            result = rewriter.rewrite(model, name, input_size=16, verify=verify)
        report = rewriter.report(result)
        assert not report.applied
        (skip,) = [skip for skip in report.skipped if skip.reason is Reason.NOT_IN_FORCE]
        method = {"dropout": "_head", "stochastic-pooling": "_head", "group-count": "_norm"}.get(name, "_fuse")
        assert f"calls {cls.__name__}.{method}() as it is written" in skip.detail and "test_in_force.py:" in skip.detail
        assert torch.equal(result.eval()(image(16)), model.eval()(image(16)))
        assert [type(module) for module in result.modules()] == [type(module) for module in model.modules()]

    def test_plan_and_report_agree(self) -> None:
        plan = rewriter.plan(HeldOutside(), "dropout", input_size=16)
        with pytest.warns(rewriter.PlaceLeftAlone):
            report = rewriter.report(plan.apply(HeldOutside()))
        assert plan.sites == report.applied == () and plan.skipped == report.skipped

    def test_the_place_is_free_for_another_pass(self) -> None:
        """A dropout that stays behind the pooling claims nothing there."""
        made = rewriter.plan(HeldOutside(), ["dropout", "stochastic-pooling"], input_size=16)
        assert not [skip for skip in made.skipped if skip.reason is Reason.CLAIMED]

    def test_the_same_head_called_as_methods_are_is_edited(self) -> None:
        result = rewriter.rewrite(Called(), "dropout", input_size=16)
        assert seen_by(result.drop, result, image(16)) == [(2, 8, 14, 14)]
        assert "in force: 1 place, recorded once more after the edits" in str(rewriter.report(result))

    def test_a_function_that_runs_edited_and_as_it_is_written_is_left_out(self) -> None:
        class Both(Called):
            def forward(self, x: torch.Tensor) -> Any:
                x = self.features(x)
                return BOTH[0](self, x) if self.training else self._head(x)

        BOTH = [Called._head]
        made = rewriter.plan(Both(), "dropout", input_size=16)
        assert not made.sites and [skip.reason for skip in made.skipped] == [Reason.NOT_IN_FORCE]


class TestPlansFromElsewhere:
    def test_a_plan_of_a_model_that_calls_the_method_is_checked_on_the_one_that_does_not(self) -> None:
        class Switched(Called):
            def __init__(self, call: Any = None) -> None:
                super().__init__()
                self.call = [call]

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.features(x)
                return self._head(x) if self.call[0] is None else self.call[0](self, x)

        text = rewriter.plan(Switched(), "dropout", input_size=16).to_json()
        with pytest.warns(rewriter.PlaceLeftAlone, match="not-in-force"):
            report = rewriter.report(rewriter.Plan.from_json(text).apply(Switched(Called._head)))
        assert not report.applied and json.loads(report.to_json())[0]["in_force"] is None
        report = rewriter.report(rewriter.Plan.from_json(text).apply(Switched()))
        assert len(report.applied) == 1 and json.loads(report.to_json())[0]["in_force"] is True

    @pytest.mark.slow
    @pytest.mark.parametrize("verify", [True, False])
    def test_inputs_that_are_no_plain_data_are_not_checked_and_it_says_so(self, verify: bool) -> None:
        class Boxed:
            def __init__(self, tensor: torch.Tensor) -> None:
                self.tensor = tensor

        class Net(Called):
            def forward(self, boxed: Any, x: torch.Tensor) -> torch.Tensor:
                return super().forward(boxed.tensor + x)

        plan = rewriter.plan(Net(), "dropout", example_inputs=(Boxed(image(16)), image(16)))
        result = rewriter.Plan.from_json(plan.to_json()).apply(Net(), verify=verify)
        assert "not checked in force: the plan was made on the user's own" in str(rewriter.report(result))
        assert json.loads(rewriter.report(result).to_json())[0]["in_force"] is False
        result = rewriter.rewrite(Net(), "dropout", example_inputs=(Boxed(image(16)), image(16)), verify=verify)
        assert "in force: 1 place" in str(rewriter.report(result))

    @pytest.mark.slow
    def test_values_on_which_the_model_does_not_run_are_not_checked_and_it_says_so(self) -> None:
        class Picky(Called):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                if float(x.min()) < 0:
                    raise ValueError("expected an image in 0 to 1")
                return super().forward(x)

        plan = rewriter.plan(Picky(), "dropout", example_inputs=image(16).abs())
        report = str(rewriter.report(plan.apply(Picky())))
        assert "not checked in force: the model does not run on made-up inputs" in report and "verified: no" in report


@register_layer("test/in-force-refuses")
class Refuses(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("this layer does not run")


@register_layer("test/in-force-with-child")
class WithChild(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.refuses(super().forward(x))


@register_layer("test/in-force-scaled")
class Scaled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * super().forward(x)


@dataclass(frozen=True)
class Adds(Pass):
    """Asks for the same at each layer, whether it is there or not."""

    name = "adds"
    summary = paper = "none"
    contract = Contract(eval_output=False)
    edits: str = "scaled"
    rule: Any = None

    def find(self, trace: Trace) -> Iterator[Site]:
        for path in ("conv", "fc"):
            found: tuple[Any, ...] = (AddBehaviour(path, "test/in-force-scaled"),)
            if self.edits == "refuses" and path == "fc":
                child = AddModule(path, "refuses", "test/in-force-refuses")
                found = (child, AddBehaviour(path, "test/in-force-with-child"))
            if self.edits == "unread":
                found = (SetAttribute(path, "transposed", not trace.model.get_submodule("conv").transposed),)
                found = found if path == "conv" else ()
            yield from (Site("adds", path, "layer", "change it", "a test", found),) if found else ()


class TestTheSecondRecording:
    def test_an_edit_that_the_model_does_not_run_with_is_left_out_and_the_others_stay(self) -> None:
        model = Called()
        before = snapshot(model)
        plan = rewriter.plan(model, Adds("refuses"), input_size=16)
        assert [site.path for site in plan.sites] == ["conv"]
        (skip,) = plan.skipped
        assert skip.path == "fc" and skip.reason is Reason.NOT_IN_FORCE and "this layer does not run" in skip.detail
        assert_unchanged(model, before)

    def test_a_pass_that_asks_for_what_is_so_is_in_force(self) -> None:
        assert len(rewriter.plan(Called(), Adds(), input_size=16).sites) == 2

    def test_a_pass_that_still_finds_its_place_is_not(self) -> None:
        plan = rewriter.plan(Called(), Adds("unread"), input_size=16)
        assert not plan.sites and "still finds the same place" in plan.skipped[0].detail

    def test_a_rule_that_is_a_function_may_always_find_one(self) -> None:
        plan = rewriter.plan(Called(), Adds("unread", rule=max), input_size=16)
        assert len(plan.sites) == 1

    def test_nothing_of_the_model_is_touched_nor_drawn(self) -> None:
        model = Called()
        model.conv.register_forward_hook(lambda *_: pytest.fail("a hook of the user's was called"))
        before = snapshot(model)
        rewriter.plan(model, [{"dropout": {"p": 0.1}}, "stochastic-pooling"], input_size=16)
        assert_unchanged(model, before)


class TestInputsAreRemembered:
    def model(self) -> nn.Module:
        class Net(Called):
            def forward(self, x: torch.Tensor, scale: torch.Tensor, *, labels: dict[str, torch.Tensor]) -> torch.Tensor:
                return super().forward(x * scale + labels["shift"].sum())

        return Net()

    def inputs(self) -> dict[str, Any]:
        return {"x": image(16), "scale": torch.ones(1), "labels": {"shift": torch.zeros(2, dtype=torch.long)}}

    @pytest.mark.slow
    def test_later_verbs_need_no_examples(self) -> None:
        model = self.model()
        result = rewriter.rewrite(model, "dropout", example_inputs=self.inputs())
        again = rewriter.plan(result, "dropout")
        assert not again.sites and [skip.reason for skip in again.skipped] == [Reason.ALREADY_DONE]
        assert rewriter.trace(result).inputs.kwargs["x"].shape == (2, 3, 16, 16)
        assert rewriter.param_groups(result)
        undone = rewriter.undo(result)
        with pytest.raises(rewriter.InputError):
            rewriter.trace(undone)

    @pytest.mark.thorough
    def test_a_plan_from_json_is_verified_on_inputs_of_its_shapes(self) -> None:
        plan = rewriter.plan(self.model(), "dropout", example_inputs=self.inputs())
        result = rewriter.Plan.from_json(plan.to_json()).apply(self.model())
        assert rewriter.report(result).verified is True

    @pytest.mark.slow
    def test_the_type_is_that_of_the_model_now(self) -> None:
        plan = rewriter.plan(self.model(), "dropout", example_inputs=self.inputs())
        result = plan.apply(self.model().double())
        assert rewriter.report(result).verified is True
        assert rewriter.trace(result).inputs.kwargs["x"].dtype is torch.float64
        assert rewriter.trace(result).inputs.kwargs["labels"]["shift"].dtype is torch.long

    def test_the_latest_rewrite_decides_and_a_size_given_comes_first(self) -> None:
        first = rewriter.rewrite(Called(), "dropout", input_size=16)
        second = rewriter.rewrite(first, "stochastic-pooling", input_size=24)
        assert rewriter.trace(second).inputs.image_size == (3, 24, 24)
        assert rewriter.trace(second, input_size=32).inputs.image_size == (3, 32, 32)
        assert rewriter.trace(copy.deepcopy(second)).inputs.image_size == (3, 24, 24)
