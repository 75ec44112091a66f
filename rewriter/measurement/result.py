"""The result of a measurement: arrays, numbers, and files of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rewriter import libraries
from rewriter.errors import MeasurementError

INSTALL = 'pip install "matplotlib>=3.8"'


@dataclass(frozen=True, eq=False)
class Measurement:
    """What was measured.

    Attributes:
        what: the name of the measurement.
        model: the class of the model.
        data: arrays by name; ``"map"`` is ``(H, W)``, or ``(N, H, W)`` where each image has one.
        summary: numbers by name.
        about: what was measured, in words: the layer, the output.
        images: what is shown behind the maps, ``(N, C, H, W)``; None if nothing is.
    """

    what: str
    model: str
    data: Mapping[str, npt.NDArray[Any]]
    summary: Mapping[str, float]
    about: Mapping[str, str] = field(default_factory=dict)
    images: npt.NDArray[Any] | None = field(default=None, repr=False)

    def save(self, path: str | Path) -> Path:
        """Write a picture (``.png``) or everything as JSON (``.json``), and return the path.

        Raises:
            MeasurementError: it has another ending or cannot be written, or matplotlib is not installed.
        """
        path = check_file(path)
        try:
            if path.suffix == ".json":
                path.write_text(f"{self.to_json()}\n", encoding="utf-8")
            else:
                from rewriter.measurement.picture import save_picture

                save_picture(self._title, self.data, self.images, path)
        except OSError as error:
            raise MeasurementError(f"{path} cannot be written: {error.strerror or error}") from error
        return path

    @property
    def _title(self) -> str:
        wanted = ("sigma_x", "sigma_y", "r_squared", "l1", "l2", "images")
        shown = {name.replace("_", " "): self.summary[name] for name in wanted if name in self.summary}
        return ", ".join([f"{self.what} of {self.model}", *(f"{name} {value:.4g}" for name, value in shown.items())])

    def to_data(self) -> dict[str, Any]:
        """Return everything but the images as plain data; what is no number is None."""
        arrays = {name: _plain(array) for name, array in self.data.items()}
        return {**self.head(), "data": arrays}

    def head(self) -> dict[str, Any]:
        """Return everything but arrays as plain data."""
        summary = {name: _number(value) for name, value in self.summary.items()}
        return {"what": self.what, "model": self.model, "about": dict(self.about), "summary": summary}

    def to_json(self) -> str:
        """Return :meth:`to_data` as JSON."""
        return json.dumps(self.to_data(), allow_nan=False)

    def __str__(self) -> str:
        lines = [f"{self.what} of {self.model}"]
        rows = {**self.about, **{name: f"{value:.4g}" for name, value in self.summary.items()}}
        lines += [f"  {name.replace('_', ' '):<22} {value}" for name, value in rows.items()]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<{self.what} of {self.model}, {int(self.summary['images'])} images>"


def check_file(path: str | Path) -> Path:
    """Return ``path``, if a measurement can be saved under such a name.

    Raises:
        MeasurementError: it has another ending, there is no such folder, or matplotlib is not installed.
    """
    path = Path(path)
    if path.suffix not in (".png", ".json"):
        raise MeasurementError(f"{path}: expected a name that ends in .png or .json")
    if not path.parent.is_dir():
        raise MeasurementError(f"{path}: there is no folder {path.parent}")
    if path.suffix == ".png":
        libraries.load("matplotlib", INSTALL, MeasurementError, "a picture")
    return path


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(array: npt.NDArray[Any]) -> Any:
    if not np.isfinite(array).all():
        return [_plain(part) for part in array] if array.ndim else None
    return array.tolist()
