"""What it costs to record a plan once more: the edited model, and every other way that leads to an edit.

    python benchmarks/recording_again.py [MODEL ...] [--rounds N]

One thread, one process, models on meta, all six passes. Shown are medians in milliseconds of planning without it (trace
and passes) and of recording again, and their ratio; for models up to 30 M parameters also its share of a whole rewrite,
which runs the model with its weights before and after.
"""

from __future__ import annotations

import argparse
import statistics
import warnings

import timm
import torch
from compile_time import MODELS
from rich.progress import track

import rewriter
from rewriter.planning.make import make_plan
from rewriter.reporting.tables import markdown_table

WHOLE = 30e6
"""Parameters up to which a whole rewrite is timed: above, verifying takes minutes on one thread."""


def planned(name: str, rounds: int) -> tuple[float, float]:
    """Medians in milliseconds of planning without recording again, and of recording again."""
    with torch.device("meta"):
        model = timm.create_model(name)
    seconds = [make_plan(model, None)[2] for _ in range(rounds + 1)][1:]
    before = statistics.median(1000 * (step["trace"] + step["plan"]) for step in seconds)
    return before, statistics.median(1000 * step["record again"] for step in seconds)


def share_of_rewrite(name: str) -> float | None:
    """The share of recording again in one rewrite of a model with its weights; None for large ones."""
    model = timm.create_model(name)
    if sum(parameter.numel() for parameter in model.parameters()) > WHOLE:
        return None
    seconds = rewriter.report(rewriter.rewrite(model)).records[-1].seconds
    return seconds["record again"] / sum(seconds.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    for name in track(arguments.models, "recording again"):
        before, again = planned(name, arguments.rounds)
        share = share_of_rewrite(name)
        whole = "–" if share is None else f"{100 * share:.1f} %"
        rows.append([name, f"{before:.0f}", f"{again:.0f}", f"{again / before:.2f}", whole])
    header = ["model", "trace and passes, ms", "recorded again, ms", "ratio", "share of a rewrite"]
    print(markdown_table(header, rows, "lr"))


if __name__ == "__main__":
    main()
