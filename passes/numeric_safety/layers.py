"""The layers that compute the same values without overflow, division by zero or cancellation."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from rewriter.layers.registry import register_layer
from rewriter.layers.scripting import NotScripted
from rewriter.tracing.kinds import Kind


@register_layer("numeric-safety/log-sigmoid")
class LogSigmoid(nn.Module):
    """``log(sigmoid(x))``, or with ``complement`` ``log(1 - sigmoid(x))``, of a tensor of any shape.

    Finite for every finite ``x``, in value and gradient. The logarithm is natural, or to ``base``.
    """

    operation_kind = Kind.ACTIVATION
    divisor: float = 1.0  # of the class: objects that were pickled before there was one have none

    def __init__(self, complement: bool = False, base: int | None = None) -> None:
        super().__init__()
        self.complement = complement
        self.divisor = 1.0 if base is None else math.log(base)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = F.logsigmoid(-x if self.complement else x)
        return value if self.divisor == 1.0 else value / self.divisor

    def extra_repr(self) -> str:
        base = "" if self.divisor == 1.0 else f", base={math.exp(self.divisor):.0f}"
        return f"complement={self.complement}{base}"


@register_layer("numeric-safety/bce-with-logits")
class BinaryCrossEntropy(NotScripted):
    """``F.binary_cross_entropy(sigmoid(x), target, …)``, or of ``1 - sigmoid(x)`` with ``complement``, from ``x``.

    It takes the arguments of ``F.binary_cross_entropy``. In the place of an ``nn.BCELoss``, that module is ``loss``,
    and its weight and reduction are read when they are used.
    """

    operation_kind = Kind.OTHER

    def __init__(self, complement: bool = False, loss: nn.Module | None = None) -> None:
        super().__init__()
        self.complement = complement
        self._of = (loss,)  # in a tuple, so that it is no child: the state dict stays as it was

    def forward(self, x: torch.Tensor, target: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        (loss,) = self._of
        if loss is not None:
            kwargs = {"weight": loss.weight, "reduction": loss.reduction}
        return F.binary_cross_entropy_with_logits(-x if self.complement else x, target, *args, **kwargs)

    def extra_repr(self) -> str:
        return f"complement={self.complement}"


@register_layer("numeric-safety/safe-sqrt")
class SafeSqrt(nn.Module):
    """``sqrt(x)`` with the gradient 0 where ``x`` is 0, as ``torch.norm`` has it; bit for bit the same elsewhere.

    With ``clamp``, value and gradient are 0 where ``x`` is negative, too: of an ``x`` that is negative by rounding.
    """

    operation_kind = Kind.ACTIVATION
    clamp: bool = False  # of the class: objects that were pickled before there was one have none

    def __init__(self, clamp: bool = False) -> None:
        super().__init__()
        self.clamp = clamp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        zero = x <= 0 if self.clamp else x == 0
        return torch.where(zero, torch.zeros_like(x), torch.where(zero, torch.ones_like(x), x).sqrt())

    def extra_repr(self) -> str:
        return "clamp=True" if self.clamp else ""


@register_layer("numeric-safety/safe-power")
class SafePower(nn.Module):
    """``x ** exponent`` for an exponent between 0 and 1, with the gradient 0 where ``x`` is 0; otherwise the same.

    With ``clamp``, value and gradient are 0 where ``x`` is negative, too: of an ``x`` that is negative by rounding.
    """

    operation_kind = Kind.OTHER
    clamp: bool = False

    def __init__(self, clamp: bool = False) -> None:
        super().__init__()
        self.clamp = clamp

    def forward(self, x: torch.Tensor, exponent: float) -> torch.Tensor:
        # the caller's exponent may be another one than when the plan was made
        if isinstance(exponent, torch.Tensor) or not 0 < exponent < 1:
            return x**exponent
        zero = x <= 0 if self.clamp else x == 0
        return torch.where(zero, torch.zeros_like(x), torch.where(zero, torch.ones_like(x), x) ** exponent)

    def extra_repr(self) -> str:
        return "clamp=True" if self.clamp else ""


@register_layer("numeric-safety/population-variance")
class PopulationVariance(NotScripted):
    """``torch.var``, ``torch.std``, ``torch.var_mean`` or ``torch.std_mean`` with ``correction=0``.

    It takes the arguments of that function, and leaves out ``unbiased`` and ``correction``.
    """

    operation_kind = Kind.OTHER

    def __init__(self, function: str) -> None:
        super().__init__()
        if function not in VARIANCES:
            raise ValueError(f"function: expected one of {', '.join(VARIANCES)}, found {function!r}")
        self.function = function

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        dim, keepdim = variance_arguments(args, kwargs)
        return getattr(torch, self.function)(x, dim=dim, correction=0, keepdim=keepdim)

    def extra_repr(self) -> str:
        return self.function


VARIANCES = ("var", "std", "var_mean", "std_mean")


def variance_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, bool]:
    """The dimensions (None for all) and ``keepdim`` of a call of ``torch.var``, without the tensor.

    It is called as ``(unbiased)`` or as ``(dim, unbiased, keepdim)``, by position or by name.
    """
    if args and isinstance(args[0], bool):
        args = (None, *args)
    names = ("dim", "unbiased", "keepdim")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return given.get("dim", given.get("axis")), bool(given.get("keepdim", False))


@register_layer("numeric-safety/two-pass-variance")
class TwoPassVariance(NotScripted):
    """The mean of squared differences from the mean; takes ``x`` and the other arguments of ``torch.mean``."""

    operation_kind = Kind.OTHER

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        names = ("dim", "keepdim")
        over = {**dict(zip(names, args, strict=False)), **kwargs, "keepdim": True}
        over.setdefault("dim", over.pop("axis", None))
        return (x - torch.mean(x, **over)).square().mean(*args, **kwargs)
