"""Equal scale for the feature maps that a segmentation decoder fuses.

Rule (Kim and Kim, *Scale equalization for multi-level feature fusion*, arXiv:2402.01149; we read the abstract and a
summary): bilinear upsampling lowers the variance of a map, so maps of several levels meet at a fusion with unequal
scale, and their weights get gradients of unequal scale. Each map that is fused is normalised, after upsampling and
before the fusion, by its mean and standard deviation over the data set: ``(x - mean) / std``. These are constants: no
parameters and no statistics of batches.

Why, in short (our derivation): of independent positions of variance v, bilinear upsampling by an even factor s leaves
``v ((4 s^2 - 1) / (6 s^2))^2``, some 0.39 v to 0.44 v; the smoother the map, the less it shrinks. So the constants have
to be measured: :func:`rewriter.calibrate`.

Ours, not the paper's: one pair of constants a map (not one a channel), that maps which were not upsampled are equalized
too, which joins count as fusions, sums (``additive=True``), and how the data are run for calibration.

Dataflow::

    level 1 ───────────────────────[equalizer]─┐
    level 2 ─ … ─ bilinear upsample [equalizer]─┼─ concat ─ … ─ weight
    level 3 ─ … ─ bilinear upsample [equalizer]─┘
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from rewriter.analysis.fusions import Fusion, find_fusions
from rewriter.analysis.interference import interference
from rewriter.analysis.naming import name_of
from rewriter.edit.edits import AddModule, Edit
from rewriter.edit.placement import Placement, placement
from rewriter.guideline.base import Contract, Pass, Site, Skipped
from rewriter.passes.scale_equalizer.layers import Equalizer
from rewriter.reasons import Reason, Refused
from rewriter.tracing.trace import Trace

__all__ = ["Equalizer", "ScaleEqualizer"]

_LAYER = "scale-equalizer/equalizer"


@dataclass(frozen=True)
class ScaleEqualizer(Pass):
    """Normalise every map that is fused by constants of the data set.

    Attributes:
        additive: whether sums of maps are taken too, not only concatenations.
    """

    name = "scale-equalizer"
    summary = "normalise multi-level features by constants of the data, after bilinear upsampling and before fusion"
    paper = "Kim and Kim, Scale equalization for multi-level feature fusion, arXiv:2402.01149"
    contract = Contract(eval_output=True, state_dict=True, gradients=True, adds_buffers=True)
    after = ("atrous-rates", "group-count")

    additive: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.additive, bool):
            raise ValueError(f"additive: expected True or False, found {self.additive!r}")

    def find(self, trace: Trace) -> Iterator[Site | Skipped]:
        flow = trace.train.dataflow
        place = placement(flow, trace)
        for fusion in find_fusions(flow, trace.model):
            path, pattern = fusion.join.meta["owner"].path, f"{fusion.form} of {len(fusion.operands)} maps"
            why_not = self._why_not(fusion, trace)
            try:
                if why_not is None:
                    others = interference(flow, trace)
                    others.refuse_other_readers([fusion.join], fusion.weights, "change once the constants are measured")
                    edits = _edits(fusion, place)
                    yield Site(
                        self.name, path, pattern, _action(fusion), _reason(fusion), tuple(edits), _constants(edits)
                    )
                    continue
            except Refused as refused:
                why_not = refused.reason, refused.detail
            yield Skipped(self.name, path, pattern, *why_not)

    def _why_not(self, fusion: Fusion, trace: Trace) -> tuple[Reason, str] | None:
        issuers = [trace.model.get_submodule(operand.node.meta["owner"].path) for operand in fusion.operands]
        if any(isinstance(module, Equalizer) for module in issuers):
            return Reason.ALREADY_DONE, "its maps come from an equalizer"
        if fusion.norms:
            return (
                Reason.NORM_FOLLOWS,
                f"{name_of(fusion.norms[0])} normalises the fused map before a weight reads it",
            )
        if not fusion.weights:
            return Reason.LOGITS, "no weight reads the fused map: it is an output, or on the way to one"
        if fusion.form == "sum" and not self.additive:
            return Reason.ADDITIVE, "it is a sum; additive=True takes sums too"
        return None


def _edits(fusion: Fusion, place: Placement) -> list[Edit]:
    if fusion.stacked:
        reader = fusion.operands[0].reader
        return place.wrap_argument(reader, None, "scale_equalizer", _LAYER, operands=len(fusion.operands))
    edits: list[Edit] = []
    for operand in fusion.operands:
        edits += place.wrap_argument(operand.reader, operand.node, "scale_equalizer", _LAYER)
    return edits


def _action(fusion: Fusion) -> str:
    return f"equalize its {len(fusion.operands)} maps before {name_of(fusion.join)}"


def _reason(fusion: Fusion) -> str:
    upsamplings = [operand.upsampling for operand in fusion.operands if operand.upsampling]
    before = ", ".join(dict.fromkeys(_size(upsampling.all_input_nodes[0]) for upsampling in upsamplings))
    count = f"{len(upsamplings)} of them {'was' if len(upsamplings) == 1 else 'were'}"
    reader = name_of(fusion.weights[0])
    return f"{count} upsampled bilinearly, from {before} to {_size(upsamplings[0])}; {reader} reads the fused map"


def _size(node: fx.Node) -> str:
    height, width = node.meta["shape"][-2:]
    return f"{height}x{width}"


def _constants(edits: list[Edit]) -> str:
    layers = [f"{edit.path}.{edit.name}".lstrip(".") for edit in edits if isinstance(edit, AddModule)]
    return f"the identity until rewriter.calibrate(model, batches) ({', '.join(layers)})"
