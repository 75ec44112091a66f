"""The measurements of mechanisms run as they stand, and what is certain of their results holds."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "benchmarks" / "mechanisms"

SHARE = 24 / 49
"""What a pooling of 7x7 keeps of its elements."""


@pytest.fixture(autouse=True)
def _one_thread_only_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(FOLDER))
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


def tables(name: str, folder: Path) -> list[dict[str, dict[str, Any]]]:
    """The tables of a quick run as written to its file: rows by their first cell, estimates as their means."""
    importlib.import_module(name).main(["--quick", "--json", str(folder / "found.json")])
    found = []
    for table in json.loads((folder / "found.json").read_text())["tables"]:
        rows = {}
        for row in table["rows"]:
            first, *cells = ((key, value["mean"] if isinstance(value, dict) else value) for key, value in row.items())
            rows[first[1]] = dict(cells)
        found.append(rows)
    return found


def test_dropout(tmp_path: Path) -> None:
    heads, branches, after_last_norm = tables("dropout", tmp_path)
    for cells in heads.values():
        assert cells["measured"] == pytest.approx(cells["law of this map"], rel=0.1)
        assert cells["measured"] > 5
    inner, behind = "norm 2, fresh", "next norm, fresh"
    assert branches["before conv 2"][inner] == 1 == branches["where the library puts it"][inner]
    assert branches["where the library puts it"][behind] == pytest.approx(branches["before conv 2"][behind], rel=0.05)
    assert branches["before conv 1"][inner] > 1.5 * branches["before conv 2"][behind] > 1.5
    end, before, trunk = (
        after_last_norm[place] for place in ("end of the branch", "before the last weight", "after the sum")
    )
    assert end["norm 2 of the first block"] == pytest.approx(1, abs=0.01)
    assert before["norm 2 of the first block"] < 0.9
    assert end["head"] > before["head"] > trunk["head"]


def test_scale_equalizer(tmp_path: Path) -> None:
    maps, spread = tables("scale_equalizer", tmp_path)
    assert len(maps) == 7 and len(spread) == 2
    for cells in maps.values():
        assert cells["std before"] < 0.8
        assert cells["std after"] == pytest.approx(1, abs=0.1)
    for cells in spread.values():
        assert cells["std after"] < cells["std before"]


def test_group_count(tmp_path: Path) -> None:
    (rules,) = tables("group_count", tmp_path)
    distances = [cells["distance from one"] for cells in rules.values()]
    as_it_is, isometry, measured, without_band, _ = distances
    assert without_band < measured < as_it_is
    assert measured <= isometry < as_it_is * 1.05  # the tolerance


def test_stochastic_pooling(tmp_path: Path) -> None:
    pooled, logits = tables("stochastic_pooling", tmp_path)
    activated = "tf_efficientnet_lite0, trained: behind the last activation"
    assert pooled[f"{activated}, sqrt"]["mean"] == pytest.approx(math.sqrt(SHARE), rel=0.05)
    assert pooled[f"{activated}, none"]["mean"] == pytest.approx(1, rel=0.05)
    independent = "for comparison, independent normal numbers"
    assert pooled[f"{independent}, sqrt"]["second moment"] == pytest.approx(1, rel=0.1)
    assert pooled[f"{independent}, none"]["second moment"] == pytest.approx(1 / SHARE, rel=0.1)
    assert logits["in training, sqrt"]["spread over that at test time"] < 0.8
    assert logits["in training, none"]["spread over that at test time"] > 0.95


def test_atrous_rates(tmp_path: Path) -> None:
    (rates,) = tables("atrous_rates", tmp_path)
    small_fixed, small, large_fixed, large = rates.values()
    assert small_fixed["taps in padding"] == pytest.approx(8 / 9)
    assert small_fixed["gradient at own cell"] == pytest.approx(1)
    assert small["gradient at own cell"] < 0.5
    assert large["taps in padding"] < large_fixed["taps in padding"]


def test_weight_decay(tmp_path: Path) -> None:
    ratios, gammas, _ = tables("weight_decay", tmp_path)
    assert len(ratios) == 9
    for category in ("branch_last", "branch_other"):
        assert gammas[category]["guideline"] < gammas[category]["exclude-all"]
    for category in ("main", "shortcut"):
        assert gammas[category]["guideline"] == pytest.approx(gammas[category]["exclude-all"], rel=0.01)
