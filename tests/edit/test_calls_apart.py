"""What reaching an edited method leaves alone: other objects, state of decorators, containers, what is not copied."""

from __future__ import annotations

import functools
import json
import types
from collections.abc import Callable
from types import ModuleType
from typing import Any

import calls
import calls_decorated
import calls_kept
import calls_named
import pytest
import torch
from helpers import image, output
from test_calls_reached import in_force, through_pickle

import rewriter
from rewriter.edit.edits import AddBehaviour, apply_edits
from rewriter.errors import PlanError

Load = Callable[[str], ModuleType]


def made(load: Load, text: str, name: str = "dropout") -> ModuleType:
    return load(calls.model_text(name, text))


# Other objects


def test_methods_of_objects_outside_the_model_are_not_touched(import_text: Load) -> None:
    module = made(
        import_text,
        """
        class Net(Layers):
            def __init__(self, others=()):
                super().__init__()
                self.run = self._work
                self.others = [other._work for other in others]
            def _work(self, x):
                WORK
            def forward(self, x):
                return self.run(x)
        """,
    )
    outside = module.Net()
    model = module.Net([outside])
    kept, held, own = model._work, outside.run, model.others[0]
    rewriter.rewrite(model, "dropout", input_size=16, inplace=True)
    assert in_force("dropout", model) and not in_force("dropout", outside)
    assert outside.run is held and model.others == [own] and model.others[0] is own
    assert kept.__func__ is module.Net._work  # a method that somebody else keeps cannot be found
    assert model.run.__func__ is not module.Net._work


def test_the_containers_of_a_model_stay_the_same_objects(import_text: Load) -> None:
    module = made(import_text, calls_kept.HELD["dict in a list"])
    model = module.Net()
    table, first = model.table, model.table[0]
    method = first["work"]
    rewriter.rewrite(model, "dropout", input_size=16, inplace=True)
    assert model.table is table and model.table[0] is first and first["work"] != method
    rewriter.undo(model, inplace=True)
    assert model.table is table and model.table[0] is first and first["work"] == method


def test_a_copy_that_is_rewritten_shares_no_method_with_its_original(import_text: Load) -> None:
    model = made(import_text, calls_kept.HELD["dict in a list"]).Net()
    rewritten = rewriter.rewrite(model, "dropout", input_size=16)
    assert rewritten.table[0]["work"].__self__ is rewritten
    assert model.table[0]["work"].__self__ is model
    assert model.table[0]["work"].__func__ is type(model)._work


@pytest.mark.parametrize("way", ["dict in a list", "tuple in a named tuple", "partial", "object", "set and queue"])
def test_edits_that_fail_leave_exactly_what_was_kept(way: str, import_text: Load) -> None:
    model = made(import_text, calls_kept.HELD[way]).Net()
    kept = {name: value for name, value in vars(model).items() if not name.startswith("_")}
    edits = [*rewriter.plan(model, "dropout", input_size=16).edits]
    behaviour = "stochastic-pooling/input"
    with pytest.raises(PlanError):
        apply_edits(model, [*edits, AddBehaviour("", behaviour, {"no such option": 1})])
    assert {name: value for name, value in vars(model).items() if not name.startswith("_")} == kept
    assert all(vars(model)[name] is value for name, value in kept.items())
    assert not in_force("dropout", model)


# Several edits


BOTH = """
    class A(Layers):
        def __init__(self):
            super().__init__()
            self.conv2 = nn.Conv2d(8, 8, 1)
            self.way = functools.partial(self._head)
            self.ways = (self._head, None)
        def _head(self, x):
            x = F.avg_pool2d(self.bn(self.conv(x)).relu(), 2, 2)
            x = self.pool(self.conv2(x)).flatten(1)
            x = self.drop(x)
            return self.fc(x)
        def forward(self, x):
            return self.ways[0](x)
    class Net(A):
        def forward(self, x):
            return A.forward(self, x)
"""
PASSES = ["dropout", "stochastic-pooling"]


@pytest.mark.parametrize("names", [PASSES, PASSES[::-1]], ids=" then ".join)
def test_two_rewrites_of_one_kept_method_and_the_way_back(names: list[str], import_text: Load) -> None:
    model = made(import_text, BOTH).Net()
    before = output(model, image(16), training=True)
    method = model.ways[0].__func__
    two = model
    for name in names:
        two = rewriter.rewrite(two, name, input_size=16)
        assert in_force(name, two)
    assert {site.pass_name for site in rewriter.report(two).applied} == set(PASSES)
    for rewritten in (two, through_pickle(two)):
        assert all(in_force(name, rewritten) for name in PASSES)
        assert rewritten.ways[0].__func__ is type(rewritten)._head
        back = rewriter.undo(rewritten)
        assert back.ways[0].__func__ is back.way.func.__func__ is method
        assert type(back) is type(model)
        assert torch.equal(output(back, image(16), training=True), before)


def test_two_passes_at_once(import_text: Load) -> None:
    model = made(import_text, BOTH).Net()
    rewritten = rewriter.rewrite(model, PASSES, input_size=16)
    assert {site.pass_name for site in rewriter.report(rewritten).applied} == set(PASSES)
    assert all(in_force(name, rewritten) for name in PASSES)
    assert not rewriter.plan(rewritten, PASSES, input_size=16).sites


def test_two_passes_on_one_function_that_is_called_by_its_class(import_text: Load) -> None:
    model = made(import_text, BOTH.replace("self.ways[0](x)", "A._head(self, x)")).Net()
    rewritten = rewriter.rewrite(model, PASSES, input_size=16)
    assert all(in_force(name, rewritten) for name in PASSES)
    assert not rewriter.plan(rewritten, PASSES, input_size=16).sites
    undone = rewriter.undo(rewritten)
    model.load_state_dict(undone.state_dict())
    assert torch.equal(output(undone, image(16), training=True), output(model, image(16), training=True))


# Decorators


def test_what_a_decorator_keeps_besides_stays_shared(import_text: Load) -> None:
    module = made(
        import_text,
        """
        class decorated:
            made = []
            def __init__(self, function):
                self.function, self.calls = function, []
                self.all = {"this": function}
                decorated.made.append(self)
            def __get__(self, module, owner=None):
                return types.MethodType(self, module)
            def __call__(self, module, x):
                self.calls.append(x.shape)
                return self.function(module, x)
        class Net(Layers):
            @decorated
            def forward(self, x):
                WORK
        """,
    )
    model = module.Net()
    rewritten = rewriter.rewrite(model, "dropout", input_size=16, verify=False)
    (original,) = module.decorated.made
    edited = type(rewritten).__dict__["forward"]
    assert edited is not original and edited.calls is original.calls and edited.all is original.all
    before = len(original.calls)
    output(rewritten, image(16))
    assert len(original.calls) == before + 1
    assert in_force("dropout", rewritten) and not in_force("dropout", model)


def test_a_cache_of_the_decorator_is_not_shared(import_text: Load) -> None:
    model = made(import_text, calls.decorated(calls_decorated.DECORATORS["dispatch on the type"])).Net()
    for edited_first in (True, False):
        rewritten = rewriter.rewrite(model, "dropout", input_size=16)
        models = [(rewritten, True), (model, False)]
        for net, edited in models if edited_first else reversed(models):
            assert in_force("dropout", net) is edited


def test_a_decorator_that_cannot_be_copied_is_refused_with_the_reason(import_text: Load) -> None:
    module = made(
        import_text,
        """
        class decorated(dict):
            def __get__(self, module, owner=None):
                return functools.partial(self.function, module)
        def forward(self, x):
            WORK
        class Net(Layers):
            pass
        Net.forward = decorated()
        Net.__dict__["forward"].function = forward
        """,
        "stochastic-pooling",
    )
    plan = rewriter.plan(module.Net(), "stochastic-pooling", input_size=16)
    (skip,) = plan.skipped
    assert not plan.sites and skip.reason == "no-source"
    assert "decorated" in skip.detail and "cannot be copied" in skip.detail


def test_a_function_that_is_not_the_modules_own_is_refused(import_text: Load) -> None:
    module = made(
        import_text,
        """
        def work(self, x):
            WORK
        class Net(Layers):
            def __init__(self):
                super().__init__()
                self.forward = types.MethodType(work, self)
        """,
        "stochastic-pooling",
    )
    plan = rewriter.plan(module.Net(), "stochastic-pooling", input_size=16)
    assert not plan.sites
    assert [skip.reason for skip in plan.skipped] == ["no-source"]
    assert "has a forward of its own" in plan.skipped[0].detail


# Plans


def test_a_plan_shows_the_call_that_it_changes(import_text: Load) -> None:
    model = made(import_text, calls_named.NAMED["parent's forward"]).Net()
    diff = rewriter.plan(model, "dropout", input_size=16).diff(model)
    assert "-        return A.forward(self, x)" in diff
    assert "+        return self.forward_of_A(x)" in diff


def test_the_new_name_is_a_free_one(import_text: Load) -> None:
    module = made(import_text, calls_named.NAMED["parent's forward"])
    module.Net.forward_of_A = None
    model = module.Net()
    rewritten = rewriter.rewrite(model, "dropout", input_size=16)
    assert in_force("dropout", rewritten)
    assert rewritten.forward_of_A is None and callable(rewritten.forward_of_A_1)


@pytest.mark.parametrize(
    "change",
    [
        {"method": "__init__"},
        {"method": "a.b"},
        {"method": "conv"},
        {"owner": "os.path"},
        {"attribute": "_modules"},
        {"attribute": "feat"},
        {"operand": 1, "owner": 3},
        {"method": None},
    ],
)
def test_a_damaged_call_is_refused(change: dict[str, Any], import_text: Load) -> None:
    model = made(import_text, calls_named.NAMED["parent's forward"]).Net()
    data = json.loads(rewriter.plan(model, "dropout", input_size=16).to_json())
    (operation,) = [
        edit["operation"] for edit in data["sites"][0]["edits"] if edit["operation"]["kind"] == "call-method"
    ]
    operation.update(change)
    with pytest.raises(rewriter.RewriterError):
        rewriter.Plan.from_json(json.dumps(data)).apply(model)
    assert not in_force("dropout", model)


def test_a_forward_set_later_makes_the_edit_stale(import_text: Load) -> None:
    model = made(import_text, calls_kept.HELD["attribute"]).Net()
    rewritten = rewriter.rewrite(model, "dropout", input_size=16)
    assert not rewriter.report(rewritten).stale
    rewritten.forward = functools.partial(lambda x: x)
    assert rewriter.report(rewritten).stale == ("(root)",)


def test_a_kept_forward_is_not_stale(import_text: Load) -> None:
    for way in ("forward", "forward as accelerate keeps it"):
        model = made(import_text, calls_kept.HELD[way]).Net()
        assert not rewriter.report(rewriter.rewrite(model, "dropout", input_size=16)).stale


# The order in which classes are looked through


def test_bases_keep_their_order_when_several_are_edited(import_text: Load) -> None:
    module = made(
        import_text,
        """
        class Root(Layers):
            def head(self, x):
                x = self.pool(x).flatten(1)
                x = self.drop(x)
                return self.fc(x)
        class Left(Root):
            def body(self, x):
                return F.avg_pool2d(self.bn(self.conv(x)).relu(), 2, 2)
        class Right(Root):
            def head(self, x):
                return super().head(x) * 2
        class Net(Left, Right):
            def forward(self, x):
                return super().head(super().body(x))
        """,
    )
    model = module.Net()
    rewritten = rewriter.rewrite(model, ["dropout", "stochastic-pooling"], input_size=16)
    names = [cls.__name__ for cls in type(rewritten).__mro__]
    order = [cls.__name__ for cls in type(model).__mro__]
    assert [name for name in dict.fromkeys(names)] == order
    assert in_force("dropout", rewritten)
    assert torch.equal(output(rewritten, image(16)), output(model, image(16)))
    assert isinstance(module.Net.head, types.FunctionType)
