"""Pictures of measurements, drawn with matplotlib; the user's settings and backend are left as they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Array = npt.NDArray[Any]

_SIDE = 3.0
"""Of a panel, in inches."""
_MOST = 16
"""Images that are shown."""


def save_picture(title: str, data: Mapping[str, Array], images: Array | None, path: Path) -> None:
    """Draw each map on its image; without images, the map and, if there is one, its fit.

    Args:
        title: below the picture.
        data: arrays of the measurement.
        images: ``(N, C, H, W)``.
        path: of the PNG.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = Figure(layout="constrained")
        FigureCanvasAgg(figure)
        figure.supxlabel(title, fontsize=8)
        if images is None:
            _draw_map(figure, data)
        else:
            _draw_overlays(figure, data, images)
        figure.savefig(path, dpi=120)


def _draw_map(figure: Figure, data: Mapping[str, Array]) -> None:
    titles = {name: title for name, title in (("map", "measured"), ("fit", "Gaussian fit")) if name in data}
    figure.set_size_inches(_SIDE * 1.2 * len(titles) + 0.8, _SIDE * 1.3)
    panels = figure.subplots(1, len(titles), squeeze=False)[0]
    for panel, (name, title) in zip(panels, titles.items(), strict=True):
        shown = panel.imshow(data[name], vmin=0, vmax=1, cmap="magma", interpolation="nearest")
        panel.set_title(title, fontsize=9)
        panel.set_axis_off()
    figure.colorbar(shown, ax=list(panels), shrink=0.8)


def _draw_overlays(figure: Figure, data: Mapping[str, Array], images: Array) -> None:
    number = min(len(images), _MOST)
    figure.set_size_inches(_SIDE * 3, _SIDE * 1.12 * number + 0.3)
    for row, panels in enumerate(figure.subplots(number, 3, squeeze=False)):
        photo = _visible(images[row])
        about = f"class {data['class'][row]}, score {data['score'][row]:.3g}"
        for panel, title, name in zip(panels, (about, "bilinear", "extended"), ("", "bilinear", "map"), strict=True):
            panel.imshow(photo, cmap="gray", vmin=0, vmax=1)
            if name:
                panel.imshow(_scaled(data[name][row]), cmap="jet", alpha=0.5, vmin=0, vmax=1)
            panel.set_title(title, fontsize=8)
            panel.set_axis_off()


def _visible(image: Array) -> Array:
    """Return ``(H, W, 3)``, or ``(H, W)`` for other numbers of channels, from 0 to 1."""
    scaled = _scaled(image)
    return scaled.transpose(1, 2, 0) if len(scaled) == 3 else scaled.mean(0)


def _scaled(values: Array) -> Array:
    least, most = float(values.min()), float(values.max())
    return np.zeros_like(values) if most == least else (values - least) / (most - least)
