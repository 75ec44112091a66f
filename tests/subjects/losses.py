"""Losses as people write them: every form of a function, and two passes that edit them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from rewriter.authoring import (
    AddedLayer,
    Change,
    Contract,
    Lint,
    Outcome,
    Pass,
    Place,
    Reason,
    Refused,
    Trace,
    register_layer,
)

Loss = Callable[..., torch.Tensor]


@register_layer("finite-log/log")
class FiniteLog(nn.Module):
    """The logarithm of numbers that are at least ``least``."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.least = least

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log(x.clamp_min(self.least))


@dataclass(frozen=True)
class LogPass(Pass):
    """Puts a layer in the place of ``torch.log``."""

    name = "finite-log"
    summary = paper = "a test"
    contract = Contract(eval_output=False)
    codes = (Lint("XX0201", "a logarithm of zero", "error"),)

    least: float = 1e-12

    def candidates(self, trace: Trace) -> Iterator[Place[Any]]:
        return (Place(trace, node, "log") for node in trace.flow.nodes() if node.target is torch.log)

    def decide(self, place: Place[Any]) -> Outcome:
        assert place.node is not None
        if isinstance(place.trace.owner_of(place.node), FiniteLog):
            raise Refused(Reason.ALREADY_DONE, "it is finite")
        place.edit.redirect(place.node, FiniteLog, least=self.least)
        return Change("keep the logarithm finite", "that of zero is not", code="XX0201")


@register_layer("temperature/scale")
class Scale(AddedLayer):
    """Divides by a temperature that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.temperature)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / self.temperature


@dataclass(frozen=True)
class TemperaturePass(Pass):
    """Wraps the operand of a sigmoid."""

    name = "temperature"
    summary = paper = "a test"
    contract = Contract(adds_parameters=True)

    def candidates(self, trace: Trace) -> Iterator[Place[Any]]:
        return (Place(trace, node, "sigmoid") for node in trace.flow.nodes() if node.target is torch.sigmoid)

    def decide(self, place: Place[Any]) -> Outcome:
        assert place.node is not None
        (operand,) = place.flow.sources(place.node)
        if operand.op != "placeholder" and isinstance(place.trace.owner_of(operand), Scale):
            raise Refused(Reason.ALREADY_DONE, "it has one")
        place.edit.insert_before(place.node, operand, Scale)
        return Change("learn a temperature", "a test")


def plain(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """A docstring."""
    return -(target * torch.log(torch.sigmoid(prediction))).mean()


def with_defaults(prediction: torch.Tensor, target: torch.Tensor, gamma: float = 2.0, reduction: str = "mean") -> Any:
    p = torch.sigmoid(prediction)
    loss = -((1 - p) ** gamma) * target * torch.log(p)
    return loss.mean() if reduction == "mean" else loss


def keyword_only(prediction: torch.Tensor, *, target: torch.Tensor, eps: float = 1e-3) -> torch.Tensor:
    return -(target * torch.log(torch.sigmoid(prediction) + eps)).mean()


def variable(*tensors: torch.Tensor, **options: Any) -> torch.Tensor:
    prediction, target = tensors
    return -(target * torch.log(torch.sigmoid(prediction) + options.get("eps", 0.0))).mean()


def positional(self: torch.Tensor, /, target: torch.Tensor, the_module: float = 1.0) -> torch.Tensor:
    """Its parameters have the names that the new one would have."""
    return -the_module * (target * torch.log(torch.sigmoid(self))).mean()


def one_line(prediction: torch.Tensor, target: torch.Tensor) -> Any: return -(target * torch.log(torch.sigmoid(prediction))).mean()  # fmt: skip  # noqa: E501


def branches_on_values(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    mask = target > 0
    if mask.sum() == 0:
        return prediction.sum() * 0
    return -torch.log(torch.sigmoid(prediction)[mask]).mean()


def two_ways(prediction: torch.Tensor, target: torch.Tensor, stable: bool = False) -> torch.Tensor:
    p = torch.sigmoid(prediction)
    if stable:  # noqa: SIM108
        loss = torch.log(p + 1e-3)
    else:
        loss = torch.log(p)
    return -(target * loss).mean()


def writes_to_its_target(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    target[target > 0.5] = 0.9
    return -(target * torch.log(torch.sigmoid(prediction))).mean()


def _log_likelihood(probability: torch.Tensor) -> torch.Tensor:
    return torch.log(probability)


def with_helper(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return -(target * _log_likelihood(torch.sigmoid(prediction))).mean()


def recursive(prediction: torch.Tensor, target: torch.Tensor, levels: int = 1) -> torch.Tensor:
    loss = -(target * torch.log(torch.sigmoid(prediction))).mean()
    return loss if levels == 0 else loss + recursive(prediction[::2], target[::2], levels - 1)


def weighted(function: Loss) -> Loss:
    """A decorator as in mmdet: with arguments of its own."""

    @functools.wraps(function)
    def wrapper(
        prediction: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None, **options: Any
    ) -> torch.Tensor:
        loss = function(prediction.float(), target.float(), **options)
        return (loss if weight is None else loss * weight).mean()

    return wrapper


@weighted
def decorated(prediction: torch.Tensor, target: torch.Tensor, gamma: float = 1.0) -> torch.Tensor:
    return -gamma * target * torch.log(torch.sigmoid(prediction))


@torch.autocast("cpu", enabled=False)
def decorated_by_torch(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return -(target * torch.log(torch.sigmoid(prediction))).mean()


class Doubled:
    """A decorator that is an object."""

    def __init__(self, function: Loss) -> None:
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, *args: Any) -> torch.Tensor:
        return 2 * self.function(*args)


@Doubled
def decorated_by_object(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return -(target * torch.log(torch.sigmoid(prediction))).mean()


def without_wraps(function: Loss) -> Loss:
    def wrapper(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return function(prediction, target)

    return wrapper


def _inner(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return -(target * torch.log(torch.sigmoid(prediction))).mean()


wrapped_unsaid = without_wraps(_inner)


def closure(alpha: float) -> Loss:
    def loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """It closes over alpha."""
        return -alpha * (target * torch.log(torch.sigmoid(prediction))).mean()

    return loss


class Likelihood:
    """A loss that is an object and no module."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = torch.tensor(scale)

    def __call__(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return -self.scale * (target * torch.log(torch.sigmoid(prediction))).mean()

    def method(self, prediction: torch.Tensor, target: torch.Tensor, *, times: float = 1.0) -> torch.Tensor:
        return -times * self.scale * (target * torch.log(torch.sigmoid(prediction))).mean()

    @staticmethod
    def of_the_class(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return -(target * torch.log(torch.sigmoid(prediction))).mean()

    @classmethod
    def with_the_class(cls, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return -(target * torch.log(torch.sigmoid(prediction))).mean() * len(cls.__name__)


class Regularized(Likelihood):
    def __call__(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return super().__call__(prediction, target) - torch.log(1 + prediction.abs()).mean()


def probability(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """It takes no logarithm."""
    return F.mse_loss(torch.relu(prediction), target)


FORMS: dict[str, Loss] = {
    **{
        function.__name__: function
        for function in (
            plain, with_defaults, variable, positional, one_line, branches_on_values, two_ways, with_helper, decorated,
            decorated_by_torch,
        )
    },
    "decorated by an object": decorated_by_object, "wrapped without saying so": wrapped_unsaid, "closure": closure(0.5),
    "object": Likelihood(2.0), "method": Likelihood(3.0).method, "static method": Likelihood.of_the_class,
    "class method": Likelihood.with_the_class, "super": Regularized(), "cached": functools.lru_cache(plain),
    "partial": functools.partial(with_defaults, gamma=1.0),
    "partial of a partial of a method": functools.partial(functools.partial(Likelihood().method, times=3.0)),
}  # fmt: skip
"""Losses of a prediction and a target, each of which takes one logarithm."""


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """A prediction and a target, always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, generator=generator), torch.rand(4, 3, generator=generator).round()
