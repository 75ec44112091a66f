"""What the runs of ``dropout_places.py`` say, as tables and figure of docs/dropout-places.md and of the README."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dropout_places import FEW_IMAGES, POST, PRE, TWINS, Arm

from rewriter.comparison.statistics import Difference, mean_interval, paired_difference
from rewriter.reporting.tables import markdown_table

ROOT = Path(__file__).parent.parent
MEASURED = ROOT / "benchmarks" / "results" / "dropout_places.json"
FIGURE = ROOT / "docs" / "figures" / "dropout_places.svg"

PAPER = {
    "P0": (-9.41, -23.09), "P1": (-0.74, -0.48), "P2": (-0.47, -0.34), "P3": (-0.08, -0.22), "P4": (-0.44, -0.14),
    "P5": (0.17, 0.41), "P6": (0.02, 0.19), "P7": (0.12, 0.24),
}  # fmt: skip
"""The paper's Table 1, CIFAR-10: difference to no dropout of PreResNet-50 and -110, in points."""

MISPLACED = {
    "P0": "after the sum, on the trunk (P0)",
    "P1": "at the start of the branch (P1)",
    "P4": "behind the first convolution (P4)",
    "P7": "behind the last convolution (P7)",
}
"""Where people put it, in words."""

Scores = dict[str, dict[int, float]]
"""By arm and seed, the share of the test images that are right, in percent."""


def write(rows: list[dict[str, Any]] | None) -> None:
    """Tables and figure, of new runs or, if there are none, of those that were kept."""
    if rows is not None:
        keep(rows)
    found = scores(json.loads(MEASURED.read_text(encoding="utf-8")))
    tables = [
        by_place(found),
        after_rewriting(found),
        against_none(found, "ResNet v1", Arm(POST), [Arm(POST, "before-last-weight"), Arm(POST, "end-of-branch")]),
        heads(found),
        against_none(
            found, "1000 training images, 60 epochs", Arm(PRE, "", FEW_IMAGES),
            [Arm(PRE, place, FEW_IMAGES) for place in ("P6", "H4", "H5")],
        ),
    ]  # fmt: skip
    replace_section(ROOT / "docs" / "dropout-places.md", "dropout-places", "\n\n".join(filter(None, tables)))
    replace_section(ROOT / "README.md", "dropout-places", after_rewriting(found).split("\n\n", 1)[1])
    draw(found)


def keep(rows: Iterable[dict[str, Any]]) -> None:
    """The verdicts of ``rows``, without their epochs, into the file that the project keeps."""
    kept = sorted(
        ({name: row[name] for name in ("arm", "seed", "stopped", "test", "seconds")} for row in rows),
        key=lambda row: (row["arm"], row["seed"]),
    )
    MEASURED.parent.mkdir(exist_ok=True)
    MEASURED.write_text("[\n" + ",\n".join(map(json.dumps, kept)) + "\n]\n", encoding="utf-8")


def scores(rows: Iterable[dict[str, Any]]) -> Scores:
    """Of the runs that came to their end."""
    found: Scores = {}
    for row in rows:
        if not row["stopped"]:
            found.setdefault(row["arm"], {})[row["seed"]] = 100 * row["test"]["top1"]
    return found


def by_place(found: Scores) -> str:
    """Every place of a pre-activation block, against no dropout: the shape of the paper's Table 1."""
    lines = []
    for place, paper in PAPER.items():
        if place not in TWINS and (difference := between(found, Arm(PRE), Arm(PRE, place))):
            beside = " / ".join(f"{value:+.2f}" for value in paper)
            lines.append([place, score(found, Arm(PRE, place)), interval(difference), beside])
    none = score(found, Arm(PRE))
    header = ["place", "top-1, %", f"against none ({none} %)", "paper: PreResNet-50 / -110"]
    return "**Pre-activation ResNet, a dropout of 0.2 in every block**\n\n" + markdown_table(header, lines, "lr")


def after_rewriting(found: Scores) -> str:
    """What the rewrite wins back: the rewritten model trains to the last bit as the one with its dropout at P6."""
    lines = []
    for place, words in MISPLACED.items():
        if difference := between(found, Arm(PRE, place), Arm(PRE, "P6")):
            lines.append([words, score(found, Arm(PRE, place)), score(found, Arm(PRE, "P6")), interval(difference)])
    header = ["the user's dropout of 0.2 stands", "before, %", "after `rewrite`, %", "after − before, points"]
    return "**The same network, before and after `rewrite`**\n\n" + markdown_table(header, lines, "lr")


def heads(found: Scores) -> str:
    """A dropout before and behind the head's pooling, on both networks."""
    tables = [
        against_none(found, f"Head of the {name} ResNet", Arm(model), [Arm(model, "H4"), Arm(model, "H5")])
        for name, model in (("pre-activation", PRE), ("post-activation", POST))
    ]
    return "\n\n".join(filter(None, tables))


def against_none(found: Scores, title: str, none: Arm, arms: Sequence[Arm]) -> str:
    """A table of ``arms`` against ``none``, and of the last against the first of them."""
    lines = []
    for arm in arms:
        if difference := between(found, none, arm):
            lines.append([arm.place, score(found, arm), interval(difference)])
    if not lines:
        return ""
    if len(arms) == 2 and (difference := between(found, arms[1], arms[0])):
        lines.append([f"{arms[0].place} against {arms[1].place}", "", interval(difference)])
    header = ["dropout of 0.2", "top-1, %", f"against none ({score(found, none)} %)"]
    return f"**{title}**\n\n" + markdown_table(header, lines, "lr")


def between(found: Scores, before: Arm, after: Arm) -> Difference | None:
    """After − before over the seeds that both have; None if they share less than two."""
    one, other = found.get(str(before), {}), found.get(str(after), {})
    seeds = sorted(one.keys() & other.keys())
    if len(seeds) < 2:
        return None
    return paired_difference([one[seed] for seed in seeds], [other[seed] for seed in seeds])


def score(found: Scores, arm: Arm) -> str:
    return f"{statistics.mean(found[str(arm)].values()):.2f}"


def interval(difference: Difference) -> str:
    assert difference.interval is not None
    low, high = difference.interval.low, difference.interval.high
    return f"{difference.mean:+.2f} ({low:+.2f} to {high:+.2f})"


def draw(found: Scores) -> None:
    """Every place against no dropout: the mean over seeds with its interval, and each seed."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "rewriter", "axes.spines.top": False, "axes.spines.right": False})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    places = [
        place for place in (*PAPER, "H4", "H5") if place not in TWINS and between(found, Arm(PRE), Arm(PRE, place))
    ]
    for number, place in enumerate(places):
        difference = between(found, Arm(PRE), Arm(PRE, place))
        assert difference is not None
        half_width = mean_interval(difference.differences).half_width
        colour = "tab:green" if place in ("P5", "P6", "H4") else "tab:grey"
        axes.plot([number] * difference.count, difference.differences, ".", color=colour, alpha=0.4)
        axes.errorbar(number, difference.mean, yerr=half_width, fmt="o", color=colour, capsize=4)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(places)), places)
    axes.set_ylabel("top-1 against no dropout, points")
    axes.set_title(
        "Dropout of 0.2 in a pre-activation ResNet; green: where the guideline has it", fontsize=10, loc="left"
    )
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, metadata={"Date": None})


def replace_section(file: Path, name: str, text: str) -> None:
    """Put ``text`` between ``<!-- name -->`` and ``<!-- end of name -->``.

    Raises:
        ValueError: the file has no such section.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    old = file.read_text(encoding="utf-8")
    new, count = re.subn(
        f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n{text}\n{end}", old, count=1, flags=re.DOTALL
    )
    if not count:
        raise ValueError(f"{file} has no section {begin} … {end}")
    file.write_text(new, encoding="utf-8")
