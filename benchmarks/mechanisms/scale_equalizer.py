"""Scale equalizers: the spread of each map that a decoder fuses, and the gradient of the weights that read it.

python benchmarks/mechanisms/scale_equalizer.py [--quick] [--json FILE]
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import segmentation_models_pytorch as smp
import torch
from shared import Estimate, Table, brain_slices, estimate, listening, run
from torch import nn

import rewriter
from rewriter import zoo
from rewriter.analysis.fusions import Fusion, find_fusions

CLASSES = 3


def _head_on_trained_backbone(head: str) -> nn.Module:
    """A fresh head of the zoo on a backbone with the weights of ImageNet."""
    model = zoo.create(f"zoo:{head}-tf_efficientnet_lite0", num_classes=CLASSES).model
    trained = zoo.create("tf_efficientnet_lite0", pretrained=True).model.state_dict()
    model.backbone.load_state_dict({name: trained[name] for name in model.backbone.state_dict()})
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "zoo UPerHead, lite0 trained": lambda: _head_on_trained_backbone("uperhead"),
    "zoo PSPHead, lite0 trained": lambda: _head_on_trained_backbone("psphead"),
    "zoo ASPPHead, lite0 trained": lambda: _head_on_trained_backbone("aspphead"),
    "smp DeepLabV3+, resnet18 fresh": lambda: smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=CLASSES),
}


@dataclass(frozen=True)
class FusedMap:
    """One map of a fusion.

    Attributes:
        upsampled: whether bilinear upsampling made it.
        std: standard deviation over all its values in the batch.
        gradient: root mean square of the gradient of the weights that read it.
    """

    upsampled: bool
    std: float
    gradient: float


def measure(quick: bool) -> list[Table]:
    images, tissues = brain_slices(96 if quick else 128, count=4)
    names = list(MODELS)[-1:] if quick else list(MODELS)
    seeds = 2 if quick else 5
    title = f"{len(images)} brain slices, {images.shape[-1]} pixels, at initialisation, seeds: {seeds}"
    by_map = Table(f"Each fused map: standard deviation, and rms gradient of its weights over the fusion's; {title}")
    spread = Table(f"Largest over smallest of the maps of a fusion; {title}")
    for name in names:
        runs = []
        for seed in range(seeds):
            torch.manual_seed(seed)
            original = MODELS[name]()
            fusions = fusions_of(original, images)
            model = rewriter.rewrite(original, "scale-equalizer", input_size=images.shape[1:], verify=False)
            before = fused_maps(model, fusions, images, tissues)
            rewriter.calibrate(model, images.split(4), progress=False)
            runs.append((before, fused_maps(model, fusions, images, tissues)))
        for fusion in runs[0][0]:
            _add_rows(by_map, spread, name, fusion, [(before[fusion], after[fusion]) for before, after in runs])
    return [by_map, spread]


def _add_rows(
    by_map: Table, spread: Table, name: str, fusion: str, runs: list[tuple[list[FusedMap], list[FusedMap]]]
) -> None:
    for index, first in enumerate(runs[0][0]):
        kind = "upsampled" if first.upsampled else "not upsampled"
        by_map.add(
            map=f"{name}, {fusion}, {index}: {kind}",
            std_before=estimate(before[index].std for before, _ in runs),
            std_after=estimate(after[index].std for _, after in runs),
            gradient_before=estimate(_relative(before, index) for before, _ in runs),
            gradient_after=estimate(_relative(after, index) for _, after in runs),
        )
    spread.add(
        fusion=f"{name}, {fusion}",
        std_before=_ratio(runs, 0, "std"),
        std_after=_ratio(runs, 1, "std"),
        gradient_before=_ratio(runs, 0, "gradient"),
        gradient_after=_ratio(runs, 1, "gradient"),
    )


def _relative(maps: list[FusedMap], index: int) -> float:
    """The gradient of one map's weights over the geometric mean of those of all maps of the fusion."""
    return maps[index].gradient / statistics.geometric_mean(found.gradient for found in maps)


def _ratio(runs: list[tuple[list[FusedMap], list[FusedMap]]], when: int, attribute: str) -> Estimate:
    values = [[getattr(found, attribute) for found in run_[when]] for run_ in runs]
    return estimate((max(found) / min(found) for found in values), ratio=True)


def fusions_of(model: nn.Module, images: torch.Tensor) -> dict[str, Fusion]:
    """The concatenations of maps of several levels, by the path of the weight that reads them."""
    flow = rewriter.trace(model, input_size=images.shape[1:]).train.dataflow
    fusions = [fusion for fusion in find_fusions(flow, model) if fusion.form == "concatenation" and fusion.weights]
    return {str(fusion.weights[0].target): fusion for fusion in fusions}


def fused_maps(
    model: nn.Module, fusions: Mapping[str, Fusion], images: torch.Tensor, tissues: torch.Tensor
) -> dict[str, list[FusedMap]]:
    """The maps of each fusion in a training step with the cross-entropy of the tissues."""
    heard: dict[str, list[torch.Tensor]] = {path: [] for path in fusions}
    found = {}
    model.train()
    with ExitStack() as hooks:
        for path, inputs in heard.items():
            hooks.enter_context(listening(model.get_submodule(path), inputs, to_input=True))
        logits = model(images)
    logits = nn.functional.interpolate(logits, tissues.shape[-2:], mode="bilinear")
    model.zero_grad()
    nn.functional.cross_entropy(logits, tissues).backward()
    for path, fusion in fusions.items():
        channels = [operand.node.meta["shape"][1] for operand in fusion.operands]
        maps = heard[path][0].detach().split(channels, 1)
        conv = model.get_submodule(path)
        gradients = conv.weight.grad.split(channels, 0 if conv.groups > 1 else 1)  # 0: depthwise
        found[path] = [
            FusedMap(operand.upsampling is not None, float(x.std()), float(gradient.square().mean().sqrt()))
            for operand, x, gradient in zip(fusion.operands, maps, gradients, strict=True)
        ]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    run(__doc__, measure, arguments)


if __name__ == "__main__":
    main()
