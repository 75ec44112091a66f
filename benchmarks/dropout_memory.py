"""What a dropout before the head's pooling costs in a training step, beside one behind it and none: memory and time.

    python benchmarks/dropout_memory.py [--batch 32] [--size 224] [--rounds 5] [NAME ...]

*Saved* is what autograd holds for the backward pass, each storage once: exact, and the same on every machine. *Peak* is
what the step held beyond what was held before it, of the device on CUDA. Steps run in turns, in one process.
"""

from __future__ import annotations

import argparse
from typing import Any

import timm
import torch
import torch.nn.functional as F
from measuring import Step, interleave
from torch import nn

import rewriter
from rewriter.reporting.memory import PeakMemory
from rewriter.reporting.tables import markdown_table

RATE = 0.2


def arms(name: str, device: torch.device) -> dict[str, nn.Module]:
    """The model without dropout in its head, with one behind the pooling as timm has it, and rewritten."""
    made = {rate: timm.create_model(name, drop_rate=rate).to(device).train() for rate in (0.0, RATE)}
    before = rewriter.rewrite(made[RATE], "dropout", input_size=224, preserve="nothing")
    return {"none": made[0.0], "behind the pooling (H5)": made[RATE], "before the pooling (H4)": before.train()}


def saved_bytes(model: nn.Module, images: torch.Tensor) -> int:
    """What autograd keeps of a forward pass, without the parameters."""
    kept = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in kept:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(images)
    found = sum(storages.values())
    del output
    return found


def step(model: nn.Module, images: torch.Tensor, targets: torch.Tensor, memory: list[float]) -> Step:
    def run() -> Any:
        peak = PeakMemory(images.device)
        F.cross_entropy(model(images), targets).backward()
        if images.device.type == "cuda":
            torch.cuda.synchronize(images.device)
        memory.append(peak.megabytes() or 0.0)

    return Step(run, before=lambda: model.zero_grad(set_to_none=True))


def measure(name: str, batch: int, size: int, rounds: int) -> list[list[str]]:
    """A row for each arm."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    images, targets = torch.randn(batch, 3, size, size, device=device), torch.randint(1000, (batch,), device=device)
    models = arms(name, device)
    saved = {arm: saved_bytes(model, images) for arm, model in models.items()}
    memory: dict[str, list[float]] = {arm: [] for arm in models}
    steps = {arm: step(model, images, targets, memory[arm]) for arm, model in models.items()}
    interleave(steps, rounds, seconds=1e6)
    return [
        [
            name, arm, f"{saved[arm] / 1e6:.1f}", f"{(saved[arm] / saved['none'] - 1) * 100:+.2f} %",
            f"{max(memory[arm]):.0f}", _told(steps[arm]),
        ]
        for arm in models
    ]  # fmt: skip


def _told(step: Step) -> str:
    low, high = step.quartiles
    return f"{step.median:.0f} ({low:.0f}–{high:.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["resnet50"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    header = ["model", "dropout", "saved, MB", "beside none", "peak, MB", "step, ms: median (quartiles)"]
    rows = [row for name in options.names for row in measure(name, options.batch, options.size, options.rounds)]
    print(markdown_table(header, rows, "lr"))


if __name__ == "__main__":
    main()
