"""The effective receptive field: how much each pixel of the image counts for the centre of the last feature map.

Definition (Kim et al., *Dead pixel test using effective receptive field*, arXiv:2108.13576): per image, F is the mean
over the channels of the feature map at its centre, and G the mean over the input's channels of dF/dI. The mean over
images of ReLU(G), divided by its maximum, is the map, and a Gaussian in two dimensions is fitted to it.

Ours: which map it is (what the head pools; of tokens, that nearest to the centre), position ``size // 2`` as the centre
of an even one, and that a layer norm right before the head is left out: it takes the mean over channels away.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from rewriter.errors import MeasurementError
from rewriter.measurement.gaussian import Gaussian, fit_gaussian
from rewriter.measurement.maps import FeatureMap, find_map
from rewriter.measurement.result import Measurement
from rewriter.measurement.running import Run, gradient_of
from rewriter.tracing.trace import Trace


def effective_receptive_field(trace: Trace, images: Iterable[torch.Tensor], layer: str | None = None) -> Measurement:
    """Measure the effective receptive field on ``images``, each ``(1, C, H, W)``.

    Raises:
        MeasurementError: see :func:`mean_gradient` and :func:`~rewriter.measurement.maps.find_map`.
    """
    found, field, number = measured_field(trace, images, layer)
    fit = fit_gaussian(field.numpy())
    height, width = field.shape
    summary = {
        "images": number, "height": height, "width": width, "sigma_x": fit.sigma_x, "sigma_y": fit.sigma_y,
        "r_squared": fit.r_squared, "center_x": fit.center_x, "center_y": fit.center_y, "amplitude": fit.amplitude,
        "map_height": found.height, "map_width": found.width,
    }  # fmt: skip
    data = {"map": field.numpy(), "fit": fit.values(height, width)}
    return Measurement("effective-receptive-field", type(trace.model).__name__, data, summary, {"layer": found.name})


def measured_field(
    trace: Trace, images: Iterable[torch.Tensor], layer: str | None
) -> tuple[FeatureMap, torch.Tensor, int]:
    """Return the map that is measured, its field, and the number of images."""
    found = find_map(trace, layer)

    def gradient(image: torch.Tensor) -> torch.Tensor:
        run = Run(trace, found.node, image)
        assert run.value is not None
        centre = found.positions(run.value)[:, found.height // 2, found.width // 2]
        return gradient_of(centre.mean(), run.image)

    return found, *mean_gradient(map(gradient, images), f"the mean over the channels of {found.name}")


def field_width(trace: Trace, images: Iterable[torch.Tensor], layer: str | None) -> Gaussian:
    """Return the Gaussian that was fitted to the effective receptive field."""
    return fit_gaussian(measured_field(trace, images, layer)[1].numpy())


def mean_gradient(gradients: Iterable[torch.Tensor], of: str) -> tuple[torch.Tensor, int]:
    """Return the mean of the positive parts of ``gradients``, divided by its maximum, and their number.

    Raises:
        MeasurementError: no gradient is positive anywhere, or one is not finite.
    """
    whole, number = torch.zeros(()), 0
    for gradient in gradients:
        whole, number = whole + gradient.relu(), number + 1
    largest = float(whole.max())
    if not largest > 0 or largest == float("inf"):
        raise MeasurementError(
            f"the gradient of {of} is {'not finite' if largest != 0 else 'nowhere positive'}; name another layer or "
            "output, or give a model whose weights are trained"
        )
    return whole / largest, number
