"""Patch embeddings: one weight that reads the patches of an image side by side, each once, and makes a token of each.

Either a convolution whose stride is its kernel, or a linear layer that reads flattened patches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from rewriter.analysis.absolute_positions import AbsolutePosition, way_back
from rewriter.analysis.arguments import argument
from rewriter.analysis.weights import find_features, has_weight
from rewriter.analysis.windows import per_dim
from rewriter.tracing.dataflow import Dataflow, once
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind, function_name


@dataclass(frozen=True, eq=False)
class PatchEmbedding:
    """A projection of patches to tokens.

    Attributes:
        projection: the convolution or linear layer.
        image: what it reads.
        tokens: its result and what is only another layout of that, in execution order, before anything is joined.
        kernel: height and width of a patch for a convolution; empty for a linear layer.
        width: number of values in a patch.
        bias: whether the projection adds one.
    """

    projection: fx.Node
    image: fx.Node
    tokens: tuple[fx.Node, ...]
    kernel: tuple[int, ...]
    width: int
    bias: bool


def weight_before(position: AbsolutePosition, flow: Dataflow) -> fx.Node | None:
    """The last weight before a position is added, if each operation in between reads one other; else None."""
    *_, last = way_back(position.features, flow)
    return last if has_weight(last, flow) else None


@once
def patch_embedding(flow: Dataflow, model: nn.Module, position: AbsolutePosition) -> PatchEmbedding | None:
    """The patch embedding whose tokens a position is added to; None if they are made otherwise."""
    way = list(way_back(position.features, flow))[::-1]
    projection, sources = way[0], flow.sources(way[0])
    if len(sources) != 1 or sources[0] in find_features(flow):
        return None
    kind = facts(projection)["kind"]
    if kind is Kind.CONV:
        kernel, width, bias = _convolution(projection, model)
    elif kind is Kind.LINEAR and _reads_patches(sources[0], flow, model):
        kernel, width, bias = (), facts(sources[0])["shape"][-1], _has_bias(projection, model)
    else:
        return None
    if not width:
        return None
    tokens = []
    for node in way:
        if node is not projection and facts(node)["kind"] not in (Kind.VIEW, Kind.IDENTITY):
            break
        tokens.append(node)
    return PatchEmbedding(projection, sources[0], tuple(tokens), kernel, width, bias)


def _convolution(node: fx.Node, model: nn.Module) -> tuple[tuple[int, ...], int, bool]:
    """Kernel, values of a patch and bias of a convolution over patches side by side; no values for any other."""
    source, dims = facts(node.all_input_nodes[0])["shape"], len(facts(node)["shape"]) - 2
    if node.op == "call_module":
        module: Any = model.get_submodule(str(node.target))
        if getattr(module, "transposed", True):
            return (), 0, False
        kernel, stride = module.kernel_size, module.stride
        padding, dilation = module.padding, module.dilation
        bias = module.bias is not None
    else:
        weight = argument(node, "weight", 1)
        if not isinstance(weight, fx.Node) or not function_name(node.target).startswith("conv"):  # type: ignore[arg-type]
            return (), 0, False
        kernel, stride = facts(weight)["shape"][2:], argument(node, "stride", 3, 1)
        padding, dilation = argument(node, "padding", 4, 0), argument(node, "dilation", 5, 1)
        bias = argument(node, "bias", 2) is not None
    kernel, stride, dilation = (tuple(per_dim(value, dims)) for value in (kernel, stride, dilation))
    unpadded = padding == "valid" or not any(per_dim(padding, dims))
    if kernel != stride or math.prod(kernel) == 1 or not unpadded or any(size != 1 for size in dilation):
        return (), 0, False
    return kernel, source[1] * math.prod(kernel), bias


def _has_bias(node: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        return getattr(model.get_submodule(str(node.target)), "bias", None) is not None
    return argument(node, "bias", 2) is not None


def _reads_patches(node: fx.Node, flow: Dataflow, model: nn.Module) -> bool:
    """Whether ``node`` holds every value of an image once, as tokens: flattened patches."""
    shape = facts(node)["shape"]
    if len(shape) < 3 or math.prod(shape[1:-1]) < 2:
        return False
    return all(math.prod(facts(source)["shape"][1:]) == math.prod(shape[1:]) for source in _back_to_inputs(node, flow))


def _back_to_inputs(node: fx.Node, flow: Dataflow) -> list[fx.Node]:
    while len(sources := flow.sources(node)) == 1:
        (node,) = sources
    return [node]
