"""Atrous rates: which part of the map the ASPP reads, with its fixed rates and with those for the resolution.

python benchmarks/mechanisms/atrous_rates.py [--quick] [--json FILE]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import segmentation_models_pytorch as smp
import torch
from shared import Table, estimate, photographs, run
from torch import nn

import rewriter

GRID = 3
"""Output positions along each side of the map, evenly spread."""


@dataclass(frozen=True)
class Field:
    """Where the gradient of outputs of an ASPP with respect to its input lies; its pooled branch does not count.

    Attributes:
        own: share of the absolute gradient that lies at the output's own cell; ``distance`` the mean distance from
            there in cells, weighted by the absolute gradient; both the mean over outputs all over the map.
        extent: side of the square around the central output that holds 90 % of its absolute gradient, in map sides.
    """

    own: float
    distance: float
    extent: float


def measure(quick: bool) -> list[Table]:
    sizes, seeds = ((96, 256), 1) if quick else ((96, 256, 512, 768), 3)
    table = Table(f"Field of the ASPP of smp DeepLabV3 (resnet18, output stride 8), 2 photographs, seeds: {seeds}")
    for size in sizes:
        images, _ = photographs(size, 2)
        fields: dict[tuple[int, ...], list[Field]] = {}
        for seed in range(seeds):
            torch.manual_seed(seed)
            fixed = smp.DeepLabV3("resnet18", encoder_weights=None, decoder_channels=32)
            with torch.no_grad():
                features = fixed.train().encoder(images)[-1]
            for model in (fixed, rewriter.rewrite(fixed, "atrous-rates", input_size=size, verify=False)):
                fields.setdefault(rates_of(model), []).append(field_of(model.decoder.aspp, features))
        side = features.shape[-1]
        for (rates, found), which in zip(fields.items(), ("fixed", "rewritten"), strict=True):
            table.add(
                rates=f"{size} pixels, map {side}x{side}, {which}: {', '.join(map(str, rates))}",
                taps_in_padding=taps_in_padding(side, rates),
                gradient_at_own_cell=estimate(field.own for field in found),
                distance_in_cells=estimate(field.distance for field in found),
                distance_in_map_sides=estimate(field.distance / side for field in found),
                extent_in_map_sides=estimate(field.extent for field in found),
            )
    return [table]


def rates_of(model: nn.Module) -> tuple[int, ...]:
    convs = [module for module in model.decoder.modules() if isinstance(module, nn.Conv2d)]
    return tuple(conv.dilation[0] for conv in convs if conv.dilation[0] > 1)


def taps_in_padding(side: int, rates: Sequence[int]) -> float:
    """Share of the taps of 3x3 convolutions, over all positions and ``rates``, that read padding; counted."""
    ones, kernel = torch.ones(1, 1, side, side), torch.ones(1, 1, 3, 3)
    inside = [nn.functional.conv2d(ones, kernel, padding=rate, dilation=rate).mean() / 9 for rate in rates]
    return 1 - float(torch.stack(inside).mean())


def field_of(aspp: nn.Module, features: torch.Tensor) -> Field:
    """Gradients of the channels' mean at single positions, absolute, averaged over channels and images."""
    aspp.eval().requires_grad_(False)
    x = features.clone().requires_grad_()
    pooled = aspp.convs[-1].register_forward_hook(lambda _, args, output: output.detach())
    output = aspp(x).mean(1).sum(0)
    pooled.remove()
    side = output.shape[-1]
    places = [int((index + 0.5) * side / GRID) for index in range(GRID)]
    own, distances, extent = [], [], math.nan
    for row in places:
        for column in places:
            (gradient,) = torch.autograd.grad(output[row, column], x, retain_graph=True)
            share = gradient.abs().mean((0, 1))
            share = share / share.sum()
            rows, columns = torch.meshgrid(torch.arange(side) - row, torch.arange(side) - column, indexing="ij")
            own.append(float(share[row, column]))
            distances.append(float((share * (rows.square() + columns.square()).sqrt()).sum()))
            if row == column == places[GRID // 2]:
                extent = _side_of_square(share, torch.maximum(rows.abs(), columns.abs())) / side
    return Field(sum(own) / len(own), sum(distances) / len(distances), extent)


def _side_of_square(share: torch.Tensor, reach: torch.Tensor, part: float = 0.9) -> int:
    """Side of the smallest square around the centre that holds ``part`` of ``share``."""
    return next(2 * n + 1 for n in range(len(reach)) if float(share[reach <= n].sum()) >= part)


def main(arguments: Sequence[str] | None = None) -> None:
    run(__doc__, measure, arguments)


if __name__ == "__main__":
    main()
