"""Mend what makes a loss nan or infinite.

Rule (Kim, Jang and Kim, *Analysis of NaN Divergence in Training Monocular Depth Estimation Model*, arXiv:2311.03938; we
read the abstract and the author's code): three sources of nan in training: the square root of a loss, whose gradient is
unstable; the numerics of log-sigmoid; and some implementations of the variance. In the author's code the variance of
the scale-invariant logarithmic loss has ``unbiased=False``.

Not from the paper: the patterns that are looked for, what is put in their place, the cross entropy of a sigmoid, the
variance as a difference of means, and that each place is measured: what is suspected is run on the input at which it
would fail, and if value and gradient are finite there, nothing is said.

Dataflow::

    x ─ sigmoid ─ [1 - ] ─ log ─ …                                   x ─ logsigmoid ─ …
    x ─ sigmoid ─ binary cross entropy                               x ─ binary cross entropy with logits
    … ─ mean, variance, sum ─ sqrt ─ …                               … ─ square root with gradient 0 at zero ─ …
    … ─ selection ─ var ─ …                    correction=0:         … ─ selection ─ var(correction=0) ─ …
    mean(x²) - mean(x)²                                              mean((x - mean(x))²)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rewriter.authoring import Contract, Lint, Outcome, Pass, Place

if TYPE_CHECKING:
    from rewriter.tracing.trace import Trace


@dataclass(frozen=True)
class NumericSafety(Pass):
    """Compute what can be nan or infinite in a way that is not, with the same values elsewhere.

    Attributes:
        correction: 0 computes variances of what can be one element without Bessel's correction, which changes values;
            None only says where they are.
    """

    name = "numeric-safety"
    summary = (
        "logarithms, roots and variances that are nan or infinite at some inputs, computed so that they are finite"
    )
    paper = "Kim et al., Analysis of NaN Divergence in Training Monocular Depth Estimation Model, arXiv:2311.03938"
    contract = Contract(eval_output=False)
    layers = ("rewriter.passes.numeric_safety.layers",)
    codes = (
        Lint("RW0701", "the logarithm of a sigmoid", "error"),
        Lint("RW0702", "the cross entropy of a sigmoid"),
        Lint("RW0703", "the root of what can be zero", "error"),
        Lint("RW0704", "a variance of what can be one element"),
        Lint("RW0705", "a variance as a difference of means"),
    )

    correction: Literal[0] | None = None

    def __post_init__(self) -> None:
        if self.correction is not None and (isinstance(self.correction, bool) or self.correction != 0):
            raise ValueError(f"correction: expected 0 or None, found {self.correction!r}")

    def candidates(self, trace: Trace) -> Iterator[Place[Any]]:
        from rewriter.passes.numeric_safety import roots, sigmoids, variances

        finders = (
            sigmoids.find_logarithms, sigmoids.find_cross_entropies, roots.find_roots, variances.find_corrections,
            variances.find_differences,
        )  # fmt: skip
        seen = set()
        for place in (place for find in finders for place in find(trace)):
            if (line := _expression_of(place)) not in seen:  # a method that is called twice is one place
                seen.add(line)
                yield place

    def decide(self, place: Place[Any]) -> Outcome:
        from rewriter.passes.numeric_safety import roots, sigmoids, variances

        match place.subject:
            case sigmoids.OfSigmoid() if place.pattern.startswith("logarithm"):
                return sigmoids.mend_logarithm(place)
            case sigmoids.OfSigmoid():
                return sigmoids.mend_cross_entropy(place)
            case roots.Root():
                return roots.mend_root(place)
            case variances.FewElements():
                return variances.mend_correction(place, self.correction)
        return variances.mend_difference(place)


def _expression_of(place: Place[Any]) -> tuple[Any, ...]:
    """What tells apart the expressions that issue the operations of places."""
    from rewriter.passes.numeric_safety.replay import expression_of

    own = (place.node,) if place.node is None else expression_of(place.node)
    return place.pattern, place.path, *own
