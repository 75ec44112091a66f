"""A comparison as sections of text and tables: the verdict first, then the levels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from rewriter.comparison.data import ComparisonData, Equivalence, ImageRow, Trained, Training
from rewriter.comparison.run import AFTER, ARMS, BEFORE, Run
from rewriter.comparison.statistics import Difference, discordance_p_value, mean_interval
from rewriter.comparison.tables import Section, Table
from rewriter.comparison.units import Unit, percentage, small
from rewriter.comparison.verdict import (
    TEST_LOSS,
    Verdict,
    difference_of,
    failure,
    final_value,
    final_values,
    pairs,
    unit_of,
)
from rewriter.comparison.without_training import ALL
from rewriter.errors import listed
from rewriter.text import counted

_SHOWN_IMAGES = 5
_FEWEST_RATIOS = 3
_LEAST_SECONDS = 10
"""Of a run whose speed is compared: what a shorter one tells is what else the machine did."""
_NONE = "–"


def sections(comparison: ComparisonData, verdict: Verdict) -> list[Section]:
    """Everything that ``print`` and Markdown show.

    Raises:
        ComparisonError: scipy is needed and not installed.
    """
    made = [_head(comparison, verdict)]
    if comparison.equivalence:
        made.append(_equivalence(comparison.equivalence))
    if comparison.trained is not None:
        made.append(_trained(comparison.trained))
    if comparison.training is not None:
        made += [_training(comparison.training), _cost(comparison.training)]
    return made


def _head(comparison: ComparisonData, verdict: Verdict) -> Section:
    blocks: list[str | tuple[str, ...] | Table] = [
        f"verdict: {verdict.sentence}",
        f"data: {comparison.data}",
    ]
    if comparison.change:
        blocks.append(tuple(comparison.change))
    blocks += [f"note: {note}" for note in comparison.notes]
    return Section(f"comparison of {comparison.model}, before and after its rewrite", tuple(blocks))


def _equivalence(found: Sequence[Equivalence]) -> Section:
    rows = []
    for item in found:
        identical = {True: "yes", False: "no", None: "undecidable"}[item.identical]
        agreement = _NONE if item.agreement is None else percentage(item.agreement)
        cells = (small(item.max_difference), small(item.relative_difference), small(item.spread))
        rows.append((item.name, str(item.images), identical, *cells, agreement))
    headings = ("pass", "images", "bit-identical", "max |difference|", "relative", "own spread", "same prediction")
    images = counted(found[-1].images, "test image")
    return Section(f"output in evaluation mode, first {images}", (_culprits(found), Table(headings, tuple(rows))))


def _culprits(found: Sequence[Equivalence]) -> str:
    alone = [item for item in found if item.name != ALL]
    changed = [item.name for item in alone if item.identical is False]
    kept = [item.name for item in alone if item.identical]
    unknown = [item for item in found if item.identical is None]
    together = next((item for item in found if item.name == ALL), None)
    parts = []
    if changed:
        parts.append(f"the output is changed by {listed(changed)}")
    elif together is not None and together.identical is False:
        by = "the output is changed by all passes together, by none of them alone"
        parts.append(by if alone else "the output of after differs from that of before")
    if kept:
        parts.append(f"{listed(kept)} {'leaves' if len(kept) == 1 else 'leave'} it bit-identical")
    if together is not None and together.identical:
        parts.append("all passes together leave it bit-identical" if alone else "the output is bit-identical")
    if together is not None and any(together.not_finite):
        before, after = together.not_finite
        parts.append(f"not finite on {before} (before) and {after} (after) of {counted(together.images, 'image')}")
    if unknown:
        spread = max(item.spread for item in unknown)
        parts.append(
            f"undecidable for {listed(item.name for item in unknown)}: the original, run twice, differs from itself by "
            f"up to {small(spread)}"
        )
    return "; ".join(parts)


def _trained(trained: Trained) -> Section:
    rows = []
    for name in dict.fromkeys((*trained.before, *trained.after)):
        before, after = trained.before.get(name, math.nan), trained.after.get(name, math.nan)
        unit = Unit.of(name, (before, after))
        decimals = unit.telling((before, after))
        values = (unit.number(before, decimals), unit.number(after, decimals))
        rows.append((unit.label, *values, "equal" if before == after else unit.change(before, after)))
    images = len(trained.rows)
    blocks: list[str | tuple[str, ...] | Table] = [Table(("metric", BEFORE, AFTER, "after − before"), tuple(rows))]
    if images:
        blocks += _images(trained.rows)
    title = "weights as created, not trained" if trained.as_created else "trained weights"
    return Section(f"{title}, {counted(images, 'test image')}", tuple(blocks))


def _images(rows: Sequence[ImageRow]) -> list[str | tuple[str, ...] | Table]:
    changed = [row for row in rows if row.agreement < 1]
    agreement = sum(row.agreement for row in rows) / len(rows)
    # not a number is the largest difference of all
    furthest = max(rows, key=lambda row: math.inf if math.isnan(row.max_difference) else row.max_difference)
    where = f" (image {furthest.index})" if furthest.max_difference != 0 else ""
    blocks: list[str | tuple[str, ...] | Table] = [
        f"same prediction: {percentage(agreement)}, {len(rows) - len(changed)} of {len(rows)} images in full; largest "
        f"|difference| of two outputs: {small(furthest.max_difference)}{where}"
    ]
    if changed:
        more = len(changed) - _SHOWN_IMAGES
        shown = [_image(row) for row in changed[:_SHOWN_IMAGES]]
        blocks.append((*shown, f"and {more} more images") if more > 0 else tuple(shown))
    judged = [row for row in rows if None not in (row.target, row.before, row.after)]
    only_before = sum(row.before == row.target != row.after for row in judged)
    only_after = sum(row.after == row.target != row.before for row in judged)
    if only_before or only_after:
        p_value = discordance_p_value(only_before, only_after)
        blocks.append(
            f"right before and wrong after: {only_before}, wrong before and right after: {only_after} "
            f"(exact McNemar p = {p_value:.2g})"
        )
    return blocks


def _image(row: ImageRow) -> str:
    if row.before is None or row.after is None:
        return f"image {row.index}: {percentage(row.agreement)} of its predictions are the same"
    target = "" if row.target is None else f" (target {row.target})"
    return f"image {row.index}: class {row.before} → {row.after}{target}"


def _training(training: Training) -> Section:
    shown = [training.metric, *(name for name in _metrics(training) if name != training.metric)]
    seeds = list(dict.fromkeys(training.seeds))
    better = "higher" if training.higher_is_better else "lower"
    blocks: list[str | tuple[str, ...] | Table] = [
        f"judged by {training.metric} in the last epoch, {better} is better; mean ± half-width of the 95 % t interval "
        "over the seeds that both arms finished, or (lowest to highest) of two seeds or where it would leave 0 to "
        "100 %; the other metrics are shown, not judged"
    ]
    blocks.append(
        Table(
            ("metric", BEFORE, AFTER, "after − before", "95 % interval"),
            tuple(_metric_row(training, name) for name in shown),
        )
    )
    blocks.append(_seed_table(training, seeds))
    difference = difference_of(training, training.metric)
    if difference is not None and difference.interval is not None:
        blocks.append(_other_intervals(difference, unit_of(training, training.metric)))
    blocks += [f"{name}: {_named(data)}" for name, data in _settings(training) if data]
    return Section(f"training, {counted(len(seeds), 'seed')} an arm", tuple(blocks))


def _metrics(training: Training) -> list[str]:
    names = dict.fromkeys(name for run in training.runs if run.final for name in run.final.metrics)
    return list(dict.fromkeys((*names, TEST_LOSS)))


def _metric_row(training: Training, name: str) -> tuple[str, ...]:
    unit = unit_of(training, name)
    arms = []
    found = difference_of(training, name)
    both = final_values(training, name)
    for number, arm in enumerate(ARMS):
        own = [value for run in training.runs if run.arm == arm and (value := final_value(run, name)) is not None]
        shared = [values[number] for values in both] or own
        arms.append(unit.mean(mean_interval(shared)) if shared else _NONE)
    if found is None:
        return (name, *arms, _NONE, _NONE)
    if found.interval is None:
        mean = unit.number(found.mean, unit.decimals(None, (found.mean,)), sign=True)
        return (name, *arms, mean, "one seed")
    return (name, *arms, *unit.difference(found.mean, found.interval))


def _seed_table(training: Training, seeds: Sequence[int]) -> Table:
    unit = unit_of(training, training.metric)
    runs = {(run.seed, run.arm): run for run in training.runs}
    values = {key: final_value(run, training.metric) for key, run in runs.items()}
    both = [
        (before, after)
        for seed in seeds
        if (before := values.get((seed, BEFORE))) is not None and (after := values.get((seed, AFTER))) is not None
    ]
    decimals = unit.telling(*both)
    changes = unit.decimals(None, [after - before for before, after in both])
    rows = []
    for seed in seeds:
        before, after = values.get((seed, BEFORE)), values.get((seed, AFTER))
        cells = [_seed_cell(runs.get((seed, arm)), training.metric, unit, decimals) for arm in ARMS]
        change = _NONE if before is None or after is None else unit.number(after - before, changes, sign=True)
        rows.append((str(seed), *cells, "equal" if before is not None and before == after else change))
    return Table((f"seed ({unit.label})", BEFORE, AFTER, "after − before"), tuple(rows))


def _seed_cell(run: Run | None, metric: str, unit: Unit, decimals: int) -> str:
    if run is None:
        return "not run"
    value = final_value(run, metric)
    if value is not None:
        return unit.number(value, decimals)
    return "stopped" if run.stopped else failure(run, metric)


def _other_intervals(difference: Difference, unit: Unit) -> str:
    parts = []
    if difference.bootstrap is not None:
        low, high = difference.bootstrap.low, difference.bootstrap.high
        shown = unit.interval(difference.bootstrap, unit.decimals((high - low) / 2, (low, high)))
        parts.append(f"95 % bootstrap interval of after − before: {shown}")
    if difference.p_value is not None:
        parts.append(
            f"exact sign-flip p = {difference.p_value:.3g} ({difference.count} pairs cannot give less than "
            f"{difference.smallest_p_value:.3g})"
        )
    return "; ".join(parts)


def _settings(training: Training) -> list[tuple[str, dict[str, Any]]]:
    return [("recipe", training.recipe), ("environment", training.environment)]


def _named(data: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in data.items())


def _cost(training: Training) -> Section:
    arms = {arm: [run for run in training.runs if run.arm == arm] for arm in ARMS}
    speed = {arm: _known(run.images_per_second for run in runs) for arm, runs in arms.items()}
    memory = {arm: _known(run.peak_megabytes for run in runs) for arm, runs in arms.items()}
    rows = [
        ("images a second, median of runs", *(_median_and_range(speed[arm]) for arm in ARMS)),
        ("peak memory, MB", *(_median_and_range(memory[arm]) for arm in ARMS)),
        ("all runs, s", *(f"{sum(run.seconds for run in arms[arm]):.0f}" for arm in ARMS)),
    ]
    blocks: list[str | tuple[str, ...] | Table] = [Table(("", BEFORE, AFTER), tuple(rows))]
    ratio = _speed_ratio(training)
    if ratio:
        blocks.append(ratio)
    blocks.append("These figures vary with the machine, and from run to run with what else it does.")
    return Section("cost of training", tuple(blocks))


def _speed_ratio(training: Training) -> str:
    """How fast after trains, as part of the speed of before; empty where runs are too few or too short to tell."""
    ratios = [
        math.log(pair.after.images_per_second / pair.before.images_per_second)
        for pair in pairs(training)
        if pair.before.images_per_second
        and pair.after.images_per_second
        and min(pair.before.seconds, pair.after.seconds) >= _LEAST_SECONDS
        and pair.before.epochs != pair.after.epochs
    ]
    if len(ratios) < _FEWEST_RATIOS or any(run.stopped for run in training.runs):
        return ""
    found = mean_interval(ratios)
    assert found.interval is not None
    if 0 in found.interval:
        return "no difference in speed beyond that between runs of one arm"
    low, high = (math.exp(end) for end in (found.interval.low, found.interval.high))
    return (
        f"after trains at {math.exp(found.mean):.2f} times the speed of before (95 % interval {low:.2f} to {high:.2f})"
    )


def _median_and_range(values: Sequence[float]) -> str:
    if not values:
        return _NONE
    low, high = (f"{end:.0f}" for end in (min(values), max(values)))
    return f"{median(values):.0f}" + (f" ({low} to {high})" if low != high else "")


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
