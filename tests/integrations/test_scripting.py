"""``torch.jit.script`` on rewritten models: what is edited in source is scripted, what cannot be says so and why."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from helpers import LastInSequential, image
from torch import nn
from torch.nn import functional as F

import rewriter
from rewriter.passes.stochastic_pooling import layers

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated", "ignore:.*TorchScript:DeprecationWarning")


def stored(model: nn.Module) -> Any:
    """The model scripted, written and read again."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(model), buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


def output(model: Any, x: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(1)
    with torch.no_grad():
        return model(x)  # type: ignore[no-any-return]


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3), nn.Linear(32, 3)
        self.gamma = nn.Parameter(torch.ones(32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.group_norm(self.stem(x), 32, self.gamma).relu()
        return self.head(self.body(x).amax((2, 3)))  # type: ignore[no-any-return]


IN_SOURCE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "branches": (lambda: timm.create_model("test_vit", img_size=64, proj_drop_rate=0.3), "dropout"),
    "head": (lambda: timm.create_model("test_resnet", drop_rate=0.3), "dropout"),
    "norms": (Norms, "group-count"),
}


@pytest.mark.thorough
@pytest.mark.parametrize("case", IN_SOURCE)
def test_edits_of_source_are_in_force_in_the_script(case: str) -> None:
    make, name = IN_SOURCE[case]
    original = make()
    model = rewriter.rewrite(original, name, input_size=64, verify=False)
    assert rewriter.report(model).applied
    script = stored(model)
    assert torch.equal(output(script.eval(), image()), output(model.eval(), image()))
    assert torch.equal(output(script.train(), image()), output(model.train(), image()))
    original.load_state_dict(rewriter.original_state_dict(model))
    assert not torch.equal(output(script, image()), output(original.train(), image()))


def pools() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


@pytest.mark.parametrize("make", [pools, lambda: timm.create_model("resnet18")], ids=["torch", "timm"])
def test_pooling_is_scripted_for_evaluation_and_says_so_in_training(make: Callable[[], nn.Module]) -> None:
    model = rewriter.rewrite(make(), "stochastic-pooling", input_size=64, verify=False)
    assert len(rewriter.report(model).applied) == (2 if isinstance(model, nn.Sequential) else 1)
    script = stored(model)
    assert torch.equal(output(script.eval(), image()), output(model.eval(), image()))
    with pytest.raises(Exception, match="scripted for evaluation only: train the model, then script it"):
        script.train()(image())


REFUSED: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "layers of a Sequential": (LastInSequential, "dropout", "DropsInput"),
    "equalizers": (lambda: smp.PSPNet("resnet18", encoder_weights=None), "scale-equalizer", "Equalizer"),
    "functions": (
        lambda: timm.create_model("test_vit", img_size=64, global_pool="avg"),
        "stochastic-pooling",
        "StochasticFunction",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_scripted_is_refused_by_name_and_leaves_the_model(case: str) -> None:
    make, name, layer = REFUSED[case]
    model = rewriter.rewrite(make(), name, input_size=64, verify=False).eval()
    assert rewriter.report(model).applied
    expected = output(model, image())
    with pytest.raises(rewriter.ModelError, match=rf"the layer {layer} of rewriter cannot be scripted.*rewriter.undo"):
        torch.jit.script(model)
    assert torch.equal(output(model, image()), expected) and not rewriter.report(model).stale
    assert torch.equal(output(torch.jit.trace(model, image()), image()), expected)
    assert isinstance(torch.jit.script(rewriter.undo(model)), torch.jit.ScriptModule)


def test_layers_of_the_library_are_refused_by_name() -> None:
    with pytest.raises(rewriter.ModelError, match="the layer StochasticAvgPool2d of rewriter cannot be scripted"):
        torch.jit.script(nn.Sequential(layers.StochasticAvgPool2d(2)))
