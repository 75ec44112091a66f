"""Which fusions are equalized, which are not and why, and the edits."""

from __future__ import annotations

from torch import fx

from rewriter.analysis.fusions import Fusion
from rewriter.authoring import Change, Place, Reason, Refused, name_of
from rewriter.edit.edits import AddModule, Edit
from rewriter.passes.scale_equalizer.layers import Equalizer
from rewriter.tracing.facts import facts

_NAME = "scale_equalizer"


def equalize(place: Place[Fusion], additive: bool) -> Change:
    """Insert an equalizer on every map of a fusion.

    Raises:
        Refused: it is outside the guideline's scope, or cannot be edited.
    """
    fusion = place.subject
    issuers = [place.model.get_submodule(facts(operand.node)["owner"].path) for operand in fusion.operands]
    if any(isinstance(module, Equalizer) for module in issuers):
        raise Refused(Reason.ALREADY_DONE, "its maps come from an equalizer")
    if fusion.norms:
        detail = f"{name_of(fusion.norms[0])} normalises the fused map before a weight reads it"
        raise Refused(Reason.NORM_FOLLOWS, detail)
    if not fusion.weights:
        raise Refused(Reason.LOGITS, "no weight reads the fused map: it is an output, or on the way to one")
    if fusion.form == "sum" and not additive:
        raise Refused(Reason.ADDITIVE, "it is a sum; additive=True takes sums too")
    place.interference.refuse_other_readers([fusion.join], fusion.weights, "change once the constants are measured")
    if fusion.stacked:
        reader = fusion.operands[0].reader
        place.edit.wrap_argument(reader, None, Equalizer, name=_NAME, operands=len(fusion.operands))
    else:
        for operand in fusion.operands:
            place.edit.wrap_argument(operand.reader, operand.node, Equalizer, name=_NAME)
    return Change(_action(fusion), _reason(fusion), _constants(place.edit.edits), code="RW0101")


def _action(fusion: Fusion) -> str:
    return f"equalize its {len(fusion.operands)} maps before {name_of(fusion.join)}"


def _reason(fusion: Fusion) -> str:
    upsamplings = [operand.upsampling for operand in fusion.operands if operand.upsampling]
    before = ", ".join(dict.fromkeys(_size(upsampling.all_input_nodes[0]) for upsampling in upsamplings))
    count = f"{len(upsamplings)} of them {'was' if len(upsamplings) == 1 else 'were'}"
    reader = name_of(fusion.weights[0])
    return f"{count} upsampled bilinearly, from {before} to {_size(upsamplings[0])}; {reader} reads the fused map"


def _size(node: fx.Node) -> str:
    height, width = facts(node)["shape"][-2:]
    return f"{height}x{width}"


def _constants(edits: list[Edit]) -> str:
    layers = [f"{edit.path}.{edit.name}".lstrip(".") for edit in edits if isinstance(edit, AddModule)]
    return f"the identity until rewriter.calibrate(model, batches) ({', '.join(layers)})"
