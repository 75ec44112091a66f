"""The layers and behaviours that the pass puts into attentions without a bias of their own (``plain=True``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from rewriter.authoring import register_layer
from rewriter.layers.scripting import NotScripted
from rewriter.passes.gaussian_attention_bias.layers import GaussianBias


@register_layer("gaussian-attention-bias/map")
class TellsItsSize(nn.Module):
    """Behaviour of the module whose output is flattened to tokens: it notes the shape of that."""

    @property
    def shape_of_output(self) -> tuple[int, ...] | None:
        """The shape of the last output; None before the first. It is an option so that undo takes it away."""
        return self.__dict__.get("shape_of_output")

    @shape_of_output.setter
    def shape_of_output(self, shape: tuple[int, ...] | None) -> None:
        if shape is not None:
            self.__dict__["shape_of_output"] = shape

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        self.__dict__["shape_of_output"] = tuple(output.shape)
        return output


@register_layer("gaussian-attention-bias/attention")
class GaussianAttention(GaussianBias):
    """Adds the same table to the scores of an attention that has no bias of its own.

    It stands for ``torch.nn.functional.scaled_dot_product_attention``, whose arguments it takes; called with one
    tensor, the scores before the softmax, it adds the table to those. So one layer serves both ways to compute an
    attention.

    The grid is that of the map that was flattened to tokens, if a module makes it; or else it is :attr:`grid`, and
    another number of positions is refused.

    Args:
        grid, prefix_tokens, amplitude, width: as for :class:`GaussianBias`.
        map_module: the module that makes the map.
        map_dimensions: which of its dimensions count rows and columns.
    """

    def __init__(
        self,
        grid: Sequence[int],
        prefix_tokens: int = 0,
        amplitude: float = 2.0,
        width: float = 5.0,
        map_dimensions: Sequence[int] = (),
        map_module: nn.Module | None = None,
    ) -> None:
        super().__init__(grid, prefix_tokens, amplitude, width)
        self._map = (map_module,)  # a tuple, so that it is not registered as a child
        self._map_dimensions = tuple(map_dimensions)

    def forward(  # type: ignore[override]
        self,
        query: torch.Tensor,
        key: torch.Tensor | None = None,
        value: torch.Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor | None:
        if key is None or value is None:
            return super().forward(query)
        names = ("attn_mask", "dropout_p", "is_causal")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        table = self._table_for(query, key.shape[-2])
        if given.pop("is_causal", False):  # which takes no mask beside it
            table = table.masked_fill(torch.ones_like(table, dtype=torch.bool).triu(1), -math.inf)
        given["attn_mask"] = _joined(table, given.get("attn_mask"))
        return F.scaled_dot_product_attention(query, key, value, **given)

    def _table_for(self, query: torch.Tensor, keys: int, token_dimension: int = -2) -> torch.Tensor:
        self._refuse_two_grids(query.shape[token_dimension], keys)
        return self.table(self._size_with(keys)).to(query.dtype)

    def _size_of(self, bias: torch.Tensor) -> tuple[int, int]:
        return self._size_with(bias.shape[-1])

    def _size_with(self, tokens: int) -> tuple[int, int]:
        """Rows and columns of the grid of so many tokens."""
        positions = tokens - self.prefix_tokens
        shape = getattr(self._map[0], "shape_of_output", None)
        if shape is not None and len(shape) > max(self._map_dimensions):
            rows, columns = (shape[dimension] for dimension in self._map_dimensions)
            if rows * columns == positions:
                return rows, columns
        return self._certain(positions, self.grid if math.prod(self.grid) == positions else None, [])


@register_layer("gaussian-attention-bias/mask")
class GaussianMask(GaussianAttention):
    """Adds the table to the mask that a function of attention gets behind queries, keys and values.

    ``attend(module, *self.layer(query, key, value, mask))`` stands for ``attend(module, query, key, value, mask)``. The
    mask is of numbers that are added, or of truth values, True where a query may look.
    """

    def forward(  # type: ignore[override]
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        table = self._table_for(query, key.shape[-2])
        return query, key, value, _joined(table[None, None], mask)


@register_layer("gaussian-attention-bias/heads")
class GaussianHeads(GaussianAttention):
    """The mask of :class:`WithGaussian`."""

    def forward(  # type: ignore[override]
        self, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, token_dimension: int
    ) -> torch.Tensor:
        """The sum of the table and a mask of ``nn.MultiheadAttention``, whose True is where none may look."""
        table = self._table_for(query, key.shape[token_dimension], token_dimension)
        return _joined(table, ~mask if mask is not None and mask.dtype is torch.bool else mask)


@register_layer("gaussian-attention-bias/multihead")
class WithGaussian(NotScripted):
    """Behaviour of ``nn.MultiheadAttention`` whose child ``gaussian_bias`` makes the mask."""

    batch_first: bool
    gaussian_bias: GaussianHeads

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> Any:
        dimension = 1 if self.batch_first and query.dim() == 3 else 0
        if is_causal and attn_mask is None:
            raise ValueError("is_causal=True: expected attn_mask beside it, as torch does, found None; give the mask")
        mask = self.gaussian_bias(query, key, attn_mask, dimension)
        if key_padding_mask is not None and key_padding_mask.dtype is torch.bool:  # of the type of the other mask
            key_padding_mask = torch.zeros_like(key_padding_mask, dtype=mask.dtype).masked_fill(
                key_padding_mask, -math.inf
            )
        return super().forward(query, key, value, key_padding_mask, need_weights, mask, average_attn_weights)


def _joined(table: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The sum of the table and an attention mask, of numbers or, True where a query may look, of truth values."""
    if mask is None:
        return table
    return table.masked_fill(~mask, -math.inf) if mask.dtype is torch.bool else mask + table
