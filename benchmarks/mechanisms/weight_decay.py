"""Weight decay of gammas: how near residual blocks come to the identity under each policy, and what gammas become.

python benchmarks/mechanisms/weight_decay.py [--quick] [--json FILE]
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import timm
import torch
from shared import Table, digits, estimate, listening, run, train
from torch import nn

import rewriter

POLICIES = ("guideline", "exclude-all", "decay-all")

WEIGHT_DECAY = 5e-3
"""Large, so that a few epochs show what a smaller one does in many."""


@dataclass(frozen=True)
class Trained:
    """What one training run leaves.

    Attributes:
        ratios: variance of the branch over that of the shortcut at the sum of each block, on test images.
        gammas: mean absolute gamma of each category.
        accuracy: on the test images.
    """

    ratios: dict[str, float]
    gammas: dict[str, float]
    accuracy: float


def measure(quick: bool) -> list[Table]:
    seeds, epochs, images = (1, 1, 640) if quick else (3, 4, 3000)
    data = digits(images + (128 if quick else 1000), 28)
    runs = {
        policy: [trained(policy, seed, epochs, images, data) for seed in range(seeds)]
        for policy in (POLICIES[:2] if quick else POLICIES)
    }
    what = f"timm test_resnet, two blocks a stage, {epochs} epochs on {images} images of MNIST, seeds: {seeds}"
    ratios = Table(f"Variance of the branch over that of the shortcut at each block's sum; {what}")
    gammas = Table(f"Mean absolute gamma after training; {what}")
    accuracy = Table(f"Accuracy on {len(data[0]) - images} other images, in per cent; {what}")
    for block in next(iter(runs.values()))[0].ratios:
        ratios.add(
            block=block,
            **{p: estimate((found.ratios[block] for found in some), ratio=True) for p, some in runs.items()},
        )
    ratios.add(
        block="geometric mean of all",
        **{
            policy: estimate((statistics.geometric_mean(found.ratios.values()) for found in some), ratio=True)
            for policy, some in runs.items()
        },
    )
    for category in next(iter(runs.values()))[0].gammas:
        gammas.add(category=category, **{p: estimate(found.gammas[category] for found in r) for p, r in runs.items()})
    accuracy.add(model="test_resnet", **{p: estimate(100 * found.accuracy for found in r) for p, r in runs.items()})
    return [ratios, gammas, accuracy]


def trained(policy: str, seed: int, epochs: int, count: int, data: tuple[torch.Tensor, torch.Tensor]) -> Trained:
    torch.manual_seed(seed)
    images, classes = data
    model = timm.create_model("test_resnet", layers=(2, 2, 2, 2), in_chans=1, num_classes=10, zero_init_last=False)
    groups = rewriter.param_groups(model, WEIGHT_DECAY, gamma=policy, input_size=images.shape[1:])
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    rewriter.check_optimizer(model, optimizer)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        train(model, optimizer, images[:count], classes[:count])
        schedule.step()
    found = mean_gammas(model, groups)
    model.eval()
    with torch.no_grad():
        accuracy = float((model(images[count:]).argmax(1) == classes[count:]).float().mean())
    return Trained(variance_ratios(model, images[count:]), found, accuracy)


def mean_gammas(model: nn.Module, groups: rewriter.ParamGroups) -> dict[str, float]:
    """By category; ``groups`` say which gamma is in which."""
    parameters = dict(model.named_parameters())
    found: dict[str, list[torch.Tensor]] = {}
    for decision in groups.decisions:
        if decision.name.endswith(".weight") and parameters[decision.name].dim() == 1:
            found.setdefault(decision.category, []).append(parameters[decision.name].detach().abs())
    return {category: float(torch.cat(gammas).mean()) for category, gammas in sorted(found.items())}


@torch.no_grad()
def variance_ratios(model: nn.Module, images: torch.Tensor) -> dict[str, float]:
    """At each residual sum of a timm ResNet; variances over images and positions, the mean over channels."""
    blocks = {name: block for name, block in model.named_modules() if hasattr(block, "drop_path")}
    branches: dict[str, list[torch.Tensor]] = {name: [] for name in blocks}
    shortcuts: dict[str, list[torch.Tensor]] = {name: [] for name in blocks}
    with ExitStack() as hooks:
        for name, block in blocks.items():
            last = block.bn3 if hasattr(block, "bn3") else block.bn2
            hooks.enter_context(listening(last, branches[name], copies=True))
            if block.downsample is None:
                hooks.enter_context(listening(block, shortcuts[name], to_input=True, copies=True))
            else:
                hooks.enter_context(listening(block.downsample, shortcuts[name], copies=True))
        model.eval()(images)
    return {name: _variance(branches[name][0]) / _variance(shortcuts[name][0]) for name in blocks}


def _variance(x: torch.Tensor) -> float:
    return float(x.var((0, 2, 3)).mean())


def main(arguments: Sequence[str] | None = None) -> None:
    run(__doc__, measure, arguments)


if __name__ == "__main__":
    main()
