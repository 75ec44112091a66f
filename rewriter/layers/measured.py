"""What calibration measured for a layer, and whether a copy of the layer missed it.

An average of the weights (EMA) is a deep copy. Made before calibration, it has other constants than the model that it
follows, and its output is off. Neither calibration nor the average can know of the other, but the copy of a layer can.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from rewriter.errors import RewriterWarning

Constants = Sequence[tuple[float, float]]

_SAME = 0.01
"""Constants that differ by less are the same, cast to 16 bits or averaged for long."""


class MeasuredConstants:
    """What was measured for one layer. A deep copy knows what it was copied from, and so what was measured there later.

    Numbers only, and a weak reference: a copy leads to nothing of its original, and keeps nothing of it alive.

    Attributes:
        constants: those of the last calibration; None if there was none.
    """

    def __init__(self, original: MeasuredConstants | None = None) -> None:
        self.constants: Constants | None = original.constants if original is not None else None
        self._original = None if original is None else weakref.ref(original)
        self._at_copying = self.constants
        self._told = False

    def warn_if_missed(self, present: Callable[[], Constants]) -> None:
        """Warn, once, if the original was given other constants than ``present()`` after this copy was made of it."""
        original = self._original() if self._original is not None else None
        expected = original.constants if original is not None else None
        measured_itself = self.constants is not self._at_copying
        if expected is None or expected is self._at_copying or measured_itself or self._told:
            return
        if _same(present(), expected):
            return
        self._told = True
        warnings.warn(
            "this copy of a model (an EMA?) was made before the model was calibrated: its equalizers have other "
            "constants, so it computes something else. Calibrate before the copy is made; now, load the model's "
            "state dict into the copy, or calibrate the copy too",
            RewriterWarning,
            stacklevel=3,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> MeasuredConstants:
        return MeasuredConstants(self)

    def __reduce__(self) -> tuple[type[MeasuredConstants], tuple[()]]:
        return MeasuredConstants, ()  # another process has no original


@contextlib.contextmanager
def quiet(measured: Iterable[MeasuredConstants]) -> Iterator[None]:
    """Without these warnings, for a calibration, which evaluates the model and gives it constants of its own."""
    before = [(one, one._told) for one in measured]
    try:
        for one, _ in before:
            one._told = True
        yield
    finally:
        for one, told in before:
            one._told = told


def _same(first: Constants, second: Constants) -> bool:
    values = zip(itertools.chain(*first), itertools.chain(*second), strict=True)
    return all(math.isclose(one, other, rel_tol=_SAME, abs_tol=_SAME) for one, other in values)
