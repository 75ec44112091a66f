"""What stochastic pooling costs: forward and backward of the layers beside the plain pooling, and of whole models.

    python benchmarks/stochastic_pooling.py [--device cuda] [--rounds 21]

Alternating runs in one process on one thread; medians of the ratio to the plain pooling of the same round, with
quartiles. The peer for the global form gathers the kept elements, as the paper's formula reads.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable

import timm
import torch
from measuring import Step, interleave
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

import rewriter
from rewriter.passes import StochasticPooling
from rewriter.passes.stochastic_pooling import StochasticAdaptiveAvgPool2d, StochasticAvgPool2d


class GatheringPool(nn.Module):
    """Global stochastic pooling that gathers the kept elements before it averages them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(2)
        kept = max(1, round(0.5 * flat.shape[-1]))
        index = torch.rand(x.shape[0], 1, flat.shape[-1], device=x.device).argsort(-1)[..., :kept]
        averages = flat.gather(-1, index.expand(-1, x.shape[1], -1)).mean(-1)
        return averages * math.sqrt(kept / flat.shape[-1])


LAYERS: dict[str, tuple[tuple[int, ...], nn.Module, dict[str, nn.Module]]] = {
    "head, 7 x 7, 2048 channels": (
        (32, 2048, 7, 7),
        nn.AdaptiveAvgPool2d(1),
        {"stochastic": StochasticAvgPool2d(), "by gathering": GatheringPool()},
    ),
    "transition, 56 x 56, 128 channels": ((32, 128, 56, 56), nn.AvgPool2d(2), {"stochastic": StochasticAvgPool2d(2)}),
    "pyramid of 6 x 6 bins, 60 x 60, 512 channels": (
        (4, 512, 60, 60),
        nn.AdaptiveAvgPool2d(6),
        {"stochastic": StochasticAdaptiveAvgPool2d(6)},
    ),
    "pyramid of 6 x 6 uneven bins, 64 x 64, 512 channels": (
        (4, 512, 64, 64),
        nn.AdaptiveAvgPool2d(6),
        {"stochastic": StochasticAdaptiveAvgPool2d(6)},
    ),
}
MODELS = ("resnet18", "densenet121")


def step(module: nn.Module, x: torch.Tensor) -> None:
    """One forward and backward, to the end."""
    module(x).float().sum().backward()
    if x.is_cuda:
        torch.cuda.synchronize()


def ratios(plain: nn.Module, other: nn.Module, x: torch.Tensor, rounds: int) -> tuple[float, list[float]]:
    """The median time of ``plain``, and the ratios of ``other`` to it, round by round."""
    steps = {name: Step(lambda module=module: step(module, x)) for name, module in (("plain", plain), ("other", other))}  # type: ignore[misc]
    interleave(steps, rounds, seconds=math.inf)
    base, found = steps["plain"], steps["other"]
    return base.median, [b / a for a, b in zip(base.milliseconds, found.milliseconds, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=21)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    work: list[tuple[str, str, nn.Module, nn.Module, Callable[[], torch.Tensor]]] = []
    for name, (shape, plain, others) in LAYERS.items():
        for form, other in others.items():
            work.append((name, form, plain, other, lambda shape=shape: torch.randn(shape)))  # type: ignore[misc]
    for name in MODELS:
        model = timm.create_model(name)
        rewritten = rewriter.rewrite(model, [StochasticPooling()])
        work.append((name, "rewritten", model.train(), rewritten.train(), lambda: torch.randn(4, 3, 224, 224)))
    table = Table("what", "form", "plain, ms", "times the plain", "quartiles")
    for name, form, plain, other, make in track(work, description="measuring"):
        x = make().to(arguments.device).requires_grad_()
        base, found = ratios(plain.to(arguments.device), other.to(arguments.device), x, arguments.rounds)
        low, middle, high = statistics.quantiles(found, n=4)
        table.add_row(name, form, f"{base:.2f}", f"{middle:.2f}", f"{low:.2f} – {high:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
