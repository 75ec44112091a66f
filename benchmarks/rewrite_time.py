"""How long each step of a rewrite takes, beside a bare forward on meta, in one process on one thread.

    python benchmarks/rewrite_time.py [MODEL ...]

Prints medians and the spread (quartiles) in milliseconds. Steps of one round run after each other, so that a machine
whose speed drifts treats them alike.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import timm
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import rewriter
from passes import Dropout
from rewriter.skeleton import meta_twin, skeleton

MODELS = ("resnet50", "vit_base_patch16_224", "convnext_tiny", "efficientnet_b0", "densenet121")
ROUNDS = 7


def measure(name: str) -> dict[str, list[float]]:
    """Milliseconds of each step, one entry a round."""
    model = timm.create_model(name, drop_rate=0.1)
    size = model.pretrained_cfg["input_size"]
    copy, images = skeleton(model, meta_twin).eval(), torch.empty(2, *size, device="meta")
    passes = [Dropout(p=0.1)]
    made = rewriter.plan(model, passes)
    seconds: dict[str, list[float]] = {}

    def step(label: str, run: Callable[[], object]) -> None:
        started = time.perf_counter()
        run()
        seconds.setdefault(label, []).append(1000 * (time.perf_counter() - started))

    for _ in range(ROUNDS):
        with torch.no_grad():
            step("bare meta forward", lambda: copy(images))
        step("skeleton", lambda: skeleton(model, meta_twin))
        step("trace, both modes", lambda: rewriter.trace(model))
        step("plan", lambda: rewriter.plan(model, passes))
        step("apply to a copy", lambda: made.apply(model, verify=False))
        step("apply and verify", lambda: made.apply(model))
    return seconds


def main() -> None:
    torch.set_num_threads(1)
    table = Table("model", "step", "median ms", "quartiles ms")
    for name in track(sys.argv[1:] or MODELS, description="measuring"):
        for label, values in measure(name).items():
            low, _, high = statistics.quantiles(values, n=4)
            table.add_row(name, label, f"{statistics.median(values):.0f}", f"{low:.0f} – {high:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
