"""What a comparison found: equivalence, trained weights, training, and the verdict in words."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rewriter.comparison.data import ComparisonData, ImageRow
from rewriter.comparison.plain import decode, encode
from rewriter.comparison.sections import sections
from rewriter.comparison.tables import markdown, plain_text
from rewriter.comparison.verdict import Outcome, Verdict, judge
from rewriter.comparison.without_training import sentence
from rewriter.errors import ComparisonError

FORMAT = 1
"""Version of the JSON form."""

_KIND = "rewriter comparison"
_TIMING = ("images_per_second", "peak_megabytes", "seconds")


@dataclass(frozen=True)
class Comparison(ComparisonData):
    """Before and after, at up to three levels. ``print`` shows the verdict first, then what it rests on.

    Text and verdict need scipy once there are runs; without it they raise a :class:`~rewriter.ComparisonError`.

    Attributes:
        model: name of the model, or of its class.
        change: what the rewrite did, one line a pass.
        data: name of the data and the numbers of train and test images.
        equivalence: each pass alone, then all together; empty if not asked for.
        trained: None if not asked for, or if the model carries no trained weights.
        training: None if not asked for.
        notes: what the reader has to know (what was left out, and why).
    """

    @property
    def verdict(self) -> Verdict:
        """Whether the rewrite helped in training; if nothing was trained undecided, with what else was found."""
        if self.training is None:
            return Verdict(Outcome.UNDECIDED, sentence(self.equivalence, self.trained))
        return judge(self.training)

    def __str__(self) -> str:
        return plain_text(sections(self, self.verdict))

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))  # what a notebook shows

    def to_markdown(self) -> str:
        """What ``print`` shows, as Markdown."""
        return markdown(sections(self, self.verdict))

    def to_json(self, *, timing: bool = True) -> str:
        """The comparison as JSON text, with its verdict.

        Args:
            timing: with throughput, memory and time under the key ``timing``. Without them, two runs of one command on
                one machine give the same text as far as training there repeats itself.
        """
        data = encode(self)
        spent = []
        for run in (data["training"] or {"runs": []})["runs"]:
            spent.append({"arm": run["arm"], "seed": run["seed"], **{name: run.pop(name) for name in _TIMING}})
        verdict = encode(self.verdict)
        data = {"kind": _KIND, "format": FORMAT, "verdict": verdict, **data}
        if timing:
            data["timing"] = spent
        return json.dumps(data, indent=1, allow_nan=False) + "\n"

    @staticmethod
    def from_json(text: str) -> Comparison:
        """The comparison that :meth:`to_json` wrote; timing that was left out is None or 0.

        The verdict in the text is not read: it follows from the runs. Nothing in the text is executed or imported.

        Raises:
            ComparisonError: the text is not a comparison, damaged, or of another format.
        """
        try:
            data = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise ComparisonError(f"the comparison is damaged: not JSON ({error})") from error
        if not isinstance(data, dict) or data.get("kind") != _KIND or data.get("format") != FORMAT:
            found = (
                {key: data.get(key) for key in ("kind", "format")} if isinstance(data, dict) else type(data).__name__
            )
            raise ComparisonError(f"expected a {_KIND} of format {FORMAT}, found {found}")
        names = {item.name for item in dataclasses.fields(Comparison)}
        kept = {name: value for name, value in data.items() if name not in ("kind", "format", "verdict", "timing")}
        try:
            for spent in data.get("timing", ()):
                for run in kept["training"]["runs"]:
                    if (run["arm"], run["seed"]) == (spent["arm"], spent["seed"]):
                        run.update({name: spent[name] for name in _TIMING})
            return decode(Comparison, kept)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ComparisonError(f"the comparison is damaged: {error}. Expected the fields {sorted(names)}") from error

    def to_csv(self) -> str:
        """The runs as CSV: a row for each arm, seed and epoch, in the order of the runs; numbers in full, no timing.

        Columns are ``arm``, ``seed``, ``epoch``, ``train_loss``, ``test_loss``, each metric, and ``stopped`` (why the
        run ended early, on each of its rows).

        Raises:
            ComparisonError: no training was compared.
        """
        if self.training is None:
            raise ComparisonError("there are no runs to write: no training was compared")
        names = list(
            dict.fromkeys(name for run in self.training.runs for epoch in run.epochs for name in epoch.metrics)
        )
        rows: list[Sequence[Any]] = []
        for run in self.training.runs:
            for epoch in run.epochs:
                metrics = [epoch.metrics.get(name) for name in names]
                rows.append((run.arm, run.seed, epoch.number, epoch.train_loss, epoch.test_loss, *metrics, run.stopped))
            if not run.epochs:
                rows.append((run.arm, run.seed, None, None, None, *(None for _ in names), run.stopped))
        return _csv(("arm", "seed", "epoch", "train_loss", "test_loss", *names, "stopped"), rows)

    def images_to_csv(self) -> str:
        """The test images as CSV, one a row, with the fields of :class:`ImageRow`.

        Raises:
            ComparisonError: no trained weights were compared.
        """
        if self.trained is None:
            raise ComparisonError("there are no images to write: no trained weights were compared")
        names = [item.name for item in dataclasses.fields(ImageRow)]
        return _csv(names, ([getattr(row, name) for name in names] for row in self.trained.rows))


def _csv(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Numbers as Python writes them, so that none of their digits is lost; empty where there is none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(headings)
    writer.writerows(rows)
    return text.getvalue()
