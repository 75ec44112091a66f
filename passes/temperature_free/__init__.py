"""Contrast by the log-odds of similarities, without a temperature.

Rule (Kim and Kim, *Temperature-Free Loss Function for Contrastive Learning*, arXiv:2501.17683; we read the abstract and
a summary): InfoNCE divides cosine similarities by a temperature, which has to be tuned. Instead the similarity is
rescaled to a probability, ``(1 + s) / 2``, and its log-odds, an inverse hyperbolic tangent, is the logit. The softmax
and the cross entropy stay. The gradient then vanishes at perfect alignment and not before.

Ours: the factor 2, which follows from the log-odds (``log((1 + s) / (1 - s)) = 2 atanh(s)``; ports that call half of it
the logit exist, hence ``scale``); the clamp of ``s`` to 1e-6 from -1 and 1, in single precision; where the layer
stands; what counts as normalised; that a learned temperature is frozen.

Dataflow::

    a ─ normalise ─┐                    a ─ normalise ─┐
                   ├─ product ─ / tau ─ softmax   →    ├─ product ─[log-odds]─ softmax
    b ─ normalise ─┘                    b ─ normalise ─┘

The edit puts the layer in the place of the division (or of the multiplication by ``logit_scale.exp()``). Where a mask
is filled in before the division, or the scale multiplies one side of the product, the layer stands behind the product
and the scale goes. A learned temperature stays in the state dict, frozen.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rewriter.authoring import Change, Contract, Lint, Pass, Place, Reason, Refused

if TYPE_CHECKING:
    from rewriter.passes.temperature_free.layers import LogOdds, log_odds
    from rewriter.passes.temperature_free.loss import TemperatureFreeInfoNCE
    from rewriter.tracing.trace import Trace

__all__ = ["LogOdds", "TemperatureFree", "TemperatureFreeInfoNCE", "log_odds"]

_ELSEWHERE = {"LogOdds": "layers", "log_odds": "layers", "TemperatureFreeInfoNCE": "loss"}


def __getattr__(name: str) -> Any:
    if name not in _ELSEWHERE:  # the pass can be described without torch
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_ELSEWHERE[name]}"), name)


_FACTORS = "a number above 0 (2 for the log-odds)"


@dataclass(frozen=True)
class TemperatureFree(Pass):
    """Replace the temperature of contrastive losses and logits by the log-odds of the similarities.

    Attributes:
        scale: the factor of ``atanh``; 2 gives the log-odds.
    """

    name = "temperature-free"
    summary = "log-odds of cosine similarities in place of a temperature, in contrastive losses and CLIP-like logits"
    paper = "Kim and Kim, Temperature-Free Loss Function for Contrastive Learning, arXiv:2501.17683"
    contract = Contract(eval_output=False, freezes_parameters=True)
    layers = ("rewriter.passes.temperature_free.layers",)
    codes = (
        Lint("RW1201", "a temperature scales similarities", "note"),
        Lint("RW1202", "a learned temperature is returned for a loss", "note"),
    )

    scale: float = 2.0

    def __post_init__(self) -> None:
        number = isinstance(self.scale, (int, float)) and not isinstance(self.scale, bool)
        if not number or not 0 < self.scale < math.inf:
            raise ValueError(f"scale: expected {_FACTORS}, found {self.scale!r}")

    def candidates(self, trace: Trace) -> Iterator[Place[Any]]:
        from rewriter.passes.temperature_free.contrasts import find_contrasts, find_done, find_returned

        for contrast in find_contrasts(trace):
            pattern = "contrastive loss" if contrast.normalised else "contrastive logits"
            yield Place(trace, contrast.scales[0].node, pattern, contrast)
        for node, layer in find_done(trace):
            yield Place(trace, node, "contrastive logits", layer)
        for names in find_returned(trace):
            yield Place(trace, names[0].rpartition(".")[0], "returned temperature", names)

    def decide(self, place: Place[Any]) -> Change:
        from rewriter.passes.temperature_free.contrasts import Contrast
        from rewriter.passes.temperature_free.edits import freeze_returned, without_temperature

        if isinstance(place.subject, Contrast):
            return without_temperature(place, self.scale)
        if isinstance(place.subject, list):
            return freeze_returned(place)
        raise Refused(Reason.ALREADY_DONE, "its logits are log-odds")
