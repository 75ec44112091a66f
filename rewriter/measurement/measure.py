"""``rewriter.measure``: measurements by name."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from rewriter.errors import MeasurementError
from rewriter.measurement.catalogue import CATALOGUE
from rewriter.measurement.class_activation import extended_cam
from rewriter.measurement.dead_pixels import dead_pixels
from rewriter.measurement.images import Images, first_image, single_images
from rewriter.measurement.receptive_field import effective_receptive_field
from rewriter.measurement.result import Measurement
from rewriter.measurement.running import in_evaluation
from rewriter.model.refusal import check_model

MEASUREMENTS: dict[str, Callable[..., Measurement]] = {
    "effective-receptive-field": effective_receptive_field,
    "dead-pixels": dead_pixels,
    "extended-cam": extended_cam,
}
"""The functions by name; what they take is in the catalogue."""


def measure(
    model: nn.Module, what: str, images: Images, *, max_images: int | None = None, **options: Any
) -> Measurement:
    """Measure ``model`` on ``images`` in evaluation mode; the model is left exactly as it was.

    * ``"effective-receptive-field"``: how much each pixel counts for the centre of the last feature map, with the
      Gaussian that fits it. ``layer=``: path of the module whose result is measured, in place of what the head pools.
    * ``"dead-pixels"``: how unevenly neighbouring pixels count for the prediction. ``output=``: the number of a class,
      or a function from the model's result to one number, in place of the largest score.
    * ``"extended-cam"``: which pixels make the score of a class. ``layer=``, ``output=``: as above, the number of a
      class only; ``sigma=``: the width of the Gaussians in pixels, in place of that of the receptive field.

    Args:
        model: the model.
        what: name of the measurement.
        images: ``(N, C, H, W)``, or an iterable of such batches or of ``(batch, targets)``, normalised as in training.
        max_images: maximum number of images to use; None for all.
        options: see above.

    Raises:
        MeasurementError: an unknown name or option, unusable images, or what is measured cannot be found in the model.
        ModelError, TraceError: as for :func:`rewriter.trace`.

    Example:
        >>> model = timm.create_model("test_resnet")
        >>> result = rewriter.measure(model, "dead-pixels", torch.randn(2, 3, 64, 64))
        >>> sorted(result.summary), result.data["map"].shape
        (['height', 'images', 'l1', 'l2', 'width'], (64, 64))
    """
    check_request(what, options)
    function = MEASUREMENTS[what]
    if max_images is not None and (type(max_images) is not int or max_images < 1):
        raise MeasurementError(f"max_images: expected a positive int or None, found {max_images!r}")
    check_model(model)
    first, wanted = first_image(itertools.islice(single_images(images, model), max_images))
    with in_evaluation(model, first) as trace:
        return function(trace, list(wanted) if function is extended_cam else wanted, **options)


def check_request(what: str, options: Mapping[str, Any]) -> None:
    """Refuse an unknown measurement, or an option that it does not take.

    Raises:
        MeasurementError: names what there is.
    """
    if not isinstance(what, str) or what not in MEASUREMENTS:
        raise MeasurementError(f"unknown measurement {what!r}; there are {', '.join(MEASUREMENTS)}")
    known = CATALOGUE[what].options
    unknown = next((name for name in options if name not in known), None)
    if unknown is not None:
        raise MeasurementError(f"{what} has no option {unknown!r}; it takes {', '.join((*known, 'max_images'))}")
