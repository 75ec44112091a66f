"""The layers of gaussian-attention-bias: the paper's formula, numbers at the edges, other sizes, and the grid."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from attention_models import closed_form
from torch import nn

from rewriter.passes import GaussianAttentionBias
from rewriter.passes.gaussian_attention_bias.attention_layers import GaussianAttention, GaussianHeads, WithGaussian
from rewriter.passes.gaussian_attention_bias.grids import Grid, grids_of_values
from rewriter.passes.gaussian_attention_bias.layers import GaussianBias

GRIDS = [(7, 7, 0), (4, 6, 0), (3, 5, 1), (1, 9, 2)]


def sliced_from_table(rows: int, columns: int, amplitude: float, width: float) -> torch.Tensor:
    """The paper's construction: one table of all offsets, of which each query reads the window centred on it."""
    down = torch.arange(-(rows - 1), rows, dtype=torch.float64)
    across = torch.arange(-(columns - 1), columns, dtype=torch.float64)
    table = amplitude**2 * torch.exp(-(down[:, None] ** 2 + across[None, :] ** 2) / (2 * width**2))
    assert table.shape == (2 * rows - 1, 2 * columns - 1)
    windows = [
        table[rows - 1 - row : 2 * rows - 1 - row, columns - 1 - column : 2 * columns - 1 - column].reshape(-1)
        for row in range(rows)
        for column in range(columns)
    ]
    return torch.stack(windows)


@pytest.mark.parametrize(("rows", "columns", "prefix"), GRIDS)
def test_it_is_the_gaussian_of_the_offsets(rows: int, columns: int, prefix: int) -> None:
    layer = GaussianBias([rows, columns], prefix, amplitude=1.7, width=2.3)
    bias = torch.randn(1, 3, prefix + rows * columns, prefix + rows * columns)
    added = (layer(bias) - bias)[0, 0].double()
    expected = closed_form(rows, columns, prefix, 1.7, 2.3)
    assert (added - expected).abs().max() < 1e-6
    assert (added[prefix:, prefix:] - sliced_from_table(rows, columns, 1.7, 2.3)).abs().max() < 1e-6
    assert not added[:prefix].any() and not added[:, :prefix].any()


def test_the_paper_s_initial_values() -> None:
    layer = GaussianBias([14, 14])
    assert (layer.amplitude.tolist(), layer.width.tolist()) == ([2.0], [5.0])
    assert sum(parameter.numel() for parameter in layer.parameters()) == 2
    assert layer.table().diagonal().tolist() == [4.0] * 196  # the amplitude is squared


def test_amplitude_zero_adds_nothing_bit_for_bit() -> None:
    bias = torch.randn(1, 2, 16, 16)
    assert torch.equal(GaussianBias([4, 4], amplitude=0)(bias), bias)


def test_no_sign_matters() -> None:
    layer = GaussianBias([4, 4])
    mirrored = copy.deepcopy(layer)
    with torch.no_grad():
        mirrored.amplitude.neg_(), mirrored.width.neg_()
    assert torch.equal(layer.table(), mirrored.table())


@pytest.mark.parametrize("width", [0.0, 1e-9, -1e-5, 1e30])
def test_value_and_gradient_stay_finite(width: float) -> None:
    layer = GaussianBias([4, 4])
    with torch.no_grad():
        layer.width.fill_(width)
    table = layer.table()
    table.square().sum().backward()
    assert table.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())
    if abs(width) < 1:
        assert torch.equal(table, 4 * torch.eye(16))


def test_gradients_are_those_of_the_formula() -> None:
    layer = GaussianBias([3, 4], 1).double()
    torch.autograd.gradcheck(
        lambda amplitude, width: torch.func.functional_call(
            layer, {"amplitude": amplitude, "width": width}, torch.zeros(1, 1, 13, 13, dtype=torch.float64)
        ),
        (torch.tensor([1.3], dtype=torch.float64, requires_grad=True),
         torch.tensor([-2.1], dtype=torch.float64, requires_grad=True)),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    layer = GaussianBias([4, 4]).to(dtype)
    found = layer(torch.zeros(1, 1, 16, 16, dtype=dtype))
    assert found.dtype is dtype
    assert torch.equal(found[0, 0], closed_form(4, 4, 0, 2, 5).float().to(dtype))


def test_values_of_before_training_after_the_meta_device() -> None:
    with torch.device("meta"):
        layer = GaussianBias([4, 4], amplitude=1.5, width=3)
    layer = layer.to_empty(device="cpu")
    assert (layer.amplitude.item(), layer.width.item()) == (1.5, 3.0)


@pytest.mark.parametrize(
    ("planned", "size", "prefix"),
    [((12, 12), (9, 16), 0), ((12, 12), (16, 9), 1), ((16, 16), (8, 32), 0), ((8, 32), (16, 16), 0),
     ((7, 7), (8, 8), 0), ((14, 14), (24, 24), 1), ((4, 6), (8, 12), 0), ((7, 7), (5, 10), 1)],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bias_tells_another_grid(
    planned: tuple[int, int], size: tuple[int, int], prefix: int, dtype: torch.dtype
) -> None:
    layer = GaussianBias(planned, prefix)
    bias = relative(*size, prefix)[None].to(dtype)
    added = (layer(bias) - bias)[0, 0].float()
    assert (added - closed_form(*size, prefix, 2, 5)).abs().max() < (1e-5 if dtype is torch.float32 else 0.05)


def test_a_bias_that_does_not_tell_its_grid_is_refused() -> None:
    layer = GaussianBias([7, 7], 1)
    nothing_tells = r"grid of 7x7 positions, found 50 positions behind 1 prefix token.*could be 2x25, 5x10.*`grid`"
    with pytest.raises(ValueError, match=nothing_tells):
        layer(torch.zeros(1, 1, 51, 51))
    layer.grid = (5, 10)
    assert (layer(torch.zeros(1, 1, 51, 51))[0, 0] - closed_form(5, 10, 1, 2, 5)).abs().max() < 1e-6
    with pytest.raises(ValueError, match="found 4 queries and 16 keys"):
        layer(torch.zeros(1, 1, 4, 16))
    with pytest.raises(ValueError, match="found 36 positions, and nothing tells"):
        GaussianBias([4, 4])(torch.randn(1, 1, 36, 36))  # of no offsets


def test_while_a_graph_is_captured_a_new_size_is_refused_until_it_was_seen() -> None:
    layer = GaussianBias([4, 4])
    captured = torch.compile(layer, backend="eager", fullgraph=True)
    bias = relative(4, 9)[None]
    with pytest.raises(Exception, match="nothing tells their rows and columns"):
        captured(bias)
    expected = layer(bias)
    torch.compiler.reset()
    assert torch.equal(torch.compile(layer, backend="eager", fullgraph=True)(bias), expected)


def test_without_a_map_another_number_of_positions_is_refused() -> None:
    layer = GaussianAttention([4, 4], 1)
    query, key, value = torch.randn(3, 1, 2, 37, 8).unbind()
    with pytest.raises(ValueError, match="grid of 4x4 positions, found 36 positions behind 1 prefix token"):
        layer(query, key, value)


@pytest.mark.parametrize("kind", ["none", "float", "bool", "padding", "weights", "tokens first"])
def test_multi_head_attention_of_torch_gets_the_gaussian(kind: str) -> None:
    class Gaussian(WithGaussian, nn.MultiheadAttention):
        pass

    first = kind == "tokens first"
    module = Gaussian(8, 2, batch_first=not first).eval()
    plain = nn.MultiheadAttention(8, 2, batch_first=not first).eval()
    plain.load_state_dict(module.state_dict())
    module.gaussian_bias = GaussianHeads([3, 4], 1, amplitude=1.5, width=2)
    table = closed_form(3, 4, 1, 1.5, 2).float()
    tokens = torch.randn(13, 2, 8) if first else torch.randn(2, 13, 8)
    hidden = torch.rand(13, 13) > 0.7
    hidden.fill_diagonal_(False)
    given = {"float": torch.randn(13, 13), "bool": hidden}.get(kind)
    mask = table if given is None else table.masked_fill(given, -math.inf) if kind == "bool" else table + given
    padding = torch.zeros(2, 13, dtype=torch.bool)
    padding[1, 9:] = True
    options = {"key_padding_mask": padding} if kind == "padding" else {}
    by_hand = {"key_padding_mask": torch.zeros(2, 13).masked_fill(padding, -math.inf)} if options else {}
    with torch.no_grad():
        found, weights = module(tokens, tokens, tokens, need_weights=kind == "weights", attn_mask=given, **options)
        expected, its = plain(tokens, tokens, tokens, need_weights=kind == "weights", attn_mask=mask, **by_hand)
    assert (found - expected).abs().max() < 1e-5
    assert (weights is None) == (its is None) and (its is None or (weights - its).abs().max() < 1e-6)
    with pytest.raises(ValueError, match="is_causal=True: expected attn_mask"):
        module(tokens, tokens, tokens, is_causal=True)


def test_no_bias_stays_none() -> None:
    assert GaussianBias([4, 4])(None) is None


@pytest.mark.parametrize("kind", ["none", "float", "bool", "causal"])
def test_attention_fused_and_by_hand_are_one(kind: str) -> None:
    layer = GaussianAttention([3, 4], 1, amplitude=1.5, width=2)
    query, key, value = torch.randn(3, 2, 2, 13, 8).unbind()
    allowed = torch.rand(13, 13) > 0.3
    allowed.fill_diagonal_(True)
    options = {
        "float": {"attn_mask": torch.randn(13, 13)},
        "bool": {"attn_mask": allowed},
        "causal": {"is_causal": True},
    }
    scores = query @ key.transpose(-2, -1) / math.sqrt(8)
    if kind == "float":
        scores = scores + options["float"]["attn_mask"]
    if kind == "bool":
        scores = scores.masked_fill(~allowed, -math.inf)
    if kind == "causal":
        scores = scores.masked_fill(torch.ones(13, 13, dtype=torch.bool).triu(1), -math.inf)
    by_hand = layer(scores).softmax(-1) @ value
    fused = layer(query, key, value, **options.get(kind, {}))
    assert (fused - by_hand).abs().max() < 1e-5
    assert (fused - F.scaled_dot_product_attention(query, key, value, **options.get(kind, {}))).abs().max() > 1e-3


def relative(rows: int, columns: int, prefix: int = 0) -> torch.Tensor:
    """A bias of independent values for each offset, and for each pair with a prefix token."""
    table = torch.randn(2 * rows - 1, 2 * columns - 1)
    row, column = (
        index.reshape(-1) for index in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    )
    bias = torch.randn(prefix + rows * columns, prefix + rows * columns)
    bias[prefix:, prefix:] = table[row[:, None] - row + rows - 1, column[:, None] - column + columns - 1]
    return bias[None]


@pytest.mark.parametrize("grid", [Grid(7, 7), Grid(4, 8), Grid(8, 4), Grid(2, 2), Grid(14, 14, 1), Grid(3, 5, 5)])
def test_the_grid_follows_from_the_bias(grid: Grid) -> None:
    assert grids_of_values(relative(grid.rows, grid.columns, grid.prefix)) == [grid]


def test_a_line_is_no_plane() -> None:
    assert grids_of_values(relative(1, 16)) == [Grid(1, 16)]


def test_a_bias_of_each_pair_is_not_relative() -> None:
    assert grids_of_values(torch.randn(1, 16, 16)) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"amplitude": -1}, "amplitude: expected a number of at least 0, found -1"),
        ({"amplitude": "2"}, "amplitude: expected a number of at least 0, found '2'"),
        ({"amplitude": True}, "amplitude: expected a number of at least 0, found True"),
        ({"width": 0}, "width: expected a number above 0, found 0"),
        ({"width": math.inf}, "width: expected a number above 0, found inf"),
        ({"plain": "yes"}, "plain: expected True or False, found 'yes'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianAttentionBias(**options)
