"""An edit is in force however the method is called: by a method that is kept, by the name of a class, by an alias."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from collections.abc import Callable
from types import ModuleType

import calls
import calls_decorated
import calls_kept
import calls_named
import pytest
import torch
from helpers import assert_unchanged, image, output, slow_but, snapshot
from torch import nn

import rewriter
from rewriter.layers.registry import CalibratedLayer

Load = Callable[[str], ModuleType]

DECORATED = {f"decorator: {way}": calls.decorated(text) for way, text in calls_decorated.DECORATORS.items()}
WAYS = {**calls_kept.HELD, **calls_named.NAMED, **calls_kept.ALIASES, **DECORATED}
PASSES = list(calls.WORK)


def in_force(name: str, model: nn.Module) -> bool:
    """Whether ``model`` computes what the pass ``name`` wants, told from what its layers are given."""
    seen: list[tuple[int, ...]] = []
    model = copy.deepcopy(model)
    layers = [m for m in model.modules() if isinstance(m, (nn.Dropout, CalibratedLayer))]
    for layer in layers:
        layer.register_forward_hook(lambda _, given, result: seen.append(tuple(given[0][0].shape)))
    output(model, image(16), training=True)
    if name == "dropout":  # before the pooling, and once
        return len(seen) == 1 and len(seen[0]) == 3
    if name == "scale-equalizer":
        return bool(seen)
    if name == "stochastic-pooling":  # random without the dropout
        for layer in layers:
            layer.p = 0.0
        model.train()
        return not torch.equal(model(image(16)), model(image(16)))
    return groups_used(model) != {32}


def groups_used(model: nn.Module) -> set[int]:
    """The numbers of groups that ``group_norm`` is called with."""
    found: set[int] = set()
    original = torch.nn.functional.group_norm

    def noted(x: torch.Tensor, num_groups: int, *args: object) -> torch.Tensor:
        found.add(num_groups)
        return original(x, num_groups, *args)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "group_norm", noted)
        output(model, image(16))
    return found


def through_pickle(model: nn.Module) -> nn.Module:
    copied: nn.Module = pickle.loads(pickle.dumps(model))
    return copied


def through_file(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copied: nn.Module = torch.load(file, weights_only=False)
    return copied


COPIES = {"deepcopy": copy.deepcopy, "pickle": through_pickle, "torch.save": through_file}


@pytest.mark.parametrize("name", slow_but(["dropout", "stochastic-pooling"], PASSES))
@pytest.mark.parametrize("way", WAYS)
def test_the_edited_method_is_the_one_that_is_called(name: str, way: str, import_text: Load) -> None:
    made = import_text(calls.model_text(name, WAYS[way]))
    model, other = made.Net(), made.Net()
    assert not in_force(name, model)
    expected = output(model, image(16))
    training = output(copy.deepcopy(model), image(16), training=True)
    plan = rewriter.plan(model, name, input_size=16)
    assert len(plan.sites) == 1 and not plan.skipped, str(plan)

    rewritten = rewriter.Plan.from_json(plan.to_json()).apply(model)
    assert in_force(name, rewritten)
    assert not in_force(name, model)
    assert not in_force(name, other)
    if name != "group-count":
        assert torch.equal(output(rewritten, image(16)), expected)
    assert not rewriter.plan(rewritten, name, input_size=16).sites

    for how, copied in COPIES.items():
        again = copied(rewritten)
        assert in_force(name, again), how
        assert torch.equal(output(again, image(16)), output(rewritten, image(16))), how
        undone = rewriter.undo(again, inplace=True)
        assert not in_force(name, undone), how
        assert torch.equal(output(undone, image(16)), expected), how
        assert torch.equal(output(undone, image(16), training=True), training), how


@pytest.mark.parametrize("way", WAYS)
def test_undo_in_place_leaves_nothing_behind(way: str, import_text: Load) -> None:
    model = import_text(calls.model_text("dropout", WAYS[way])).Net()
    before, held = snapshot(model), held_values(model)
    rewriter.rewrite(model, "dropout", input_size=16, inplace=True)
    assert in_force("dropout", model)
    rewriter.undo(model, inplace=True)
    assert_unchanged(model, before)
    assert held_values(model) == held


def held_values(model: nn.Module) -> list[dict[str, object]]:
    """What modules keep beside parameters and children; bound methods are equal where object and function are."""
    return [{key: _comparable(value) for key, value in vars(m).items() if key[0] != "_"} for m in model.modules()]


def _comparable(value: object) -> object:
    return repr(value) if isinstance(value, functools.partial) else value
