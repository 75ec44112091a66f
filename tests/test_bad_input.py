"""Whatever is wrong with a request, one clear error says so, and the model is bit for bit what it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
import torchvision
from helpers import assert_unchanged, image, output, random_state, snapshot, timm_model
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from timm.models.densenet import DenseNet
from torch import nn

import rewriter
from rewriter import (
    ContractError,
    InputError,
    ModelError,
    PlanError,
    RewriterError,
    SelectorError,
    TraceError,
    UndoError,
)
from rewriter.edit import edits as edits_module
from rewriter.edit.edits import AddBehaviour, AddModule, SetAttribute
from rewriter.guideline.base import Contract, Pass, Site, Skipped
from rewriter.guideline.registry import installed_passes
from rewriter.layers.registry import register_layer
from rewriter.passes import Dropout
from rewriter.planning import verify
from rewriter.tracing.trace import Trace

VERBS: dict[str, Callable[[Any], Any]] = {
    "plan": rewriter.plan,
    "rewrite": rewriter.rewrite,
    "report": rewriter.report,
    "undo": rewriter.undo,
    "trace": rewriter.trace,
    "to_graph_module": rewriter.to_graph_module,
    "original_state_dict": rewriter.original_state_dict,
}


# Not a model that can be rewritten


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("thing", [None, 5, "resnet18", {}, torch.nn.functional.relu, torch.zeros(1)], ids=type)
def test_what_is_not_a_module_is_refused_with_its_type(verb: str, thing: Any) -> None:
    with pytest.raises(ModelError, match=f"expected a torch.nn.Module, found {type(thing).__name__}"):
        VERBS[verb](thing)


@pytest.mark.parametrize("verb", VERBS)
def test_a_class_is_refused_and_the_message_says_to_call_it(verb: str) -> None:
    with pytest.raises(ModelError, match=r"found the class ResNet; call it first: ResNet\(\.\.\.\)"):
        VERBS[verb](torchvision.models.ResNet)


@pytest.fixture(scope="module")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    distributed = torch.distributed
    if not distributed.is_available() or distributed.is_initialized():
        pytest.skip("no process group of our own")
    store = tmp_path_factory.mktemp("store") / "file"
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def _compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile()
    return model


def _with_wrapped_part(model: nn.Module) -> nn.Module:
    model.layer2 = nn.DataParallel(model.layer2)
    return model


@pytest.mark.parametrize("verb", ["plan", "rewrite", "trace", "to_graph_module"])
@pytest.mark.parametrize(
    ("wrap", "remedy"),
    [
        (nn.DataParallel, "the model is wrapped in DataParallel; give its .module instead"),
        (torch.compile, "the model was compiled by torch.compile\\(\\); give its ._orig_mod instead"),
        (_compiled_in_place, r"compiled in place by \.compile\(\)"),
        (_with_wrapped_part, "module 'layer2' is wrapped in DataParallel; give its .module instead"),
    ],
)
def test_wrapped_and_compiled_models_are_refused_with_the_remedy(verb: str, wrap: Any, remedy: str) -> None:
    wrapped = wrap(timm_model("test_resnet"))
    before = snapshot(wrapped)
    with pytest.raises(ModelError, match=f"{remedy}.*Rewrite first.*then compile and wrap"):
        VERBS[verb](wrapped)
    assert_unchanged(wrapped, before)


def test_ddp_is_refused_with_the_remedy(process_group: None) -> None:
    wrapped = nn.parallel.DistributedDataParallel(timm_model("test_resnet"))
    before = snapshot(wrapped)
    with pytest.raises(ModelError, match=r"DistributedDataParallel; give its \.module instead.*Rewrite first"):
        rewriter.rewrite(wrapped, inplace=True)
    assert_unchanged(wrapped, before)


@pytest.mark.parametrize("part", ["", "layer1"])
def test_fsdp2_is_refused_with_when_to_rewrite(process_group: None, part: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = timm_model("test_resnet")
    fully_shard(model.get_submodule(part), mesh=init_device_mesh("cpu", (1,)))
    classes = [type(m) for m in model.modules()]
    where = f"module '{part}'" if part else "the model"
    with pytest.raises(ModelError, match=f"{where} is sharded by FSDP.*Rewrite first"):
        rewriter.rewrite(model, inplace=True)
    assert [type(m) for m in model.modules()] == classes


def test_scripted_and_traced_models_are_refused() -> None:
    model = timm_model("test_resnet").eval()
    for gone in (torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3))), torch.jit.trace(model, image())):
        with pytest.raises(ModelError, match=r"its Python code is gone. Rewrite, then script it"):
            rewriter.rewrite(gone, input_size=64)


def test_a_scripted_part_is_refused_by_its_path() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), torch.jit.script(nn.Sequential(nn.ReLU())))
    with pytest.raises(ModelError, match=r"module '1' is a \w+: its Python code is gone"):
        rewriter.plan(model, input_size=64)


def test_a_lazy_module_is_refused_by_its_path_until_it_has_run() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.BatchNorm2d(4))
    with pytest.raises(ModelError, match=r"module '0': 'weight' of the lazy LazyConv2d .*Run the model once"):
        rewriter.plan(model, input_size=32)
    model(image(32))
    assert rewriter.plan(model, input_size=32).sites == ()


# A model that does not run on the input


@pytest.mark.parametrize(
    ("name", "size", "module", "line"),
    [
        ("test_resnet", (5, 64, 64), r"module 'conv1\.0' \(Conv2d\)", r"resnet\.py:\d+"),
        ("test_vit", 100, r"module 'patch_embed' \(PatchEmbed\)", r"patch_embed\.py:\d+"),
        ("densenet121", (1, 64, 64), r"module 'features\.conv0' \(Conv2d\)", r"densenet\.py:\d+"),
        ("resnet18", (3, 0, 8), None, None),
    ],
)
def test_an_input_that_does_not_fit_names_the_module_and_the_line(
    name: str, size: Any, module: str | None, line: str | None
) -> None:
    model = timm_model(name)
    before = snapshot(model)
    expected = TraceError if module else InputError
    for verb in (rewriter.plan, rewriter.rewrite):
        with pytest.raises(expected, match=f"could not be run.*{module} at .*{line}" if module else "positive ints"):
            verb(model, input_size=size)
    assert_unchanged(model, before)


def test_an_error_inside_the_users_own_code_names_file_line_and_text(import_text: Callable[[str], ModuleType]) -> None:
    made = import_text(
        """
        import torch
        from torch import nn

        class Inner(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 3)

            def forward(self, x):
                x = self.conv(x)
                return x.view(7, -1, 11)

        class Outer(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = Inner()

            def forward(self, x):
                return self.inner(x)
        """
    )
    model = made.Outer()
    before = snapshot(model)
    with pytest.raises(TraceError) as caught:
        rewriter.rewrite(model, input_size=32, inplace=True)
    text = str(caught.value)
    assert "module 'inner' (Inner)" in text
    assert f"{made.__file__}:12 (`return x.view(7, -1, 11)`)" in text
    assert_unchanged(model, before)


def test_the_torchvision_model_without_configuration_asks_for_a_size() -> None:
    model = torchvision.models.resnet18()
    before = snapshot(model)
    for verb in (rewriter.plan, rewriter.rewrite, rewriter.trace, rewriter.to_graph_module):
        with pytest.raises(InputError, match=r"no input size found: ResNet .*Give input_size=224"):
            verb(model)
    assert_unchanged(model, before)


@pytest.mark.parametrize("size", [(2, 3, 64, 64), [1, 3, 64, 64], torch.Size([2, 3, 64, 64])], ids=str)
def test_a_size_with_a_batch_is_refused(size: Any) -> None:
    with pytest.raises(InputError, match=r"four numbers; leave the batch away: \(C, H, W\)"):
        rewriter.plan(timm_model("test_resnet"), input_size=size)


@pytest.mark.parametrize("size", [0, -1, 2.5, "big", (64,), (64.0, 64), (64, -64), {"a": 1}, object, True], ids=str)
def test_a_size_of_another_form_is_refused(size: Any) -> None:
    with pytest.raises(InputError, match=r"input_size: expected an int, \(H, W\) or \(C, H, W\)"):
        rewriter.plan(timm_model("test_resnet"), input_size=size)


@pytest.mark.parametrize("examples", [5, "x", object(), [], {}, (), {"x": 3}], ids=type)
def test_examples_without_a_tensor_are_refused(examples: Any) -> None:
    with pytest.raises(InputError, match="example_inputs: expected"):
        rewriter.plan(timm_model("test_resnet"), example_inputs=examples)


def test_size_and_examples_together_are_refused() -> None:
    with pytest.raises(InputError, match="not both"):
        rewriter.plan(timm_model("test_resnet"), example_inputs=image(), input_size=64)


@pytest.mark.parametrize(
    "examples",
    [
        {"nope": image()},
        (image(), image(), image(), image()),
        image()[0, 0],
        torch.zeros(2, 3, 64, 64, dtype=torch.long),
        torch.zeros(2, 3, 64, 64, dtype=torch.float64),
    ],
    ids=["unknown argument", "too many arguments", "too few dimensions", "integers", "double"],
)
def test_examples_that_the_model_does_not_take_are_refused(examples: Any) -> None:
    model = timm_model("test_resnet", drop_rate=0.1)
    before = snapshot(model)
    with pytest.raises((InputError, TraceError)):
        rewriter.rewrite(model, "dropout", example_inputs=examples, inplace=True)
    assert_unchanged(model, before)


# What was asked for


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        ("dropuot", r"unknown pass 'dropuot'; did you mean 'dropout'"),
        (["dropout", "nonsense"], "unknown pass 'nonsense'; known: .*dropout"),
        ({"dropout": {"q": 0.1}}, "pass 'dropout' has no option 'q'; its options: p, head_p"),
        ({"dropout": {"p": 2}}, "dropout: p is a drop rate, expected 0 <= p < 1, found 2"),
        ({"dropout": {"p": "high"}}, "dropout: p is a drop rate.*found 'high'"),
        ({"dropout": {"head_p": -0.1}}, "dropout: head_p is a drop rate.*found -0.1"),
        ({"dropout": {"p": float("nan")}}, "dropout: p is a drop rate.*found nan"),
        (["dropout", "dropout"], "pass 'dropout' is asked for 2 times"),
        (["dropout", Dropout(p=0.1)], "pass 'dropout' is asked for 2 times"),
        ({"dropout": {}, "other": {}}, "not a pass"),
        ({"dropout": 0.1}, "not a pass"),
        ([5], "not a pass: 5"),
        ([None], "not a pass: None"),
        (5, "expected a sequence of passes, found int"),
        ({"dropout"}, "expected a sequence of passes, found set"),
    ],
    ids=str,
)
def test_passes_that_do_not_exist_or_take_no_such_option_are_refused(passes: Any, message: str) -> None:
    model = timm_model("test_resnet")
    before = snapshot(model)
    for verb in (rewriter.plan, rewriter.rewrite):
        with pytest.raises(SelectorError, match=message):
            verb(model, passes)
    assert_unchanged(model, before)


@pytest.mark.parametrize("value", ["all", "", None, True, "EVAL", ["auto"]], ids=str)
def test_an_unknown_value_of_preserve_is_refused_with_the_known_ones(value: Any) -> None:
    with pytest.raises(SelectorError, match="preserve: expected one of 'auto', 'eval', 'nothing'"):
        rewriter.plan(timm_model("test_resnet"), preserve=value)


@pytest.mark.parametrize("argument", ["only", "skip"])
@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ("layer5", "'layer5' matches no module of ResNet; did you mean .*'layer4'"),
        ("layer1.0.conv9", "did you mean .*'layer1.0.conv1'"),
        ("layer1.*.nothing", "matches no module"),
        ("re:layer9.*", "'re:layer9.*' matches no module"),
        ("re:(", r"'re:\(' is not a regular expression"),
        (nn.LSTM, "'LSTM' matches no module of ResNet; .*BatchNorm2d"),
        (["layer1", "layer_4"], "'layer_4' matches no module of ResNet; did you mean .*'layer4'"),
        ([5], "not a selector: 5"),
        (5, "not a selector"),
        ("re:ayer1", "matches no module"),
        ("", None),
    ],
    ids=str,
)
def test_a_selector_that_matches_nothing_is_refused_with_near_names(
    argument: str, selector: Any, message: str | None
) -> None:
    model = timm_model("test_resnet")
    before = snapshot(model)
    if message is None:  # the path of the model itself
        rewriter.plan(model, **{argument: selector})
    else:
        with pytest.raises(SelectorError, match=message):
            rewriter.rewrite(model, inplace=True, **{argument: selector})
    assert_unchanged(model, before)


@pytest.mark.parametrize("inplace", [False, True])
def test_undo_of_a_model_that_was_not_rewritten_is_refused(inplace: bool) -> None:
    model = timm_model("test_resnet")
    before = snapshot(model)
    with pytest.raises(UndoError, match="ResNet was not rewritten"):
        rewriter.undo(model, inplace=inplace)
    rewritten = rewriter.rewrite(model, "dropout")
    with pytest.raises(UndoError, match="was not rewritten"):
        rewriter.undo(rewriter.undo(rewritten), inplace=inplace)
    with pytest.raises(UndoError, match="only a part of a model that was"):
        rewriter.undo(rewritten.layer1, inplace=inplace)
    assert_unchanged(model, before)


# Plans


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


@pytest.mark.parametrize("inplace", [False, True])
def test_a_plan_for_another_model_is_refused(inplace: bool) -> None:
    plan = rewriter.plan(timm_model("test_resnet", drop_rate=0.1))
    assert plan.sites
    for other in (timm_model("resnet18"), timm_model("test_vit"), torchvision.models.mobilenet_v2()):
        before = snapshot(other)
        with pytest.raises(PlanError, match=r"Make a new plan|does not have"):
            plan.apply(other, inplace=inplace)
        assert_unchanged(other, before)


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


# All or nothing


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


@pytest.mark.parametrize(("deed", "what"), _BROKEN)
@pytest.mark.parametrize("inplace", [False, True])
def test_an_installed_pass_that_breaks_its_contract_is_named(
    deed: str, what: str, inplace: bool, installed: None
) -> None:
    _expect_broken({"naughty": {"deed": deed}}, what, inplace)


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


@pytest.mark.parametrize("text", ["../x", "\x00", "a" * 5000])
def test_a_path_as_a_pass_name_is_only_a_name(text: str, tmp_path: Path) -> None:
    with pytest.raises(SelectorError, match="unknown pass"):
        rewriter.plan(timm_model("test_resnet"), text)


def test_a_model_that_takes_more_than_an_image_is_told_how_to_give_it() -> None:
    class Conditioned(nn.Module):
        def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            return sample * timestep

    with pytest.raises(rewriter.TraceError, match=r"missing .* give example_inputs= with all its arguments"):
        rewriter.plan(Conditioned(), input_size=16)


class StemMadeLast(nn.Module):
    """Its first convolution that is registered does not read the image."""

    def __init__(self, colours: int) -> None:
        super().__init__()
        self.body = nn.Conv2d(32, 8, 3)
        self.stem = nn.Conv2d(colours, 32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(self.stem(x))


def test_the_convolution_that_was_made_first_need_not_read_the_image() -> None:
    assert rewriter.trace(StemMadeLast(3), input_size=16).inputs.image_size == (3, 16, 16)
    with pytest.raises(rewriter.TraceError, match=r"give input_size=\(channels, height, width\)"):
        rewriter.trace(StemMadeLast(5), input_size=16)
    assert rewriter.trace(StemMadeLast(5), input_size=(5, 16, 16)).inputs.image_size == (5, 16, 16)
