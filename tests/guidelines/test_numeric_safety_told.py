"""numeric-safety: what it says of what it does not mend, and that it says nothing of a normalisation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import unsafe_losses as losses

import rewriter


def _inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, target = torch.randn(4, 6, generator=generator), torch.rand(4, 6, generator=generator)
    return x.to(dtype).requires_grad_(), target.to(dtype)


def _found(loss: Any, dtype: torch.dtype = torch.float32) -> list[rewriter.Finding]:
    return list(rewriter.check(loss, "numeric-safety", example_inputs=_inputs(dtype)))


@pytest.mark.parametrize("loss", [losses.unit_length, losses.unit_length_by_power, losses.unit_length_by_inverse])
def test_a_tensor_divided_by_its_own_length_is_as_with_norm(loss: Any) -> None:
    x, target = _inputs()
    torch.testing.assert_close(loss(x, target), (x / x.norm(dim=-1, keepdim=True) * target).sum())
    assert not _found(loss)


@pytest.mark.parametrize("loss", [losses.length_of_another, losses.length_read_twice])
def test_other_roots_that_divide_are_told_of(loss: Any) -> None:
    (found,) = _found(loss)
    assert (found.code, found.fixable) == ("RW0703", False)
    assert "add a small positive constant" in found.message


@pytest.mark.parametrize("loss", [losses.by_keyword, losses.to_other_bases])
def test_logarithms_written_otherwise(loss: Any) -> None:
    rewritten = rewriter.rewrite(loss, "numeric-safety", example_inputs=_inputs())
    exact, value = (each(*(t.double() for t in _inputs())) for each in (loss, rewritten))
    torch.testing.assert_close(value, exact)
    for edge in (-200.0, 200.0):
        x = torch.full((4, 6), edge, requires_grad=True)
        value = rewritten(x, torch.full((4, 6), 0.5))
        (gradient,) = torch.autograd.grad(value, x)
        assert value.isfinite()
        assert gradient.isfinite().all()


NOT_MENDED = [
    (losses.of_another_type, torch.float32, "float() lies between the sigmoid and this; move the sigmoid behind it"),
    (losses.of_another_type, torch.float16, "float() lies between the sigmoid and this; move the sigmoid behind it"),
    (losses.divided, torch.float32, "a divisor (div) lies between the sigmoid and this; take its logarithm by"),
    (losses.ones_less, torch.float32, "By hand: torch.nn.functional.logsigmoid of the logits"),
    (losses.by_an_inner_function, torch.float32, "`nll(torch.sigmoid(x))`: 'nll' is defined inside the function"),
]


@pytest.mark.parametrize(("loss", "dtype", "text"), NOT_MENDED)
def test_the_reason_is_the_true_one(loss: Any, dtype: torch.dtype, text: str) -> None:
    (found,) = _found(loss, dtype)
    assert (found.code, found.fixable) == ("RW0701", False)
    assert text in found.message


def test_a_guard_that_half_precision_removes_is_found() -> None:
    def loss(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (torch.log(torch.sigmoid(x) + 1e-8) * target).sum()

    (found,) = _found(loss, torch.float16)
    assert (found.code, found.fixable) == ("RW0701", False)
    assert "give a larger one" in found.message
    assert not _found(loss)
