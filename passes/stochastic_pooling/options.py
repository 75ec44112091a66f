"""The options of stochastic pooling, validated wherever they are set."""

from __future__ import annotations

from typing import Any

SCALES = ("sqrt", "none")
"""``"sqrt"``: times the square root of the share kept, as published; ``"none"``: the plain average of the subset."""


def checked_keep_prob(value: Any) -> float:
    """Return ``value`` as a keep probability.

    Raises:
        ValueError: it is not a valid one.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ValueError(f"keep_prob is the share that is kept, expected 0 < keep_prob <= 1, found {value!r}")
    return float(value)


def checked_scale(value: Any) -> str:
    """Return ``value`` as a scale.

    Raises:
        ValueError: it is not a valid one.
    """
    if value not in SCALES:
        raise ValueError(f"scale: expected one of {', '.join(map(repr, SCALES))}, found {value!r}")
    return str(value)
