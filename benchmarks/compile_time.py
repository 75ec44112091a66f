"""What a rewrite costs: trace, plan, apply, undo and verification, beside a bare forward on meta and beside its peers.

    python benchmarks/compile_time.py [MODEL ...] [--rounds N] [--json FILE]   time of each step, model by model
    python benchmarks/compile_time.py --depth                                  the same from 10 to 1000 residual blocks
    python benchmarks/compile_time.py --memory                                 memory that planning 1 B parameters takes

One thread, one process. All steps of a round run after each other, in alternating order; what is shown is the median
and the quartiles, in milliseconds, and the multiples of the bare forward of the same round. Models are on meta; edits
are applied in place. Verification runs a model with its weights, up to 100 M parameters: above, it takes minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from measuring import Step, interleave
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timm.layers import BatchNormAct2d, create_conv2d
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

import rewriter
from rewriter.model.collector import collector_paused
from rewriter.model.random_state import random_state_kept
from rewriter.passes import Dropout, StochasticPooling
from rewriter.reporting.tables import markdown_table
from rewriter.tracing.recorder import Recorder
from rewriter.tracing.skeleton import meta_twin, skeleton

MODELS = (
    "test_vit", "mobilenetv3_small_100", "efficientnet_b0", "densenet121", "regnety_016", "resnet50",
    "swin_tiny_patch4_window7_224", "convnext_tiny", "mixer_b16_224", "vit_base_patch16_224", "vit_large_patch16_224",
    "eva_giant_patch14_224",
)  # fmt: skip
BARE, VERIFICATION = "bare forward", "apply and verify"
OWN = (BARE, "trace, one mode", "trace, both", "plan", "apply", "undo")
PEERS = ("fx.symbolic_trace", "create_feature_extractor", "torch.export")
DEPTHS = (10, 30, 100, 300, 1000)
VERIFIED = 100e6
PASSES = [Dropout(p=0.1, head_p=0), StochasticPooling()]


def steps_of(model: nn.Module, size: tuple[int, int, int], classifier: str) -> dict[str, Step]:
    """Everything that is timed on a model that is on meta."""
    images = torch.empty(2, *size, device="meta")
    bare = skeleton(model, meta_twin).eval()
    made = rewriter.plan(model, PASSES, input_size=size)

    def apply() -> nn.Module:
        return made.apply(model, inplace=True, verify=False)

    def undo() -> nn.Module:
        return rewriter.undo(model, inplace=True)

    return {
        BARE: Step(torch.no_grad()(lambda: bare(images))),
        "trace, one mode": Step(lambda: record(model, images)),
        "trace, both": Step(lambda: rewriter.trace(model, input_size=size)),
        "plan": Step(lambda: rewriter.plan(model, PASSES, input_size=size)),
        "apply": Step(apply, after=lambda _: undo()),
        "undo": Step(undo, before=apply),
        "fx.symbolic_trace": Step(lambda: torch.fx.symbolic_trace(bare)),
        "create_feature_extractor": Step(lambda: create_feature_extractor(bare, [classifier])),
        "torch.export": Step(lambda: torch.export.export(bare, (images,))),
    }


@collector_paused()
def record(model: nn.Module, images: torch.Tensor) -> Recorder:
    """Trace the evaluation mode only."""
    with random_state_kept(), torch.device("meta"):
        copy = skeleton(model, meta_twin).eval()
        recorder = Recorder(copy, predict_shapes=True, real_device=images.device, forbidden=frozenset())
        recorder.run((images,), {})
    return recorder


def verification_of(name: str) -> Step:
    """Applying with verification, on the model with its weights."""
    model = timm.create_model(name)
    made = rewriter.plan(model, PASSES)
    return Step(lambda: made.apply(model, inplace=True), after=lambda changed: rewriter.undo(changed, inplace=True))


def measure(name: str, rounds: int, seconds: float) -> tuple[int, dict[str, Step]]:
    """The number of parameters of a timm model, and its steps after all rounds."""
    with torch.device("meta"):
        model = timm.create_model(name)
    parameters = sum(p.numel() for p in model.parameters())
    classifier = model.pretrained_cfg["classifier"]
    steps = steps_of(
        model, model.pretrained_cfg["input_size"], classifier[0] if type(classifier) is tuple else classifier
    )
    if parameters <= VERIFIED:
        steps[VERIFICATION] = verification_of(name)
    interleave(steps, rounds, seconds)
    return parameters, steps


def transformer(blocks: int) -> nn.Module:
    """Narrow; two residual branches a layer, in each a dropout that has to be moved."""
    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, num_heads=2, depth=blocks // 2, num_classes=10, proj_drop_rate=0.1
    )


def resnet(blocks: int) -> nn.Module:
    """Pre-activation, with batch norm; one residual branch a block, into each of which a dropout is inserted."""
    stages = [blocks // 4 + (stage < blocks % 4) for stage in range(4)]
    layers = {"conv_layer": create_conv2d, "norm_layer": BatchNormAct2d}
    return ResNetV2(stages, (32, 32, 32, 32), num_classes=10, stem_chs=8, **layers)


def measure_depths(rounds: int, seconds: float) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """Each step at each depth: the times as data, and the medians a residual block as rows of a table."""
    data, rows = [], []
    for build in (transformer, resnet):
        for blocks in track(DEPTHS, description=build.__name__):
            with torch.device("meta"):
                model = build(blocks)
            steps = {name: step for name, step in steps_of(model, (3, 32, 32), "").items() if name in OWN}
            interleave(steps, rounds, seconds)
            data.append({"model": build.__name__, "blocks": blocks, "milliseconds": to_data(steps)})
            rows.append([build.__name__, str(blocks), *(f"{step.median / blocks:.2f}" for step in steps.values())])
    return data, rows


MEMORY = """
import sys, timm, torch, rewriter
from rewriter.passes import Dropout, StochasticPooling
PASSES = [Dropout(p=0.1, head_p=0), StochasticPooling()]
def megabytes(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(field))
def make(name, device):
    with torch.device(device):
        return timm.create_model(name)
rewriter.plan(make("test_vit", "meta"), PASSES)
model = make(sys.argv[1], sys.argv[2])
before = megabytes("VmRSS")
with open("/proc/self/clear_refs", "w") as reset:
    reset.write("5")  # the peak starts again from here
rewriter.plan(model, PASSES)
print(before, megabytes("VmHWM"), sum(p.nbytes for p in model.parameters()) / 2**20)
"""


def measure_memory(name: str) -> list[dict[str, Any]]:
    """Resident memory (MB) of a fresh process that has planned a tiny model: before planning ``name``, and at most
    meanwhile. Linux only."""
    rows = []
    for device in ("meta", "cpu"):
        command = [sys.executable, "-W", "ignore", "-c", MEMORY, name, device]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        before, peak, weights = map(float, found.split())
        rows.append({"model": name, "device": device, "weights": weights, "before": before, "planning": peak - before})
    return rows


def to_data(steps: dict[str, Step]) -> dict[str, Any]:
    """Steps as JSON: all times in milliseconds, or the name of the error."""
    return {name: step.error or step.milliseconds for name, step in steps.items()}


def milliseconds(step: Step | None) -> str:
    """Median and quartiles; a dash for what is left out."""
    if step is None or not step.milliseconds:
        return step.error if step is not None and step.error else "–"
    low, high = step.quartiles
    digits = 0 if step.median >= 10 else 1
    return f"{step.median:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def multiple(step: Step, bare: Step) -> str:
    """The median over all rounds of the multiple of that round's bare forward, or the error."""
    pairs = zip(step.milliseconds, bare.milliseconds, strict=False)
    return step.error or f"{statistics.median(one / other for one, other in pairs):.2f}"


def show(console: Console, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table to read, and the same as Markdown to paste."""
    table = Table(*header, title=title)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    print(f"\n{markdown_table(header, rows, 'lr')}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="*", default=MODELS, help="timm names")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=8, help="a step that has used as much is not taken again")
    parser.add_argument("--depth", action="store_true", help="measure from 10 to 1000 residual blocks instead")
    parser.add_argument("--memory", action="store_true", help="measure the memory of planning the last model instead")
    parser.add_argument("--json", type=Path, help="write every single time to this file")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    console = Console()
    if chosen.memory:
        data = measure_memory(chosen.models[-1])
        numbers = ("weights", "before", "planning")
        rows = [[row["model"], row["device"], *(f"{row[name]:.0f}" for name in numbers)] for row in data]
        show(console, "resident memory, MB", ["model", "device", "weights", "before planning", "for planning"], rows)
    elif chosen.depth:
        data, rows = measure_depths(chosen.rounds, chosen.seconds)
        show(console, "milliseconds a residual block", ["model", "blocks", *OWN], rows)
    else:
        data, times, multiples = [], [], []
        for name in track(chosen.models, description="measuring", console=console):
            parameters, steps = measure(name, chosen.rounds, chosen.seconds)
            data.append({"model": name, "parameters": parameters, "milliseconds": to_data(steps)})
            own = (milliseconds(steps.get(step)) for step in (*OWN, VERIFICATION))
            times.append([name, f"{parameters / 1e6:.1f} M", *own])
            multiples.append([name, *(multiple(steps[step], steps[BARE]) for step in (*OWN[1:4], *PEERS))])
        show(console, "milliseconds: median (quartiles)", ["model", "parameters", *OWN, VERIFICATION], times)
        show(console, "multiples of the bare forward", ["model", *OWN[1:4], *PEERS], multiples)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
