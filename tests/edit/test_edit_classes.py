"""One object gets other behaviour and stays an object of its class: in name, copies, pickles and other processes."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torchvision
from helpers import assert_unchanged, image, output, slow_but, snapshot, timm_model
from timm.models.densenet import DenseNet
from timm.utils import ModelEmaV3
from torch import nn

import rewriter
from rewriter.edit.classes import (
    ClassEdit,
    MethodEdit,
    class_name,
    derive,
    is_generated,
    original_class,
    re_emittable_methods,
)
from rewriter.edit.operations import Operation, Remove, Wrap
from rewriter.edit.source import FunctionSource, Span, read_source
from rewriter.errors import PlanError
from rewriter.passes import Dropout

Load = Callable[[str], ModuleType]


def _small_densenet() -> nn.Module:
    torch.manual_seed(0)
    return DenseNet(growth_rate=4, block_config=(2, 2), num_classes=3, bn_size=2, drop_rate=0.3)


def _mobilenet() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.mobilenet_v2(num_classes=5)


MODELS: dict[str, tuple[Callable[[], nn.Module], int, set[str]]] = {
    "test_resnet": (lambda: timm_model("test_resnet", drop_rate=0.3), 64, {"edit"}),
    "test_vit": (lambda: timm_model("test_vit", drop_rate=0.3, proj_drop_rate=0.3), 160, {"edit", "behave"}),
    "densenet": (_small_densenet, 32, {"add", "edit"}),
    "torchvision mobilenet_v2": (_mobilenet, 64, set()),
}
QUICK = ("test_resnet", "densenet")


def rewritten_model(name: str, **options: Any) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """The model ``name``, its rewritten copy, and an input."""
    make, size, kinds = MODELS[name]
    model, x = make(), image(size)
    rewritten = rewriter.rewrite(model, Dropout(p=0.2), example_inputs=x, **options)
    assert {edit.kind for site in rewriter.report(rewritten).applied for edit in site.edits} >= kinds
    assert rewriter.report(rewritten).applied
    return model, rewritten, x


def assert_same_computation(a: nn.Module, b: nn.Module, x: torch.Tensor) -> None:
    """Equal bit for bit in evaluation mode and, with equal seeds, in training mode."""
    for training in (False, True):
        # on copies: batch norm statistics move in training
        first, second = (output(copy.deepcopy(m), x, training=training) for m in (a, b))
        assert torch.equal(first, second), "training" if training else "eval"


def assert_really_edited(model: nn.Module, rewritten: nn.Module, x: torch.Tensor) -> None:
    """The edit shows: in training, the same seed drops something else than it did before."""
    assert not torch.equal(
        output(copy.deepcopy(model), x, training=True), output(copy.deepcopy(rewritten), x, training=True)
    )


# Identity of the class


@pytest.mark.parametrize("name", slow_but(QUICK, MODELS))
def test_a_generated_class_looks_like_its_original(name: str) -> None:
    model, rewritten, x = rewritten_model(name)
    generated = [
        (old, new) for old, new in zip(model.modules(), rewritten.modules(), strict=False) if is_generated(type(new))
    ]
    edited = [m for m in rewritten.modules() if is_generated(type(m))]
    assert edited
    for module in edited:
        cls, base = type(module), original_class(type(module))
        assert isinstance(module, base) and issubclass(cls, base) and cls is not base
        for attribute in ("__name__", "__qualname__", "__module__", "__doc__"):
            assert getattr(cls, attribute) == getattr(base, attribute), attribute
        assert class_name(cls) == class_name(base)
        assert repr(cls) == repr(base)
    assert generated or "add" in MODELS[name][2]
    assert type(rewritten).__name__ == type(model).__name__
    assert isinstance(rewritten, type(model))
    assert_really_edited(model, rewritten, x)


@pytest.mark.thorough
def test_the_same_edit_of_the_same_class_is_the_same_class() -> None:
    _, first, _ = rewritten_model("test_vit")
    _, second, _ = rewritten_model("test_vit")
    assert [type(m) for m in first.modules()] == [type(m) for m in second.modules()]
    assert type(first.blocks[0].attn) is type(first.blocks[3].attn)
    assert is_generated(type(first.blocks[0].attn))


def test_signature_annotations_and_documentation_of_a_method_stay() -> None:
    import inspect

    model, rewritten, _ = rewritten_model("test_resnet")
    old, new = type(model).forward_head, type(rewritten).forward_head
    assert old is not new
    assert inspect.signature(old) == inspect.signature(new)
    assert (old.__doc__, old.__annotations__, old.__qualname__) == (new.__doc__, new.__annotations__, new.__qualname__)


def test_methods_that_were_not_edited_are_the_same_functions() -> None:
    model, rewritten, _ = rewritten_model("test_resnet")
    changed = {
        name
        for _, name, function in re_emittable_methods(type(model))
        if getattr(type(rewritten), name) is not getattr(type(model), name)
    }
    assert changed == {"forward_head"}


# Copies, pickles, other processes


def _through_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def _through_torch_save(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


DUPLICATORS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": _through_pickle,
    "pickle protocol 2": lambda model: pickle.loads(pickle.dumps(model, protocol=2)),
    "torch.save": _through_torch_save,
    "copy of a copy": lambda model: copy.deepcopy(_through_pickle(copy.deepcopy(model))),
}


@pytest.mark.thorough
@pytest.mark.parametrize("duplicate", DUPLICATORS.values(), ids=DUPLICATORS)
@pytest.mark.parametrize("name", slow_but(QUICK, MODELS))
def test_a_duplicate_computes_the_same_and_can_be_undone(name: str, duplicate: Any) -> None:
    model, rewritten, x = rewritten_model(name)
    before = snapshot(rewritten)
    twin = duplicate(rewritten)
    assert_unchanged(rewritten, before)
    assert [type(m) for m in twin.modules()] == [type(m) for m in rewritten.modules()]
    assert {id(p) for p in twin.parameters()}.isdisjoint(id(p) for p in rewritten.parameters())
    assert {id(m) for m in twin.modules()}.isdisjoint(id(m) for m in rewritten.modules())
    assert_same_computation(twin, rewritten, x)
    assert_really_edited(model, twin, x)
    assert str(rewriter.report(twin)) == str(rewriter.report(rewritten))
    undone = rewriter.undo(twin)
    assert [type(m) for m in undone.modules()] == [type(m) for m in model.modules()]
    assert_same_computation(undone, model, x)


@pytest.mark.slow
@pytest.mark.parametrize("duplicate", DUPLICATORS.values(), ids=DUPLICATORS)
def test_a_moved_rate_of_a_duplicate_belongs_to_the_duplicate(duplicate: Any) -> None:
    _, rewritten, x = rewritten_model("torchvision mobilenet_v2")
    twin = duplicate(rewritten)
    rates = [m for m in twin.modules() if isinstance(m, nn.Dropout)]
    assert rates
    for module in rates:
        module.p = 0.0
    original_rates = [m.p for m in rewritten.modules() if isinstance(m, nn.Dropout)]
    assert original_rates and all(rate > 0 for rate in original_rates)
    twin.train()
    for module in twin.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert torch.equal(twin(x), twin(x)), "a rate of 0 still drops"


def test_exponential_moving_averages_follow_a_rewritten_model() -> None:
    model, rewritten, x = rewritten_model("test_resnet")
    average = ModelEmaV3(rewritten, decay=0.5)
    assert [type(m) for m in average.module.modules()] == [type(m) for m in rewritten.modules()]
    with torch.no_grad():
        for parameter in rewritten.parameters():
            parameter.add_(1.0)
    average.update(rewritten)
    first = next(model.parameters()), next(average.module.parameters())
    torch.testing.assert_close(first[0] + 0.5, first[1])
    assert average.module(x).shape == (2, 1000)


_FRESH = """
import pickle, sys, torch
torch.set_num_threads(1)
folder, results = sys.argv[1], {}
for name, x in torch.load(f"{folder}/inputs.pt").items():
    with open(f"{folder}/{name}.pickle", "rb") as file:
        pickled = pickle.load(file)
    saved = torch.load(f"{folder}/{name}.pt", weights_only=False)
    for kind, model in (("pickle", pickled), ("torch", saved)):
        for training in (False, True):
            torch.manual_seed(0)
            with torch.no_grad():
                results[f"{name} {kind} {training}"] = model.train(training)(x)
        results[f"{name} {kind} class"] = [type(m).__qualname__ for m in model.modules()]
    import rewriter
    results[f"{name} report"] = str(rewriter.report(saved))
    if rewriter.report(saved).records:  # the handmade model was edited without the public verbs
        results[f"{name} undone"] = [str(type(m)) for m in rewriter.undo(saved).modules()]
torch.save(results, f"{folder}/results.pt")
"""


@pytest.mark.slow
def test_a_fresh_process_loads_what_computes_the_same(tmp_path: Path, import_text: Load) -> None:
    handmade = import_text(HANDMADE)
    subjects = {name.replace(" ", "_"): rewritten_model(name) for name in MODELS}
    child = derived(handmade.Child, handmade.Base, "step", [Wrap(Span(0, 0, 0, 0), 0, "extra")], "self.fc(x)")
    subjects["handmade"] = (handmade.Child(), child, torch.ones(2, 4))
    torch.save({name: x for name, (_, _, x) in subjects.items()}, tmp_path / "inputs.pt")
    expected = {}
    for name, (model, rewritten, x) in subjects.items():
        (tmp_path / f"{name}.pickle").write_bytes(pickle.dumps(rewritten))
        torch.save(rewritten, tmp_path / f"{name}.pt")
        for training in (False, True):
            expected[f"{name} {training}"] = output(copy.deepcopy(rewritten), x, training=training)
        expected[f"{name} class"] = [type(m).__qualname__ for m in rewritten.modules()]
        expected[f"{name} undone"] = [str(type(m)) for m in model.modules()]
    folders = (tmp_path, *Path(__file__).parents[:2])
    path = os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", _FRESH, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = torch.load(tmp_path / "results.pt", weights_only=False)
    for name in subjects:
        for kind in ("pickle", "torch"):
            for training in (False, True):
                assert torch.equal(results[f"{name} {kind} {training}"], expected[f"{name} {training}"]), (name, kind)
            assert results[f"{name} {kind} class"] == expected[f"{name} class"]
        if name != "handmade":
            assert results[f"{name} undone"] == expected[f"{name} undone"]
            assert results[f"{name} report"] == str(rewriter.report(subjects[name][1]))


def test_a_pickle_holds_no_code() -> None:
    """What is stored names the original class and the edit; no function and no source goes with it."""
    _, rewritten, _ = rewritten_model("test_resnet")
    data = pickle.dumps(rewritten)
    assert b"timm.models.resnet" in data and b"ClassEdit" in data
    assert b"F.dropout(x" not in data and b"<rewriter" not in data


@pytest.mark.thorough
def test_a_pickle_of_an_edit_for_another_source_is_refused() -> None:
    _, rewritten, _ = rewritten_model("test_resnet")
    digest = rewriter.report(rewritten).applied[0].edits[0].digest
    data = pickle.dumps(rewritten)
    assert data.count(digest.encode()) >= 1
    with pytest.raises(PlanError, match="another source than the plan was made for"):
        pickle.loads(data.replace(digest.encode(), b"0" * len(digest)))


# Handmade classes

HANDMADE = """
import torch
from torch import nn


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4, bias=False)
        self.drop = nn.Dropout(0.5)
        self.extra = nn.Tanh()
        nn.init.eye_(self.fc.weight)

    def step(self, x):
        return self.drop(self.fc(x))

    def forward(self, x):
        x = self.step(x)
        x += self.fc(x)
        return x


class Child(Base):
    def step(self, x):
        return super().step(x) * 2


class Grandchild(Child):
    def step(self, x):
        x = super().step(x)
        return super(Child, self).step(x) + 1


class InPlace(Base):
    def forward(self, x):
        x = self.fc(x)
        x += 1
        x.mul_(2)
        x[:, 0] = 7
        return self.drop(x)
"""


def _placed(operation: Operation, source: FunctionSource, text: str) -> Operation:
    """``operation`` at the expression ``text``."""
    from written_methods import span_of

    return type(operation)(**{**vars(operation), "call": span_of(source, text)})


def derived(cls: type, owner: type, method: str, operations: list[Operation], text: str) -> nn.Module:
    """A new ``cls`` whose ``method``, defined by ``owner``, is edited at the expression ``text``."""
    source = read_source(owner.__dict__[method])
    placed = tuple(_placed(operation, source, text) for operation in operations)
    module = cls()
    module.__class__ = derive(
        type(module), ClassEdit((), (MethodEdit(class_name(owner), method, source.digest, placed),))
    )
    return module


@pytest.mark.parametrize("name", ["Base", "Child", "Grandchild"])
def test_a_method_that_is_reached_through_super_is_edited_there(name: str, import_text: Load) -> None:
    made = import_text(HANDMADE)
    cls, x = getattr(made, name), torch.full((2, 4), 0.25)
    module = derived(cls, made.Base, "step", [Wrap(Span(0, 0, 0, 0), 0, "extra")], "self.fc(x)").eval()

    class ByHand(made.Base):  # type: ignore[name-defined, misc]
        def step(self, x: torch.Tensor) -> torch.Tensor:
            return self.drop(self.fc(self.extra(x)))

    expected: Any = ByHand().eval().step
    if name == "Base":
        wanted = expected(x)
    elif name == "Child":
        wanted = expected(x) * 2
    else:
        wanted = expected(expected(x) * 2) + 1
    assert torch.equal(module.step(x), wanted)
    assert not torch.equal(module.step(x), cls().eval().step(x))
    for twin in (copy.deepcopy(module), _through_pickle(module), _through_torch_save(module)):
        assert torch.equal(twin.step(x), wanted)
        assert type(twin) is type(module) and isinstance(twin, cls)


def test_an_edit_of_one_object_leaves_other_objects_of_the_class_alone(import_text: Load) -> None:
    made = import_text(HANDMADE)
    plain, x = made.Child().train(), torch.ones(2, 4)
    expected = output(plain, x, training=True)
    derived(made.Child, made.Base, "step", [Remove(Span(0, 0, 0, 0), 0)], "self.drop(self.fc(x))")
    assert torch.equal(output(plain, x, training=True), expected)
    assert "step" in made.Base.__dict__ and made.Base.__subclasses__().count(made.Child) == 1


@pytest.mark.parametrize("duplicate", DUPLICATORS.values(), ids=DUPLICATORS)
def test_operations_in_place_survive_copies(duplicate: Any, import_text: Load) -> None:
    made = import_text(HANDMADE)
    module = derived(made.InPlace, made.InPlace, "forward", [Remove(Span(0, 0, 0, 0), 0)], "self.drop(x)").train()
    seen: list[int] = []
    for subject in (module, duplicate(module)):
        subject.fc.register_forward_hook(lambda _, __, result: seen.append(id(result)))
        result = subject(torch.full((2, 4), 0.25))
        assert seen[-1] == id(result), "the result is the tensor that was written to"
        assert torch.equal(result, torch.tensor([[7.0, 2.5, 2.5, 2.5]] * 2))


def test_two_layers_of_edits_hold_both_and_are_pickled_and_undone(import_text: Load) -> None:
    made = import_text(HANDMADE)
    x = torch.full((2, 4), 0.25)
    once = derived(made.Child, made.Base, "step", [Wrap(Span(0, 0, 0, 0), 0, "extra")], "self.fc(x)")
    source = read_source(made.Base.forward)
    edit = MethodEdit(
        class_name(made.Base),
        "forward",
        source.digest,
        (_placed(Wrap(Span(0, 0, 0, 0), 0, "extra"), source, "self.fc(x)"),),
    )
    twice = copy.deepcopy(once)
    twice.__class__ = derive(type(once), ClassEdit((), (edit,)))
    assert original_class(type(twice)) is made.Child
    for module in (twice, copy.deepcopy(twice), _through_pickle(twice)):
        module.eval()
        step = 2 * torch.tanh(x)
        torch.testing.assert_close(module(x), step + torch.tanh(step))
        assert module.__class__._rewriter_base is type(once)


@pytest.mark.thorough
@pytest.mark.parametrize("name", slow_but(QUICK, MODELS))
def test_a_second_rewrite_and_its_undo_restore_exact_classes(name: str) -> None:
    make, size, _ = MODELS[name]
    model, x = make(), image(size)
    before = snapshot(model)
    rewriter.rewrite(model, "dropout", example_inputs=x, inplace=True)
    rewriter.rewrite(model, Dropout(p=0.2), example_inputs=x, inplace=True)
    assert_same_computation(_through_pickle(model), model, x)
    assert [type(m) for m in _through_pickle(model).modules()] == [type(m) for m in model.modules()]
    rewriter.undo(model, inplace=True)
    assert_unchanged(model, before)


@pytest.mark.parametrize("name", slow_but(QUICK, MODELS))
def test_rewriting_twice_changes_nothing_the_second_time(name: str) -> None:
    _, rewritten, x = rewritten_model(name)
    again = rewriter.rewrite(rewritten, Dropout(p=0.2), example_inputs=x)
    assert [type(m) for m in again.modules()] == [type(m) for m in rewritten.modules()]
    assert len(rewriter.report(again).applied) == len(rewriter.report(rewritten).applied)


@pytest.mark.parametrize("name", slow_but(QUICK, MODELS))
def test_state_dicts_load_both_ways_and_attributes_stay(name: str) -> None:
    model, rewritten, x = rewritten_model(name)
    assert list(model.state_dict()) == list(rewritten.state_dict())
    rewritten.load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(rewriter.original_state_dict(rewritten), strict=True)
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in rewritten.named_parameters()]
    missing = {a for a in dir(model) if not hasattr(rewritten, a)}
    assert not missing
    assert torch.equal(output(model, x), output(rewritten, x))


def test_undo_keeps_what_training_made_of_the_weights() -> None:
    model, rewritten, x = rewritten_model("densenet")
    optimizer = torch.optim.SGD(rewritten.parameters(), lr=0.1)
    rewritten.train()(x).square().mean().backward()
    optimizer.step()
    undone = rewriter.undo(rewritten)
    assert [type(m) for m in undone.modules()] == [type(m) for m in model.modules()]
    for (name, trained), (other, kept) in zip(rewritten.state_dict().items(), undone.state_dict().items(), strict=True):
        assert name == other and torch.equal(trained, kept)
    assert not torch.equal(next(undone.parameters()), next(model.parameters()))
    assert {k: v for k, v in undone.__dict__.items() if k.startswith("_rewriter")} == {}
