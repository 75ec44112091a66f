"""Means, paired differences and verdicts of comparisons."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from rewriter.comparison.findings import AFTER, BEFORE, Epoch, Run, Training
from rewriter.comparison.number_format import Unit, percentage
from rewriter.comparison.statistics import (
    Interval,
    discordance_p_value,
    mean_interval,
    paired_difference,
)
from rewriter.comparison.verdict import Outcome, judge
from rewriter.errors import ComparisonError

values = st.floats(-100, 100, allow_subnormal=False).map(lambda value: round(value, 6))
samples = st.lists(st.tuples(values, values), min_size=2, max_size=9)


def trained(
    before: list[float | str],
    after: list[float | str],
    *,
    metric: str = "top1",
    higher_is_better: bool = True,
    asked: int | None = None,
    losses: tuple[float, float] = (0.5, 0.5),
) -> Training:
    """One run a value; a text is the reason why that run was stopped."""
    runs = []
    for seed, both in enumerate(zip(before, after, strict=True)):
        for arm, value, loss in zip((BEFORE, AFTER), both, losses, strict=True):
            start = Epoch(0, None, 2.3, {metric: 0.1})
            if isinstance(value, str):
                runs.append(Run(arm, seed, (start,), stopped=value))
            else:
                runs.append(Run(arm, seed, (start, Epoch(1, 1.0, loss, {metric: value}))))
    return Training(metric, higher_is_better, tuple(range(asked or len(before))), tuple(runs))


class TestIntervals:
    @given(samples)
    @settings(max_examples=60, deadline=None)
    def test_agrees_with_scipy(self, pairs: list[tuple[float, float]]) -> None:
        before, after = (list(column) for column in zip(*pairs, strict=True))
        found = paired_difference(before, after)
        assert found.interval is not None and found.mean in found.interval
        assume(np.std(found.differences) > 1e-6)
        expected = stats.ttest_rel(after, before).confidence_interval(0.95)
        assert math.isclose(found.interval.low, expected.low, rel_tol=1e-6, abs_tol=1e-9)
        assert math.isclose(found.interval.high, expected.high, rel_tol=1e-6, abs_tol=1e-9)

    @given(samples, values)
    @settings(max_examples=60, deadline=None)
    def test_symmetries(self, pairs: list[tuple[float, float]], shift: float) -> None:
        before, after = (list(column) for column in zip(*pairs, strict=True))
        found, swapped = paired_difference(before, after), paired_difference(after, before)
        moved = paired_difference([value + shift for value in before], [value + shift for value in after])
        for name in ("interval", "bootstrap"):
            here, there, elsewhere = (getattr(item, name) for item in (found, swapped, moved))
            assert (here.low, here.high) == pytest.approx((-there.high, -there.low), abs=1e-9)
            assert (here.low, here.high) == pytest.approx((elsewhere.low, elsewhere.high), rel=1e-6, abs=1e-6)
        assert found.p_value == swapped.p_value
        assert found.bootstrap is not None and found.p_value is not None
        assert min(found.differences) - 1e-9 <= found.bootstrap.low <= found.bootstrap.high
        assert found.smallest_p_value <= found.p_value <= 1

    def test_covers_the_truth(self) -> None:
        draw = np.random.Generator(np.random.PCG64(0)).normal(0.3, 1.0, (2000, 5))
        intervals = [mean_interval(experiment).interval for experiment in draw.tolist()]
        covered = sum(0.3 in interval for interval in intervals if interval is not None) / len(intervals)
        assert 0.93 <= covered <= 0.97

    def test_bootstrap_repeats_itself_and_covers_many_seeds(self) -> None:
        draw = np.random.Generator(np.random.PCG64(1)).normal(1.0, 0.5, 40).tolist()
        found = paired_difference([0.0] * 40, draw)
        assert found == paired_difference([0.0] * 40, draw)
        assert found.interval is not None and found.bootstrap is not None and found.p_value is None
        assert found.bootstrap.low == pytest.approx(found.interval.low, abs=0.05)
        assert found.bootstrap.high == pytest.approx(found.interval.high, abs=0.05)

    def test_sign_flips_agree_with_scipy(self) -> None:
        draw = np.random.Generator(np.random.PCG64(2)).normal(0.4, 1.0, 9)
        expected = stats.permutation_test(
            (draw,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=False
        )
        assert paired_difference([0.0] * 9, draw.tolist()).p_value == pytest.approx(expected.pvalue)
        assert paired_difference([0.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0]).p_value == 2 / 32

    def test_few_values(self) -> None:
        assert mean_interval([0.7]).interval is None
        assert mean_interval([0.1] * 3).interval == Interval(0.1, 0.1)
        one = paired_difference([0.7], [0.8])
        assert one.interval is None and one.bootstrap is None
        none = paired_difference([0.1, 0.7, 0.3], [0.1, 0.7, 0.3])
        assert none.interval == none.bootstrap == Interval(0, 0) and none.zero and none.p_value == 1

    @pytest.mark.parametrize(
        "before, after, words", [([], [], "at least one"), ([1.0], [], "found 1 and 0"), ([1.0], [math.nan], "nan")]
    )
    def test_refused(self, before: list[float], after: list[float], words: str) -> None:
        with pytest.raises(ComparisonError, match=words):
            paired_difference(before, after)

    def test_discordant_images(self) -> None:
        assert discordance_p_value(0, 0) == 1
        assert discordance_p_value(1, 9) == discordance_p_value(9, 1) == pytest.approx(22 / 1024)


class TestVerdicts:
    def test_better_and_worse(self) -> None:
        low, high = [0.80, 0.81, 0.79, 0.82, 0.80], [0.812, 0.825, 0.80, 0.83, 0.814]
        better, worse = judge(trained(low, high)), judge(trained(high, low))
        assert better.outcome is Outcome.BETTER and worse.outcome is Outcome.WORSE
        assert better.sentence == "after is better by 1.22 points of top1 (95 % interval 0.94 to 1.50, 5 seeds)"
        assert worse.sentence == better.sentence.replace("better", "worse")

    def test_lower_is_better(self) -> None:
        low, high = [0.31, 0.33, 0.30], [0.52, 0.55, 0.51]
        found = judge(trained(high, low, metric="test_loss", higher_is_better=False))
        assert found.outcome is Outcome.BETTER
        assert found.sentence.startswith("after is better by 0.213 in test_loss (95 % interval 0.199 to 0.228, 3 seeds")
        assert judge(trained(low, high, metric="test_loss", higher_is_better=False)).outcome is Outcome.WORSE

    def test_no_difference_seen(self) -> None:
        found = judge(trained([0.80, 0.81, 0.79, 0.82, 0.80], [0.805, 0.80, 0.80, 0.822, 0.798]))
        assert found.outcome is Outcome.NO_DIFFERENCE_SEEN
        assert found.sentence == (
            "no difference larger than 1.0 points of top1 on average was seen with 5 seeds "
            "(after − before: +0.1, 95 % interval −0.8 to +1.0)"
        )

    def test_exactly_equal(self) -> None:
        values: list[float | str] = [0.8, 0.7, 0.9]
        same = judge(trained(values, values))
        assert same.outcome is Outcome.EXACTLY_EQUAL
        assert same.sentence == "exactly equal in every seed (3 seeds): top1 and every loss of every epoch"
        metric_only = judge(trained(values, values, losses=(0.5, 0.6)))
        assert metric_only.outcome is Outcome.NO_DIFFERENCE_SEEN and "the losses differ" in metric_only.sentence
        coarse = dataclasses.replace(trained(values, values, losses=(0.5, 0.6)), test_images=40)
        assert judge(coarse).sentence.endswith("one test image is worth 2.50 points of top1")
        assert same.difference is not None and same.difference.interval == Interval(0, 0)

    def test_equal_where_another_metric_is_no_number(self) -> None:
        def with_nan(run: Run) -> Run:
            epochs = [dataclasses.replace(e, metrics=e.metrics | {"mAP": float("nan")}) for e in run.epochs]
            return dataclasses.replace(run, epochs=tuple(epochs))

        found = trained([0.8, 0.7, 0.9], [0.8, 0.7, 0.9])
        found = dataclasses.replace(found, runs=tuple(map(with_nan, found.runs)))
        assert judge(found).outcome is Outcome.EXACTLY_EQUAL

    def test_one_seed(self) -> None:
        found = judge(trained([0.8], [0.9]))
        assert found.outcome is Outcome.UNDECIDED
        assert "one seed" in found.sentence and "+10.00 points of top1" in found.sentence
        assert judge(trained([0.8], [0.8])).outcome is Outcome.UNDECIDED

    def test_two_seeds_decide_nothing(self) -> None:
        found = judge(trained([0.500, 0.510], [0.900, 0.912]))
        assert found.difference is not None and found.difference.interval is not None
        assert 0 not in found.difference.interval
        assert found.outcome is Outcome.UNDECIDED
        assert "at least 3 seeds (after − before: +40.00 and +40.20 points of top1, 2 seeds)" in found.sentence
        same = judge(trained([0.5, 0.6], [0.5, 0.6], losses=(0.5, 0.6)))
        assert same.outcome is Outcome.UNDECIDED and "at least 3 seeds (the final top1 is the same" in same.sentence
        stopped = judge(trained([0.5, 0.6], [0.5, "loss nan in epoch 1, step 1"]))
        assert stopped.outcome is Outcome.UNDECIDED and "after stopped in 1 of 2 seeds" in stopped.sentence
        assert judge(trained([0.5, 0.6], ["loss nan", "loss nan"])).outcome is Outcome.WORSE

    def test_arms_that_learn_nothing(self) -> None:
        """Every run begins at 0.1."""
        chance = judge(trained([0.11, 0.09, 0.1], [0.1, 0.12, 0.09]))
        assert "training improved top1 in neither arm" in chance.sentence
        for arms in (([0.11, 0.09, 0.1], [0.5, 0.6, 0.55]), ([0.5, 0.6, 0.55], [0.1, 0.12, 0.09])):
            assert "neither" not in judge(trained(*arms)).sentence

    def test_a_score_that_should_be_low_is_no_share(self) -> None:
        found = judge(trained([0.6, 0.7, 0.65], [0.5, 0.61, 0.54], metric="brier", higher_is_better=False))
        assert found.outcome is Outcome.BETTER and "in brier" in found.sentence

    def test_what_it_rests_on(self) -> None:
        found = trained([0.80, 0.81, 0.79], [0.81, 0.825, 0.80])
        found = dataclasses.replace(found, recipe={"epochs": 20}, test_images=500)
        assert "3 seeds, 20 epochs, 500 test images)" in judge(found).sentence

    def test_nothing_finished(self) -> None:
        nothing = judge(Training("top1", True, (0, 1), ()))
        assert nothing.outcome is Outcome.UNDECIDED and nothing.difference is None
        assert "2 of 2 seeds not run to the end" in nothing.sentence
        stopped = judge(trained(["no loss", "no loss"], ["no loss", "no loss"]))
        assert stopped.outcome is Outcome.UNDECIDED and "before stopped in 2 of 2 seeds" in stopped.sentence

    def test_the_same_difference_in_few_seeds_says_nothing(self) -> None:
        """One more of 100 test images in both seeds gives an interval without width, by chance."""
        few = judge(trained([0.80, 0.70, 0.75], [0.81, 0.71, 0.76]))
        assert few.outcome is Outcome.UNDECIDED and "spread is not known" in few.sentence
        near = [0.812, 0.712, 0.761]  # 12, 12 and 11 of 1000 test images more
        fine = trained([0.80, 0.70, 0.75], near)
        assert judge(fine).outcome is Outcome.BETTER
        coarse = judge(dataclasses.replace(fine, test_images=1000))
        assert coarse.outcome is Outcome.UNDECIDED and "within one test image of each other" in coarse.sentence
        assert judge(trained([0.80, 0.70] * 3, [0.81, 0.71] * 3)).outcome is Outcome.BETTER
        rarely = dataclasses.replace(trained([0.5] * 10, [0.501, 0.5] * 5), test_images=1000)
        assert judge(rarely).outcome is Outcome.UNDECIDED
        assert "it takes more seeds that differ to call that better" in judge(rarely).sentence

    @pytest.mark.thorough
    def test_chance_is_rarely_called_a_difference(self) -> None:
        correct = np.random.Generator(np.random.PCG64(0)).binomial(100, 0.9, (400, 2, 3)) / 100
        outcomes = [judge(trained(before, after)).outcome for before, after in correct.tolist()]
        wrong = sum(outcome in (Outcome.BETTER, Outcome.WORSE) for outcome in outcomes)
        assert wrong / len(outcomes) < 0.07

    def test_stopped_runs(self) -> None:
        reason = "loss not finite in epoch 3, step 17"
        kept: list[float | str] = [0.80, 0.81, 0.79, 0.82, 0.80]
        some: list[float | str] = [reason, 0.82, 0.80, reason, 0.805]
        worse, better = judge(trained(kept, some)), judge(trained(some, kept))
        assert worse.outcome is Outcome.WORSE and better.outcome is Outcome.BETTER
        assert f"after stopped in 2 of 5 seeds: {reason} (seeds 0, 3)" in worse.sentence
        assert "before stopped in 2 of 5 seeds" in better.sentence and "fewer seeds" in better.sentence
        assert worse.difference is not None and worse.difference.count == 3
        assert "3 of 5 seeds" in worse.sentence
        both = judge(trained(some, some))
        assert both.outcome is Outcome.EXACTLY_EQUAL and "before stopped" in both.sentence

    def test_a_metric_that_is_not_finite(self) -> None:
        found = judge(trained([0.8, 0.7, 0.9], [0.8, math.nan, 0.9]))
        assert found.outcome is Outcome.UNDECIDED and "after stopped in one seed more; of the others" in found.sentence
        assert "no finite top1 in the last epoch (seed 1)" in found.sentence

    def test_interrupted(self) -> None:
        found = judge(trained([0.8, 0.7, 0.9], [0.8, 0.7, 0.9], asked=5))
        assert "2 of 5 seeds not run to the end by both arms" in found.sentence
        assert "(3 of 5 seeds)" in found.sentence

    @given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=2, max_size=6))
    @settings(max_examples=60, deadline=None)
    def test_swapped_arms_swap_the_verdict(self, pairs: list[tuple[int, int]]) -> None:
        before, after = ([count / 50 for count in column] for column in zip(*pairs, strict=True))
        mirrored = {Outcome.BETTER: Outcome.WORSE, Outcome.WORSE: Outcome.BETTER}
        here, there = (judge(trained(*arms)).outcome for arms in ((before, after), (after, before)))
        assert there is mirrored.get(here, here)
        assert judge(trained(before, after, higher_is_better=False)).outcome is there


class TestNumbers:
    def test_units(self) -> None:
        assert Unit.of("top1", [0.0, 0.5, math.nan]).percent
        assert not Unit.of("test_loss", [0.5]).percent
        assert not Unit.of("psnr", [0.5, 31.0]).percent

    @pytest.mark.parametrize(
        "half_width, shown", [(0.0081, "76.1"), (0.0031, "76.12"), (0.00035, "76.123"), (0.3, "76.1"), (None, "76.12")]
    )
    def test_digits_follow_the_half_width(self, half_width: float | None, shown: str) -> None:
        unit = Unit("top1", True)
        assert unit.number(0.761234, unit.decimals(half_width)) == shown

    @given(st.floats(1e-15, 0.5), st.floats(1e-12, 1.0))
    @settings(max_examples=100, deadline=None)
    def test_no_difference_is_hidden(self, difference: float, half_width: float) -> None:
        unit = Unit("top1", True)
        shown = unit.number(-difference, unit.decimals(half_width, (difference,)), sign=True)
        assert float(shown.replace("−", "-")) < 0

    def test_an_interval_that_leaves_the_percents_is_not_shown(self) -> None:
        unit = Unit("top1", True)
        assert unit.mean(mean_interval([0.95, 0.995, 0.96])) == "96.8 (95.0 to 99.5) %"
        assert unit.mean(mean_interval([0.76, 0.762, 0.761])) == "76.10 ± 0.25 %"
        assert Unit("test_loss", False).mean(mean_interval([0.01, 0.2])) == "0.11 (0.01 to 0.20)"

    def test_a_number_that_rounds_to_zero_has_no_direction(self) -> None:
        assert Unit("top1", True).number(-0.0004, 1, sign=True) == "0.0"

    def test_percentages(self) -> None:
        assert [percentage(part) for part in (1.0, 0.0, 0.921875, 0.99996, 0.0004)] == [
            "100 %", "0 %", "92.2 %", "99.996 %", "0.04 %",
        ]  # fmt: skip
