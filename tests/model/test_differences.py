"""One comparison of what models return: bit for bit, whatever holds the tensors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rewriter.model.differences import difference, differences

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1.0, NAN, INF, -INF], [1.0, NAN, INF, -INF], 0.0),
        ([1.0, 0.0], [1.25, -0.5], 0.5),
        ([NAN], [0.0], INF),
        ([INF], [-INF], INF),
        ([INF], [3.4e38], INF),
        ([1.0], [1.0, 1.0], INF),
        ([1], [2], INF),
        ([True, False], [True, False], 0.0),
        ([1 + 2j], [1 + 2.5j], 0.5),
    ],
)
def test_of_tensors(first: Any, second: Any, expected: float) -> None:
    assert difference(torch.tensor(first), torch.tensor(second)) == expected


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [("a", "a", 0.0), ("a", "b", INF), (3, 3, 0.0), (3, 4, INF), (NAN, NAN, 0.0), (None, None, 0.0)],
)
def test_of_other_values(first: Any, second: Any, expected: float) -> None:
    assert difference(first, second) == expected


def test_of_sparse_tensors_and_those_without_values() -> None:
    sparse = torch.eye(3).to_sparse()
    assert difference(sparse, (torch.eye(3) * 3).to_sparse()) == 2
    assert difference(torch.empty(3, device="meta"), torch.empty(3, device="meta")) == 0


def test_names_the_way_to_each() -> None:
    kept = {"outputs": [torch.zeros(2), torch.ones(2)], "gradients": {"weight": None}}
    assert differences(kept, {"outputs": [torch.zeros(2), torch.ones(2)], "gradients": {"weight": None}}) == []
    changed = {"outputs": [torch.zeros(2), torch.full((2,), NAN)], "gradients": {"weight": None}}
    assert differences(kept, changed) == ["['outputs'][1]"]
    assert differences(torch.zeros(2), torch.ones(2)) == ["value"]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"a": torch.zeros(2), "b": torch.zeros(1)}, "1 values → 2 values"),
        ({"a": torch.zeros(3)}, r"output\['a'\]: float32\[2\] → float32\[3\]"),
        ({"a": torch.zeros(2).half()}, r"float32\[2\] → float16\[2\]"),
        ({"a": None}, "NoneType"),
        ({"c": torch.zeros(2)}, r"output\['a'\] → output\['c'\]"),
    ],
)
def test_tells_what_is_built_otherwise(other: Any, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        assert not differences({"a": torch.zeros(2)}, other)
