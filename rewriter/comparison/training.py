"""Train one arm with one seed, and measure it after every epoch."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from rewriter.calibration import calibrate
from rewriter.comparison.loading import Data
from rewriter.comparison.randomness import batches, seed_all, seed_of_model
from rewriter.comparison.recipe import Recipe
from rewriter.comparison.run import Epoch, Run
from rewriter.comparison.scoring import Scoring
from rewriter.guard import random_state_kept
from rewriter.layers import calibrated_layers
from rewriter.memory import PeakMemory
from rewriter.optimizer_groups import param_groups
from rewriter.record import records_of

OptimizerFactory = Callable[[nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class Setting:
    """What all runs of a comparison share.

    Attributes:
        data, scoring, recipe: as their names say.
        accelerator: an ``accelerate.Accelerator``: device and mixed precision.
        optimizer: the user's own ``optimizer(model)``; None for that of the recipe.
    """

    data: Data
    scoring: Scoring
    recipe: Recipe
    accelerator: Any
    optimizer: OptimizerFactory | None = None


def train(model: nn.Module, arm: str, seed: int, setting: Setting, advance: Callable[[], None]) -> Run:
    """Train ``model`` in place, and measure it before the first and after every epoch.

    Data order, augmentation and the numbers that the model draws depend on ``seed`` alone. A loss that is not finite
    ends the run. The generators of the process are put back.

    Args:
        model: with its initial weights; moved to the device of the setting.
        arm: ``"before"`` or ``"after"``.
        seed: of everything random.
        setting: what all runs share.
        advance: called after every training step.
    """
    started = time.perf_counter()
    with random_state_kept():
        seed_all(seed_of_model(seed))
        try:
            return _Training(model, arm, seed, setting, advance).run(started)
        finally:
            setting.accelerator.free_memory()


class _Training:
    def __init__(self, model: nn.Module, arm: str, seed: int, setting: Setting, advance: Callable[[], None]) -> None:
        self.arm, self.seed, self.setting, self.advance = arm, seed, setting, advance
        accelerator = setting.accelerator
        model.to(accelerator.device)
        _calibrate(model, seed, setting)
        self.model = model  # not prepared by accelerate: no wrapper, each process trains runs of its own
        self.optimizer = accelerator.prepare_optimizer(_optimizer(model, setting))
        assert setting.data.train is not None
        self.steps_an_epoch: int = len(setting.data.train)  # type: ignore[arg-type]
        self.scheduler = _scheduler(self.optimizer.optimizer, setting.recipe, self.steps_an_epoch)
        self.seconds: list[float] = []
        self.images: list[int] = []

    def run(self, started: float) -> Run:
        memory = PeakMemory(self.setting.accelerator.device)
        epochs = [self._tested(0, None)]
        stopped = ""
        for number in range(1, self.setting.recipe.epochs + 1):
            loss, stopped = self._epoch(number)
            if stopped:
                break
            epochs.append(self._tested(number, loss))
            if not math.isfinite(epochs[-1].test_loss):
                stopped = f"test loss {epochs[-1].test_loss} after epoch {number}"
                epochs.pop()
                break
        rates = [images / seconds for images, seconds in zip(self.images, self.seconds, strict=True)]
        speed = round(statistics.median(rates), 1) if rates else None
        seconds = round(time.perf_counter() - started, 2)
        return Run(self.arm, self.seed, tuple(epochs), stopped, speed, memory.megabytes(), seconds)

    def _epoch(self, number: int) -> tuple[float, str]:
        """Mean loss of the batches, and why training cannot go on."""
        setting, accelerator = self.setting, self.setting.accelerator
        assert setting.data.train is not None
        self.model.train()
        total = torch.zeros((), dtype=torch.float64)
        step = 0
        for step, (images, targets) in enumerate(batches(setting.data.train, self.seed, number), start=1):
            began = time.perf_counter()
            if self.scheduler is not None:
                self.scheduler.step_update((number - 1) * self.steps_an_epoch + step - 1)
            images, targets = _moved((images, targets), accelerator.device)
            with accelerator.autocast():
                loss = setting.scoring.loss(self.model(images), targets)
            value = loss.detach().double().cpu()  # waits for the device
            if not torch.isfinite(value):
                return math.nan, f"loss {value.item()} in epoch {number}, step {step}"
            self.optimizer.zero_grad()
            accelerator.backward(loss)
            if setting.recipe.clip_grad is not None:
                accelerator.clip_grad_norm_(self.model.parameters(), setting.recipe.clip_grad)
            self.optimizer.step()
            total += value
            self.seconds.append(time.perf_counter() - began)
            self.images.append(len(images))
            self.advance()
        return (total / max(step, 1)).item(), ""

    def _tested(self, number: int, train_loss: float | None) -> Epoch:
        loss, metrics = test(self.model, self.setting)
        return Epoch(number, train_loss, loss, metrics)


@torch.no_grad()
def test(model: nn.Module, setting: Setting) -> tuple[float, dict[str, float]]:
    """Mean loss over the test images, and their metrics, in evaluation mode; the mode is put back."""
    training = model.training
    model.eval()
    device = setting.accelerator.device
    metrics = {name: metric.to(device) for name, metric in setting.scoring.metrics().items()}
    total, number = torch.zeros((), dtype=torch.float64), 0
    for images, targets in setting.data.test:
        images, targets = _moved((images, targets), device)
        with setting.accelerator.autocast():
            output = model(images)
        logits = setting.scoring.logits(output, targets).float()
        total += setting.scoring.loss(output, targets).double().cpu() * len(images)
        number += len(images)
        for metric in metrics.values():
            metric.update(logits, targets)
    model.train(training)
    return (total / max(number, 1)).item(), {name: float(metric.compute()) for name, metric in metrics.items()}


def _moved(values: tuple[Any, Any], device: torch.device) -> tuple[Any, Any]:
    return tuple(value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value for value in values)  # type: ignore[return-value]


def _calibrate(model: nn.Module, seed: int, setting: Setting) -> None:
    """Measure the constants of scale equalizers on the first training batches, as a user would before training."""
    layers = calibrated_layers(model)
    if layers and not all(layer.calibrated for layer in layers.values()):
        images = [
            batch[0]
            for _, batch in zip(
                range(setting.recipe.calibration_batches), batches(setting.data.train or (), seed, 0), strict=False
            )
        ]
        calibrate(model, images, progress=False, all_ranks=False)


def _optimizer(model: nn.Module, setting: Setting) -> torch.optim.Optimizer:
    if setting.optimizer is not None:
        return setting.optimizer(model)
    from timm.optim import create_optimizer_v2

    recipe = setting.recipe
    by_place = any(name == "weight-decay" for record in records_of(model) for name, _ in record.plan.passes)
    options: dict[str, Any] = {}
    if by_place:
        options["param_group_fn"] = partial(param_groups, weight_decay=recipe.weight_decay)
    found: torch.optim.Optimizer = create_optimizer_v2(
        model, recipe.optimizer, recipe.lr, recipe.weight_decay, **options
    )
    return found


def _scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, steps_an_epoch: int) -> Any:
    """A scheduler of timm that counts steps; None for a constant learning rate."""
    if recipe.schedule == "none":
        return None
    from timm.scheduler import create_scheduler_v2

    lowest = recipe.lr / 100
    rise: Any = recipe.warmup * recipe.epochs
    return create_scheduler_v2(
        optimizer, recipe.schedule, num_epochs=recipe.epochs, updates_per_epoch=steps_an_epoch, step_on_epochs=False,
        warmup_epochs=rise, warmup_lr=lowest, min_lr=lowest,
    )[0]  # fmt: skip
