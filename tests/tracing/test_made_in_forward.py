"""A layer that a model makes in its first forward has no place in a plan before; then it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import image
from odd_models import described
from torch import nn

import rewriter


class Late(nn.Module):
    """Makes the last layer when it sees how many channels there are."""

    def __init__(self, make: Callable[[Late, torch.Tensor], Any], fc: Any = None) -> None:
        super().__init__()
        self.conv, self.drop = nn.Conv2d(3, 8, 3), nn.Dropout(0.5)
        self.make = make
        if fc is not None:
            self.fc = fc

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(self.conv(x).mean((2, 3)))
        self.make(self, x)
        return self.last(x)

    def last(self, x: torch.Tensor) -> torch.Tensor:
        fc = self.fc[-1] if isinstance(self.fc, nn.ModuleList) else self.fc
        return fc(x) if isinstance(fc, nn.Module) else nn.functional.linear(x, fc)


class Spelled(nn.Module):
    """The plainest form, whose line a message can tell."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop, self.fc = nn.Conv2d(3, 8, 3), nn.Dropout(0.5), None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(self.conv(x).mean((2, 3)))
        if self.fc is None:
            self.fc = nn.Linear(x.shape[1], 4)  # this line
        return self.fc(x)


def _assign(m: Late, x: torch.Tensor) -> None:
    if not hasattr(m, "fc"):
        m.fc = nn.Linear(x.shape[1], 4)


def _add(m: Late, x: torch.Tensor) -> None:
    if "fc" not in m._modules:
        m.add_module("fc", nn.Sequential(nn.Linear(x.shape[1], 4)))


def _append(m: Late, x: torch.Tensor) -> None:
    if not len(m.fc):
        m.fc.append(nn.Linear(x.shape[1], 4))


def _parameter(m: Late, x: torch.Tensor) -> None:
    if not hasattr(m, "fc"):
        m.fc = nn.Parameter(torch.ones(4, x.shape[1], device=x.device))


def _none(m: Late, x: torch.Tensor) -> None:
    if m.fc is None:
        m.fc = nn.Linear(x.shape[1], 4)


def _late(make: Callable[..., Any]) -> Callable[[], nn.Module]:
    def model() -> nn.Module:
        made = Late(make, nn.ModuleList() if make is _append else None)
        if make is _none:
            made.register_module("fc", None)
        return made

    return model


MADE = {
    "assigned": _late(_assign),
    "added": _late(_add),
    "appended": _late(_append),
    "parameter": _late(_parameter),
    "module of None": _late(_none),
    "attribute of None": Spelled,
    "in a part": lambda: nn.Sequential(nn.Identity(), Spelled()),
}


@pytest.mark.parametrize("verb", ["plan", "rewrite", "trace", "param_groups"])
@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_a_layer_made_in_forward_is_refused_until_it_is_there(make: Callable[[], nn.Module], verb: str) -> None:
    torch.manual_seed(0)
    model = make().train()
    before = described(model)
    options = {"weight_decay": 0.1} if verb == "param_groups" else {}
    with pytest.raises(rewriter.RewriterError, match=r"while it runs.*Run the model once"):
        getattr(rewriter, verb)(model, input_size=8, **options)
    assert described(model) == before
    model(image(8))
    getattr(rewriter, verb)(model, input_size=8, **options)
    result = rewriter.rewrite(model, "dropout", input_size=8)
    assert torch.equal(result.eval()(image(8)), model.eval()(image(8)))
    assert rewriter.param_groups(model, weight_decay=0.1, input_size=8)


def test_the_message_names_module_layer_and_line() -> None:
    with pytest.raises(rewriter.RewriterError) as caught:
        rewriter.plan(nn.Sequential(nn.Identity(), Spelled()), input_size=8)
    with open(__file__, encoding="utf-8") as file:
        line = next(number for number, text in enumerate(file, 1) if text.rstrip().endswith("# this line"))
    assert f"module '1' (Spelled) makes 'fc' (Linear) while it runs at {__file__}:{line} (in Spelled.forward)" in str(
        caught.value
    )


def test_one_that_every_call_makes_anew_is_refused_for_good() -> None:
    model = Late(lambda m, x: setattr(m, "fc", nn.Linear(x.shape[1], 4)), nn.Linear(8, 4))
    with pytest.raises(rewriter.RewriterError, match="Make it in __init__"):
        rewriter.plan(model, input_size=8)


@pytest.mark.parametrize("keep", [True, False])
def test_layers_without_parameters_that_are_made_in_passing_are_no_matter(keep: bool) -> None:
    class Passing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act, self.drop, self.fc = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            act = nn.ReLU()
            if keep:
                self.act = act
            return nn.Softmax(1)(self.fc(self.drop(act(self.conv(x)).mean((2, 3)))))

    plan = rewriter.plan(Passing(), "dropout", input_size=8)
    assert len(plan.sites) + len(plan.skipped) == 1


def test_a_forward_that_reaches_the_model_by_a_global_is_refused_and_changes_nothing() -> None:
    held: dict[str, nn.Module] = {}
    namespace = {"held": held, "nn": nn}
    exec("def forward(self, x):\n    return held['it'].bn(self.conv(x))\n", namespace)
    cls = type("Global", (nn.Module,), {"forward": namespace["forward"]})
    model = cls().train()
    model.conv, model.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
    held["it"] = model
    before = described(model)
    with pytest.raises(rewriter.RewriterError, match=r"reaches bn\..*Let the module that uses it hold it"):
        rewriter.plan(model, input_size=8)
    assert described(model) == before
