"""``get_extra_state`` may give anything: a rewrite keeps it, and a directory holds what is plain data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import image
from torch import nn

import rewriter


class Counting(nn.Module):
    """State of a form of its own in its state dict, twice."""

    def __init__(self, extra: Any = None) -> None:
        super().__init__()
        self.conv, self.drop, self.fc = nn.Conv2d(3, 8, 3), nn.Dropout(0.5), nn.Linear(8, 4)
        self.extra = extra
        self.part = Part()

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.drop(self.part(self.conv(x)).mean((2, 3))))


class Part(nn.Identity):
    """Counts its calls."""

    calls = 0

    def get_extra_state(self) -> int:
        return self.calls

    def set_extra_state(self, state: int) -> None:
        self.calls = state

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x


PLAIN = {
    "none": None,
    "dict": {"seen": 3, "name": "ä", "nested": {"list": [1, 2.5, None, True]}},
    "int": 7,
    "tuple": (1, (2, [3])),
    "keys": {1: "a", (2, 3): "b", None: "c"},
    "numbers": [float("inf"), float("-inf"), 1e-300, -0.0],
    "set": {1, 2},
    "text": "extra",
    "tensor": torch.arange(3),
    "like ours": {"tuple": [1], "float": "inf"},
}


@pytest.mark.parametrize("extra", PLAIN.values(), ids=PLAIN)
def test_extra_state_is_kept_by_every_verb(extra: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Counting(extra)
    result = rewriter.rewrite(model, "dropout", input_size=8)
    assert len(rewriter.report(result).applied) == 1 and not rewriter.report(result).records[-1].verdict.failed
    assert model.part.calls == result.part.calls == 0
    result.part.calls = 5
    rewriter.save(result, tmp_path / "run")
    loaded = rewriter.load(tmp_path / "run", Counting())
    assert repr(loaded.extra) == repr(extra) and type(loaded.extra) is type(extra)
    assert loaded.part.calls == 5
    assert torch.equal(loaded.eval()(image(8)), result.eval()(image(8)))
    Counting().load_state_dict(rewriter.original_state_dict(result), strict=True)
    assert rewriter.undo(result).extra is not None or extra is None


class Opaque:
    pass


@pytest.mark.parametrize(
    "extra", [Opaque(), {"deep": [Opaque()]}, {"t": torch.ones(1)}, {1, Opaque}, lambda: 0, 1j, b"bytes"]
)
def test_extra_state_that_would_need_code_to_be_read_is_refused(extra: Any, tmp_path: Path) -> None:
    result = rewriter.rewrite(Counting(extra), "dropout", input_size=8)
    with pytest.raises(rewriter.RewriterError, match=r"extra state '_extra_state' holds a .*torch\.save"):
        rewriter.save(result, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_extra_state_that_contains_itself_is_refused(tmp_path: Path) -> None:
    extra: list[Any] = []
    extra.append(extra)
    with pytest.raises(rewriter.RewriterError, match="contains itself"):
        rewriter.save(rewriter.rewrite(Counting(extra), "dropout", input_size=8), tmp_path / "run")


@pytest.mark.parametrize("found", [[1], {"_extra_state": {"code": ["x"]}}, {"_extra_state": [1]}, {"_extra_state": {}}])
def test_extra_state_of_another_form_is_damage(found: Any, tmp_path: Path) -> None:
    rewriter.save(rewriter.rewrite(Counting({}), "dropout", input_size=8), tmp_path / "run")
    recipe = tmp_path / "run" / "recipe.json"
    recipe.write_text(json.dumps(json.loads(recipe.read_text()) | {"extra_state": found}))
    with pytest.raises(rewriter.RewriterError, match="damaged"):
        rewriter.load(tmp_path / "run", Counting())


def test_a_checkpoint_with_extra_state_is_read(tmp_path: Path) -> None:
    from rewriter.model.checkpoint_file import read_checkpoint
    from rewriter.storage.checkpoint import check_weights

    model = Counting({"seen": 2})
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    state = read_checkpoint(tmp_path / "weights.pt")
    check_weights(model, state, "these weights")
    fresh = Counting()
    fresh.load_state_dict(state, strict=True)
    assert fresh.extra == {"seen": 2}
