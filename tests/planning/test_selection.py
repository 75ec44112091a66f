"""``only`` and ``skip``: a selected module stands for everything below it, and what is not selected is not touched."""

from __future__ import annotations

import fnmatch
from typing import Any

import pytest
from helpers import timm_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import rewriter
from rewriter.edit.classes import is_generated
from rewriter.passes import Dropout
from rewriter.planning.selection import select, selector_texts
from rewriter.reasons import Reason

MODEL = timm_model("test_vit", drop_rate=0.1, proj_drop_rate=0.1)
PATHS = [path for path, _ in MODEL.named_modules()]


def allowed(only: Any = None, skip: Any = None) -> set[str]:
    """The paths that a selection of the test model allows."""
    selection = select(MODEL, only, skip)
    return {path for path in PATHS if selection.allows(path)}


def below(*tops: str) -> set[str]:
    """Paths at or below ``tops``."""
    return {p for p in PATHS for top in tops if p == top or p.startswith(f"{top}.") or top == ""}


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (None, below("")),
        ("", below("")),
        ("blocks.1", below("blocks.1")),
        (["blocks.1", "head"], below("blocks.1", "head")),
        (("blocks.1", "blocks.1.attn"), below("blocks.1")),
        ("blocks.[01].attn", below("blocks.0.attn", "blocks.1.attn")),
        ("blocks.?", below(*(f"blocks.{n}" for n in range(6)))),
        ("*.attn", below(*(f"blocks.{n}.attn" for n in range(6)))),
        (r"re:blocks\.[45]", below("blocks.4", "blocks.5")),
        (r"re:.*\.fc1", below(*(f"blocks.{n}.mlp.fc1" for n in range(6)))),
        (nn.Conv2d, below("patch_embed.proj")),
        ([nn.Conv2d, "head"], below("patch_embed.proj", "head")),
        ([], set()),
    ],
    ids=lambda value: "" if isinstance(value, set) or callable(value) else str(value),
)
def test_only_allows_what_is_named_and_all_below_it(only: Any, expected: set[str]) -> None:
    assert allowed(only=only) == expected
    assert allowed(skip=only) == (below("") - expected if only is not None else below(""))


def test_a_regular_expression_matches_whole_paths() -> None:
    assert allowed(only="re:blocks") == below("blocks")
    with pytest.raises(rewriter.SelectorError):
        select(MODEL, "re:block")
    with pytest.raises(rewriter.SelectorError):
        select(MODEL, "re:locks.0")


def test_a_path_is_not_a_prefix_of_names() -> None:
    model = nn.ModuleDict({"a1": nn.Linear(1, 1), "a10": nn.Linear(1, 1)})
    assert select(model, "a1").allows("a1") and not select(model, "a1").allows("a10")


def test_a_class_selects_its_subclasses_and_rewritten_modules() -> None:
    rewritten = rewriter.rewrite(MODEL, "dropout")
    edited = [path for path, module in rewritten.named_modules() if is_generated(type(module))]
    assert edited
    for path in edited:
        selection = select(rewritten, type(MODEL.get_submodule(path)))
        assert selection.allows(path)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(
    only=st.none() | st.lists(st.sampled_from(PATHS[1:]), max_size=3),
    skip=st.none() | st.lists(st.sampled_from(PATHS), max_size=3),
)
def test_a_module_is_allowed_if_it_is_inside_only_and_outside_skip(only: Any, skip: Any) -> None:
    inside = below("") if only is None else below(*only)
    assert allowed(only, skip) == inside - (below(*skip) if skip else set())


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.sampled_from(PATHS[1:]), st.data())
def test_a_glob_selects_what_the_shell_would(path: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(path)))
    stop = data.draw(st.integers(start, len(path)))
    pattern = path[:start] + data.draw(st.sampled_from(["*", "?" * (stop - start) + "*"])) + path[stop:]
    assert allowed(only=pattern) == below(*(p for p in PATHS if fnmatch.fnmatchcase(p, pattern)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "inside"),
    [
        ({"only": "blocks.1"}, lambda path: path.startswith("blocks.1")),
        ({"only": ["blocks.0", "blocks.2"]}, lambda path: path.startswith(("blocks.0", "blocks.2"))),
        ({"skip": "blocks.1"}, lambda path: not path.startswith("blocks.1")),
        ({"skip": r"re:blocks\.\d+\.mlp"}, lambda path: ".mlp" not in path),
        ({"only": "blocks.*", "skip": "blocks.[1-5]"}, lambda path: path.startswith("blocks.0")),
        ({"skip": ""}, lambda path: False),
    ],
    ids=lambda value: "" if isinstance(value, set) or callable(value) else str(value),
)
def test_a_rewrite_edits_only_what_is_selected_and_says_what_it_left(options: dict[str, Any], inside: Any) -> None:
    everything = rewriter.plan(MODEL, Dropout(p=0.1))
    plan = rewriter.plan(MODEL, Dropout(p=0.1), **options)
    expected = [s for s in everything.sites if all(inside(p) for p in (s.path, *(e.path for e in s.edits)))]
    assert list(plan.sites) == expected
    assert len(expected) < len(everything.sites)
    filtered = [s for s in plan.skipped if s.reason is Reason.FILTERED]
    assert len(filtered) == len(everything.sites) - len(expected)
    rewritten = plan.apply(MODEL)
    changed = {p for p, m in rewritten.named_modules() if is_generated(type(m))}
    assert changed == {edit.path for site in expected for edit in site.edits}


def test_selectors_are_recorded_as_they_were_asked_for() -> None:
    assert selector_texts([nn.Conv2d, "re:a.*"]) == ["Conv2d", "re:a.*"]
    plan = rewriter.plan(MODEL, only=iter(["blocks.1", nn.Conv2d]), skip="head")
    assert (plan.request["only"], plan.request["skip"]) == (["blocks.1", "Conv2d"], ["head"])


def test_a_module_reached_under_two_names_is_selected_by_either() -> None:
    model = nn.Module()
    model.first = nn.Linear(2, 2)
    model.second = model.first
    assert select(model, only="second").allows("second")
    assert select(model, skip="second").allows("first") is select(model, skip="first").allows("second")
