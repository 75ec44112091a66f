"""The edits of attentions without a bias of position."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from rewriter.analysis.arguments import argument
from rewriter.authoring import Place, Reason, Refused, Trace
from rewriter.passes.gaussian_attention_bias.attention_layers import (
    GaussianAttention,
    GaussianHeads,
    GaussianMask,
    TellsItsSize,
    WithGaussian,
)
from rewriter.passes.gaussian_attention_bias.attentions import Attention
from rewriter.passes.gaussian_attention_bias.grids import Grid
from rewriter.passes.gaussian_attention_bias.maps import grid_of_tokens, module_of_map
from rewriter.tracing.facts import facts

_NAME = "gaussian_bias"
_MASKS = ("attention_mask", "attn_mask", "mask")
"""What functions of attention call the mask that they add, their parameter behind queries, keys and values."""


def edit_plain(place: Place[Any], attention: Attention | None, options: dict[str, Any]) -> None:
    """Add the layer to the scores of an attention without a bias; None for a layer of torch.

    Raises:
        Refused: the attention cannot be edited.
    """
    if attention is None:
        place.edit.behave_with(place.path, WithGaussian, GaussianHeads, name=_NAME, **options)
        return
    try:
        if attention.fused:
            place.edit.redirect(attention.node, GaussianAttention, name=_NAME, **options)
        else:
            (scores,) = place.flow.sources(attention.node)
            place.edit.insert_before(attention.node, scores, GaussianAttention, name=_NAME, **options)
    except Refused as refused:
        if refused.reason is not Reason.HELPER_FUNCTION:
            raise
        if not _edit_mask(place, attention, options):
            raise


def _edit_mask(place: Place[Any], attention: Attention, options: dict[str, Any]) -> bool:
    """Add the table to the mask that a method gives to a function of attention; whether that can be done."""
    product = attention.product
    if attention.fused and argument(product, "is_causal", 5, False):  # the function stops being causal beside a mask
        return False
    if attention.fused:
        read = [argument(product, name, index) for index, name in enumerate(("query", "key", "value"))]
    else:
        weighted = _weighted(attention, place)
        read = [*product.all_input_nodes, *weighted]
    arguments = [each for each in read if isinstance(each, fx.Node)]
    if len(arguments) != 3:
        return False
    for mask in _MASKS:
        try:
            place.edit.wrap_with_next(product, arguments, mask, GaussianMask, name=_NAME, **options)
        except Refused:
            continue
        return True
    return False


def _weighted(attention: Attention, place: Place[Any]) -> list[fx.Node]:
    """The values that the attention weighs: the other factor of the product behind the softmax."""
    node, seen = attention.node, [attention.node]
    while (users := place.flow.users(node)) and len(users) == 1:
        (node,) = users
        others = [source for source in place.flow.sources(node) if source not in seen]
        if others:
            return others
        seen.append(node)
    return []


def told_by_map(place: Place[Any], grid: Grid) -> dict[str, Any]:
    """Options that tell a layer the size of the map when the model runs; none if no module makes the map."""
    found = module_of_map(grid, place.trace)
    if found is None:
        return {}
    path, dimensions = found
    try:
        place.edit.behave(path, TellsItsSize, shape_of_output=None)
    except Refused:  # it is called several times
        return {}
    return {"map_dimensions": list(dimensions), "references": {"map_module": path}}


def grid_of_map(node: fx.Node, dimension: int, tokens: int, trace: Trace) -> Grid:
    """The grid of the map that was flattened to ``dimension`` of ``node``.

    Raises:
        Refused: there is none.
    """
    grid = grid_of_tokens(node, dimension, trace)
    if grid is None:
        raise Refused("gaussian-attention-bias/no-grid", f"its {tokens} tokens come from no map")
    return grid


def refuse_inside_torch(place: Place[Any]) -> None:
    """Refuse an attention that torch computes without calling a module that could be changed.

    Raises:
        Refused: a function or an encoder layer of torch computes it; or it is edited.
    """
    assert place.node is not None
    module, owner = place.module, place.trace.owner_of(place.node)
    if isinstance(module, WithGaussian) or isinstance(owner, WithGaussian):
        raise Refused(Reason.ALREADY_DONE, "a Gaussian is added to it")
    if not isinstance(module, nn.MultiheadAttention) or place.node.op != "call_module":
        detail = "a function of torch computes the scores, where nothing can be added; call nn.MultiheadAttention"
        raise Refused("gaussian-attention-bias/inside-torch", detail)
    if type(owner).__module__.startswith("torch."):
        detail = (
            f"torch.nn.{type(owner).__name__} computes it in one kernel in evaluation, past its attention; call "
            "nn.MultiheadAttention in a module of your own"
        )
        raise Refused("gaussian-attention-bias/inside-torch", detail)


def tokens_of_multihead(node: fx.Node, module: nn.Module | None) -> tuple[int, int]:
    """The numbers of queries and keys of a call of ``nn.MultiheadAttention``."""
    query, dimension = query_of_multihead(node, module)
    key = argument(node, "key", 1)
    return facts(query)["shape"][dimension], facts(key)["shape"][dimension]


def query_of_multihead(node: fx.Node, module: nn.Module | None) -> tuple[fx.Node, int]:
    """The queries of a call of ``nn.MultiheadAttention``, and which of their dimensions counts them."""
    query = argument(node, "query", 0)
    first = not getattr(module, "batch_first", False) or len(facts(query)["shape"]) == 2
    return query, 0 if first else 1
