"""Decide whether the rewrite helped: one word, and a sentence with the numbers."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rewriter.comparison.findings import AFTER, ALL, BEFORE, Equivalence, Run, Trained, Training
from rewriter.comparison.number_format import Unit, small
from rewriter.comparison.statistics import LEVEL, Difference, Interval, mean_interval, paired_difference
from rewriter.errors import listed
from rewriter.text import counted

_REASONS = 3

_ROUNDING = 2e-7
"""Relative precision of float32, in which metrics are often computed."""

_FEWEST = 3
"""Minimum number of seeds for a verdict: two that happen to agree have an interval of zero width by chance."""

_FEWEST_STOPS = 2
"""In how many more seeds one arm has to stop before that decides: one may be chance."""

_FEWEST_OF_ONE_SIGN = 6
"""Minimum number of seeds whose sign flips can give a p value below 5 %."""


class Outcome(enum.StrEnum):
    """The finding about after, compared with before."""

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
        difference: the evidence; None if no seed was finished by both arms.
    """

    outcome: Outcome
    sentence: str
    difference: Difference | None = None

    def __str__(self) -> str:
        return self.sentence


def difference_of(training: Training, metric: str) -> Difference | None:
    """Return after − before over the seeds that both arms finished; None if there are none."""
    values = training.final_values(metric)
    return paired_difference([old for old, _ in values], [new for _, new in values]) if values else None


def unit_of(training: Training, metric: str | None = None) -> Unit:
    """Return the unit of a metric, by default the judged one, from the values of all epochs of all runs."""
    metric = training.metric if metric is None else metric
    unit = Unit.of(metric, training.values(metric))
    # a score that should be low is not a fraction of images or pixels
    return unit if metric != training.metric or training.higher_is_better else replace(unit, percent=False)


def worth_of_image(training: Training) -> float | None:
    """Return how much the judged metric changes if one more test image is right, as a fraction.

    None if that is unknown, or if the metric does not count images: some value is not a whole number of them, as for
    losses and intersections over unions.
    """
    images = training.test_images
    if not images or not unit_of(training).percent:
        return None
    right = [images * fraction for fraction in training.values(training.metric)]
    known = right and all(abs(number - round(number)) <= _ROUNDING * images for number in right)
    return 1 / images if known else None


def judge(training: Training) -> Verdict:
    """Return the verdict on the judged metric.

    An arm that stops in two more seeds than the other is the worse one, whatever else is found; one more stop rules out
    a verdict in its favour. Otherwise the 95 % t interval of the paired difference decides. If all differences are
    within one test image of each other, or equal up to rounding, its width is meaningless, and the exact sign-flip p
    value has to agree: that takes six seeds. Fewer than three seeds decide nothing, except for two in which one arm
    stops and the other in neither.
    """
    ended, asked = training.pairs, len(set(training.seeds))
    of_ended = counted(len(ended), "seed")
    runs = {AFTER: [pair.after for pair in ended], BEFORE: [pair.before for pair in ended]}
    failed = {arm: [run for run in of_arm if run.failure(training.metric)] for arm, of_arm in runs.items()}
    difference = difference_of(training, training.metric)
    outcome, sentence = _of_difference(training, difference)
    more = len(failed[AFTER]) - len(failed[BEFORE])
    of_stops = Outcome.WORSE if more > 0 else Outcome.BETTER
    rest = f"; of the others: {sentence}" if difference is not None else ""
    if abs(more) >= _FEWEST_STOPS:
        outcome = of_stops
        sentence = f"after is {outcome}: it stopped in {'more' if more > 0 else 'fewer'} seeds{rest}"
    elif more and len(ended) > 1 and outcome is not of_stops:
        outcome = Outcome.UNDECIDED
        sentence = f"undecided: {AFTER if more > 0 else BEFORE} stopped in one seed more{rest}"
    parts = [sentence]
    for arm, stopped in failed.items():
        if stopped:
            parts.append(f"{arm} stopped in {len(stopped)} of {of_ended}: {_reasons(stopped, training)}")
    if apart := sum(not pair.same_batches for pair in ended):
        parts.append(
            f"the arms did not see the same training batches in {apart} of {of_ended}: the data draw random numbers "
            "that cannot be repeated"
        )
    if all(_learned_nothing(training, of_arm) for of_arm in runs.values()):
        parts.append(f"training improved {training.metric} in neither arm, so this says little about the rewrite")
    if asked > len(ended):
        parts.append(f"{asked - len(ended)} of {counted(asked, 'seed')} not run to the end by both arms")
    return Verdict(outcome, "; ".join(parts), difference)


def _learned_nothing(training: Training, runs: Sequence[Run]) -> bool:
    """Whether the final metric does not exceed the one before training, over seeds."""
    sign = 1 if training.higher_is_better else -1
    ends = [(run.epochs[0].value(training.metric), run.value(training.metric)) for run in runs if len(run.epochs) > 1]
    gains = [sign * (end - start) for start, end in ends if start is not None and end is not None]
    gain = mean_interval(gains).interval if len(gains) >= _FEWEST else None
    return gain is not None and gain.low <= 0


def _of_difference(training: Training, difference: Difference | None) -> tuple[Outcome, str]:
    if difference is None:
        return Outcome.UNDECIDED, "undecided: no seed was finished by both arms"
    unit, size, interval = unit_of(training), _size(training, difference), difference.interval
    by = f"{unit.difference(difference.mean)[0]} {unit.difference_label}"
    if interval is None:
        shown = by if difference.mean else f"exactly equal {unit.metric}"
        return Outcome.UNDECIDED, f"undecided: one seed says nothing about others (after − before: {shown})"
    if difference.zero:
        return _of_equal_metrics(training, unit, size)
    if difference.count < _FEWEST:
        decimals = unit.decimals(None, difference.differences)
        each = " and ".join(unit.number(value, decimals, sign=True) for value in difference.differences)
        return Outcome.UNDECIDED, (
            f"undecided: a verdict takes at least {_FEWEST} seeds (after − before: {each} {unit.difference_label}, "
            f"{size})"
        )
    mean, ends = unit.difference(difference.mean, interval)
    if 0 in interval:
        decimals = unit.decimals_of(interval)
        return Outcome.NO_DIFFERENCE_SEEN, (
            f"no difference larger than {unit.amount(max(-interval.low, interval.high), decimals)} on average was seen "
            f"with {size} (after − before: {mean}, 95 % interval {ends})"
        )
    outcome = Outcome.BETTER if (difference.mean > 0) == training.higher_is_better else Outcome.WORSE
    width = max(difference.differences) - min(difference.differences)
    close = difference.alike or width <= (1 + _ROUNDING) * (worth_of_image(training) or 0.0)
    if close and difference.p_value is not None and difference.p_value > 1 - LEVEL:
        each = "in each seed" if difference.alike else "on average, the seeds are within one test image of each other"
        takes = "six seeds" if difference.count < _FEWEST_OF_ONE_SIGN else "more seeds that differ"
        return Outcome.UNDECIDED, (
            f"undecided: after − before is {by} {each} ({size}), so that their spread is not known; it takes {takes} "
            f"to call that {outcome}"
        )
    amounts = Interval(*sorted((abs(interval.low), abs(interval.high))))
    decimals = unit.decimals_of(amounts)
    direction = "" if training.higher_is_better else "; lower is better"
    return outcome, (
        f"after is {outcome} by {unit.amount(abs(difference.mean), decimals)} "
        f"(95 % interval {unit.interval(amounts, sign=False)}, {size}{direction})"
    )


def _of_equal_metrics(training: Training, unit: Unit, size: str) -> tuple[Outcome, str]:
    """Decide between equality in every epoch and loss, and a metric too coarse to distinguish the arms."""
    finished = [pair for pair in training.pairs if pair.values(training.metric) is not None]
    # as text, NaN equals itself
    if all(repr(pair.before.epochs) == repr(pair.after.epochs) for pair in finished):
        same = f"{unit.metric} and every loss of every epoch"
        return Outcome.EXACTLY_EQUAL, f"exactly equal in every seed ({size}): {same}"
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


def _size(training: Training, difference: Difference) -> str:
    """Describe the size of the evidence: ``5 seeds, 20 epochs, 500 test images``."""
    asked, epochs = len(set(training.seeds)), training.recipe.get("epochs")
    parts = [f"{difference.count} of {counted(asked, 'seed')}" if difference.count < asked else counted(asked, "seed")]
    parts += [counted(epochs, "epoch")] if isinstance(epochs, int) else []
    parts += [counted(training.test_images, "test image")] if training.test_images else []
    return ", ".join(parts)


def _reasons(failed: Sequence[Run], training: Training) -> str:
    seeds: dict[str, list[str]] = {}
    for run in failed:
        seeds.setdefault(run.failure(training.metric), []).append(str(run.seed))
    told = [f"{why} ({'seeds' if len(of) > 1 else 'seed'} {', '.join(of)})" for why, of in seeds.items()]
    more = [f"and {len(told) - _REASONS} more reasons"] if len(told) > _REASONS else []
    return ", ".join(told[:_REASONS] + more)


def without_training(equivalence: Sequence[Equivalence], trained: Trained | None) -> str:
    """Return what outputs and metrics of trained weights show, and that no training was compared."""
    parts = [_outputs(equivalence)] if equivalence else []
    parts += [] if trained is None else [_metrics(trained)]
    return "; ".join([*parts, "no training was compared"] if parts else ["undecided: no training was compared"])


def _outputs(found: Sequence[Equivalence]) -> str:
    last = next((item for item in found if item.name == ALL), found[-1])
    images, by_up_to = counted(last.images, "image"), f"by up to {small(last.max_difference)}"
    if any(last.not_finite):
        before, after = last.not_finite
        return f"the output in evaluation mode is not finite on {before} (before) and {after} (after) of {images}"
    if last.identical:
        return f"the output in evaluation mode is bit-identical on {images}"
    if last.identical is None:
        return (
            f"undecided whether the output in evaluation mode is the same: on {images} it differs {by_up_to}, the "
            f"original from itself by up to {small(last.spread)}"
        )
    passes = [item.name for item in found if item.name != ALL and item.identical is False]
    by = f", changed by {listed(passes)}" if passes else ""
    return f"the output in evaluation mode differs {by_up_to} on {images}{by}"


def _metrics(trained: Trained) -> str:
    parts, same = [], [name for name in trained.before if trained.before[name] == trained.after[name]]
    for name in trained.before:
        if name not in same:
            values = trained.before[name], trained.after[name]
            unit = Unit.of(name, values)
            before, after = (unit.number(value, unit.telling(values)) for value in values)
            parts.append(f"{unit.label}: {before} before and {after} after")
    if same:
        parts.append(f"{listed(same)} {'is' if len(same) == 1 else 'are'} the same")
    weights = "created" if trained.as_created else "they are"
    return f"with the weights as {weights}, on {counted(len(trained.rows), 'image')}, {', '.join(parts)}"
