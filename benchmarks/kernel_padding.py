"""Does kernel padding lower the imbalance of pixels? A small network trained on MNIST with and without it.

    python benchmarks/kernel_padding.py [--steps 300] [--seeds 5]

Three convolutions with batch norm, 3x3/2, 3x3/2 and 3x3, trained on 4000 images, shifted by up to four pixels. Both
arms of a seed begin with the same weights and see the same batches. Imbalance as ``rewriter.measure(model,
"dead-pixels")`` gives it, on 900 images. One thread.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
from typing import Any

import numpy as np
import scipy.stats
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

import rewriter
from rewriter import data

SIDE = 32


def images(examples: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """All examples as ``(N, 1, 32, 32)``, normalised, with their classes."""
    values = np.stack([np.asarray(examples[index][0], np.float32) for index in range(len(examples))])
    normalised = (torch.from_numpy(values)[:, None] / 255 - 0.13) / 0.31
    border = (SIDE - values.shape[1]) // 2
    targets = torch.tensor([examples[index][1] for index in range(len(examples))])
    return F.pad(normalised, [border] * 4, value=-0.13 / 0.31), targets


def network(width: int = 12) -> nn.Sequential:
    sizes = ((1, width, 2), (width, 2 * width, 2), (2 * width, 2 * width, 1))
    blocks = [
        layer
        for inputs, outputs, stride in sizes
        for layer in (nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))


def shifted(x: torch.Tensor, most: int = 4) -> torch.Tensor:
    return torch.roll(x, torch.randint(-most, most + 1, (2,)).tolist(), (2, 3))


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps)
    model.train()
    for _ in range(steps):
        batch = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(shifted(x[batch])), y[batch]).backward()
        optimizer.step()
        schedule.step()
    model.eval()


def measured(seed: int, steps: int) -> dict[str, tuple[float, float, float]]:
    """L1, L2 and accuracy of both arms."""
    source = data.open_source("mnist5k")
    x, y = images(source.train)
    tested, targets = images(source.test)
    torch.manual_seed(seed)
    plain = network()
    arms = {"3x3/2": plain, "4x4/2": rewriter.rewrite(plain, "kernel-padding", input_size=(1, SIDE, SIDE))}
    some = torch.cat([torch.roll(tested[::3][:300], shift, (2, 3)) for shift in ((0, 0), (3, 5), (-5, 2))])
    found = {}
    for name, model in copy.deepcopy(arms).items():
        train(model, x, y, steps, seed)
        with torch.no_grad():
            accuracy = float((model(tested).argmax(1) == targets).float().mean())
        summary = rewriter.measure(model, "dead-pixels", some).summary
        found[name] = summary["l1"], summary["l2"], accuracy
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = [measured(seed, arguments.steps) for seed in track(range(arguments.seeds), description="training")]
    table = Table("kernels", "L1", "L2", "accuracy")
    for name in runs[0]:
        table.add_row(name, *(f"{statistics.mean(run[name][index] for run in runs):.3f}" for index in range(3)))
    table.add_row("difference", *(interval([run["4x4/2"][i] - run["3x3/2"][i] for run in runs]) for i in range(3)))
    Console().print(table)


def interval(values: list[float]) -> str:
    """A mean with its 95 % interval, by Student's t."""
    mean = statistics.mean(values)
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f})"


if __name__ == "__main__":
    main()
