"""The result of a comparison: equivalence, trained weights, training, and the verdict in words."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from rewriter.comparison.findings import Findings, ImageRow, from_plain, to_plain
from rewriter.comparison.report import as_markdown, as_text, sections
from rewriter.comparison.verdict import Outcome, Verdict, judge, without_training
from rewriter.errors import ComparisonError

FORMAT = 1
"""Version of the JSON format."""

_KIND = "rewriter comparison"
_TIMING = ("images_per_second", "peak_megabytes", "seconds")


@dataclass(frozen=True)
class Comparison(Findings):
    """Before and after, at up to three levels. ``print`` shows the verdict first, then the evidence.

    Attributes:
        model: name of the model, or of its class.
        change: what the rewrite did, one line per pass.
        data: name of the data and the numbers of training and test images.
        equivalence: each pass alone, then all together; empty if not requested.
        trained: None if not requested, or if the model has no trained weights.
        training: None if not requested.
        notes: what the reader has to know (what was left out, and why).
    """

    @property
    def verdict(self) -> Verdict:
        """Whether the rewrite helped in training; undecided, with the other findings, if nothing was trained."""
        if self.training is None:
            return Verdict(Outcome.UNDECIDED, without_training(self.equivalence, self.trained))
        return judge(self.training)

    def __str__(self) -> str:
        return as_text(sections(self, self.verdict))

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))  # shown by a notebook

    def to_markdown(self) -> str:
        """Return what ``print`` shows, as Markdown."""
        return as_markdown(sections(self, self.verdict))

    def to_json(self, *, timing: bool = True) -> str:
        """Return the comparison as JSON text, with its verdict.

        Args:
            timing: include throughput, memory and time under the key ``timing``. Without them, two runs of one command
                on one machine give the same text, as far as training there is deterministic.
        """
        data = {"kind": _KIND, "format": FORMAT, "verdict": to_plain(self.verdict), **to_plain(self)}
        runs = data["training"]["runs"] if data["training"] else []
        spent = [{key: run[key] for key in ("arm", "seed", *_TIMING)} for run in runs]
        for run in runs:
            for key in _TIMING:
                del run[key]
        if timing:
            data["timing"] = spent
        return json.dumps(data, indent=1, allow_nan=False) + "\n"

    @staticmethod
    def from_json(text: str) -> Comparison:
        """Return the comparison that :meth:`to_json` wrote; omitted timing is None or 0.

        The verdict in the text is ignored: it is derived from the runs. Nothing in the text is executed or imported.

        Raises:
            ComparisonError: the text is not a comparison, is damaged, or has another format version.
        """
        try:
            data = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise ComparisonError(f"the comparison is damaged: not JSON ({error})") from error
        told = {key: data.pop(key, None) for key in ("kind", "format")} if isinstance(data, dict) else type(data)
        if told != {"kind": _KIND, "format": FORMAT}:
            raise ComparisonError(f"expected a {_KIND} of format {FORMAT}, found {told}")
        try:
            timing = {(spent["arm"], spent["seed"]): spent for spent in data.pop("timing", ())}
            data.pop("verdict", None)
            for run in data["training"]["runs"] if timing else ():
                run.update(timing.get((run["arm"], run["seed"]), {}))
            return from_plain(Comparison, data)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            names = sorted(item.name for item in dataclasses.fields(Comparison))
            raise ComparisonError(f"the comparison is damaged: {error}. Expected the fields {names}") from error

    def to_csv(self) -> str:
        """Return the runs as CSV: a row per arm, seed and epoch, in run order; numbers at full precision, no timing.

        Columns are ``arm``, ``seed``, ``epoch``, ``train_loss``, ``test_loss``, each metric, and ``stopped`` (why the
        run ended early, in each of its rows).

        Raises:
            ComparisonError: no training was compared.
        """
        if self.training is None:
            raise ComparisonError("there are no runs to write: no training was compared")
        runs = to_plain(self.training.runs)
        losses = ("train_loss", "test_loss")
        names = dict.fromkeys(name for run in runs for epoch in run["epochs"] for name in epoch["metrics"])
        rows = [
            (
                run["arm"], run["seed"], *map(epoch.get, ("number", *losses)),
                *map(epoch.get("metrics", {}).get, names), run["stopped"],
            )
            for run in runs
            for epoch in run["epochs"] or [{}]
        ]  # fmt: skip
        return _csv(("arm", "seed", "epoch", *losses, *names, "stopped"), rows)

    def images_to_csv(self) -> str:
        """Return the test images as CSV, one per row, with the fields of :class:`ImageRow`.

        Raises:
            ComparisonError: no trained weights were compared.
        """
        if self.trained is None:
            raise ComparisonError("there are no images to write: no trained weights were compared")
        return _csv([item.name for item in dataclasses.fields(ImageRow)], to_plain(self.trained.rows))


def _csv(columns: Any, rows: Any) -> str:
    """Write numbers at full precision; empty cells where there is none."""
    import pandas

    text: str = pandas.DataFrame(rows, columns=list(columns), dtype=object).to_csv(index=False)
    return text
