"""Fit a Gaussian to a map: least squares by Levenberg and Marquardt, with numpy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_ROUNDS = 200
_SETTLED = 1e-12
"""The relative change of the error at which a fit ends."""


@dataclass(frozen=True)
class Gaussian:
    """``amplitude * exp(-(x - center_x)^2 / (2 sigma_x^2) - (y - center_y)^2 / (2 sigma_y^2))``, in pixels.

    Attributes:
        amplitude, center_x, center_y, sigma_x, sigma_y: see above; the first pixel is 0.
        r_squared: the share of the map's variance that it accounts for.
    """

    amplitude: float
    center_x: float
    center_y: float
    sigma_x: float
    sigma_y: float
    r_squared: float

    def values(self, height: int, width: int) -> Array:
        """The Gaussian on a map of this size."""
        parameters = np.array([self.amplitude, self.center_x, self.center_y, self.sigma_x, self.sigma_y])
        return _values(parameters, height, width)


def fit_gaussian(values: Array) -> Gaussian:
    """Fit a Gaussian to a map ``(H, W)`` of values that are not all zero; it starts from the moments of the map."""
    height, width = values.shape
    parameters = _moments(np.clip(values, 0, None))
    error, damping = _error(parameters, values), 1e-3
    for _ in range(_ROUNDS):
        slope = _slopes(parameters, height, width)
        rest = (values - _values(parameters, height, width)).ravel()
        square = slope.T @ slope
        step = np.linalg.lstsq(square + damping * np.diag(np.diag(square)), slope.T @ rest, rcond=None)[0]
        tried = _error(parameters + step, values)
        if tried >= error:
            damping *= 10
            if damping > 1e12:
                break
            continue
        settled = error - tried <= _SETTLED * error
        parameters, error, damping = parameters + step, tried, max(damping / 10, 1e-12)
        if settled:
            break
    whole = float(((values - values.mean()) ** 2).sum())
    amplitude, center_x, center_y, sigma_x, sigma_y = map(float, parameters)
    explained = 1 - error / whole if whole > 0 else 0.0
    return Gaussian(amplitude, center_x, center_y, abs(sigma_x), abs(sigma_y), explained)


def _moments(values: Array) -> Array:
    height, width = values.shape
    y, x = np.arange(height), np.arange(width)
    rows, columns, whole = values.sum(1), values.sum(0), values.sum()
    center_x, center_y = (x * columns).sum() / whole, (y * rows).sum() / whole
    sigma_x = np.sqrt(((x - center_x) ** 2 * columns).sum() / whole)
    sigma_y = np.sqrt(((y - center_y) ** 2 * rows).sum() / whole)
    return np.array([values.max(), center_x, center_y, max(sigma_x, 0.5), max(sigma_y, 0.5)])


def _values(parameters: Array, height: int, width: int) -> Array:
    amplitude, center_x, center_y, sigma_x, sigma_y = parameters
    row = np.exp(-((np.arange(width) - center_x) ** 2) / (2 * sigma_x**2))
    column = np.exp(-((np.arange(height) - center_y) ** 2) / (2 * sigma_y**2))
    return np.asarray(amplitude * np.outer(column, row))


def _slopes(parameters: Array, height: int, width: int) -> Array:
    """The derivative of every value by every parameter, ``(H W, 5)``."""
    amplitude, center_x, center_y, sigma_x, sigma_y = parameters
    values = _values(parameters, height, width)
    x, y = (np.arange(width) - center_x)[None, :], (np.arange(height) - center_y)[:, None]
    by_parameter = (
        values / amplitude,
        values * x / sigma_x**2,
        values * y / sigma_y**2,
        values * x**2 / sigma_x**3,
        values * y**2 / sigma_y**3,
    )
    return np.stack([slope.ravel() for slope in by_parameter], axis=1)


def _error(parameters: Array, values: Array) -> float:
    with np.errstate(all="ignore"):
        error = float(((values - _values(parameters, *values.shape)) ** 2).sum())
    return error if np.isfinite(error) else np.inf
