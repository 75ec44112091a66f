"""Add a Gaussian of the distance between query and key to the relative position bias of attention.

Rule (Kim, Choi, Jang and Kim, *Understanding Gaussian Attention Bias of Vision Transformers Using Effective Receptive
Fields*, arXiv:2305.04722, BMVC 2023; we read the full text): the relative position biases of trained vision
transformers look like a Gaussian over the plane, those of untrained ones are random. So each layer of attention gets
one more table, ``softmax(q k^T / sqrt(D) + B_relative + B_gauss) v``, where ``B_gauss = A² exp(-(dy² + dx²) / (2
sigma²))`` of the offsets of query and key on the grid of patches. ``A`` and ``sigma`` are two learned numbers a layer,
shared by its heads; they begin at 2 and 5 and do not decay. The relative position bias keeps learning beside it.

Not from the paper: class tokens and other prefix tokens get no bias, widths below 0.001 count as 0.001, which biases
are relative ones, the grid at other resolutions, attentions without a relative bias (``plain=True``). The paper draws
the relative position bias anew before fine-tuning; this pass changes no value of the model.

Dataflow::

    queries ─┐
             ├─ product ─ scale ─ add ─ softmax ─ …       scaled_dot_product_attention(q, k, v, attn_mask=bias)
    keys ────┘                     │
    table ─ index ─ [Gaussian] ────┘                      the same layer, wherever the bias is read

A bias is relative if, with other parameters drawn, it depends on the offset on a grid of rows and columns alone; that
tells the grid and the tokens before it, too. Where no values can be had (a model on the meta device) the grid is that
of the map which was flattened to tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rewriter.authoring import Change, Contract, Lint, Pass, Place

if TYPE_CHECKING:
    from rewriter.passes.gaussian_attention_bias.places import Subject
    from rewriter.tracing.trace import Trace


@dataclass(frozen=True)
class GaussianAttentionBias(Pass):
    """Add a Gaussian of the distance between query and key to attention scores.

    Attributes:
        amplitude: its square is the height of the Gaussian before training.
        width: its standard deviation before training, in positions of the attention's grid.
        plain: whether attentions without a relative position bias get it, too.
    """

    name = "gaussian-attention-bias"
    summary = "add a learned Gaussian of the distance between query and key to relative position biases"
    paper = (
        "Kim, Choi, Jang and Kim, Understanding Gaussian Attention Bias of Vision Transformers Using Effective "
        "Receptive Fields, arXiv:2305.04722"
    )
    contract = Contract(eval_output=False, adds_parameters=True)
    layers = (
        "rewriter.passes.gaussian_attention_bias.layers",
        "rewriter.passes.gaussian_attention_bias.attention_layers",
    )
    codes = (
        Lint("RW1001", "a relative position bias without a Gaussian", "note"),
        Lint("RW1002", "an attention without a bias of position", "note"),
    )

    amplitude: float = 2.0
    width: float = 5.0
    plain: bool = False

    def __post_init__(self) -> None:
        for name, least in (("amplitude", "of at least 0"), ("width", "above 0")):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if not number or value < 0 or (name == "width" and value == 0):
                raise ValueError(f"{name}: expected a number {least}, found {value!r}")
        if not isinstance(self.plain, bool):
            raise ValueError(f"plain: expected True or False, found {self.plain!r}")

    def candidates(self, trace: Trace) -> Iterator[Place[Subject]]:
        from rewriter.passes.gaussian_attention_bias.places import find_places

        return find_places(trace, self.plain)

    def decide(self, place: Place[Subject]) -> Change:
        from rewriter.passes.gaussian_attention_bias.places import add_gaussian

        return add_gaussian(place, self.amplitude, self.width)
