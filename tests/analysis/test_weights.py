"""Which parameters are weights, by what the operations that read them do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import rewriter
from rewriter.planning.record import records_of

Use = Callable[[torch.Tensor, nn.Parameter], torch.Tensor]

WEIGHTS: dict[str, tuple[tuple[int, ...], Use]] = {
    "matmul": ((8, 8), lambda x, w: x @ w),
    "a matmul with what is made of it": ((8, 8), lambda x, w: x @ (2 * w).T),
    "tensordot": ((8, 8), lambda x, w: torch.tensordot(x, w, 1)),
    "inner": ((8, 8), torch.inner),
    "multi_dot": ((8, 8), lambda x, w: torch.linalg.multi_dot([x, w])),
    "mv": ((8, 8), lambda x, w: torch.stack([torch.mv(w, row) for row in x])),
    "addbmm": ((2, 8, 8), lambda x, w: torch.addbmm(x.new_zeros(2, 8), x.expand(2, -1, -1), w)),
    "einsum": ((8, 8), lambda x, w: torch.einsum("bi,oi->bo", x, w)),
    "bilinear": ((8, 8, 8), lambda x, w: F.bilinear(x, x, w)),
    "convolution": (
        (8, 8, 1),
        lambda x, w: torch.convolution(x[..., None], w, None, [1], [0], [1], False, [0], 1)[..., 0],
    ),
    "conv_tbc": ((1, 8, 8), lambda x, w: torch.conv_tbc(x[None], w, torch.zeros(8))[0]),
    "rnn_relu_cell": ((8, 8), lambda x, w: torch.rnn_relu_cell(x, x, w, w)),
    "gru_cell": ((24, 8), lambda x, w: torch.gru_cell(x, x, w, w)),
    "lstm_cell": ((32, 8), lambda x, w: torch.lstm_cell(x, (x, x), w, w)[0]),
}


class Net(nn.Module):
    def __init__(self, shape: tuple[int, ...], use: Use) -> None:
        super().__init__()
        self.parameter, self.use = nn.Parameter(torch.randn(shape)), use
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.use(self.stem(x).mean((2, 3)), self.parameter))  # type: ignore[no-any-return]


@pytest.mark.parametrize("operation", WEIGHTS)
def test_what_multiplies_features_is_a_weight(operation: str) -> None:
    decisions = rewriter.param_groups(Net(*WEIGHTS[operation]), input_size=16).decisions
    assert {d.name: d.decays for d in decisions}["parameter"], decisions


CELLS: dict[str, Callable[[], nn.Module]] = {
    "RNNCell": lambda: nn.RNNCell(8, 8),
    "GRUCell": lambda: nn.GRUCell(8, 8),
    "LSTMCell": lambda: nn.LSTMCell(8, 8),
    "GRU": lambda: nn.GRU(8, 8, num_layers=2, batch_first=True),
    "LSTM": lambda: nn.LSTM(8, 4, batch_first=True, bidirectional=True),
}


class Recurrent(nn.Module):
    """A recurrent layer in a residual block, over the columns of a map."""

    def __init__(self, cell: str) -> None:
        super().__init__()
        self.stem, self.norm, self.drop = nn.Conv2d(3, 8, 3), nn.LayerNorm(8), nn.Dropout(0.1)
        self.cell, self.head = CELLS[cell](), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).mean(2).transpose(1, 2)
        if isinstance(self.cell, nn.RNNCellBase):
            x = x[:, 0]
        y = self.cell(self.norm(x))
        y = self.drop(y[0] if isinstance(y, tuple) else y)
        return self.head(x + y)  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
def test_recurrent_layers_have_weights(cell: str) -> None:
    model = Recurrent(cell)
    decays = {d.name: d.decays for d in rewriter.param_groups(model, input_size=16).decisions}
    of_cell = {name: parameter.dim() > 1 for name, parameter in model.named_parameters() if name.startswith("cell")}
    assert of_cell and of_cell.items() <= decays.items()
    plan = rewriter.plan(model, "dropout", input_size=16)
    assert [(site.pattern, site.action) for site in plan.sites] == [("residual branch", "move drop before cell")]
    assert decays["norm.weight"], "the last norm of the branch"


def test_a_deformable_convolution_is_a_weight() -> None:
    from torchvision.ops import DeformConv2d

    class Deformed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.offset, self.conv = nn.Conv2d(3, 18, 3, padding=1), DeformConv2d(3, 8, 3, padding=1)
            self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.conv(x, self.offset(x))).mean((2, 3)))  # type: ignore[no-any-return]

    decays = {d.name: d.decays for d in rewriter.param_groups(Deformed(), input_size=16).decisions}
    assert decays["conv.weight"] and not decays["conv.bias"]


OTHERS: dict[str, tuple[tuple[int, ...], Use, str]] = {
    "added": ((2, 8), lambda x, p: x + p, "bias, or an embedding of positions"),
    "first hidden state": (
        (2, 8),
        lambda x, p: torch.gru_cell(x, p, torch.ones(24, 8), torch.ones(24, 8)),
        "token, or the input of a layer",
    ),
    "given to bilinear": ((2, 8), lambda x, p: F.bilinear(x, p, torch.ones(8, 8, 8)), "token, or the input of a layer"),
    "added by addmm": ((2, 8), lambda x, p: torch.addmm(p, x, torch.ones(8, 8)), "bias, or an embedding of positions"),
}


@pytest.mark.parametrize("use", OTHERS)
def test_what_does_not_multiply_features_is_none(use: str) -> None:
    shape, function, category = OTHERS[use]
    decisions = {d.name: d for d in rewriter.param_groups(Net(shape, function), input_size=16).decisions}
    assert (decisions["parameter"].category, decisions["parameter"].decays) == (category, False)


def test_what_is_not_known_is_named_with_the_operation_and_kept_with_the_plan() -> None:
    model: Any = Net((8, 8), lambda x, p: torch.cdist(x, p))
    first = rewriter.param_groups(model, input_size=16).table.splitlines()[1]
    assert first.startswith("parameter ") and "what cdist() does with it is not known" in first
    rewritten = rewriter.rewrite(model, "weight-decay", input_size=16)
    assert records_of(rewritten)[0].plan.parameters["parameter"] == "read by another operation: cdist"
    assert rewriter.param_groups(rewritten).table.splitlines()[1] == first
