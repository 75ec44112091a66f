"""Which convolutions are padded and at which ends, which are left alone and why, and the edits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.conv import _ConvNd

from rewriter.authoring import Change, Place, Reason, Refused
from rewriter.model.differences import difference, rounding_of
from rewriter.passes.kernel_padding.layers import PaddedKernel
from rewriter.passes.kernel_padding.windows import Window, shown
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import has_own_forward
from rewriter.tracing.skeleton import skeleton

Ends = tuple[tuple[int, int], ...]
"""For each spatial dimension how many zeros stand before and behind the kernel."""


def pad_convolution(place: Place[Window]) -> Change:
    """Pad the kernel of a convolution.

    Raises:
        Refused: it cannot be padded, or its output would change.
    """
    window = place.subject
    assert place.node is not None
    conv = place.trace.module_of(place.node)
    if not isinstance(conv, _ConvNd):
        raise Refused(Reason.FUNCTIONAL, "its stride is an argument of a function, not of a layer")
    _refuse_other_forms(place, conv)
    size = tuple(facts(place.flow.sources(place.node)[0])["shape"][2:])
    own = has_own_forward(conv)
    ends = _ends_of_own(place, conv, window, size) if own else tuple((0, more) for more in _more(window))
    before, after = window.positions(window.kernel, size), window.positions(window.padded, size)
    if not own and before != after:
        raise Refused(
            "kernel-padding/odd-map",
            f"on its map of {shown(size)} the padded kernel has {shown(after)} positions instead of {shown(before)}; "
            f"give an input size of which the map is a multiple of the stride, {window.stride[0]}",
        )
    place.edit.behave(place.path, PaddedKernel, kernel_padding=[list(pair) for pair in ends], keeps_positions=not own)
    for dim, (start, end) in enumerate(ends, 2):
        if start or end:
            place.edit.pad(place.path, "weight", dim, start, end)
    where = "the bottom and right" if not any(start for start, _ in ends) else "the top and left"
    return Change(
        f"pad its kernel {shown(window.kernel)} with zeros at {where} to {shown(window.padded)}",
        f"with stride {window.stride[0]} a pixel is read by {window.coverage()} positions in each direction",
        code=window.code,
    )


def _more(window: Window) -> Iterator[int]:
    return (new - old for old, new in zip(window.kernel, window.padded, strict=True))


def _refuse_other_forms(place: Place[Window], conv: _ConvNd) -> None:
    window = place.subject
    if any(d != 1 and k % s for d, k, s in zip(conv.dilation, window.kernel, window.stride, strict=True)):
        raise Refused(
            "kernel-padding/dilated", "its kernel is dilated, and more taps would not fill it", code=window.code
        )
    if conv.padding_mode != "zeros":
        detail = f"it pads by {conv.padding_mode!r}: what stands beside the map would change"
        raise Refused("kernel-padding/padding-mode", detail)
    weight = conv._parameters.get("weight")
    if weight is None:
        raise Refused(
            "kernel-padding/computed-weight",
            "its weight is computed (a parametrization), no parameter",
        )
    if not weight.requires_grad:
        detail = "its weight is frozen: the zeros would never train; unfreeze it before the rewrite"
        raise Refused(Reason.FROZEN, detail)
    holders = {id(module) for module in place.model.modules() if any(p is weight for p in module._parameters.values())}
    if len(holders) > 1:
        raise Refused("kernel-padding/shared-weight", "another module has the same weight")


def _ends_of_own(place: Place[Window], conv: _ConvNd, window: Window, size: tuple[int, ...]) -> Ends:
    """The ends at which a convolution with a forward of its own is padded, found by running it alone.

    TensorFlow's padding depends on the size of the kernel: a larger one begins earlier, so its zeros come first.

    Raises:
        Refused: its output changes at either end.
    """
    more = tuple(_more(window))
    key = (type(conv), window, size, tuple(conv.weight.shape), str(conv))
    if key not in place.trace.measured:
        tried = (tuple((0, n) for n in more), tuple((n, 0) for n in more))
        place.trace.measured[key] = next((ends for ends in tried if _keeps_output(conv, size, ends)), None)
    found: Ends | None = place.trace.measured[key]
    if found is None:
        raise Refused(
            Reason.OWN_FORWARD,
            f"{type(conv).__name__} has a forward of its own, and with zeros around its kernel another output "
            f"on its map of {shown(size)}",
        )
    return found


def _keeps_output(conv: _ConvNd, size: tuple[int, ...], ends: Ends) -> bool:
    """Whether the layer, with drawn weights, gives the same with a padded kernel."""
    generator = torch.Generator().manual_seed(0)

    def drawn(tensor: torch.Tensor) -> torch.Tensor:
        values = torch.randn(tensor.shape, generator=generator)
        return nn.Parameter(values) if isinstance(tensor, nn.Parameter) else values

    copy = skeleton(conv, drawn).eval()
    image = torch.randn(1, conv.in_channels, *size, generator=generator)
    with torch.no_grad():
        try:
            before = copy(image)
            weight = copy.get_parameter("weight")
            weight.data = F.pad(weight, [end for pair in reversed(ends) for end in pair])
            return difference(before, copy(image)) <= rounding_of(before)
        except RuntimeError:
            return False
