"""One training run of one arm: its learning curve and its cost."""

from __future__ import annotations

from dataclasses import dataclass

BEFORE, AFTER = "before", "after"
ARMS = (BEFORE, AFTER)


@dataclass(frozen=True)
class Epoch:
    """What was measured after one epoch.

    Attributes:
        number: from 1; epoch 0 is the model before training.
        train_loss: mean over the epoch's batches; None for epoch 0.
        test_loss: mean over the test images.
        metrics: of the test images, by name, the one that is judged first.
    """

    number: int
    train_loss: float | None
    test_loss: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class Run:
    """One arm trained with one seed.

    Attributes:
        arm: ``"before"`` or ``"after"``.
        seed: of initial weights, data order, augmentation and the model's own random numbers.
        epochs: the learning curve, without the epochs that a stopped run did not reach.
        stopped: where and why the run ended early (a loss that is not finite); empty if it did not.
        images_per_second: median over the training steps after the first few; None if there was none.
        peak_megabytes: the most memory that training held beyond what was held before it: of the device on CUDA, of
            the process otherwise; None where the system cannot tell.
        seconds: of the whole run.
        seen: a checksum of the training batches of each whole epoch, which tells whether both arms saw the same.
    """

    arm: str
    seed: int
    epochs: tuple[Epoch, ...]
    stopped: str = ""
    images_per_second: float | None = None
    peak_megabytes: float | None = None
    seconds: float = 0.0
    seen: tuple[str, ...] = ()

    @property
    def final(self) -> Epoch | None:
        """The last epoch of a run that was not stopped."""
        return None if self.stopped or not self.epochs else self.epochs[-1]
