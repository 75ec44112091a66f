"""Which pyramids get which dilations, which are left alone and why, and the edits."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import nn
from torch.nn.modules.conv import _ConvNd

from rewriter.analysis.aspp import AtrousConv, AtrousPyramid, find_pyramids
from rewriter.authoring import Change, Place
from rewriter.edit.edits import SetAttribute, apply_edits
from rewriter.errors import SelectorError, TraceError
from rewriter.passes.atrous_rates.rule import SMALLEST_RATE, RateRule, field_of_view, fitted, largest_rate, share_inside
from rewriter.reasons import Reason, Refused
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind
from rewriter.tracing.skeleton import meta_twin, skeleton
from rewriter.tracing.trace import Recording, Trace, trace_model

PATTERN = "atrous spatial pyramid pooling"


def pyramids(trace: Trace) -> Iterator[Place[list[AtrousPyramid]]]:
    """Yield every group of parallel atrous convolutions; calls of the same modules are one place."""
    groups: dict[object, list[AtrousPyramid]] = {}
    for pyramid in find_pyramids(trace.train.dataflow, trace.model):
        key = tuple(conv.path or conv.node for conv in pyramid.convs)
        groups.setdefault(key, []).append(pyramid)
    for calls in groups.values():
        yield Place(trace, calls[0].join, PATTERN, calls, path=facts(calls[0].join)["owner"].path)


def dilate(place: Place[list[AtrousPyramid]], rule: RateRule) -> Change:
    """Give the convolutions of a pyramid the dilations chosen by ``rule``.

    Raises:
        Refused: they have these dilations already, or cannot be changed.
    """
    trace, calls = place.trace, place.subject
    _refuse_other_forms(calls[0])
    kernel = calls[0].convs[0].kernel[0]
    sizes = [tuple(facts(pyramid.source)["shape"][-2:]) for pyramid in calls]
    size = sizes[0]
    present = sorted({conv.dilation[0] for conv in calls[0].convs})
    wanted = [_rates(rule, min(size), len(present), kernel) for size in sizes]
    rates = wanted[0]
    on_map = f"(map {size[0]}x{size[1]})"
    if not rates:
        raise Refused(
            Reason.SMALL_MAP,
            f"a map of {size[0]}x{size[1]} has no room for {len(present)} different dilations above 1; the largest "
            f"whose taps find it is {largest_rate(min(size), kernel)}",
        )
    if any(other != rates for other in wanted):
        raise Refused(Reason.SHARED_MODULE, f"the same convolutions read maps of different sizes: {_listed(sizes)}")
    if rates == present:
        raise Refused(Reason.ALREADY_DONE, f"dilations are {_listed(rates)} {on_map}")
    edits = _edits(place, dict(zip(present, rates, strict=True)))
    for edit in edits:
        place.edit.set(edit.path, edit.name, edit.value, all_calls=True)
    inside = [round(100 * share_inside(size, some, kernel)) for some in (present, rates)]
    reason = (
        f"field of view {field_of_view(present, kernel)} → {field_of_view(rates, kernel)} cells of the map, "
        f"taps inside the map {inside[0]} % → {inside[1]} %, {_resolution(trace)}"
    )
    attributes = " and ".join(dict.fromkeys(edit.name for edit in edits))
    where = f"{attributes} of {_listed(dict.fromkeys(edit.path for edit in edits))}"
    action = f"set dilations {_listed(present)} to {_listed(rates)} {on_map}"
    return Change(action, reason, where, code="RW0401")


def _resolution(trace: Trace) -> str:
    """Return the resolution that determines the size of the map; it has to be the training resolution."""
    image = trace.inputs.image_size
    size = f" ({image[1]}x{image[2]})" if image is not None else ""
    return f"when trained at the resolution of {trace.inputs.origin}{size}"


def _refuse_other_forms(pyramid: AtrousPyramid) -> None:
    convs = pyramid.convs
    if not pyramid.concatenated:
        raise Refused(Reason.SUMMED, "the results of the atrous convolutions are summed, not concatenated")
    kernel, dilations = convs[0].kernel, [conv.dilation for conv in convs]
    square = len(kernel) == 2 and len(set(kernel)) == 1 and all(len(set(dilation)) == 1 for dilation in dilations)
    if not square or kernel[0] % 2 == 0:
        raise Refused(
            Reason.KERNEL_SHAPE,
            f"the rule is for square kernels of odd size with one dilation for height and width; found kernel {kernel} "
            f"with dilations {_listed(dilations)}",
        )


def _rates(rule: RateRule, side: int, number: int, kernel: int) -> list[int]:
    """Return the dilations chosen by ``rule``, within the limits of the map; empty if none fit."""
    given = rule(side, number, kernel)
    try:
        rates = [operator.index(rate) for rate in given]
        wrong = bool(rates) and (len(rates) != number or rates != sorted(set(rates)) or rates[0] < SMALLEST_RATE)
    except TypeError:
        rates, wrong = [], True
    if wrong:
        raise SelectorError(
            f"atrous-rates: rule({side}, {number}, {kernel}): expected {number} increasing ints above 1, found "
            f"{given!r}"
        )
    return fitted(rates, largest_rate(side, kernel))


def _edits(place: Place[list[AtrousPyramid]], new: Mapping[int, int]) -> list[SetAttribute]:
    """Return the edits that replace each convolution's present dilation with the one that ``new`` maps it to.

    Raises:
        Refused: a convolution is not a module, is used elsewhere too, or its padding does not follow the dilation.
    """
    trace = place.trace
    convs = list(dict.fromkeys(conv for pyramid in place.subject for conv in pyramid.convs))
    edits: list[SetAttribute] = []
    for conv in convs:
        module = _module(trace, conv)
        if place.edit.calls_of(str(conv.path)) > _uses(module, convs, trace):
            raise Refused(Reason.SHARED_MODULE, f"module {conv.path!r} is called elsewhere too")
        if module.padding_mode != "zeros":
            raise Refused(
                Reason.FIXED_PADDING, f"{conv.path} pads by {module.padding_mode!r}, with what it was made to pad"
            )
        rate = new[conv.dilation[0]]
        edits.append(SetAttribute(str(conv.path), "dilation", (rate, rate)))
        if _pads(module):
            edits.append(SetAttribute(str(conv.path), "padding", (rate * (conv.kernel[0] - 1) // 2,) * 2))
    edits = list(dict.fromkeys(edits))
    if not all(_is_plain(conv, _module(trace, conv)) for conv in convs):
        _refuse_other_shapes(trace, edits)
    return edits


def _module(trace: Trace, conv: AtrousConv) -> _ConvNd:
    if conv.path is None:
        raise Refused(
            Reason.FUNCTIONAL, f"the dilation is an argument of a function called in {facts(conv.node)['owner']}"
        )
    module = trace.model.get_submodule(conv.path)
    assert isinstance(module, _ConvNd)
    return module


def _uses(module: _ConvNd, convs: list[AtrousConv], trace: Trace) -> int:
    return sum(_module(trace, conv) is module for conv in convs)


def _pads(module: _ConvNd) -> bool:
    """Whether the module pads by its own numbers, rather than ``"same"`` or an operation outside it."""
    return not isinstance(module.padding, str) and any(module.padding)


def _is_plain(conv: AtrousConv, module: _ConvNd) -> bool:
    """Whether it preserves the map's size through torch's own convolution and its attributes."""
    full = tuple((size - 1) // 2 * rate for size, rate in zip(conv.kernel, conv.dilation, strict=True))
    own = type(module).forward is not nn.Conv2d.forward or conv.node.op != "call_module"
    return not own and not conv.padded_before and module.padding in (full, "same")


def _refuse_other_shapes(trace: Trace, edits: Sequence[SetAttribute]) -> None:
    """Run a skeleton with the new dilations: padding that is computed elsewhere has to follow them.

    Raises:
        Refused: the output shape of a convolution would change.
    """
    edited = skeleton(trace.model, meta_twin)
    apply_edits(edited, edits)
    try:
        again = trace_model(edited, trace.inputs, backends=(trace.backend,))
    except TraceError as error:
        raise Refused(Reason.FIXED_PADDING, f"padding does not follow the dilation: {error}") from error
    if _shapes(again.train) != _shapes(trace.train) or _shapes(again.eval) != _shapes(trace.eval):
        raise Refused(Reason.FIXED_PADDING, "padding does not follow the dilation: maps would have other sizes")


def _shapes(recording: Recording) -> list[object]:
    return [facts(node)["shape"] for node in recording.dataflow.nodes(Kind.CONV, Kind.CONCAT, Kind.OUTPUT)]


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
