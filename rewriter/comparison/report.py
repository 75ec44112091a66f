"""A comparison as sections of text and tables, verdict first, then the levels; as plain text and as Markdown."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import pandas

from rewriter.comparison.findings import AFTER, ALL, ARMS, BEFORE, TEST_LOSS, Equivalence, Findings, Trained, Training
from rewriter.comparison.number_format import Unit, percentage, small
from rewriter.comparison.statistics import discordance_p_value, mean_interval
from rewriter.comparison.verdict import Verdict, difference_of, unit_of
from rewriter.errors import listed
from rewriter.reporting.tables import markdown_table
from rewriter.text import counted

WIDTH = 100
"""Width of the plain text in columns."""

_SHOWN_IMAGES = 5
_FEWEST_RATIOS = 3
_LEAST_SECONDS = 10
"""Minimum duration of a run whose speed is compared: shorter ones measure the load of the machine."""
_NONE = "–"
_CHANGE = "after − before"

Block: TypeAlias = str | tuple[str, ...] | pandas.DataFrame
"""A paragraph, a list or a table."""

Section: TypeAlias = tuple[str, list[Block]]
"""A title with its content."""


def as_text(sections: Sequence[Section]) -> str:
    """Return text of at most 100 columns."""
    return "\n\n".join("\n".join(_lines(*section)) for section in sections)


def _lines(title: str, blocks: list[Block]) -> Iterator[str]:
    def wrapped(text: str, first: str, following: str) -> list[str]:
        return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=following, break_on_hyphens=False)

    yield from wrapped(title, "", "  ")
    for previous, block in zip(["", *blocks], blocks, strict=False):
        if isinstance(block, str):
            yield from wrapped(block, "  ", "  ")
        elif isinstance(block, tuple):
            for item in block:
                yield from wrapped(item, "  * ", "    ")
        else:
            yield from [""] if isinstance(previous, pandas.DataFrame) else []
            yield from (f"  {line}" for line in _table_lines(block, WIDTH - 2))


def _table_lines(frame: pandas.DataFrame, width: int) -> list[str]:
    """Cut cells of the widest columns where lines would exceed ``width``."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for number, heading in enumerate(frame):
        table.add_column(Text(heading), justify="right" if number else "left")
    for row in frame.itertuples(index=False):
        table.add_row(*map(Text, row))
    shown = io.StringIO()
    Console(file=shown, width=width, color_system=None).print(table)
    return [line.rstrip() for line in shown.getvalue().splitlines()]


def as_markdown(sections: Sequence[Section]) -> str:
    """Return the same as Markdown; the first title is that of the document."""
    parts = []
    for number, (title, blocks) in enumerate(sections):
        parts.append(f"{'##' if number else '#'} {_escaped(title)}")
        for block in blocks:
            if isinstance(block, str):
                parts.append(_escaped(block))
            elif isinstance(block, tuple):
                parts.append("\n".join(f"* {_escaped(item)}" for item in block))
            else:
                cells = block.rename(columns=_escaped).map(_escaped)
                parts.append(markdown_table(list(cells.columns), cells.itertuples(index=False), align="lr"))
    return "\n\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    return " ".join(re.sub(r"[\\*<]", r"\\\g<0>", text).split())


def sections(found: Findings, verdict: Verdict) -> list[Section]:
    """Return everything that ``print`` and Markdown show."""
    head: list[Block] = [f"verdict: {verdict.sentence}", f"data: {found.data}"]
    head += [found.change] if found.change else []
    head += [f"note: {note}" for note in found.notes]
    made = [(f"comparison of {found.model}, before and after its rewrite", head)]
    if found.equivalence:
        made.append(_equivalence(found.equivalence))
    if found.trained is not None:
        made.append(_trained(found.trained))
    if found.training is not None:
        made += [_training(found.training), _cost(found.training)]
    return made


def _table(rows: Iterable[Sequence[str]], *headings: str) -> pandas.DataFrame:
    return pandas.DataFrame(list(rows), columns=list(headings))


def _equivalence(found: Sequence[Equivalence]) -> Section:
    identical = {True: "yes", False: "no", None: "undecidable"}
    rows = [
        (
            item.name, str(item.images), identical[item.identical], small(item.max_difference),
            small(item.relative_difference), small(item.spread),
            _NONE if item.agreement is None else percentage(item.agreement),
        )
        for item in found
    ]  # fmt: skip
    headings = ("pass", "images", "bit-identical", "max |difference|", "relative", "own spread", "same prediction")
    images = counted(found[-1].images, "test image")
    return (f"output in evaluation mode, first {images}", [_culprits(found), _table(rows, *headings)])


def _culprits(found: Sequence[Equivalence]) -> str:
    alone = [item for item in found if item.name != ALL]
    changed, kept = ([item.name for item in alone if item.identical is same] for same in (False, True))
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
        parts.append(
            f"undecidable for {listed(item.name for item in unknown)}: the original, run twice, differs from itself by "
            f"up to {small(max(item.spread for item in unknown))}"
        )
    return "; ".join(parts)


def _trained(trained: Trained) -> Section:
    rows = []
    for name in dict.fromkeys((*trained.before, *trained.after)):
        values = before, after = trained.before.get(name, math.nan), trained.after.get(name, math.nan)
        unit = Unit.of(name, values)
        change = "equal" if before == after else unit.difference(after - before)[0]
        rows.append((unit.label, *(unit.number(value, unit.telling(values)) for value in values), change))
    title = "weights as created, not trained" if trained.as_created else "trained weights"
    blocks: list[Block] = [_table(rows, "metric", BEFORE, AFTER, _CHANGE)]
    blocks += _images(trained) if trained.rows else []
    return (f"{title}, {counted(len(trained.rows), 'test image')}", blocks)


def _images(trained: Trained) -> Iterator[Block]:
    rows, changed = trained.rows, []
    for row in trained.rows:
        if row.agreement < 1 and (row.before is None or row.after is None):
            changed.append(f"image {row.index}: {percentage(row.agreement)} of its predictions are the same")
        elif row.agreement < 1:
            target = "" if row.target is None else f" (target {row.target})"
            changed.append(f"image {row.index}: class {row.before} → {row.after}{target}")
    # NaN counts as the largest difference
    furthest = max(rows, key=lambda row: math.inf if math.isnan(row.max_difference) else row.max_difference)
    where = f" (image {furthest.index})" if furthest.max_difference != 0 else ""
    yield (
        f"same prediction: {percentage(sum(row.agreement for row in rows) / len(rows))}, {len(rows) - len(changed)} of "
        f"{len(rows)} images in full; largest |difference| of two outputs: {small(furthest.max_difference)}{where}"
    )
    if changed:
        more = len(changed) - _SHOWN_IMAGES
        yield (*changed[:_SHOWN_IMAGES], *([f"and {more} more images"] if more > 0 else []))
    judged = [row for row in rows if None not in (row.target, row.before, row.after)]
    only_before = sum(row.before == row.target != row.after for row in judged)
    only_after = sum(row.after == row.target != row.before for row in judged)
    if only_before or only_after:
        yield (
            f"right before and wrong after: {only_before}, wrong before and right after: {only_after} "
            f"(exact McNemar p = {discordance_p_value(only_before, only_after):.2g})"
        )


def _training(training: Training) -> Section:
    metrics = [name for run in training.runs if run.final for name in run.final.metrics]
    shown = dict.fromkeys((training.metric, *metrics, TEST_LOSS))
    better = "higher" if training.higher_is_better else "lower"
    blocks: list[Block] = [
        f"judged by {training.metric} in the last epoch, {better} is better; mean ± half-width of the 95 % t interval "
        "over the seeds that both arms finished, or (lowest to highest) of two seeds or where it would leave 0 to "
        "100 %; the other metrics are shown, not judged",
        _table((_metric_row(training, name) for name in shown), "metric", BEFORE, AFTER, _CHANGE, "95 % interval"),
        _seed_table(training),
    ]
    difference = difference_of(training, training.metric)
    if difference is not None and difference.bootstrap is not None:
        told = f"95 % bootstrap interval of after − before: {unit_of(training).interval(difference.bootstrap)}"
        if difference.p_value is not None:
            told += (
                f"; exact sign-flip p = {difference.p_value:.3g} ({difference.count} pairs cannot give less than "
                f"{difference.smallest_p_value:.3g})"
            )
        blocks.append(told)
    for title, data in (("recipe", training.recipe), ("environment", training.environment)):
        if data:
            blocks.append(f"{title}: {', '.join(f'{name} {value}' for name, value in data.items())}")
    return (f"training, {counted(len(set(training.seeds)), 'seed')} an arm", blocks)


def _metric_row(training: Training, name: str) -> tuple[str, ...]:
    unit, both, found = unit_of(training, name), training.final_values(name), difference_of(training, name)
    arms = []
    for number, arm in enumerate(ARMS):
        own = [value for run in training.runs_of(arm) if (value := run.value(name)) is not None]
        shared = [values[number] for values in both] or own
        arms.append(unit.mean(mean_interval(shared)) if shared else _NONE)
    if found is None:
        return (name, *arms, _NONE, _NONE)
    mean, interval = unit.difference(found.mean, found.interval)
    return (name, *arms, mean, interval or "one seed")


def _seed_table(training: Training) -> pandas.DataFrame:
    unit = unit_of(training)
    both = {pair.before.seed: values for pair in training.pairs if (values := pair.values(training.metric))}
    decimals = unit.telling(*both.values())
    of_changes = unit.decimals(None, [after - before for before, after in both.values()])
    cells = {}
    for run in training.runs:
        value = run.value(training.metric)
        why = "stopped" if run.stopped else run.failure(training.metric)
        cells[run.seed, run.arm] = why if value is None else unit.number(value, decimals)
    rows = []
    for seed in dict.fromkeys(training.seeds):
        before, after = both.get(seed, (0.0, 0.0))
        change = "equal" if before == after else unit.number(after - before, of_changes, sign=True)
        arms = (cells.get((seed, arm), "not run") for arm in ARMS)
        rows.append((str(seed), *arms, change if seed in both else _NONE))
    return _table(rows, f"seed ({unit.label})", BEFORE, AFTER, _CHANGE)


def _cost(training: Training) -> Section:
    def row(title: str, field: str) -> tuple[str, ...]:
        """Return median and range over the runs of each arm."""
        cells = []
        for arm in ARMS:
            values = pandas.Series([getattr(run, field) for run in training.runs_of(arm)], dtype=float).dropna()
            low, high, middle = (f"{value:.0f}" for value in (values.min(), values.max(), values.median()))
            cells.append(_NONE if values.empty else middle if low == high else f"{middle} ({low} to {high})")
        return (title, *cells)

    rows = [row("images a second, median of runs", "images_per_second"), row("peak memory, MB", "peak_megabytes")]
    rows.append(("all runs, s", *(f"{sum(run.seconds for run in training.runs_of(arm)):.0f}" for arm in ARMS)))
    blocks: list[Block] = [_table(rows, "", BEFORE, AFTER)]
    blocks += [ratio] if (ratio := _speed_ratio(training)) else []
    blocks.append("These figures vary with the machine, and from run to run with what else it does.")
    return ("cost of training", blocks)


def _speed_ratio(training: Training) -> str:
    """Return the training speed of after relative to before; empty if runs are too few or too short."""
    ratios = [
        math.log(pair.after.images_per_second / pair.before.images_per_second)
        for pair in training.pairs
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
    mean, low, high = (f"{math.exp(end):.2f}" for end in (found.mean, found.interval.low, found.interval.high))
    return f"after trains at {mean} times the speed of before (95 % interval {low} to {high})"
