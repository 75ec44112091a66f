"""Which fusions are equalized, which are not and why, and the edits."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from rewriter.analysis.fusions import Fusion, find_fusions
from rewriter.analysis.interference import interference
from rewriter.analysis.naming import name_of
from rewriter.edit.edits import AddModule, Edit
from rewriter.edit.placement import Placement, placement
from rewriter.guideline.base import Site, Skipped
from rewriter.passes.scale_equalizer.layers import Equalizer
from rewriter.reasons import Reason, Refused
from rewriter.tracing.trace import Trace

_LAYER = "scale-equalizer/equalizer"


def find_sites(trace: Trace, name: str, additive: bool) -> Iterator[Site | Skipped]:
    """A site or a reason for every fusion."""
    flow = trace.train.dataflow
    place = placement(flow, trace)
    for fusion in find_fusions(flow, trace.model):
        path, pattern = fusion.join.meta["owner"].path, f"{fusion.form} of {len(fusion.operands)} maps"
        why_not = _why_not(fusion, trace, additive)
        try:
            if why_not is None:
                others = interference(flow, trace)
                others.refuse_other_readers([fusion.join], fusion.weights, "change once the constants are measured")
                edits = _edits(fusion, place)
                yield Site(name, path, pattern, _action(fusion), _reason(fusion), tuple(edits), _constants(edits))
                continue
        except Refused as refused:
            why_not = refused.reason, refused.detail
        yield Skipped(name, path, pattern, *why_not)


def _why_not(fusion: Fusion, trace: Trace, additive: bool) -> tuple[Reason, str] | None:
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
    if fusion.form == "sum" and not additive:
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
