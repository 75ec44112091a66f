"""Arguments of a wrong kind, models whose forward runs later, and classes that hand out one object again."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from helpers import assert_unchanged, image, snapshot
from test_hidden_branches import Base
from torch import nn

import rewriter
from rewriter.errors import InputError, ModelError, PlanError, SelectorError, StorageError, TraceError
from rewriter.guideline.base import Pass


class Net(Base):
    def forward(self, x: torch.Tensor) -> Any:
        return self.fc(self.drop(self.pool(self.features(x)).flatten(1)))


@pytest.mark.parametrize("flag", ["no", 1, None, torch.tensor([True, False])])
@pytest.mark.parametrize("name", ["inplace", "verify"])
def test_a_flag_that_is_no_truth_value_is_refused(name: str, flag: Any) -> None:
    model = Net()
    before = snapshot(model)
    with pytest.raises(InputError, match=f"{name}: expected True or False, found {type(flag).__name__}"):
        rewriter.rewrite(model, "dropout", input_size=16, **{name: flag})
    assert_unchanged(model, before)


def test_flags_of_numpy_are_flags() -> None:
    model = Net()
    copy = rewriter.rewrite(model, "dropout", input_size=16, inplace=np.bool_(False))  # type: ignore[arg-type]
    assert copy is not model
    assert rewriter.undo(copy, inplace=np.bool_(True)) is copy  # type: ignore[arg-type]


@pytest.mark.parametrize("directory", [None, 3, ["a"], "a\0b"], ids=repr)
def test_a_directory_that_is_no_path_is_refused(directory: Any) -> None:
    with pytest.raises(StorageError, match=r"directory: (expected a|no) path"):
        rewriter.save(rewriter.rewrite(Net(), "dropout", input_size=16), directory)
    with pytest.raises(StorageError, match=r"directory: (expected a|no) path"):
        rewriter.load(directory)


def test_an_image_that_no_memory_holds_is_refused() -> None:
    with pytest.raises(InputError, match="no image of 3x1000000000x1000000000 can be made"):
        rewriter.plan(Net(), "dropout", input_size=10**9)
    with pytest.raises(InputError, match=r"no image of 3x10+x10+ can be made"):
        rewriter.plan(Net(), "dropout", input_size=10**30)


def test_a_class_of_passes_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(
        SelectorError, match="Pass is no pass yet: it does not define candidates and decide; give a class that does"
    ):
        rewriter.plan(Net(), Pass, input_size=16)


@pytest.mark.parametrize("selectors", [torch.tensor(1), np.array("fc"), torch.zeros(2), 5, [None]])
@pytest.mark.parametrize("name", ["only", "skip"])
def test_what_names_no_module_is_no_selector(name: str, selectors: Any) -> None:
    with pytest.raises(SelectorError, match=r"not a selector: .*; give a module path, a glob"):
        rewriter.plan(Net(), "dropout", input_size=16, **{name: selectors})


@pytest.mark.parametrize("preserve", [np.array(["auto", "eval"]), torch.zeros(2), None, []])
def test_what_is_to_be_preserved_is_one_of_three_words(preserve: Any) -> None:
    with pytest.raises(SelectorError, match="preserve: expected one of 'auto', 'eval', 'nothing', found"):
        rewriter.plan(Net(), "dropout", input_size=16, preserve=preserve)


PLACES = {
    "skipped": {"pass": "dropout", "path": "", "pattern": "head", "reason": "outside", "detail": "why"},
    "advice": {"pass": "dropout", "path": "", "pattern": "head", "advice": "what", "reason": "why"},
}


@pytest.mark.parametrize("value", [None, [], {}, 5], ids=repr)
@pytest.mark.parametrize(("kind", "field"), [(kind, field) for kind, texts in PLACES.items() for field in texts])
def test_a_plan_whose_places_are_no_texts_is_refused(kind: str, field: str, value: Any) -> None:
    data = json.loads(rewriter.plan(Net(), "dropout", input_size=16).to_json())
    data[kind] = [PLACES[kind]]
    rewriter.Plan.from_json(json.dumps(data))
    data[kind] = [PLACES[kind] | {field: value}]
    with pytest.raises(PlanError, match=rf"^the plan is damaged: {kind}\[0\]\.\w+: expected "):
        rewriter.Plan.from_json(json.dumps(data))


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("notes", [None], r"notes\[0\]: expected a text, found None"),
        ("parameters", {"weight": 3}, r"parameters\.weight: expected a text, found 3"),
        ("parameters", ["weight"], "parameters: expected named values"),
        ("passes", [], "passes that are not named \\(dropout\\)"),
        ("contracts", {}, "no contract of dropout"),
    ],
)
def test_a_plan_with_a_part_missing_is_refused(part: str, value: Any, message: str) -> None:
    data = json.loads(rewriter.plan(Net(), "dropout", input_size=16).to_json())
    data[part] = value
    with pytest.raises(PlanError, match=f"^the plan is damaged: (it has )?{message}"):
        rewriter.Plan.from_json(json.dumps(data))


class Yields(Net):
    def forward(self, x: torch.Tensor) -> Any:
        yield super().forward(x)


class Awaited(Net):
    async def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x)


class Maps(Net):
    def forward(self, x: torch.Tensor) -> Any:
        return map(super().forward, [x])


@pytest.mark.parametrize(
    ("cls", "what"),
    [
        (Yields, "a generator function"),
        (Awaited, "an async function"),
        (Maps, "a function that returns a map which nobody has gone through"),
    ],
)
def test_a_forward_that_runs_later_is_refused(cls: type[nn.Module], what: str) -> None:
    with pytest.raises(TraceError, match=f"the forward of {cls.__name__} is {what}: what it does runs later"):
        rewriter.plan(cls(), "dropout", input_size=16)


class Cached(Net):
    """There is one object of this class."""

    made: ClassVar[dict[type, Any]] = {}

    def __new__(cls) -> Any:
        return cls.made.setdefault(cls, super().__new__(cls))


class Holds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = Cached()

    def forward(self, x: torch.Tensor) -> Any:
        return self.part(x)


@pytest.mark.parametrize("make", [Cached, Holds])
def test_a_class_that_hands_out_one_object_again_is_not_copied(make: Callable[[], nn.Module]) -> None:
    model = make()
    before = snapshot(model)
    with pytest.raises(ModelError, match=r"Cached hands out the same object again. Give inplace=True"):
        rewriter.rewrite(model, "dropout", input_size=16)
    assert_unchanged(model, before)
    assert rewriter.undo(rewriter.rewrite(model, "dropout", input_size=16, inplace=True), inplace=True) is model


class Starred(Base):
    def forward(self, x: torch.Tensor) -> Any:
        arguments = (self.pool(self.features(x)).flatten(1),)
        return self.fc(self.drop(*arguments))


class Named(Base):
    def forward(self, x: torch.Tensor) -> Any:
        arguments = {"input": self.pool(self.features(x)).flatten(1)}
        return self.fc(self.drop(**arguments))


@pytest.mark.parametrize("cls", [Starred, Named])
def test_a_call_whose_arguments_are_unpacked_does_not_move_and_its_layer_is_bypassed(cls: type[Base]) -> None:
    model: Any = rewriter.rewrite(cls(), "dropout", input_size=16)
    assert rewriter.report(model).applied[0].action == "move drop before pool"
    moved = next(child for name, child in model.named_children() if name.startswith("dropout"))
    seen: list[Any] = []
    moved.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape)))
    model.train()(image(16))
    assert seen[0] == (2, 8, 16, 16) and not torch.equal(model(image(16)), model(image(16)))
