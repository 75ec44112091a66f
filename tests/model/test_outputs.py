"""Outputs of any kind are compared, tensor by tensor, and where there is none nothing is claimed."""

from __future__ import annotations

import collections
import itertools
import math
import re
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers import slow_but
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.modeling_outputs import SemanticSegmenterOutput

import rewriter
from rewriter.edit.edits import AddBehaviour
from rewriter.guideline.base import Contract, Pass, Site
from rewriter.layers.registry import register_layer
from rewriter.model.contents import contents, structure_of, tensors_held
from rewriter.passes import Dropout
from rewriter.tracing.trace import Trace


@dataclass
class Logits:
    logits: torch.Tensor


@dataclass(frozen=True, slots=True)
class Frozen:
    logits: torch.Tensor
    other: Any = field(default=None)


class Instances:
    """A class without a repr of its own, that points back at itself."""

    def __init__(self, scores: torch.Tensor) -> None:
        self.fields, self.parent = {"scores": scores}, self


class Slotted:
    __slots__ = ("__hidden", "never_filled")

    def __init__(self, tensor: torch.Tensor) -> None:
        self.__hidden = tensor


class Hostile:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    @property
    def computed(self) -> Any:
        raise RuntimeError("a property was read")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("was compared")


class Pair(NamedTuple):
    first: torch.Tensor
    second: Any


def packed(t: torch.Tensor) -> Any:
    return nn.utils.rnn.pack_padded_sequence(t.flatten(2), torch.tensor([2, 2]), batch_first=True)


WRAPS: dict[str, Callable[[torch.Tensor], Any]] = {
    "list": lambda t: [t],
    "named tuple": lambda t: Pair(t, None),
    "dataclass": Logits,
    "frozen dataclass with slots": lambda t: Frozen([t]),  # type: ignore[arg-type]
    "own class": Instances,
    "slots": Slotted,
    "hostile": Hostile,
    "namespace": lambda t: types.SimpleNamespace(inner=[{"t": t}]),
    "deque": lambda t: collections.deque([t]),
    "normal": lambda t: torch.distributions.Normal(t, torch.ones_like(t)),
    "categorical": lambda t: torch.distributions.Categorical(logits=t.flatten(1)),
    "independent": lambda t: torch.distributions.Independent(torch.distributions.Normal(t, 1.0), 1),
    "mixture": lambda t: torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=t.flatten(1)), torch.distributions.Normal(t.flatten(1), 1.0)
    ),
    "transformed": lambda t: torch.distributions.LogNormal(t, 1.0),
    "packed sequence": packed,
    "model output": lambda t: SemanticSegmenterOutput(logits=t),
    "numpy": lambda t: t.detach().numpy() if not t.is_meta else t,
    "numpy reversed": lambda t: t.detach().numpy()[::-1] if not t.is_meta else t,
    "numpy of other bytes": lambda t: t.detach().numpy().astype(">f4") if not t.is_meta else t,
    "complex, not finite": lambda t: torch.complex(t, t * math.nan),
    "number": lambda t: float(t.sum()),
    "sparse": lambda t: t.to_sparse(),
    "nested": lambda t: torch.nested.as_nested_tensor([t[0], t[1]]),
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n1, self.c1 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.n2, self.c2 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.c2(self.n2(self.c1(self.n1(x).relu())).relu())


class Net(nn.Module):
    def __init__(self, wrap: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.stem, self.block, self.out, self.wrap = nn.Conv2d(3, 8, 1), Block(), nn.Conv2d(8, 2, 1), wrap

    def forward(self, x: torch.Tensor) -> Any:
        return self.wrap(self.out(self.block(self.stem(x))))


@register_layer("test/outputs-changed")
class Changed(nn.Module):
    """Behaviour that changes one element of the output, and says that it does not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = super().forward(x).clone()
        result.view(-1)[-1] += 1
        return result


@dataclass(frozen=True)
class Changes(Pass):
    name = "changes"
    summary = paper = "none"
    contract = Contract()

    def find(self, trace: Trace) -> Iterator[Site]:
        yield Site("changes", "out", "layer", "change it", "a test", (AddBehaviour("out", "test/outputs-changed"),))


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_an_output_of_any_kind_is_compared(wrap: Callable[[torch.Tensor], Any]) -> None:
    result = rewriter.rewrite(Net(wrap), Dropout(p=0.1), input_size=8)
    report = rewriter.report(result)
    assert len(report.applied) == 1 and "eval output holds (bit-identical)" in str(report)


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_a_change_of_one_number_is_seen_and_its_place_is_named(wrap: Callable[[torch.Tensor], Any]) -> None:
    with pytest.raises(rewriter.ContractError, match=r"eval output: max \|difference\| .* at output") as raised:
        rewriter.rewrite(Net(wrap), Changes(), input_size=8)
    assert len(str(raised.value)) < 400 and "0x" not in str(raised.value)


class TestNothingToCompare:
    @pytest.mark.thorough
    def test_on_meta(self) -> None:
        with torch.device("meta"):
            model = Net(lambda t: t)
        report = rewriter.report(rewriter.rewrite(model, Dropout(p=0.1), input_size=8))
        assert "eval output not decidable (nothing to compare: tensors on meta have no values)" in str(report)
        assert report.verified is None and "bit-identical" not in str(report)

    @pytest.mark.parametrize("wrap", [lambda t: None, lambda t: "done", lambda t: {1, 2}], ids=["none", "text", "set"])
    def test_an_output_without_numbers(self, wrap: Callable[[torch.Tensor], Any]) -> None:
        report = rewriter.report(rewriter.rewrite(Net(wrap), Dropout(p=0.1), input_size=8))
        assert "nothing to compare: the output holds no tensor and no number" in str(report)
        assert report.verified is None

    def test_what_is_not_looked_into_is_named(self) -> None:
        report = rewriter.report(rewriter.rewrite(Net(lambda t: [t, iter([t])]), Dropout(p=0.1), input_size=8))
        assert "bit-identical; not looked into: output[1] (list_iterator)" in str(report)


def _in(container: Callable[[Any], Any], depth: int) -> Callable[[torch.Tensor], Any]:
    def wrap(tensor: torch.Tensor) -> Any:
        value: Any = tensor
        for _ in range(depth):
            value = container(value)
        return value

    return wrap


def _holding_itself(tensor: torch.Tensor) -> Any:
    result: dict[str, Any] = {"tensor": tensor, "list": [tensor.sum()]}
    result["list"] += [result, result["list"]]
    return result


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrap",
    [_holding_itself, _in(lambda value: [value], 5000), _in(lambda value: {"a": value}, 5000)],
    ids=["holds itself", "deep lists", "deep dicts"],
)
def test_an_output_may_be_nested_without_end(wrap: Callable[[torch.Tensor], Any]) -> None:
    report = rewriter.report(rewriter.rewrite(Net(wrap), Dropout(p=0.1), input_size=8))
    assert report.verified is True and len(report.applied) == 1
    with pytest.raises(rewriter.ContractError, match=r"eval output: max \|difference\|"):
        rewriter.rewrite(Net(wrap), Changes(), input_size=8)


ARRAYS: dict[str, Callable[[Any], Any]] = {
    "backwards": lambda array: array[..., ::-1],
    "big-endian": lambda array: array.astype(">f4"),
    "complex and big-endian": lambda array: (array + 1j * array).astype(">c8"),
    "field of records": lambda array: np.rec.fromarrays([array > 0, array]).f1,
    "long": lambda array: array.astype(np.longdouble),
    "long and complex": lambda array: array.astype(np.clongdouble) * 1j,
    "with NaN": lambda array: np.where(array > 0, array, np.complex64(complex(1, math.nan))),
}


@pytest.mark.thorough
@pytest.mark.parametrize("kind", slow_but(["big-endian"], ARRAYS))
def test_an_array_of_any_kind_is_compared(kind: str) -> None:
    def wrap(tensor: torch.Tensor) -> Any:
        return tensor, ARRAYS[kind](tensor.detach().numpy())

    assert rewriter.report(rewriter.rewrite(Net(wrap), Dropout(p=0.1), input_size=8)).verified is True
    with pytest.raises(rewriter.ContractError, match=r"eval output: max \|difference\|"):
        rewriter.rewrite(Net(lambda tensor: wrap(tensor)[1]), Changes(), input_size=8)


def test_numbers_that_are_none_are_equal_to_themselves() -> None:
    nan = math.nan
    values = torch.tensor([complex(nan, 1), complex(1, nan), complex(math.inf, nan)]), complex(1, nan), Decimal("sNaN")
    report = rewriter.report(rewriter.rewrite(Net(lambda t: (t, *values)), Dropout(p=0.1), input_size=8))
    assert report.verified is True


def test_what_is_too_much_to_be_looked_at_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rewriter.model.contents._MOST", 10)
    report = rewriter.report(rewriter.rewrite(Net(lambda t: [[t] for _ in range(30)]), Dropout(p=0.1), input_size=8))
    assert "bit-identical; not everything was compared; not looked into: output[8][0] (from here on at least 22" in (
        str(report)
    )


@pytest.mark.parametrize("name", ["dataclass", "own class", "slots", "normal", "model output", "namespace"])
def test_heads_and_gradients_follow_the_same_reader(name: str) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.drop, self.fc = nn.Conv2d(3, 8, 3), nn.Dropout(0.5), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> Any:
            return WRAPS[name](self.fc(self.drop(self.conv(x).mean((2, 3)))))

    result = rewriter.rewrite(Pooled(), "dropout", input_size=8)
    report = rewriter.report(result)
    assert [site.pattern for site in report.applied] == ["head"] and report.verified is True
    assert "gradients holds (4 parameters still get one)" in str(report)


def test_the_same_random_numbers_before_and_after() -> None:
    class Noisy(Net):
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x) + torch.rand(()) + float(np.random.rand())

    report = rewriter.report(rewriter.rewrite(Noisy(lambda t: t), Dropout(p=0.1), input_size=8))
    assert report.verified is True


class Counts(Net):
    def __init__(self, numbers: Iterator[int], use: Callable[[torch.Tensor, int], Any]) -> None:
        super().__init__(lambda t: t)
        self.numbers, self.use = numbers, use

    def forward(self, x: torch.Tensor) -> Any:
        return self.use(super().forward(x), next(self.numbers))


USES: dict[str, Callable[[torch.Tensor, int], Any]] = {
    "value": lambda tensor, number: tensor + number,
    "number of outputs": lambda tensor, number: [tensor] * (1 + number % 3),
    "name of an output": lambda tensor, number: {f"call {number}": tensor},
}


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("use", USES)
def test_a_model_that_counts_its_calls_is_not_blamed_on_a_pass(use: str, inplace: bool) -> None:
    """A generator cannot be put back."""
    model = Counts((number for number in range(1000)), USES[use])
    report = rewriter.report(rewriter.rewrite(model, Dropout(p=0.1), input_size=8, inplace=inplace))
    assert report.verified is None and len(report.applied) == 1
    what = r"varies by|does not do the same in each run: .* → "
    assert re.search(f"not decidable \\(the model itself ({what})", str(report))
    with pytest.raises(rewriter.ContractError, match=r"eval output: max \|difference\|"):
        rewriter.rewrite(Net(lambda t: t), Changes(), input_size=8)


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("use", USES)
def test_a_counter_of_python_is_put_back(use: str, inplace: bool) -> None:
    model = Counts(itertools.count(), USES[use])
    report = rewriter.report(rewriter.rewrite(model, Dropout(p=0.1), input_size=8, inplace=inplace))
    assert report.verified is True and len(report.applied) == 1 and next(model.numbers) == 0
    with pytest.raises(rewriter.ContractError, match=r"eval output: max \|difference\|"):
        rewriter.rewrite(model, Changes(), input_size=8)


LEAVES = st.sampled_from([torch.zeros(2), torch.ones(1, 3), 3, 0.5, "text", None])
NESTED = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
        st.builds(Pair, inner, inner),
        st.builds(Frozen, inner, inner),
        st.builds(Instances, inner),
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(NESTED)
def test_every_content_lies_where_its_path_says(value: Any) -> None:
    found = list(contents(value))
    for content in found:
        assert eval(f"value{content.path}", {"value": value}) is content.value
    paths = [content.path for content in found]
    assert len(set(paths)) == len(paths)
    assert list(structure_of(value)) == paths


def test_what_holds_itself_is_looked_into_once() -> None:
    value: list[Any] = [torch.zeros(1)]
    value += [value, {"again": value}]
    assert len(tensors_held(value)) == 1


def test_modules_functions_and_classes_are_not_looked_into() -> None:
    model = nn.Linear(2, 2)
    value = types.SimpleNamespace(model=model, forward=model.forward, cls=nn.Linear, optimizer=torch.optim.SGD)
    assert tensors_held(value) == []
