"""The edits of one contrastive loss, and why some are left alone."""

from __future__ import annotations

from rewriter.authoring import Change, Place, Reason, Refused, name_of
from rewriter.errors import listed
from rewriter.passes.temperature_free.contrasts import Contrast, other_uses, works_in_place
from rewriter.passes.temperature_free.cosines import parameters_behind
from rewriter.passes.temperature_free.layers import LogOdds
from rewriter.text import counted


def without_temperature(place: Place[Contrast], scale: float) -> Change:
    """Put the log-odds in the place of the temperature.

    Raises:
        Refused: it is not a contrast of normalised vectors by a softmax, or it cannot be edited.
    """
    contrast = place.subject
    _refuse_others(contrast)
    gone = {one.node: one.kept for one in contrast.scales}
    behind = any(one.inside or one.filled or _is_a_call_in_place(place, one) for one in contrast.scales)
    for node in (one.node for one in contrast.scales if works_in_place(one)):
        _refuse_aliases(place, node)
    if behind:
        for one in contrast.scales:
            product = [cosine.node for cosine in one.cosines]
            changed, goals = ([one.node], product) if one.inside else (product, [one.node])
            place.interference.refuse_other_readers(changed, goals, "not be scaled" if one.inside else "be log-odds")
        place.edit.insert_behind(list(contrast.cosines), LogOdds, removed=gone, scale=float(scale))
    else:
        place.edit.replace(gone, LogOdds, scale=float(scale))
    frozen, kept = [], []
    for name in contrast.parameters:
        parameter = place.model.get_parameter(name)
        if other_uses(name, place.trace, set(gone)):
            kept.append(name)
        elif parameter.requires_grad:
            frozen.append(name)
            place.edit.freeze(*_path_and_name(name))
    return Change(_action(scale, frozen), _reason(place, kept), code="RW1201")


def freeze_returned(place: Place[list[str]]) -> Change:
    """Freeze a temperature that a model returns for a loss elsewhere.

    Raises:
        Refused: it is frozen, or several numbers are returned.
    """
    names = place.subject
    if len(names) > 1:
        detail = f"{listed(names)} are returned: a scale and a bias, as a loss of sigmoids takes them"
        raise Refused("temperature-free/sigmoid-loss", detail)
    (name,) = names
    if not place.model.get_parameter(name).requires_grad:
        raise Refused(Reason.ALREADY_DONE, f"{name} is frozen")
    place.edit.freeze(*_path_and_name(name))
    returned = [node for node in place.flow.output.all_input_nodes if node.op == "call_function"]
    at = next((node for node in returned if name in parameters_behind(node, place.trace)), None)
    reason = "it is returned beside normalised vectors, for a loss elsewhere: rewrite that too, it is of no use alone"
    return Change(f"freeze {name}, which a loss without a temperature does not train", reason, code="RW1202", at=at)


def _refuse_others(contrast: Contrast) -> None:
    if contrast.mixed:
        detail = "several temperatures meet in it, or one line applies them: a teacher's logits, say, keep their own"
        raise Refused("temperature-free/several-temperatures", detail)
    if contrast.bias:
        raise Refused("temperature-free/sigmoid-loss", contrast.bias)
    cosines = contrast.cosines.values()
    if any(side.learned for cosine in cosines for side in cosine.operands):
        raise Refused("temperature-free/classifier", "one side of the product is a learned weight: a cosine classifier")
    why_not = next((cosine.why_not for cosine in cosines if cosine.why_not), "")
    if why_not:
        remedy = "the log-odds need vectors of unit length: give example_inputs as the training does, normalised"
        raise Refused("temperature-free/not-normalised", f"{why_not}; {remedy}", code="RW1201")
    others = [name_of(node) for one in contrast.scales for node in one.others if node.op != "placeholder"]
    others += [str(node.target) for one in contrast.scales for node in one.others if node.op == "placeholder"]
    if others:
        detail = f"the same temperature also scales {listed(list(dict.fromkeys(others)))}, which is no cosine"
        raise Refused("temperature-free/not-all-cosines", detail, code="RW1201")
    if contrast.term:
        raise Refused("temperature-free/another-term", contrast.term, code="RW1201")


def _is_a_call_in_place(place: Place[Contrast], one: object) -> bool:
    node = one.node  # type: ignore[attr-defined]
    return works_in_place(one) and not place.edit.is_assignment(node)  # type: ignore[arg-type]


def _refuse_aliases(place: Place[Contrast], node: object) -> None:
    later = [other for other in place.flow.nodes() if node in other.meta["after"] and node not in other.all_input_nodes]
    if later:
        raise Refused(Reason.WRITTEN_IN_PLACE, f"{name_of(later[0])} reads what {name_of(node)} writes to")  # type: ignore[arg-type]


def _path_and_name(parameter: str) -> tuple[str, str]:
    path, _, name = parameter.rpartition(".")
    return path, name


def _action(scale: float, frozen: list[str]) -> str:
    factor = "" if scale == 1 else f"{scale:g} "
    logits = f"take {factor}atanh(s) of the cosines s as logits" + (", their log-odds" if scale == 2 else "")
    return logits + (f"; freeze {listed(frozen)}" if frozen else "")


def _reason(place: Place[Contrast], kept: list[str]) -> str:
    contrast = place.subject
    count = counted(len(contrast.scales), "product")
    said = f"a temperature scales {count} of normalised vectors" + (" before a softmax" if contrast.normalised else "")
    return said + (f"; {listed(kept)} is read elsewhere and goes on training" if kept else "")
