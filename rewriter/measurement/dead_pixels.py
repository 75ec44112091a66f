"""The dead-pixel test: do neighbouring pixels count alike for the prediction?

Definition (Kim et al., arXiv:2108.13576): as the effective receptive field, with a score y of the output in place of
the central feature. Of the map R of ``h x w`` pixels, L1 is the mean of ``|R(x+1, y) - R(x, y)|`` and ``|R(x, y+1) -
R(x, y)|`` over all neighbours, which for ``w x w`` is their sum divided by ``2 w (w - 1)``; L2 is the same with second
differences. A convolution with an odd kernel and an even stride gives a checkerboard, and large ones.

Ours: the map is divided by its maximum, and y is the largest score unless ``output=`` says which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch

from rewriter.errors import MeasurementError
from rewriter.measurement.receptive_field import mean_gradient
from rewriter.measurement.result import Measurement
from rewriter.measurement.running import gradient_of
from rewriter.model.contents import tensors_held
from rewriter.tracing.trace import Trace

Output: TypeAlias = "int | Callable[[Any], torch.Tensor] | None"
"""A class by its number, a function from the model's result to one number, or None for the largest score."""


def dead_pixels(trace: Trace, images: Iterable[torch.Tensor], output: Output = None) -> Measurement:
    """Measure how unevenly the pixels of ``images``, each ``(1, C, H, W)``, count for the prediction.

    Raises:
        MeasurementError: the model gives no scores, or ``output`` does not fit them.
    """

    def gradient(image: torch.Tensor) -> torch.Tensor:
        given = image.detach().clone().requires_grad_()
        score = _score(trace.model(given), output)
        return gradient_of(score, given)

    field, number = mean_gradient(map(gradient, images), "the score")
    height, width = field.shape
    first, second = imbalance(field)
    summary: dict[str, float] = {"images": number, "height": height, "width": width, "l1": first, "l2": second}
    named = "the largest score" if output is None else f"class {output}" if isinstance(output, int) else "a function"
    return Measurement("dead-pixels", type(trace.model).__name__, {"map": field.numpy()}, summary, {"output": named})


def imbalance(field: torch.Tensor) -> tuple[float, float]:
    """Return L1 and L2 of a map ``(H, W)``: the means of the absolute first and second differences of neighbours.

    Raises:
        MeasurementError: the map is too small to have second differences.
    """
    if min(field.shape) < 3:
        raise MeasurementError(f"images: expected at least 3x3 pixels, found {'x'.join(map(str, field.shape))}")
    found = []
    for order in (1, 2):
        differences = [field.diff(n=order, dim=dim).abs().flatten() for dim in (0, 1)]
        found.append(float(torch.cat(differences).mean()))
    return found[0], found[1]


def scores_of(result: Any) -> torch.Tensor:
    """Return the scores ``(1, K)`` in a model's result.

    Raises:
        MeasurementError: there are none.
    """
    tensors = tensors_held(result)
    found = next((tensor for tensor in tensors if tensor.dim() == 2 and len(tensor) == 1), None)
    if found is None:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors[:3]) or "no tensor"
        raise MeasurementError(
            f"expected scores (N, classes) from the model, found {shapes}; say which number is meant: "
            "output=lambda result: ..."
        )
    return found


def class_in(scores: torch.Tensor, output: int | None) -> int:
    """Return the number of the class that is asked for, or that with the largest score.

    Raises:
        MeasurementError: there is no such class.
    """
    if output is None:
        return int(scores.argmax())
    if isinstance(output, bool) or not isinstance(output, int) or not 0 <= output < scores.shape[1]:
        raise MeasurementError(f"output: expected a class from 0 to {scores.shape[1] - 1}, found {output!r}")
    return output


def _score(result: Any, output: Output) -> torch.Tensor:
    if callable(output):
        score = output(result)
        if not isinstance(score, torch.Tensor) or score.numel() != 1:
            found = tuple(score.shape) if isinstance(score, torch.Tensor) else type(score).__name__
            raise MeasurementError(f"output: expected a function that returns one number as a tensor, found {found}")
        return score.reshape(())
    scores = scores_of(result)
    return scores[0, class_in(scores, output)]
