"""The rules by which the group-count pass chooses: the nearest in the band, rules of the user's own, bad ones."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
from group_norms import Chain
from helpers import assert_unchanged, image, snapshot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import rewriter
from rewriter.errors import SelectorError
from rewriter.passes import GroupCount
from rewriter.passes.group_count import GroupChoice
from rewriter.passes.group_count.rules import (
    TIE,
    channels_per_group,
    divisors,
    isometry,
    nearest,
    nearest_to_present,
    slack,
)

gain = st.one_of(st.floats(0.01, 100), st.sampled_from([0.0, math.inf]))


@pytest.mark.slow
@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from([16, 48, 60, 64, 96, 210]), st.data())
def test_a_choice_is_nearest_to_one_in_the_band_and_of_equals_the_largest_groups(channels: int, data: Any) -> None:
    numbers = divisors(channels)
    values = dict(zip(numbers, data.draw(st.lists(gain, min_size=len(numbers), max_size=len(numbers))), strict=True))
    band = tuple(sorted(data.draw(st.sets(st.sampled_from(numbers), min_size=1))))
    chosen = nearest(isometry)(GroupChoice(channels, channels, 1, 0.5, values, band))
    assert chosen in band

    def distance(groups: int) -> float:
        return abs(math.log(values[groups])) if 0 < values[groups] < math.inf else math.inf

    assert all(distance(chosen) <= distance(other) + TIE for other in band)
    assert all(distance(other) > min(map(distance, band)) + TIE for other in band if other < chosen)


@pytest.mark.slow
@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from([16, 48, 60, 64, 96, 210]), st.integers(1, 64), st.data())
def test_channels_per_group_are_as_near_as_the_band_allows(channels: int, size: int, data: Any) -> None:
    numbers = divisors(channels)
    band = tuple(sorted(data.draw(st.sets(st.sampled_from(numbers), min_size=1))))
    chosen = nearest(channels_per_group(size))(GroupChoice(channels, channels, 1, 0.5, {}, band))
    distances = {groups: abs(math.log(channels / groups / size)) for groups in band}
    assert distances[chosen] <= min(distances.values()) + TIE


@pytest.mark.slow
@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from([16, 48, 60, 64, 96, 210]), st.floats(0, 0.5), st.data())
def test_a_choice_changes_no_more_than_it_must(channels: int, tolerance: float, data: Any) -> None:
    numbers = divisors(channels)
    values = dict(zip(numbers, data.draw(st.lists(gain, min_size=len(numbers), max_size=len(numbers))), strict=True))
    band = tuple(sorted(data.draw(st.sets(st.sampled_from(numbers), min_size=1))))
    present = data.draw(st.sampled_from(numbers))
    choice = GroupChoice(channels, channels, present, 0.5, values, band)
    chosen = nearest_to_present(isometry, tolerance)(choice)
    best = min(isometry(choice, groups) for groups in band)
    equal = [groups for groups in band if isometry(choice, groups) <= best + slack(tolerance)]
    assert chosen in equal
    assert all(abs(math.log(chosen / present)) <= abs(math.log(other / present)) for other in equal)
    assert present not in equal or chosen == present


def most_groups(choice: GroupChoice) -> int:
    """A rule of the user's own."""
    return max(choice.candidates)


@pytest.mark.slow
def test_rules_can_be_chosen_and_given() -> None:
    with torch.device("meta"):
        model = timm.create_model("resnetv2_50d_gn")
    sixteen = rewriter.plan(model, GroupCount(rule="channels-per-group"), input_size=64)
    for site in sixteen.sites:
        channels = model.get_submodule(site.path).num_channels
        assert site.edits[0].value == channels // 16
    own = rewriter.plan(model, GroupCount(rule=most_groups, min_channels_per_group=4), input_size=64)
    assert {model.get_submodule(site.path).num_channels // site.edits[0].value for site in own.sites} == {4}
    assert own.passes[0][1]["rule"] == f"{__name__}.most_groups"
    assert rewriter.Plan.from_json(own.to_json()) == own


def test_a_rule_gets_what_it_needs_to_know() -> None:
    seen: list[GroupChoice] = []

    def rule(choice: GroupChoice) -> int:
        seen.append(choice)
        return 4

    rewriter.plan(
        Chain(nn.Conv2d(24, 32, 3, groups=2), 32, nn.ReLU()), GroupCount(rule=rule), example_inputs=image(8, 24)
    )
    assert (seen[0].n_in, seen[0].n_out, seen[0].num_groups, seen[0].candidates) == (12, 32, 1, (2, 4))
    assert seen[0].slope == pytest.approx(0.5) and set(seen[0].gains) == {1, 2, 4, 8, 16, 32}


def test_bad_rules_and_options_are_refused() -> None:
    model = Chain(nn.Conv2d(3, 32, 3), 32, nn.ReLU())
    before = snapshot(model)
    with pytest.raises(SelectorError, match=r"returned 7 groups for 32 channels; expected one of .* 2, 4"):
        rewriter.rewrite(model, GroupCount(rule=lambda choice: 7), input_size=8)
    with pytest.raises(SelectorError, match="the rule raised ZeroDivisionError"):
        rewriter.rewrite(model, GroupCount(rule=lambda choice: 1 // 0), input_size=8)
    for options in (
        {"rule": "ideal"},
        {"tolerance": -0.1},
        {"tolerance": "5%"},
        {"channels": 0},
        {"min_groups": 1.5},
        {"min_channels_per_group": True},
    ):
        with pytest.raises(SelectorError, match=f"{next(iter(options))}: expected"):
            rewriter.rewrite(model, {"group-count": options}, input_size=8)
    assert_unchanged(model, before)
