"""Results of a comparison as data: equivalence, trained weights, and each training run with its learning curve."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, ClassVar, TypeVar, cast

from pydantic import BeforeValidator, TypeAdapter, ValidationError

T = TypeVar("T")
_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)

BEFORE, AFTER = ARMS = ("before", "after")
ALL = "all"
"""Name of the row of equivalence for all passes together."""

TEST_LOSS = "test_loss"
"""Name of the loss when it is used as the metric."""

_NOT_FINITE = ("nan", "inf", "-inf")
"""Written as these strings, since JSON has no such numbers."""

Number = Annotated[float, BeforeValidator(lambda value: float(value) if value in _NOT_FINITE else value)]


class _Checked:
    """Types are validated on reading; missing fields take their default, unknown ones are refused."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}


@dataclass(frozen=True)
class Epoch(_Checked):
    """Measurements after one epoch.

    Attributes:
        number: from 1; epoch 0 is the model before training.
        train_loss: mean over the epoch's batches; None for epoch 0.
        test_loss: mean over the test images.
        metrics: on the test images, by name, the judged one first.
    """

    number: int
    train_loss: Number | None
    test_loss: Number
    metrics: dict[str, Number]

    def value(self, metric: str) -> float | None:
        """Return a metric, or the test loss; None if it was not measured or is not finite."""
        found = self.metrics.get(metric, self.test_loss if metric == TEST_LOSS else None)
        return found if found is not None and math.isfinite(found) else None


@dataclass(frozen=True)
class Run(_Checked):
    """One arm trained with one seed.

    Attributes:
        arm: ``"before"`` or ``"after"``.
        seed: of initial weights, data order, augmentation and the model's own random numbers.
        epochs: the learning curve, without epochs that a stopped run did not reach.
        stopped: where and why the run ended early (a loss that is not finite); empty if it did not.
        images_per_second: median over the training steps after the first few; None if there were none.
        peak_megabytes: peak memory of training beyond what was held before it: of the device on CUDA, of the process
            otherwise; None if the system does not report it.
        seconds: of the whole run.
        seen: a checksum of the training batches of each whole epoch, to verify that both arms saw the same.
    """

    arm: str
    seed: int
    epochs: tuple[Epoch, ...]
    stopped: str = ""
    images_per_second: Number | None = None
    peak_megabytes: Number | None = None
    seconds: Number = 0.0
    seen: tuple[str, ...] = ()

    @property
    def final(self) -> Epoch | None:
        """The last epoch of a run that was not stopped."""
        return None if self.stopped or not self.epochs else self.epochs[-1]

    def value(self, metric: str) -> float | None:
        """Return the value in the last epoch; None for a run that was stopped or whose value is not finite."""
        return None if self.final is None else self.final.value(metric)

    def failure(self, metric: str) -> str:
        """Return why the run has no final value; empty if it has one."""
        return "" if self.value(metric) is not None else self.stopped or f"no finite {metric} in the last epoch"


@dataclass(frozen=True)
class Pair:
    """Both runs of one seed that ended, finished or stopped."""

    before: Run
    after: Run

    @property
    def same_batches(self) -> bool:
        """Whether both arms saw the same training batches, for as long as both ran."""
        return all(ours == theirs for ours, theirs in zip(self.before.seen, self.after.seen, strict=False))

    def values(self, metric: str) -> tuple[float, float] | None:
        """Return both final values; None if one is missing."""
        before, after = self.before.value(metric), self.after.value(metric)
        return None if before is None or after is None else (before, after)


@dataclass(frozen=True)
class Training(_Checked):
    """Both arms trained under one recipe with the same seeds.

    Attributes:
        metric: name of the judged metric.
        higher_is_better: its direction.
        seeds: those requested.
        runs: finished and stopped ones, ordered by seed and arm; some may be missing after an interrupt.
        recipe: how they were trained, as plain data: the fields that had an effect, and the user's own objects.
        environment: versions, device, number of threads and processes.
        test_images: their number; None if unknown.
    """

    metric: str
    higher_is_better: bool
    seeds: tuple[int, ...]
    runs: tuple[Run, ...]
    recipe: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    test_images: int | None = None

    def runs_of(self, arm: str) -> list[Run]:
        """Return the runs of one arm."""
        return [run for run in self.runs if run.arm == arm]

    @property
    def pairs(self) -> list[Pair]:
        """Both runs of each seed, in order, without seeds of which a run is missing."""
        before, after = ({run.seed: run for run in self.runs_of(arm)} for arm in ARMS)
        return [Pair(before[s], after[s]) for s in dict.fromkeys(self.seeds) if s in before and s in after]

    def values(self, metric: str) -> list[float]:
        """Return all finite values of all epochs of all runs."""
        found = [epoch.value(metric) for run in self.runs for epoch in run.epochs]
        return [value for value in found if value is not None]

    def final_values(self, metric: str) -> list[tuple[float, float]]:
        """Return before and after for each seed that both arms finished."""
        return [both for pair in self.pairs if (both := pair.values(metric)) is not None]


@dataclass(frozen=True)
class Equivalence(_Checked):
    """Eval outputs of a rewritten model compared with those of the original on the same images.

    Attributes:
        name: the pass that was applied alone, or ``"all"``.
        images: how many images both models saw.
        identical: whether all outputs are equal bit for bit; None if the original, run twice, differs from itself.
        max_difference: largest |difference| of two outputs.
        relative_difference: the same relative to the largest |output| of the original.
        spread: largest |difference| between the original's outputs in two runs.
        agreement: fraction of the images (segmentation: pixels) with the same prediction, in [0, 1]; None if the output
            has no classes.
        not_finite: number of images whose outputs are not all finite, for the original and for the rewritten model.
    """

    name: str
    images: int
    identical: bool | None
    max_difference: Number
    relative_difference: Number
    spread: Number
    agreement: Number | None
    not_finite: tuple[int, ...] = (0, 0)


@dataclass(frozen=True)
class ImageRow(_Checked):
    """The predictions of both models for one test image.

    Attributes:
        index: its index in the test images.
        target: its class; None for segmentation and multi-label.
        before, after: the top prediction of each model; None as for ``target``.
        max_difference: largest |difference| of the two models' outputs.
        agreement: fraction of equal predictions (1 or 0 for classification, pixels for segmentation).
    """

    index: int
    target: int | None
    before: int | None
    after: int | None
    max_difference: Number
    agreement: Number


@dataclass(frozen=True)
class Trained(_Checked):
    """Metrics of a model with its present weights, before and after, on the same test images.

    Attributes:
        before, after: metrics by name, the judged one first.
        rows: one per image, in order.
        as_created: whether the weights are those drawn by the constructor, so that the metrics are at chance level.
    """

    before: dict[str, Number]
    after: dict[str, Number]
    rows: tuple[ImageRow, ...]
    as_created: bool = False


@dataclass(frozen=True)
class Findings(_Checked):
    """The fields of :class:`rewriter.Comparison`."""

    model: str
    change: tuple[str, ...]
    data: str
    equivalence: tuple[Equivalence, ...] = ()
    trained: Trained | None = None
    training: Training | None = None
    notes: tuple[str, ...] = ()


def to_plain(value: Any) -> Any:
    """Convert a dataclass, or a list of them, to JSON data."""
    return json.loads(json.dumps(value, default=dataclasses.asdict), parse_constant=lambda name: str(float(name)))


def from_plain(kind: type[T], data: Any) -> T:
    """Return the object of this class that :func:`to_plain` converted.

    Raises:
        ValueError: the data do not fit; names the field.
    """
    try:
        return cast(T, _adapter(kind).validate_json(json.dumps(data)))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, (kind.__name__, *problem["loc"])))
        raise ValueError(f"{where}: {problem['msg']}, found {problem['input']!r:.80}") from error
