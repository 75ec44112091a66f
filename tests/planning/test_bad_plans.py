"""Text that is no plan, a damaged one, or one for another model: an error says so, and the model is untouched."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from helpers import assert_unchanged, snapshot, timm_model
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from timm.models.densenet import DenseNet
from torch import nn

import rewriter
from rewriter import (
    PlanError,
    RewriterError,
)
from rewriter.passes import Dropout


@pytest.fixture(scope="module")
def planned() -> tuple[nn.Module, dict[str, Any]]:
    """A small model and a plan for it that moves, removes, wraps and adds."""
    torch.manual_seed(0)
    model = DenseNet(growth_rate=4, block_config=(2, 2), num_classes=3, bn_size=2, drop_rate=0.1)
    model.pretrained_cfg = {"input_size": (3, 32, 32)}
    plan = json.loads(rewriter.plan(model, [Dropout(p=0.1, head_p=0), "stochastic-pooling"]).to_json())
    assert {edit["kind"] for site in plan["sites"] for edit in site["edits"]} == {"add", "behave", "edit"}
    return model, plan


def _checked_application(text: str, model: nn.Module) -> None:
    """The one property that every text must have: a RewriterError or a rewritten model, the given one untouched."""
    before = snapshot(model)
    try:
        applied = rewriter.Plan.from_json(text).apply(model)
        str(rewriter.report(applied))
    except RewriterError as error:
        assert str(error).strip()
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "damaged: not JSON"),
        ("{", "damaged: not JSON"),
        ("[]", "expected a plan of format 3, found 'list'"),
        ("null", "expected a plan of format 3, found 'NoneType'"),
        ("{}", "expected a plan of format 3, found None"),
        ('{"format": 1}', "expected a plan of format 3, found 1"),
        ('{"format": "3"}', "expected a plan of format 3, found '3'"),
        ('{"format": 3}', "the plan is damaged: passes: expected a list, found None"),
        ("[" * 100_000, "damaged"),
        ('{"format": 3, "a": "\\ud800"}', "damaged"),
    ],
    ids=lambda v: str(v)[:20],
)
def test_text_that_is_not_a_plan_is_refused(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        rewriter.Plan.from_json(text)


@pytest.mark.parametrize("thing", [None, 5, b"\xff", {"format": 1}])
def test_what_is_not_text_is_refused(thing: Any) -> None:
    with pytest.raises(PlanError):
        rewriter.Plan.from_json(thing)


@pytest.mark.slow
@pytest.mark.parametrize("inplace", [False, True])
def test_a_plan_for_another_model_is_refused(inplace: bool) -> None:
    plan = rewriter.plan(timm_model("test_resnet", drop_rate=0.1))
    assert plan.sites
    for other in (timm_model("resnet18"), timm_model("test_vit"), torchvision.models.mobilenet_v2()):
        before = snapshot(other)
        with pytest.raises(PlanError, match=r"Make a new plan|does not have"):
            plan.apply(other, inplace=inplace)
        assert_unchanged(other, before)


@pytest.mark.slow
def test_a_plan_fits_the_same_structure_with_other_weights_and_classes() -> None:
    plan = rewriter.plan(timm_model("test_resnet", drop_rate=0.1))
    report = rewriter.report(plan.apply(timm_model("test_resnet", num_classes=7)))
    assert report.inactive == plan.sites and len(plan.sites) == 1  # this one is created with a rate of 0


def _damage(data: Any, draw: Callable[[Any], Any]) -> Any:
    """``data`` with one value somewhere inside it replaced, removed or doubled."""
    parents: list[tuple[Any, Any]] = []
    pending = [data]
    while pending:
        item = pending.pop()
        keys = list(item) if isinstance(item, dict) else range(len(item)) if isinstance(item, list) else ()
        for key in keys:
            parents.append((item, key))
            pending.append(item[key])
    # Half of the damage goes to the edits, which hold most of what can go wrong.
    deep = [(p, k) for p, k in parents if isinstance(p, list) or k not in ("sites", "skipped", "notes", "passes")]
    parent, key = draw(st.sampled_from(deep))
    match draw(st.sampled_from(["delete", "replace", "replace", "replace", "other", "add"])):
        case "delete":
            del parent[key]
        case "replace":
            parent[key] = draw(_JSON)
        case "other":  # a value of the plan that belongs elsewhere
            source, name = draw(st.sampled_from(parents))
            parent[key] = json.loads(json.dumps(source[name]))
        case _ if isinstance(parent, dict):
            parent[draw(st.text(max_size=3))] = draw(_JSON)
        case _:
            parent.append(draw(_JSON))
    return data


_JSON = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.just(10**30),
    st.floats(),
    st.text(max_size=4),
    st.sampled_from(
        ["", ".", "__class__", "forward", "blocks.0", "blocks.0.attn.proj_drop", "p", "pass", "edit", "x.y"]
    ),
    st.sampled_from(["dropout", "dropout/moved", "dropout/dropout", "dropout/drops-input", "dropout/bypassed"]),
    st.sampled_from([[], {}, [[]], [0, 0, 0, 0], [-1, 0, -1, 3], [0, 0, 10**9, 10**9], [True, 0, 1, 2], {"p": "x"}]),
)


@pytest.mark.slow
@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    phases=[Phase.generate],  # shrinking a damaged plan takes minutes and shows little more
    report_multiple_bugs=False,
)
@given(data=st.data())
def test_a_damaged_plan_is_refused_or_works_and_never_harms_the_model(
    planned: tuple[nn.Module, dict[str, Any]], data: st.DataObject
) -> None:
    model, plan = planned
    damaged = json.loads(json.dumps(plan))
    for _ in range(data.draw(st.integers(1, 2))):
        damaged = _damage(damaged, data.draw)
    _checked_application(json.dumps(damaged), model)


_METHOD_EDIT = {
    "kind": "edit", "path": "", "owner": "timm.models.resnet.ResNet", "method": "forward_head", "digest": "0",
}  # fmt: skip
_REMOVE = {"kind": "remove", "call": [0, 0, 0, 1], "operand": 0}


@pytest.mark.parametrize(
    "edit",
    [
        {"kind": "nonsense", "path": ""},
        {"kind": "set", "path": "", "name": "no_such_attribute", "value": 1},
        {"kind": "set", "path": "bn1", "name": "weight", "value": "not a parameter"},
        {"kind": "set", "path": "", "name": "layer1", "value": 5},
        {"kind": "set", "path": "", "name": "__class__", "value": 5},
        {"kind": "set", "path": "", "name": "forward", "value": 5},
        {"kind": "add", "path": "", "name": "x", "layer": "os/system", "options": {}, "references": {}},
        {"kind": "add", "path": "", "name": "x", "layer": "dropout/dropout", "options": {"q": 1}, "references": {}},
        {"kind": "add", "path": "", "name": "x", "layer": "dropout/dropout", "options": {"p": 7}, "references": {}},
        {"kind": "add", "path": "", "name": "x", "layer": "dropout/dropout", "options": [1], "references": {}},
        {"kind": "add", "path": "", "name": "x", "layer": "dropout/dropout", "options": {}, "references": [1]},
        {
            "kind": "add",
            "path": "",
            "name": "x",
            "layer": "dropout/moved",
            "options": {},
            "references": {"origin": "no"},
        },
        {
            "kind": "add",
            "path": "",
            "name": "x",
            "layer": "dropout/moved",
            "options": {},
            "references": {"origin": "bn1"},
        },
        {"kind": "add", "path": "", "name": "x", "layer": "dropout/moved", "options": {}, "references": {"origin": 3}},
        {"kind": "add", "path": "", "name": "", "layer": "dropout/dropout", "options": {}, "references": {}},
        {"kind": "add", "path": "", "name": "a.b", "layer": "dropout/dropout", "options": {}, "references": {}},
        {"kind": "add", "path": "", "name": "layer1", "layer": "dropout/dropout", "options": {}, "references": {}},
        {"kind": "behave", "path": "", "behaviour": "os/system"},
        {"kind": "behave", "path": "", "behaviour": "dropout/drops-input"},
        {"kind": "behave", "path": "global_pool", "behaviour": "dropout/dropout"},
        {**_METHOD_EDIT, "operation": _REMOVE},
        {**_METHOD_EDIT, "digest": ["unhashable"], "operation": _REMOVE},
        {**_METHOD_EDIT, "operation": {**_REMOVE, "operand": ["unhashable"]}},
        {**_METHOD_EDIT, "operation": {**_REMOVE, "kind": "wrap", "module": "a; import os"}},
        {**_METHOD_EDIT, "operation": {**_REMOVE, "kind": "wrap", "module": 5}},
        {**_METHOD_EDIT, "owner": "os.path", "operation": _REMOVE},
        {**_METHOD_EDIT, "operation": None},
    ],
    ids=lambda e: "-".join(str(v) for v in e.values())[:60],
)
@pytest.mark.parametrize("inplace", [False, True])
def test_an_edit_that_no_model_can_take_is_refused(edit: dict[str, Any], inplace: bool) -> None:
    model = timm_model("test_resnet")
    plan = json.loads(rewriter.plan(model, Dropout(p=0.1)).to_json())
    for site in plan["sites"]:  # the true digest, so that the operation itself is looked at
        for real in site["edits"]:
            if edit.get("digest") == "0" and real["kind"] == "edit":
                edit = {**edit, "digest": real["digest"]}
    plan["sites"][0]["edits"].append(edit)
    before = snapshot(model)
    with pytest.raises(RewriterError):
        rewriter.Plan.from_json(json.dumps(plan)).apply(model, inplace=inplace)
    assert_unchanged(model, before)
