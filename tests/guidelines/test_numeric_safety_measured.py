"""numeric-safety says nothing of what is finite, in value and gradient, and says what it cannot mend."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
import unsafe_losses as losses
from helpers import assert_golden
from torch import nn

import rewriter
from rewriter.passes.numeric_safety.layers import PopulationVariance, SafePower, SafeSqrt, TwoPassVariance

Load = Callable[[str], ModuleType]


def _inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 6, generator=generator).requires_grad_(), torch.rand(4, 6, generator=generator)


def _found(module: nn.Module, inputs: Any = None) -> list[Any]:
    return list(rewriter.check(module, "numeric-safety", example_inputs=inputs or _inputs()))


@pytest.mark.parametrize("loss", [losses.SafeForms, losses.ScaleInvariantLogBiased])
def test_safe_forms_are_not_found(loss: Any) -> None:
    assert not _found(loss())


@pytest.mark.parametrize("edge", [0.0, 1.0, -200.0, 200.0])
def test_safe_forms_are_safe(edge: float) -> None:
    """So the test above would be wrong if anything were found."""
    x = torch.full((4, 6), edge, requires_grad=True)
    for target in (torch.full((4, 6), 0.9), torch.full((4, 6), 0.6), torch.tensor([0.2, 0.8]).repeat(4, 3)):
        value = losses.SafeForms()(x, target)
        (gradient,) = torch.autograd.grad(value, x)
        assert gradient.isfinite().all()


def test_norms_and_deviations_are_measured() -> None:
    """torch.norm and torch.std have the gradient 0 at zero, a written-out root has not."""
    for function, finite in ((torch.norm, True), (torch.std, True), (lambda x: x.var().sqrt(), False)):
        x = torch.zeros(4, requires_grad=True)
        function(x).backward()
        assert bool(x.grad.isfinite().all()) is finite  # type: ignore[union-attr]


def test_guards_that_are_too_small() -> None:
    found = _found(losses.GuardsTooSmall())
    assert [(each.code, each.fixable) for each in found] == [("RW0701", False)] * 2
    assert all("give a larger one" in each.message for each in found)
    value = losses.GuardsTooSmall()(torch.full((2, 2), 30.0), torch.full((2, 2), 0.5))
    assert not value.isfinite()
    assert len(_found(losses.GuardsTooSmall().double(), tuple(t.detach().double() for t in _inputs()))) == 0


def test_roots_that_divide_are_told_of() -> None:
    found = _found(losses.Divides())
    lines = [each.message for each in found]
    assert [(each.code, each.fixable) for each in found] == [("RW0703", False)] * 3 + [("RW0703", True)], lines
    assert sum("add a small positive constant" in line for line in lines) == 3


def test_what_cannot_be_mended_is_told_of_with_the_remedy() -> None:
    found = _found(losses.Elsewhere())
    assert [(each.code, each.fixable) for each in found] == [("RW0701", False)] * 4
    messages = [each.message for each in found]
    assert "lies between, in another function" in messages[0]
    for message, operation in zip(messages[1:], ("view", "getitem", "double"), strict=True):
        assert operation in message
        assert "move the sigmoid behind it, or compute it from the logits" in message


def test_inputs_that_take_no_gradient_are_left_alone() -> None:
    class OfTarget(nn.Module):
        def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return x.mean() / (1 + torch.sqrt(target.pow(2).sum()))

    x, target = _inputs()
    assert not _found(OfTarget(), (x, target))
    assert len(_found(OfTarget(), (x.detach(), target.clone().requires_grad_()))) == 1


@pytest.mark.parametrize(
    "by", ["with torch.no_grad():\n            d = self.distance(x, t)", "d = self.decorated(x, t)"]
)
def test_what_is_computed_without_gradients_is_left_alone(by: str, import_text: Load) -> None:
    module = import_text(
        "import torch\nfrom torch import nn\n\n\nclass Loss(nn.Module):\n"
        "    def distance(self, x, t):\n        return (x - t).pow(2).sum().sqrt()\n\n"
        "    @torch.no_grad()\n    def decorated(self, x, t):\n        return (x - t).pow(2).sum().sqrt()\n\n"
        f"    def forward(self, x, t):\n        {by}\n        return x.mean() * d\n"
    )
    assert not _found(module.Loss())


class OwnCrossEntropy(nn.BCELoss):
    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input, target)


def test_a_cross_entropy_that_does_more_stays() -> None:
    module = losses.Adversarial()
    module.criterion = OwnCrossEntropy()
    assert [(each.code, each.fixable) for each in _found(module)] == [("RW0702", False)]
    module = losses.Adversarial()
    module.criterion.register_forward_hook(lambda *_: None)
    (found,) = _found(module)
    assert not found.fixable
    assert "a forward hook is on 'criterion'" in found.message


class OfAPair(nn.Module):
    def forward(self, pair: tuple[torch.Tensor, torch.Tensor], target: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.sqrt((pair[0] - pair[1]).pow(2).sum()) + torch.sqrt(target["depth"].sum())


@pytest.mark.thorough
def test_inputs_in_containers() -> None:
    x, target = _inputs()
    (found,) = _found(OfAPair(), ((x, target), {"depth": target}))
    assert (found.code, found.fixable) == ("RW0703", True)
    assert len(_found(OfAPair(), ((x.detach(), target), {"depth": target}))) == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("exponent", [0.5, 0.25, 0.9])
def test_guarded_roots_are_the_same_bit_for_bit(dtype: torch.dtype, exponent: float) -> None:
    x = torch.rand(1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[:5] = torch.tensor([0.0, torch.finfo(dtype).tiny, 1.0, -1.0, torch.inf], dtype=dtype)
    pairs = [(SafePower(), lambda x: x**exponent, (exponent,)), (SafeSqrt(), torch.sqrt, ())]
    for layer, function, arguments in pairs:
        one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        safe, plain = layer(one, *arguments), function(other)
        torch.testing.assert_close(safe, plain, rtol=0, atol=0, equal_nan=True)
        safe.sum().backward()
        plain.sum().backward()
        assert one.grad is not None
        assert other.grad is not None
        assert one.grad[0] == 0
        assert not other.grad[0].isfinite()
        torch.testing.assert_close(one.grad[1:], other.grad[1:], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("arguments", [(), (1,), ((0, 1),), (1, True), (True,), (1, False, True)])
@pytest.mark.parametrize("function", ["var", "std", "var_mean"])
def test_population_variance_takes_the_arguments_of_torch(function: str, arguments: tuple[Any, ...]) -> None:
    x, _ = _inputs()
    given = getattr(torch, function)(x, *arguments)
    plain = [each for each in arguments if not isinstance(each, bool)]
    keepdim = {"keepdim": True} if arguments[-1:] == (True,) and len(arguments) == 3 else {}
    expected = getattr(torch, function)(x, *plain, correction=0, **keepdim)
    found = PopulationVariance(function)(x, *arguments)
    for one, other, original in zip(_tuple(found), _tuple(expected), _tuple(given), strict=True):
        torch.testing.assert_close(one, other)
        assert one.shape == original.shape
    with pytest.raises(ValueError, match="expected one of var"):
        PopulationVariance("mean")


def _tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize("options", [{}, {"dim": 1}, {"dim": (0, 1)}, {"dim": 0, "keepdim": True}, {"axis": 1}])
def test_two_pass_variance_takes_the_arguments_of_mean(options: dict[str, Any]) -> None:
    x = _inputs()[0].double()
    expected = x.pow(2).mean(**options) - x.mean(**options) ** 2
    torch.testing.assert_close(TwoPassVariance()(x, **options), expected)
    torch.testing.assert_close(TwoPassVariance()(x, *options.values()), expected)


MODELS = ["test_resnet", "test_vit", "test_convnext2", "test_efficientnet", "test_vit4", "test_mambaout", "test_nfnet"]


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_found_in_models_with_their_own_guards(name: str) -> None:
    model = timm.create_model(name)
    assert not list(rewriter.check(model, "numeric-safety"))


def _benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "numeric_safety.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_losses", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["JukeboxLoss", "PatchAdversarialLoss('bce')"])
def test_plan_for_a_loss_of_monai_reads_as_written_down(name: str) -> None:
    pytest.importorskip("monai")
    subject = next(subject for subject in _benchmark().subjects() if subject.name == name)
    module = subject.module()
    made = rewriter.plan(module, "numeric-safety", example_inputs=subject.inputs())
    assert_golden(f"numeric-safety/monai-{name.partition('(')[0]}", f"{replace(made, notes=())}\n\n{made.diff(module)}")


@pytest.mark.slow
@pytest.mark.parametrize("library", ["torchvision", "segmentation_models_pytorch", "kornia", "monai"])
def test_no_false_alarm_in_the_losses_of_libraries(library: str) -> None:
    """What is found was read: the amplitude of a spectrum, and a cross entropy of a sigmoid."""
    pytest.importorskip(library)
    benchmark = _benchmark()
    found = {
        subject.name: benchmark.findings_of(subject) for subject in benchmark.subjects() if subject.library == library
    }
    assert len(found) >= 4
    known = {"JukeboxLoss": "RW0703", "PatchAdversarialLoss('bce')": "RW0702"} if library == "monai" else {}
    assert {name: lines.partition(" ")[0] for name, lines in found.items() if lines != "nothing"} == known
