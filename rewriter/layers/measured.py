"""The constants that calibration measured for a layer, and whether a copy of the layer missed them.

A moving average of the weights (EMA) is a deep copy. If made before calibration, its constants differ from those of the
model that it follows, and its output is wrong. Calibration and averaging cannot notice this, but the copied layer can.
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
"""Constants that differ by less count as equal: casting to 16 bits and long averaging change them slightly."""


class MeasuredConstants:
    """The constants of one layer. A deep copy knows its original, and so notices what is measured there later.

    It holds only numbers and a weak reference, so a copy does not keep its original alive.

    Attributes:
        constants: the result of the last calibration; None if there was none.
    """

    def __init__(self, original: MeasuredConstants | None = None) -> None:
        self.constants: Constants | None = original.constants if original is not None else None
        self._original = None if original is None else weakref.ref(original)
        self._at_copying = self.constants
        self._told = False

    def warn_if_missed(self, present: Callable[[], Constants]) -> None:
        """Warn, once, if the original was calibrated to constants other than ``present()`` after this copy was made."""
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
        return MeasuredConstants, ()  # there is no original in another process


@contextlib.contextmanager
def quiet(measured: Iterable[MeasuredConstants]) -> Iterator[None]:
    """Suppress these warnings during a calibration, which evaluates the model and sets its constants."""
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
