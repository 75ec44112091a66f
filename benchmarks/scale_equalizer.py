"""What scale equalizers cost: training steps and inference beside the original, as modules and folded.

    python benchmarks/scale_equalizer.py [--device cuda] [--rounds 21]

Alternating runs in one process on one thread; medians of the ratio to the original in the same round, with quartiles.
"""

from __future__ import annotations

import argparse
import math
import statistics
from functools import partial

import segmentation_models_pytorch as smp
import torch
import torchvision
from measuring import Step, interleave
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

import rewriter
from rewriter.tracing.containers import tensors_in

MODELS = {
    "smp DeepLabV3+, resnet18": lambda: smp.DeepLabV3Plus("resnet18", encoder_weights=None),
    "smp UPerNet, resnet18": lambda: smp.UPerNet("resnet18", encoder_weights=None),
    "torchvision DeepLabV3, mobilenet_v3_large": lambda: torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(
        weights_backbone=None
    ),
}


def training_step(model: nn.Module, x: torch.Tensor) -> None:
    sum(t.float().mean() for t in tensors_in(model.train()(x))).backward()  # type: ignore[union-attr]
    _finish(x)


def inference(model: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        model.eval()(x)
    _finish(x)


def _finish(x: torch.Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--size", type=int, default=256)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("model", "what", "original, ms", "times the original", "quartiles")
    for name, create in track(MODELS.items(), description="measuring"):
        model = create().to(arguments.device)
        x = torch.randn(2, 3, arguments.size, arguments.size, device=arguments.device)
        equalized = rewriter.rewrite(model, "scale-equalizer", input_size=arguments.size, verify=False)
        rewriter.calibrate(equalized, [x], progress=False)
        folded = rewriter.fold(equalized)
        for what, run, others in (
            ("training step", training_step, {"equalized": equalized}),
            ("inference", inference, {"equalized": equalized, "folded": folded}),
        ):
            steps = {key: Step(partial(run, m, x)) for key, m in {"original": model, **others}.items()}
            interleave(steps, arguments.rounds, seconds=math.inf)
            base = steps["original"]
            for key in others:
                found = [b / a for a, b in zip(base.milliseconds, steps[key].milliseconds, strict=True)]
                low, middle, high = statistics.quantiles(found, n=4)
                row = (f"{what}, {key}", f"{base.median:.0f}", f"{middle:.3f}", f"{low:.3f} – {high:.3f}")
                table.add_row(name, *row)
    Console().print(table)


if __name__ == "__main__":
    main()
