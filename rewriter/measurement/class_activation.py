"""Extended class activation maps: which pixels make the score of a class.

Rule (*Extended-CAM*, arXiv:2001.05153; we read the abstract): a class activation map is upsampled by Gaussians instead
of bilinearly. A later description calls the map conservative: its sum is the score of the class.

Ours: each cell of the map is spread by a Gaussian at its centre whose width is that of the measured effective receptive
field, and which sums to 1 over the pixels of the image, cut off at its borders. The value of a cell is what it adds to
the score through average pooling and classifier, the 1 / (h w) of the pooling included. What the score is without
any map (the bias of the classifier) belongs to no cell and is spread evenly over all pixels. So the map sums to the
score.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from rewriter.analysis.heads import find_heads
from rewriter.analysis.naming import name_of
from rewriter.errors import MeasurementError
from rewriter.measurement.dead_pixels import class_in, scores_of
from rewriter.measurement.maps import FeatureMap, as_map, find_map
from rewriter.measurement.receptive_field import field_width
from rewriter.measurement.result import Measurement
from rewriter.measurement.running import Run
from rewriter.tracing.dataflow import Dataflow
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind
from rewriter.tracing.trace import Trace

_LINEAR = frozenset({
    Kind.VIEW, Kind.IDENTITY, Kind.SELECT, Kind.DROPOUT, Kind.LINEAR, Kind.CONV, Kind.MEAN, Kind.AVG_POOL, Kind.CONCAT,
    Kind.ADD, Kind.OUTPUT,
})  # fmt: skip
"""In evaluation mode affine in what they read."""


def extended_cam(
    trace: Trace,
    images: Sequence[torch.Tensor],
    layer: str | None = None,
    output: int | None = None,
    sigma: float | tuple[float, float] | None = None,
) -> Measurement:
    """Return the maps of ``images``, each ``(1, C, H, W)``, for class ``output``, or for that of the largest score.

    Raises:
        MeasurementError: the head is no average pooling with a linear classifier, or an option does not fit.
    """
    found = _pooled_map(trace, layer)
    if sigma is None:
        fit = field_width(trace, images, layer)
        widths, r_squared = (fit.sigma_x, fit.sigma_y), fit.r_squared
    else:
        widths, r_squared = _checked(sigma), float("nan")
    height, width = images[0].shape[2:]
    columns, rows = (
        _kernels(cells, size, sigma)
        for cells, size, sigma in ((found.width, width, widths[0]), (found.height, height, widths[1]))
    )
    cells, classes, scores = zip(*(_cells(trace, found, image, output) for image in images), strict=True)
    activation, score = torch.stack(cells), torch.tensor(scores, dtype=torch.float64)
    bias = score - activation.sum((1, 2))
    evenly = (bias / (height * width))[:, None, None]
    maps = rows.T @ activation @ columns + evenly
    bilinear = F.interpolate(activation[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]
    bilinear = bilinear * (found.height * found.width / (height * width)) + evenly
    summary = {
        "images": len(images), "height": height, "width": width, "map_height": found.height, "map_width": found.width,
        "sigma_x": widths[0], "sigma_y": widths[1], "r_squared": r_squared,
        "largest_error": float((maps.sum((1, 2)) - score).abs().max()),
    }  # fmt: skip
    data = {
        "map": maps.numpy(), "bilinear": bilinear.numpy(), "cells": activation.numpy(), "score": score.numpy(),
        "bias": bias.numpy(), "class": np.array(classes),
    }  # fmt: skip
    shown = torch.cat(list(images)).float().cpu().numpy()
    about = {"layer": found.name, "bias": "spread evenly over all pixels"}
    return Measurement("extended-cam", type(trace.model).__name__, data, summary, about, shown)


def _pooled_map(trace: Trace, layer: str | None) -> FeatureMap:
    flow = trace.eval.dataflow
    heads = find_heads(flow, trace.model)
    if layer is not None:
        found = find_map(trace, layer)
    elif heads:
        found = as_map(trace, heads[-1].source)
    else:
        raise MeasurementError(
            f"{type(trace.model).__name__} has no head with average pooling, of which a class activation map is made; "
            "name the map with layer= if what follows it is linear"
        )
    for node in flow.in_order(flow.region(found.node, flow.output)):
        if not _is_affine(node, flow, trace.model):
            raise MeasurementError(
                f"between {found.name} and the scores stands {name_of(node)}, which is not linear, so that no class "
                "activation map sums to the score; only average pooling, linear layers and batch norms may stand there"
            )
    return found


def _is_affine(node: fx.Node, flow: Dataflow, model: nn.Module) -> bool:
    kind = facts(node)["kind"]
    if kind is Kind.NORM and node.op == "call_module":  # by running statistics: constants
        return getattr(model.get_submodule(str(node.target)), "running_mean", None) is not None
    if kind in (Kind.MULTIPLY, Kind.MATMUL):
        return len(flow.sources(node)) == 1
    return kind in _LINEAR


def _cells(trace: Trace, found: FeatureMap, image: torch.Tensor, output: int | None) -> tuple[torch.Tensor, int, float]:
    """What each cell of the map adds to the score of a class, the class and its score."""
    run = Run(trace, found.node, image, whole=True)
    assert run.value is not None
    scores = scores_of(run.result)
    number = class_in(scores, output)
    (weights,) = torch.autograd.grad(scores[0, number], run.value)
    product = found.positions(weights.double()) * found.positions(run.value.detach().double())
    return product.sum(0).cpu(), number, float(scores[0, number].detach())


def _kernels(cells: int, size: int, sigma: float) -> torch.Tensor:
    """For each cell along one side its weights at the pixels, ``(cells, size)``; each row sums to 1."""
    centres = (torch.arange(cells, dtype=torch.float64) + 0.5) * (size / cells)
    pixels = torch.arange(size, dtype=torch.float64) + 0.5
    return (-((pixels[None] - centres[:, None]) ** 2) / (2 * sigma**2)).softmax(1)


def _checked(sigma: float | tuple[float, float]) -> tuple[float, float]:
    given = tuple(sigma) if isinstance(sigma, (tuple, list)) else (sigma, sigma)
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in given)
    if len(given) != 2 or not numbers or not all(0 < value < float("inf") for value in given):
        raise MeasurementError(f"sigma: expected a width above 0 in pixels, or (x, y), found {sigma!r}")
    return float(given[0]), float(given[1])
