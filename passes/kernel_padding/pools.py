"""Poolings whose windows are made a multiple of their stride; the output changes."""

from __future__ import annotations

from torch.nn.modules.pooling import _AvgPoolNd, _MaxPoolNd

from rewriter.authoring import Change, Place, Reason, Refused
from rewriter.passes.kernel_padding.windows import Window, shown
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import has_own_forward


def widen_pool(place: Place[Window], wanted: bool) -> Change:
    """Widen the window of a pooling at the bottom and right.

    Raises:
        Refused: poolings are not ``wanted``, or this one cannot be widened.
    """
    window = place.subject
    assert place.node is not None
    to = f"{shown(window.kernel)} to {shown(window.padded)}"
    if not wanted:
        raise Refused(
            "kernel-padding/pooling",
            f"a pooling over more positions has another output; pools=True widens it, {to}",
        )
    pool = place.trace.module_of(place.node)
    if not isinstance(pool, (_MaxPoolNd, _AvgPoolNd)):
        raise Refused(Reason.FUNCTIONAL, "its window is an argument of a function, not of a layer")
    if has_own_forward(pool):
        detail = f"{type(pool).__name__} has a forward of its own; where its windows lie is not known"
        raise Refused(Reason.OWN_FORWARD, detail)
    if getattr(pool, "dilation", 1) not in (1, (1,) * len(window.kernel)):
        raise Refused(
            "kernel-padding/dilated", "its window is dilated, and more taps would not fill it", code=window.code
        )
    size = tuple(facts(place.flow.sources(place.node)[0])["shape"][2:])
    before, after = window.positions(window.kernel, size), window.positions(window.padded, size)
    if before != after:
        raise Refused(
            "kernel-padding/odd-map",
            f"on its map of {shown(size)} the wider window has {shown(after)} positions instead of {shown(before)}; "
            f"give an input size of which the map is a multiple of the stride, {window.stride[0]}",
        )
    single = isinstance(pool.kernel_size, int)
    place.edit.set(place.path, "kernel_size", window.padded[0] if single else window.padded)
    return Change(
        f"widen its window {to}, at the bottom and right; not exact",
        f"with stride {window.stride[0]} a pixel is read by {window.coverage()} positions in each direction",
        f"{place.path}.kernel_size",
        code=window.code,
    )
