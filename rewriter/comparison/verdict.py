"""Did the rewrite help? One word, and a sentence with the numbers."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rewriter.comparison.data import Training
from rewriter.comparison.run import AFTER, BEFORE, Epoch, Run
from rewriter.comparison.statistics import LEVEL, Difference, Interval, mean_interval, paired_difference
from rewriter.comparison.units import Unit
from rewriter.text import counted

TEST_LOSS = "test_loss"
"""Name of the loss where a metric is asked for."""

_REASONS = 3

_ROUNDING = 2e-7
"""Metrics are often computed in float32, whose numbers have this relative precision."""

_FEWEST = 3
"""Seeds that a verdict takes: two that happen to agree have an interval without width, whatever is true."""

_FEWEST_STOPS = 2
"""Seeds in which one arm stops and the other does not, before that decides: one may be chance."""

_FEWEST_OF_ONE_SIGN = 6
"""Seeds whose sign flips can give a p value below 5 %."""


class Outcome(enum.StrEnum):
    """What was found about after, beside before."""

    BETTER = "better"
    WORSE = "worse"
    NO_DIFFERENCE_SEEN = "no difference seen"
    EXACTLY_EQUAL = "exactly equal"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Verdict:
    """An outcome in words.

    Attributes:
        outcome: in one word.
        sentence: with its numbers.
        difference: what it rests on; None if no seed was finished by both arms.
    """

    outcome: Outcome
    sentence: str
    difference: Difference | None = None

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True)
class Pair:
    """Both runs of one seed that ended, finished or stopped."""

    before: Run
    after: Run

    @property
    def same_batches(self) -> bool:
        """Whether both arms saw the same training batches, as far as both ran."""
        return all(ours == theirs for ours, theirs in zip(self.before.seen, self.after.seen, strict=False))

    def values(self, metric: str) -> tuple[float, float] | None:
        """Both final values; None if a run was stopped or its value is not finite."""
        before, after = final_value(self.before, metric), final_value(self.after, metric)
        return None if before is None or after is None else (before, after)


def value(epoch: Epoch, metric: str) -> float | None:
    """A metric of one epoch, or its test loss; None if it was not measured or is not finite."""
    found = epoch.metrics.get(metric, epoch.test_loss if metric == TEST_LOSS else None)
    return found if found is not None and math.isfinite(found) else None


def final_value(run: Run, metric: str) -> float | None:
    """The value in the last epoch; None for a run that was stopped or whose value is not finite."""
    return None if run.final is None else value(run.final, metric)


def failure(run: Run, metric: str) -> str:
    """Why a run has no final value; empty if it has one."""
    return "" if final_value(run, metric) is not None else run.stopped or f"no finite {metric} in the last epoch"


def pairs(training: Training) -> list[Pair]:
    """Pairs in the order of the seeds, without those of which a run is missing."""
    runs = {(run.arm, run.seed): run for run in training.runs}
    return [
        Pair(runs[BEFORE, seed], runs[AFTER, seed])
        for seed in dict.fromkeys(training.seeds)
        if (BEFORE, seed) in runs and (AFTER, seed) in runs
    ]


def final_values(training: Training, metric: str) -> list[tuple[float, float]]:
    """Before and after, for each seed that both arms finished."""
    return [both for pair in pairs(training) if (both := pair.values(metric)) is not None]


def difference_of(training: Training, metric: str) -> Difference | None:
    """After − before over the seeds that both arms finished; None if there are none.

    Raises:
        ComparisonError: scipy is not installed.
    """
    values = final_values(training, metric)
    return paired_difference([old for old, _ in values], [new for _, new in values]) if values else None


def unit_of(training: Training, metric: str) -> Unit:
    """The unit of a metric, by the values of all epochs of all runs."""
    values = [value(epoch, metric) for run in training.runs for epoch in run.epochs]
    unit = Unit.of(metric, [found for found in values if found is not None])
    # a score that should be low is no share of images or pixels
    return unit if metric != training.metric or training.higher_is_better else replace(unit, percent=False)


def worth_of_image(training: Training) -> float | None:
    """By how much the judged metric changes if one more test image is right, as a fraction.

    None where that is not known, or where the metric counts no images: where some value is not a whole number of them,
    as with losses and intersections over unions.
    """
    images = training.test_images
    if not images or not unit_of(training, training.metric).percent:
        return None
    found = [value(epoch, training.metric) for run in training.runs for epoch in run.epochs]
    right = [images * fraction for fraction in found if fraction is not None]
    if not right or any(abs(number - round(number)) > _ROUNDING * images for number in right):
        return None
    return 1 / images


def judge(training: Training) -> Verdict:
    """The verdict on the metric that is judged.

    An arm that stops in two seeds more than the other is the worse one, whatever the rest says; one stop more speaks
    against a verdict in its favour. Otherwise the 95 % t interval of the paired difference decides. Where all
    differences are within one test image of each other, or alike but for rounding, its width means nothing, and the
    exact sign-flip p value decides too: it takes six seeds. Fewer than three seeds decide nothing of this, but for two
    in which one arm stops, and the other in none.

    Raises:
        ComparisonError: scipy is not installed.
    """
    ended = pairs(training)
    difference = difference_of(training, training.metric)
    failed_before = [run for pair in ended if failure(run := pair.before, training.metric)]
    failed_after = [run for pair in ended if failure(run := pair.after, training.metric)]
    outcome, sentence = _of_difference(training, ended, difference)
    more = len(failed_after) - len(failed_before)
    rest = f"; of the others: {sentence}" if difference is not None else ""
    if abs(more) >= _FEWEST_STOPS:
        outcome = Outcome.WORSE if more > 0 else Outcome.BETTER
        sentence = f"after is {outcome}: it stopped in {'more' if more > 0 else 'fewer'} seeds{rest}"
    elif more and len(ended) > 1 and outcome is not (Outcome.WORSE if more > 0 else Outcome.BETTER):
        outcome = Outcome.UNDECIDED
        sentence = f"undecided: {'after' if more > 0 else 'before'} stopped in one seed more{rest}"
    parts = [
        sentence,
        *_stops("after", failed_after, training, ended),
        *_stops("before", failed_before, training, ended),
    ]
    apart = [pair for pair in ended if not pair.same_batches]
    if apart:
        parts.append(
            f"the arms did not see the same training batches in {len(apart)} of {counted(len(ended), 'seed')}: the "
            "data draw random numbers that cannot be repeated"
        )
    if _learned_nothing(training, ended):
        parts.append(f"training improved {training.metric} in neither arm, so this says little about the rewrite")
    missing = len(set(training.seeds)) - len(ended)
    if missing:
        parts.append(f"{missing} of {counted(len(set(training.seeds)), 'seed')} not run to the end by both arms")
    return Verdict(outcome, "; ".join(parts), difference)


def _learned_nothing(training: Training, ended: Sequence[Pair]) -> bool:
    """Whether the final metric of both arms is not beyond that before training, over seeds."""
    metric, sign = training.metric, 1 if training.higher_is_better else -1
    for runs in ([pair.before for pair in ended], [pair.after for pair in ended]):
        gains = [
            sign * (end - start)
            for run in runs
            if len(run.epochs) > 1
            and (start := value(run.epochs[0], metric)) is not None
            and (end := final_value(run, metric)) is not None
        ]
        gain = mean_interval(gains) if len(gains) >= _FEWEST else None
        if gain is None or gain.interval is None or gain.interval.low > 0:
            return False
    return True


def _of_difference(training: Training, ended: Sequence[Pair], difference: Difference | None) -> tuple[Outcome, str]:
    if difference is None:
        return Outcome.UNDECIDED, "undecided: no seed was finished by both arms"
    unit, size = unit_of(training, training.metric), _size(training, difference)
    if difference.interval is None:
        found = unit.number(difference.mean, unit.decimals(None, (difference.mean,)), sign=True)
        shown = f"{found} {unit.difference_label}" if difference.mean else f"exactly equal {unit.metric}"
        return Outcome.UNDECIDED, f"undecided: one seed says nothing about others (after − before: {shown})"
    if difference.zero:
        return _of_equal_metrics(training, ended, unit, size)
    interval = difference.interval
    if difference.count < _FEWEST:
        decimals = unit.decimals(None, difference.differences)
        each = " and ".join(unit.number(value, decimals, sign=True) for value in difference.differences)
        return Outcome.UNDECIDED, (
            f"undecided: a verdict takes at least {_FEWEST} seeds (after − before: {each} {unit.difference_label}, "
            f"{size})"
        )
    if 0 in interval:
        bound = max(-interval.low, interval.high)
        decimals = unit.decimals((interval.high - interval.low) / 2, (interval.low, interval.high))
        mean, ends = unit.difference(difference.mean, interval)
        return Outcome.NO_DIFFERENCE_SEEN, (
            f"no difference larger than {unit.amount(bound, decimals)} on average was seen with {size} "
            f"(after − before: {mean}, 95 % interval {ends})"
        )
    better = (difference.mean > 0) == training.higher_is_better
    worth = worth_of_image(training) or 0.0
    width = max(difference.differences) - min(difference.differences)
    close = difference.alike or width <= (1 + _ROUNDING) * worth
    if close and difference.p_value is not None and difference.p_value > 1 - LEVEL:
        mean = unit.number(difference.mean, unit.decimals(None, (difference.mean,)), sign=True)
        each = "in each seed" if difference.alike else "on average, the seeds are within one test image of each other"
        takes = "six seeds" if difference.count < _FEWEST_OF_ONE_SIGN else "more seeds that differ"
        return Outcome.UNDECIDED, (
            f"undecided: after − before is {mean} {unit.difference_label} {each} ({size}), so that their spread is "
            f"not known; it takes {takes} to call that {'better' if better else 'worse'}"
        )
    outcome = Outcome.BETTER if better else Outcome.WORSE
    low, high = sorted((abs(interval.low), abs(interval.high)))
    decimals = unit.decimals((high - low) / 2, (low, high))
    shown = unit.interval(Interval(low, high), decimals, sign=False)
    direction = "" if training.higher_is_better else "; lower is better"
    return outcome, (
        f"after is {outcome} by {unit.amount(abs(difference.mean), decimals)} "
        f"(95 % interval {shown}, {size}{direction})"
    )


def _of_equal_metrics(training: Training, ended: Sequence[Pair], unit: Unit, size: str) -> tuple[Outcome, str]:
    """Equal in every epoch and loss, or no more than a metric that is too coarse to tell the arms apart."""
    finished = [pair for pair in ended if pair.values(training.metric) is not None]
    if all(_measured(pair.before) == _measured(pair.after) for pair in finished):
        return (
            Outcome.EXACTLY_EQUAL,
            f"exactly equal in every seed ({size}): {unit.metric} and every loss of every epoch",
        )
    if len(finished) < _FEWEST:
        return Outcome.UNDECIDED, (
            f"undecided: a verdict takes at least {_FEWEST} seeds (the final {unit.metric} is the same in each, the "
            f"losses differ; {size})"
        )
    worth = worth_of_image(training)
    step = "" if worth is None else f"; one test image is worth {unit.amount(worth, unit.decimals(None, (worth,)))}"
    return Outcome.NO_DIFFERENCE_SEEN, (
        f"no difference was seen with {size}: the final {unit.metric} is the same in every seed, the losses "
        f"differ{step}"
    )


def _measured(run: Run) -> list[str]:
    """All that was measured, as text: a value that is not a number equals itself."""
    return [repr(epoch) for epoch in run.epochs]


def _size(training: Training, difference: Difference) -> str:
    """How much the verdict rests on: ``5 seeds, 20 epochs, 500 test images``."""
    asked = len(set(training.seeds))
    seeds = counted(asked, "seed")
    if difference.count < asked:
        seeds = f"{difference.count} of {seeds}"
    epochs = training.recipe.get("epochs")
    length = f", {counted(epochs, 'epoch')}" if isinstance(epochs, int) else ""
    images = f", {counted(training.test_images, 'test image')}" if training.test_images else ""
    return f"{seeds}{length}{images}"


def _stops(arm: str, failed: Sequence[Run], training: Training, ended: Sequence[Pair]) -> list[str]:
    if not failed:
        return []
    seeds: dict[str, list[str]] = {}
    for run in failed:
        seeds.setdefault(failure(run, training.metric), []).append(str(run.seed))
    reasons = [
        f"{reason} ({'seed' if len(numbers) == 1 else 'seeds'} {', '.join(numbers)})"
        for reason, numbers in list(seeds.items())[:_REASONS]
    ]
    if len(seeds) > _REASONS:
        reasons.append(f"and {len(seeds) - _REASONS} more reasons")
    return [f"{arm} stopped in {len(failed)} of {counted(len(ended), 'seed')}: {', '.join(reasons)}"]
