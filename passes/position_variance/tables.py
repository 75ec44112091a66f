"""Where a table of positions is resampled in forward, or was before; what is done, and why nothing is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from rewriter.analysis.absolute_positions import AbsolutePosition, find_absolute_positions, way_back
from rewriter.analysis.layout import channel_dimension
from rewriter.authoring import Change, Place, Reason, Recommendation, Refused, Trace, name_of
from rewriter.errors import InputError, listed
from rewriter.model.whole_state import is_sharded
from rewriter.passes.position_variance.layers import VarianceKeepingResampling
from rewriter.passes.position_variance.originals import check_fits, grid_of, original_of
from rewriter.passes.position_variance.resized import resized_from
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind, function_name

_CODE = "RW1101"
_KEEP = (Kind.VIEW, Kind.IDENTITY, Kind.SELECT, Kind.CONSTANT, Kind.EMBEDDING, Kind.DROPOUT)
_TOLERANCE = 0.01
"""How far from one a ratio of variances may be."""


@dataclass(frozen=True, eq=False)
class Table:
    """A parameter or buffer that holds positions.

    Attributes:
        name: its full name; ``path`` is that of its module, ``attribute`` its name there.
        channels: the dimension of its channels.
        tokens: the dimension of its positions; -1 if they are a map of two dimensions.
        extra: how many of its first positions are those of class tokens.
        others: names of the other tables of the model.
    """

    name: str
    path: str
    attribute: str
    channels: int
    tokens: int
    extra: int
    others: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Resampling:
    """A resampling in forward.

    Attributes:
        node: the operation.
        alone: whether what it gives is added to the features as it is, and not only a part of it.
    """

    node: fx.Node
    alone: bool


def find_places(trace: Trace) -> Iterator[Place[Any]]:
    """A place for each resampling of a table in forward, and for each table that forward does not resample."""
    seen: set[Any] = set()
    tables: dict[str, Place[Any]] = {}
    for position in find_absolute_positions(trace.flow, trace.model):
        for node in position.resamplings:
            if node not in seen:
                seen.add(node)
                subject = Resampling(node, _all_of(position, node))
                yield Place(trace, node, "positions resampled in forward", subject, path=facts(node)["owner"].path)
        table = None if position.resamplings else _table(position, trace)
        if table is not None and table.name not in tables:
            tables[table.name] = Place(trace, position.sum, "table of positions", table, path=table.path)
    for place in tables.values():
        place.subject = replace(place.subject, others=tuple(name for name in tables if name != place.subject.name))
        yield place


def rescale(place: Place[Any], original: torch.Tensor | Mapping[str, Any] | None) -> Change | Recommendation | None:
    """Rescale a table behind its resampling, or once.

    Raises:
        Refused: it has the variance of the original, or its place cannot be edited.
        InputError: the original does not fit the table.
    """
    if isinstance(place.subject, Resampling):
        return _in_forward(place, place.subject)
    table: Table = place.subject
    values = _values(place.model.get_submodule(table.path), table.attribute)
    if values is None or is_sharded(values):
        raise Refused("position-variance/no-values", f"{table.name} is sharded; rewrite the model before it is")
    return _noticed(table, values) if original is None else _once(place, table, values, original)


def _all_of(position: AbsolutePosition, node: fx.Node) -> bool:
    """Whether the positions are what ``node`` gives, in another layout and with those of class tokens beside it."""
    after = {node}
    for other in position.constants:
        if not after.isdisjoint(other.all_input_nodes):
            after.add(other)
            if facts(other)["kind"] not in (*_KEEP, Kind.CONCAT):
                return False
    return True


def _in_forward(place: Place[Any], resampling: Resampling) -> Change:
    node = resampling.node
    if isinstance(place.trace.module_of(node), VarianceKeepingResampling):
        raise Refused(Reason.ALREADY_DONE, "it keeps the variance")
    if node.op != "call_function" or function_name(node.target) != "interpolate":  # type: ignore[arg-type]
        raise Refused("position-variance/no-interpolate", f"{name_of(node)} is no call of F.interpolate", code=_CODE)
    if not resampling.alone:
        detail = f"what {name_of(node)} gives is only a part of the positions, and their variance is that of the sum"
        raise Refused("position-variance/part-of-a-sum", detail)
    place.edit.redirect(node, VarianceKeepingResampling, name="position_resampling")
    before, after = (place.trace.shape(n)[2:] for n in (node.all_input_nodes[0], node))
    mode = node.kwargs.get("mode", "nearest")
    return Change(
        f"divide what {name_of(node)} gives by the root of k = Var(resampled) / Var(original)",
        f"the model resamples its positions, here from {_sizes(before)} to {_sizes(after)} ({mode}), which changes "
        "their variance and not that of the patches",
        code=_CODE,
    )


def _once(place: Place[Any], table: Table, values: torch.Tensor, original: Any) -> Change:
    if values.is_meta:
        detail = f"{table.name} is on the meta device and has no values; load the weights first"
        raise Refused("position-variance/no-values", detail)
    if table.others and isinstance(original, torch.Tensor):
        raise InputError(
            f"original: expected a state dict, for the model has several tables of positions ({table.name}, "
            f"{listed(table.others)}), found a tensor of shape {tuple(original.shape)}"
        )
    before = original_of(original, table.name, values, table.channels)
    if before.shape == values.shape:
        raise Refused(Reason.ALREADY_DONE, f"{table.name} has the size of the original")
    grid = grid_of(before, table.channels, table.tokens, table.extra)
    present = values if table.tokens < 0 else values.narrow(table.tokens, table.extra, _length(values, table))
    variances = [float(tensor.double().cpu().var(correction=0)) for tensor in (present, grid)]
    if not all(0 < variance < float("inf") for variance in variances):
        raise Refused("position-variance/no-variance", f"{table.name} or its original has the variance 0, or none")
    check_fits(grid, present, table.channels, table.name)
    ratio = variances[0] / variances[1]
    if abs(ratio - 1) < _TOLERANCE:
        raise Refused(Reason.ALREADY_DONE, f"the variance of {table.name} is {ratio:.3f} of that of the original")
    factor = ratio**-0.5
    if table.tokens < 0:
        place.edit.scale(table.path, table.attribute, factor)
    else:
        factors = [1.0] * table.extra + [factor] * _length(values, table)
        place.edit.scale(table.path, table.attribute, factors, dim=table.tokens)
    kept = f", without its first {table.extra}" if table.extra else ""
    return Change(
        f"multiply {table.name} by {factor:.4f}{kept}",
        f"its variance is {ratio:.3f} of that of the original, from {_sizes(grid.shape)} to {_sizes(present.shape)}",
        code=_CODE,
    )


def _noticed(table: Table, values: torch.Tensor) -> Recommendation | None:
    """Say that a table was resized, where its values prove it."""
    if values.is_meta:
        return None
    grid = values if table.tokens < 0 else values.narrow(table.tokens, table.extra, _length(values, table))
    found = resized_from(grid, table.channels)
    if found is None or abs(found.ratio - 1) < _TOLERANCE:
        return None
    return Recommendation(
        f"rescale {table.name} by PositionVariance(original=...), the table or state dict that it was loaded from",
        f"it is a {found.mode} interpolation from {_sizes(found.size)}, with {found.ratio:.2f} of the variance",
        code=_CODE,
    )


def _table(position: AbsolutePosition, trace: Trace) -> Table | None:
    """The one tensor that the positions are read from, if its values stay as they are on the way; None otherwise."""
    stored = [node for node in position.constants if node.op == "get_attr" and facts(node)["dtype"].is_floating_point]
    stored += [n for n in position.constants if facts(n)["kind"] is Kind.EMBEDDING and n.op == "call_module"]
    if len(stored) != 1 or any(facts(n)["kind"] not in _KEEP for n in position.constants):
        return None
    (node,) = stored
    name = f"{node.target}.weight" if node.op == "call_module" else str(node.target)
    path, _, attribute = name.rpartition(".")
    values = _values(trace.model.get_submodule(path), attribute)
    if values is None:
        return None
    shape = tuple(values.shape)
    channels = channel_dimension(trace.flow, position.features, trace.model)
    full = trace.shape(position.sum)
    width = full[len(full) - 1 if channels is None else channels]
    if len(shape) == 4 and shape[0] == 1:
        dimension = 3 if shape[3] == width else 1
        return Table(name, path, attribute, dimension, -1, 0) if shape[dimension] == width else None
    if len(shape) not in (2, 3) or shape[-1] != width or (len(shape) == 3 and shape[0] != 1):
        return None
    tokens, patches = len(shape) - 2, _patches(position, trace)
    extra = shape[tokens] - patches
    return Table(name, path, attribute, len(shape) - 1, tokens, extra) if patches > 1 and extra >= 0 else None


def _values(module: nn.Module, attribute: str) -> torch.Tensor | None:
    found = module._parameters.get(attribute, module._buffers.get(attribute))
    return None if found is None else found.detach()


def _patches(position: AbsolutePosition, trace: Trace) -> int:
    """How many tokens are patches: those before class tokens are joined."""
    for node in way_back(position.features, trace.flow):
        if facts(node)["kind"] is not Kind.CONCAT:
            continue
        (source,) = trace.flow.sources(node)
        return trace.shape(source)[-2]
    shape, channels = trace.shape(position.features), channel_dimension(trace.flow, position.features, trace.model)
    if len(shape) == 3:
        return shape[1] if channels != 1 else shape[2]
    return 0


def _length(values: torch.Tensor, table: Table) -> int:
    return values.shape[table.tokens] - table.extra


def _sizes(shape: Any) -> str:
    return "x".join(map(str, shape))
