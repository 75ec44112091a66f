"""Which measurements there are, for listings that should not wait for torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A measurement.

    Attributes:
        summary: what it tells, in one line.
        paper: where it comes from.
        options: what it takes beside ``max_images``.
    """

    summary: str
    paper: str
    options: tuple[str, ...]


_DEAD_PIXELS = "Kim et al., Dead Pixel Test Using Effective Receptive Field, arXiv:2108.13576"

CATALOGUE: dict[str, Entry] = {
    "effective-receptive-field": Entry(
        "how much each pixel counts for the centre of the last feature map, and the Gaussian that fits it",
        _DEAD_PIXELS, ("layer",),
    ),
    "dead-pixels": Entry(
        "how unevenly neighbouring pixels count for the prediction", _DEAD_PIXELS, ("output",),
    ),
    "extended-cam": Entry(
        "which pixels make the score of a class: class activation maps upsampled by Gaussians",
        "Kim et al., Extending Class Activation Mapping Using Gaussian Receptive Field, arXiv:2001.05153",
        ("layer", "output", "sigma"),
    ),
}  # fmt: skip
"""The measurements by name."""
