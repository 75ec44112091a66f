"""Where the Gaussian goes, where it does not and why, and the edits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx

from rewriter.authoring import Change, Kind, Place, Reason, Refused, Trace, name_of
from rewriter.edit.edits import AddModule
from rewriter.passes.gaussian_attention_bias.attention_layers import GaussianAttention
from rewriter.passes.gaussian_attention_bias.attentions import Attention, find_attentions
from rewriter.passes.gaussian_attention_bias.grids import Grid, grids_of_bias
from rewriter.passes.gaussian_attention_bias.layers import GaussianBias
from rewriter.passes.gaussian_attention_bias.plain import (
    edit_plain,
    grid_of_map,
    query_of_multihead,
    refuse_inside_torch,
    tokens_of_multihead,
    told_by_map,
)
from rewriter.passes.gaussian_attention_bias.readers import has_other_readers
from rewriter.tracing.facts import facts

_NAME = "gaussian_bias"


@dataclass(frozen=True)
class Subject:
    """An attention, None if a layer of torch computes it whole; and how many attentions read its bias."""

    attention: Attention | None
    readers: int = 1


_BIASED, _PLAIN = "relative position bias", "attention without a bias"


def find_places(trace: Trace, plain: bool) -> Iterator[Place[Subject]]:
    """The attentions with a relative position bias, and if ``plain`` those without."""
    for node in trace.operations(Kind.ATTENTION) if plain else ():
        yield Place(trace, node, _PLAIN, Subject(None))
    attentions = find_attentions(trace)
    read = [bias for attention in attentions for bias, _ in attention.biases]
    for attention in attentions:
        path, found = facts(attention.node)["owner"].path, attention.biases
        if attention.edited is not None:
            pattern = _PLAIN if isinstance(attention.edited, GaussianAttention) else _BIASED
            yield Place(trace, attention.node, pattern, Subject(attention), path=path)
        elif found:
            found.sort(key=lambda each: read.count(each[0]))  # its own before one for all layers
            yield Place(trace, found[0][0], _BIASED, Subject(attention, read.count(found[0][0])), path=path)
        elif plain:
            yield Place(trace, attention.node, _PLAIN, Subject(attention), path=path)


def add_gaussian(place: Place[Subject], amplitude: float, width: float) -> Change:
    """Add a Gaussian to one attention.

    Raises:
        Refused: it is not on a grid, or cannot be edited.
    """
    attention, biased = place.subject.attention, place.pattern == _BIASED
    if attention is None:
        refuse_inside_torch(place)
        assert place.node is not None
        tokens = tokens_of_multihead(place.node, place.module)
    elif attention.edited is not None:
        raise Refused(Reason.ALREADY_DONE, "a Gaussian is added to it")
    else:
        tokens = attention.tokens
    if tokens[0] != tokens[1]:
        raise Refused("gaussian-attention-bias/two-grids", f"{tokens[0]} queries look at {tokens[1]} keys")
    if attention is None:
        assert place.node is not None
        grid = grid_of_map(*query_of_multihead(place.node, place.module), tokens[1], place.trace)
    else:
        grid = (_grid_of_bias if biased else _grid_of_map)(attention, place.trace)
    options = {
        "grid": [grid.rows, grid.columns],
        "prefix_tokens": grid.prefix,
        "amplitude": float(amplitude),
        "width": float(width),
    }
    if attention is not None and biased:
        _edit_bias(place, attention, options)
    else:
        edit_plain(place, attention, {**options, **told_by_map(place, grid)})
    added = next(edit for edit in place.edits if isinstance(edit, AddModule))
    layer = f"{added.path}.{added.name}".lstrip(".")
    return Change(
        f"add a Gaussian of the distance, for {grid}",
        "trained biases look like one, and it is there from the first step on",
        f"amplitude {amplitude:g} and width {width:g} before training ({layer})",
        code="RW1001" if biased else "RW1002",
    )


def _edit_bias(place: Place[Subject], attention: Attention, options: dict[str, Any]) -> None:
    """Add the layer behind the bias, so that it serves all that reads it in this attention, fused or not.

    A bias that others read too goes on to them as it was: the layer stands where this attention reads it.
    """
    bias, reader = attention.biases[0]
    shared = place.subject.readers > 1 or has_other_readers(bias, reader, place.trace)
    alone = not shared and _made_in_both_modes(bias, place.trace)
    try:
        if alone:
            place.edit.insert_after(bias, GaussianBias, name=_NAME, **options)
        else:
            place.edit.wrap_argument(reader, bias, GaussianBias, name=_NAME, **options)
    except Refused as refused:
        if refused.reason is not Reason.HELPER_FUNCTION:
            raise
        if alone:
            place.edit.insert_after_helper(bias, GaussianBias, name=_NAME, **options)
        else:
            place.edit.insert_before_helper(reader, bias, GaussianBias, lambda _: options, name=_NAME)
    if not alone and any(edit.path != place.path for edit in place.edits):
        detail = f"what {name_of(bias)} gives is read by others too, or kept, and another module adds it to the scores"
        raise Refused(Reason.DIFFERENT_METHODS, detail)


def _made_in_both_modes(bias: fx.Node, trace: Trace) -> bool:
    """Whether the same line makes the bias in evaluation, rather than one that keeps it there."""
    made = facts(bias)["owner"]
    return any(facts(node)["owner"] == made for node in trace.eval.graph.nodes)


def _grid_of_bias(attention: Attention, trace: Trace) -> Grid:
    """The grid of the relative position bias; by its values, or without those by the map that was flattened."""
    bias = attention.biases[0][0]
    found = grids_of_bias(bias, trace)
    if found is None:
        return _grid_of_map(attention, trace)
    if not found:
        detail = f"what {name_of(bias)} gives depends on more than the offset of query and key"
        raise Refused("gaussian-attention-bias/not-relative", detail)
    if len(found) > 1 or found[0].rows == 1:
        raise Refused("gaussian-attention-bias/no-grid", f"its {attention.tokens[1]} positions lie on no plane")
    return found[0]


def _grid_of_map(attention: Attention, trace: Trace) -> Grid:
    """The grid of the map that the tokens of an attention were before they were flattened."""
    return grid_of_map(attention.query, attention.token_dimension, attention.tokens[1], trace)
