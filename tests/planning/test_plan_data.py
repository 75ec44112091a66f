"""A plan is data: it is written, read, compared and carried out elsewhere without loss."""

from __future__ import annotations

import builtins
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from helpers import assert_unchanged, image, output, slow_but, snapshot, timm_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import rewriter
from rewriter.edit.classes import original_class
from rewriter.edit.edits import (
    AddBehaviour,
    AddModule,
    EditMethod,
    SetAttribute,
    class_edits,
    edit_from_data,
    edit_to_data,
)
from rewriter.edit.operations import Move, Remove, Wrap
from rewriter.edit.source import Span
from rewriter.passes import Dropout
from rewriter.planning.structure import fingerprint
from rewriter.reasons import Reason

SUBJECTS: dict[str, Any] = {
    "test_resnet": lambda: timm_model("test_resnet", drop_rate=0.1),
    "test_vit": lambda: timm_model("test_vit", drop_rate=0.1),
    "densenet121": lambda: timm_model("densenet121", drop_rate=0.1),
    "torchvision mobilenet_v2": torchvision.models.mobilenet_v2,
}
QUICK = ("test_resnet", "test_vit")


def planned(name: str) -> tuple[nn.Module, rewriter.Plan]:
    model = SUBJECTS[name]()
    plan = rewriter.plan(model, Dropout(p=0.1), input_size=160 if name == "test_vit" else 64)
    assert plan.sites
    return model, plan


@pytest.mark.parametrize("name", slow_but(QUICK, SUBJECTS))
def test_a_plan_read_back_is_equal_and_does_the_same(name: str) -> None:
    model, plan = planned(name)
    text = plan.to_json()
    again = rewriter.Plan.from_json(text)
    assert again == plan and again.to_json() == text and str(again) == str(plan)
    assert again.diff(model) == plan.diff(model)
    first, second = plan.apply(model, verify=False), again.apply(model, verify=False)
    assert [type(m) for m in first.modules()] == [type(m) for m in second.modules()]
    x = image(160 if name == "test_vit" else 64)
    assert torch.equal(output(first, x, training=True), output(second, x, training=True))


@pytest.mark.parametrize("name", slow_but(QUICK, SUBJECTS))
def test_a_plan_is_plain_json_and_plain_python(name: str) -> None:
    _, plan = planned(name)

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    data = json.loads(plan.to_json(), parse_constant=refuse)
    assert set(data) == {
        "format", "model", "structure", "request", "passes", "contracts", "notes", "sites", "skipped", "advice",
        "parameters",
    }  # fmt: skip
    assert pickle.loads(pickle.dumps(plan)) == plan


@pytest.mark.slow
def test_planning_twice_and_in_another_process_gives_the_same_text(tmp_path: Path) -> None:
    script = (
        "import torch; torch.set_num_threads(1); import timm, rewriter; from passes import Dropout\n"
        "model = timm.create_model('test_vit', drop_rate=0.1)\n"
        "print(rewriter.plan(model, Dropout(p=0.1), input_size=160).to_json())"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert found.strip() == planned("test_vit")[1].to_json() == planned("test_vit")[1].to_json()


def test_a_plan_does_not_depend_on_weights_mode_or_precision() -> None:
    _, plan = planned("test_vit")
    other = timm_model("test_vit", drop_rate=0.1, num_classes=7).eval().to(torch.bfloat16)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(3)
    assert rewriter.plan(other, Dropout(p=0.1), input_size=160).sites == plan.sites


def test_the_fingerprint_sees_structure_and_nothing_else() -> None:
    model = timm_model("test_resnet")
    first = fingerprint(model)
    assert fingerprint(timm_model("test_resnet", num_classes=3).eval().half()) == first
    assert fingerprint(rewriter.rewrite(timm_model("test_resnet", drop_rate=0.1), "dropout")) == first
    assert fingerprint(timm_model("test_vit")) != first
    model.extra = nn.Identity()
    assert fingerprint(model) != first
    model = timm_model("test_resnet")
    model.layer1[0].bn1 = nn.GroupNorm(1, model.layer1[0].bn1.num_features)
    assert fingerprint(model) != first


@pytest.mark.slow
def test_a_pass_may_be_named_in_every_form() -> None:
    model = SUBJECTS["test_vit"]()
    wanted = rewriter.plan(model, Dropout(p=0.1)).to_json()
    for request in (
        [Dropout(p=0.1)],
        {"dropout": {"p": 0.1}},
        [{"dropout": {"p": 0.1}}],
        (Dropout(0.1),),
    ):
        assert rewriter.plan(model, request).to_json() == wanted
    plain = rewriter.plan(model, "dropout")
    assert plain.to_json() == rewriter.plan(model, [Dropout]).to_json() == rewriter.plan(model, ["dropout"]).to_json()
    assert dict(plain.passes)["dropout"] == {"p": None, "head_p": None}
    assert "dropout" in dict(rewriter.plan(model).passes)


@pytest.mark.parametrize("empty", [(), []])
def test_no_passes_is_a_plan_without_sites_and_a_plain_copy(empty: Any) -> None:
    model = timm_model("test_resnet")
    before = snapshot(model)
    assert rewriter.plan(model, empty).sites == ()
    rewritten = rewriter.rewrite(model, empty)
    assert [type(m) for m in rewritten.modules()] == [type(m) for m in model.modules()]
    assert_unchanged(model, before)
    same = rewriter.rewrite(model, empty, inplace=True)
    assert same is model and {type(m) for m in same.modules()} == {original_class(type(m)) for m in same.modules()}


@pytest.mark.parametrize("name", slow_but(QUICK, SUBJECTS))
def test_planning_and_printing_leave_the_model_unchanged(name: str) -> None:
    model = SUBJECTS[name]().train()
    before = snapshot(model)
    plan = rewriter.plan(model, Dropout(p=0.1), input_size=160 if name == "test_vit" else 64)
    assert str(plan) and plan.to_json() and isinstance(plan.diff(model), str)
    assert_unchanged(model, before)


@pytest.mark.parametrize("name", slow_but(QUICK, SUBJECTS))
def test_every_site_and_every_skip_says_where_and_why(name: str) -> None:
    model, plan = planned(name)
    paths = dict(model.named_modules())
    for item in (*plan.sites, *plan.skipped):
        assert item.pass_name == "dropout" and item.path in paths and item.pattern
    for site in plan.sites:
        assert site.edits and site.action and site.reason
        assert all(edit.path in paths for edit in site.edits)
    for skip in plan.skipped:
        assert isinstance(skip.reason, Reason) and skip.detail


@pytest.mark.parametrize("name", slow_but(QUICK, SUBJECTS))
def test_a_rewritten_model_is_planned_as_already_done(name: str) -> None:
    model, plan = planned(name)
    size = 160 if name == "test_vit" else 64
    again = rewriter.plan(rewriter.rewrite(model, Dropout(p=0.1), input_size=size), Dropout(p=0.1), input_size=size)
    assert again.sites == ()
    assert [s.reason for s in again.skipped].count(Reason.ALREADY_DONE) == len(plan.sites)


def test_the_diff_shows_each_change_of_source_once() -> None:
    model, plan = planned("test_vit")
    text = plan.diff(model)
    assert text.count("+        x = self.proj(self.proj_drop(x))") == 1
    assert text.count("-        x = self.proj_drop(x)") == 1
    assert "# blocks.{0-5}.attn (6)" in text


_SPANS = st.builds(Span, *[st.integers(0, 99)] * 4)
_PATHS = st.text("abc.01", max_size=8)
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
_HYPER_PARAMETERS = _SCALARS | st.lists(st.integers(), max_size=3).map(tuple)
_OPERATIONS = st.one_of(
    st.builds(Remove, _SPANS, st.integers(-1, 5)),
    st.builds(Move, _SPANS, st.integers(-1, 5), _SPANS, st.integers(-1, 5)),
    st.builds(Wrap, _SPANS, st.integers(-1, 5), st.text("ab.", min_size=1, max_size=5)),
)
_EDITS = st.one_of(
    st.builds(SetAttribute, _PATHS, st.text(max_size=5), _HYPER_PARAMETERS),
    st.builds(
        AddModule, _PATHS, st.text(max_size=5), st.text(max_size=5),
        st.dictionaries(st.text(max_size=3), _VALUES, max_size=3),
        st.dictionaries(st.text(max_size=3), _PATHS, max_size=3),
    ),
    st.builds(AddBehaviour, _PATHS, st.text(max_size=5)),
    st.builds(EditMethod, _PATHS, st.text(max_size=5), st.text(max_size=5), st.text(max_size=5), _OPERATIONS),
)  # fmt: skip


@settings(deadline=None, max_examples=200, derandomize=True)
@given(_EDITS)
def test_any_edit_survives_json(edit: Any) -> None:
    assert edit_from_data(json.loads(json.dumps(edit_to_data(edit)))) == edit


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.lists(st.builds(EditMethod, st.sampled_from(["", "a"]), st.sampled_from("MN"), st.sampled_from("fg"),
                          st.just("0"), st.builds(Remove, _SPANS, st.just(0))), max_size=8))  # fmt: skip
def test_edits_of_one_module_become_one_change_of_its_class(edits: list[EditMethod]) -> None:
    found = class_edits(edits)
    assert set(found) == {edit.path for edit in edits}
    for path, change in found.items():
        keys = [(m.owner, m.method) for m in change.methods]
        assert len(keys) == len(set(keys))
        listed = {(m.owner, m.method, operation) for m in change.methods for operation in m.operations}
        assert listed == {(e.owner, e.method, e.operation) for e in edits if e.path == path}
        assert sum(len(m.operations) for m in change.methods) == len(listed)
        hash(change)


def test_reading_a_plan_imports_and_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _, plan = planned("test_vit")
    text = plan.to_json()
    known, ran = set(sys.modules), []
    for name in ("exec", "eval", "compile", "__import__"):
        real = getattr(builtins, name)
        monkeypatch.setattr(builtins, name, lambda *a, n=name, f=real, **k: (ran.append((n, a[0])), f(*a, **k))[1])
    try:
        again = rewriter.Plan.from_json(text)
    finally:
        monkeypatch.undo()
    assert again == plan
    assert [what for what in ran if what[0] != "__import__" or what[1] not in known] == []
    assert set(sys.modules) == known
