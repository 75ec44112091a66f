"""numeric-safety: what was nan or infinite is finite, and equal elsewhere, in value and gradient."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
import unsafe_losses as losses
from helpers import assert_golden
from torch import nn

import rewriter
from rewriter.passes import NumericSafety
from rewriter.testing import check_contract

Inputs = tuple[torch.Tensor, torch.Tensor]


def _inputs(seed: int = 0, scale: float = 2.0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 6, generator=generator) * scale
    return x.requires_grad_(), (torch.rand(4, 6, generator=generator) > 0.4).float() * 0.9 + 0.05


def _positive(seed: int = 0) -> Inputs:
    x, target = _inputs(seed)
    return (x.detach().abs() + 0.1).requires_grad_(), target


def _filled(x: float, target: float | None = None, shape: tuple[int, ...] = (4, 6)) -> Inputs:
    """Logits of one value; the target is what this is wrong about."""
    wrong = float(x < 0) if target is None else target
    return torch.full(shape, x, requires_grad=True), torch.full(shape, wrong)


def _equal() -> Inputs:
    x = torch.rand(4, 6, generator=torch.Generator().manual_seed(1)) + 0.1
    return x.clone().requires_grad_(), x


def _one_valid() -> Inputs:
    target = torch.zeros(4, 6)
    target[1, 2] = 0.9
    return torch.rand(4, 6, generator=torch.Generator().manual_seed(1)).requires_grad_(), target


def _run(module: nn.Module, inputs: Inputs, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and its gradient by the first input."""
    x, target = inputs[0].detach().to(dtype).requires_grad_(), inputs[1].to(dtype)
    value = copy.deepcopy(module).to(dtype)(x, target)
    (gradient,) = torch.autograd.grad(value, x)
    return value.detach(), gradient


class Case(NamedTuple):
    """A loss, the number of places, inputs at which it fails (by dtype), and other ones."""

    loss: Callable[[], nn.Module]
    places: int
    codes: str
    edges: tuple[tuple[torch.dtype, Inputs], ...]
    elsewhere: Callable[[int], Inputs] = _inputs
    options: dict[str, Any] = {}  # noqa: RUF012


SINGLE, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16
LOGITS = (
    (SINGLE, _filled(-110.0)), (SINGLE, _filled(20.0)), (HALF, _filled(-18.0)), (HALF, _filled(12.0)),
    (BRAIN, _filled(-110.0)), (BRAIN, _filled(8.0)),
)  # fmt: skip
CASES = {
    "scale-invariant log": Case(losses.ScaleInvariantLog, 1, "RW0703", ((SINGLE, _equal()),), _positive),
    "scale-invariant log, one valid point": Case(
        losses.ScaleInvariantLog, 2, "RW0703 RW0704", ((SINGLE, _one_valid()), (SINGLE, _equal())),
        options={"correction": 0},
    ),
    "deviation of a selection": Case(losses.Spread, 1, "RW0704", ((SINGLE, _one_valid()),), options={"correction": 0}),
    "cross entropy written out": Case(losses.CrossEntropy, 2, "RW0701", LOGITS),
    "focal loss, methods": Case(losses.FocalByMethods, 2, "RW0701", LOGITS[:2]),
    "focal loss, modules": Case(losses.FocalByModules, 2, "RW0701", LOGITS[:4]),
    "nested": Case(losses.Nested, 2, "RW0701", LOGITS),
    "in a function": Case(losses.CallsAFunction, 2, "RW0701", LOGITS[:2]),
    "BCELoss in a loop": Case(losses.Adversarial, 1, "RW0702", LOGITS[2:4]),
    "BCELoss with a weight": Case(lambda: losses.Adversarial(torch.full((6,), 0.7)), 1, "RW0702", LOGITS[2:4]),
    "binary_cross_entropy": Case(losses.FunctionalCrossEntropy, 1, "RW0702", LOGITS[2:4]),
    "root of a mean squared error": Case(losses.RootMeanSquare, 1, "RW0703", ((SINGLE, _equal()), (HALF, _equal()))),
    "power": Case(losses.Contrastive, 1, "RW0703", ((SINGLE, _equal()), (HALF, _equal()), (BRAIN, _equal()))),
    "length, twice": Case(losses.GradientMagnitude, 1, "RW0703", ((SINGLE, _filled(0.5, 0.2)),)),
}  # fmt: skip


def _rewritten(case: Case) -> tuple[nn.Module, nn.Module]:
    module = case.loss()
    return module, rewriter.rewrite(module, NumericSafety(**case.options), example_inputs=case.elsewhere(0))


@pytest.mark.parametrize("name", CASES)
def test_finite_where_the_original_is_not(name: str) -> None:
    case = CASES[name]
    module, rewritten = _rewritten(case)
    assert len(rewriter.report(rewritten).applied) == case.places
    for dtype, inputs in case.edges:
        before, after = _run(module, inputs, dtype), _run(rewritten, inputs, dtype)
        assert not all(each.isfinite().all() for each in before), (dtype, before)
        assert all(each.isfinite().all() for each in after), (dtype, after)


@pytest.mark.parametrize("name", [name for name in CASES if not CASES[name].options])
def test_equal_elsewhere(name: str) -> None:
    case = CASES[name]
    module, rewritten = _rewritten(case)
    for seed in range(1, 6):
        inputs = case.elsewhere(seed)
        exact = _run(module, inputs, torch.float64)
        for given, tolerance in ((_run(rewritten, inputs, torch.float64), 1e-9), (_run(rewritten, inputs), 1e-6)):
            for one, other in zip(given, exact, strict=True):
                scale = other.abs().max()
                assert (one.double() - other).abs().max() <= tolerance * scale


@pytest.mark.parametrize("name", ["scale-invariant log", "root of a mean squared error", "power", "length, twice"])
def test_a_guarded_root_is_the_same_bit_for_bit(name: str) -> None:
    case = CASES[name]
    module, rewritten = _rewritten(case)
    for seed in range(1, 6):
        for before, after in zip(
            _run(module, case.elsewhere(seed)), _run(rewritten, case.elsewhere(seed)), strict=True
        ):
            assert torch.equal(before, after)


@pytest.mark.thorough
@pytest.mark.parametrize("name", CASES)
def test_the_contract_holds(name: str) -> None:
    case = CASES[name]
    check_contract(case.loss(), NumericSafety(**case.options), example_inputs=case.elsewhere(0), must_find=True)


@pytest.mark.parametrize("name", CASES)
def test_codes(name: str) -> None:
    case = CASES[name]
    found = rewriter.check(case.loss(), NumericSafety(**case.options), example_inputs=case.elsewhere(0))
    assert {finding.code for finding in found if finding.fixable} == set(case.codes.split())
    assert all(finding.file == losses.__file__ for finding in found if "BCELoss" not in name)


@pytest.mark.parametrize("name", ["in a function", "BCELoss with a weight", "focal loss, modules"])
def test_pickled_and_copied(name: str) -> None:
    case = CASES[name]
    _, rewritten = _rewritten(case)
    inputs = case.elsewhere(3)
    for other in (pickle.loads(pickle.dumps(rewritten)), copy.deepcopy(rewritten)):
        for one, two in zip(_run(rewritten, inputs), _run(other, inputs), strict=True):
            assert torch.equal(one, two)


def test_the_weight_and_reduction_of_a_bceloss_are_read_when_it_runs() -> None:
    module, rewritten = _rewritten(CASES["BCELoss with a weight"])
    assert {*rewritten.state_dict()} == {"criterion.weight", "rewriter_plan"}
    for each in (module, copied := copy.deepcopy(rewritten)):
        each.criterion.reduction = "sum"  # type: ignore[union-attr, assignment]
        each.criterion.weight.mul_(3)  # type: ignore[union-attr, operator]
    x, target = _inputs()
    torch.testing.assert_close(copied(x, target), module(x, target))
    assert not torch.allclose(rewritten(x, target), copied(x, target))


def test_what_the_code_reads_stays_read() -> None:
    module, rewritten = _rewritten(CASES["power"])
    for exponent in (0.25, 1.0, 2.0):
        module.half = rewritten.half = exponent  # type: ignore[assignment]
        x, other = _inputs()
        assert torch.equal(rewritten(x, other), module(x, other))


def test_the_variance_of_the_paper() -> None:
    """E[x²] − E[x]² in single precision is -0.0625 for 1000.1, 1000.2, 1000.3; the variance is 0.0067."""
    x = torch.tensor([[1000.1, 1000.2, 1000.3]])
    assert (x.pow(2).mean(1) - x.mean(1) ** 2).item() == -0.0625

    class Variance(losses.MeansOfSquares):
        def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return x.pow(2).mean(self.dims) - x.mean(self.dims) ** 2

    module = Variance()
    rewritten = rewriter.rewrite(module, "numeric-safety", example_inputs=(x, x))
    assert rewritten(x, x).item() == pytest.approx(0.02 / 3, rel=1e-2)
    assert rewritten(x, x).item() == pytest.approx(module(x.double(), x).item(), rel=1e-2)
    small = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(rewritten(small, small), module(small, small), rtol=1e-12, atol=0)
    module.dims = rewritten.dims = (0,)  # type: ignore[assignment]
    torch.testing.assert_close(rewritten(small, small), module(small, small), rtol=1e-12, atol=0)


def test_a_variance_in_a_loss() -> None:
    module = losses.MeansOfSquares()
    check_contract(module, "numeric-safety", example_inputs=_inputs(), must_find=True)
    found = rewriter.check(module, "numeric-safety", example_inputs=_inputs())
    assert [(finding.code, finding.fixable) for finding in found] == [("RW0705", True)]


@pytest.mark.thorough
def test_bessels_correction_is_only_told_of_by_default() -> None:
    made = rewriter.plan(losses.Spread(), "numeric-safety", example_inputs=_one_valid())
    assert not made.sites
    assert "correction=0" in made.advice[0].advice
    module = losses.Spread()
    rewritten = rewriter.rewrite(module, NumericSafety(correction=0), example_inputs=_inputs())
    x, target = _inputs()
    selected = x[target > 0.5]
    torch.testing.assert_close(rewritten(x, target), selected.std(correction=0) + x.mean())


@pytest.mark.parametrize("value", [1, True, "0", 0.5])
def test_bad_options_are_refused(value: Any) -> None:
    with pytest.raises((ValueError, rewriter.RewriterError), match=r"correction: expected 0 or None, found"):
        NumericSafety(correction=value)


def test_a_loss_without_weights_has_no_trained_ones() -> None:
    assert not rewriter.plan(losses.CrossEntropy(), "numeric-safety", example_inputs=_inputs()).notes
    assert "trained" in rewriter.plan(losses.FocalByModules(), "numeric-safety", example_inputs=_inputs()).notes[0]


def test_not_among_the_default_passes() -> None:
    made = rewriter.plan(losses.CrossEntropy(), example_inputs=_inputs())
    assert "numeric-safety" not in dict(made.passes)


@pytest.mark.parametrize("name", ["scale-invariant log", "focal loss, methods", "in a function", "BCELoss in a loop"])
def test_plan_reads_as_written_down(name: str) -> None:
    case = CASES[name]
    module = case.loss()
    made = rewriter.plan(module, NumericSafety(**case.options), example_inputs=case.elsewhere(0))
    assert_golden(
        f"numeric-safety/{name.replace(',', '').replace(' ', '-')}", f"{replace(made, notes=())}\n\n{made.diff(module)}"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scale-invariant log", "in a function", "BCELoss in a loop", "binary_cross_entropy"])
def test_compiled(name: str) -> None:
    case = CASES[name]
    _, rewritten = _rewritten(case)
    compiled = torch.compile(rewritten, backend="eager", fullgraph=name != "scale-invariant log")
    for inputs in (case.elsewhere(2), case.edges[0][1]):
        x, target = inputs
        assert torch.equal(compiled(x, target), rewritten(x, target))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["focal loss, modules", "power", "binary_cross_entropy"])
def test_exported(name: str) -> None:
    _, rewritten = _rewritten(CASES[name])
    exported = torch.export.export(rewritten, _inputs(1)).module()
    torch.testing.assert_close(exported(*_inputs(1)), rewritten(*_inputs(1)))
