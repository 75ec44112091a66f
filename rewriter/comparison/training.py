"""Train one arm with one seed, and measure it after every epoch."""

from __future__ import annotations

import inspect
import itertools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn

from rewriter.comparison.findings import Epoch, Run
from rewriter.comparison.identity import checksum
from rewriter.comparison.loading import Data, pair_of
from rewriter.comparison.randomness import batches, seed_of_model
from rewriter.comparison.recipe import Recipe
from rewriter.comparison.scoring import Scoring, computed, in_type_of
from rewriter.constants.calibration import calibrate
from rewriter.data.source import Task
from rewriter.errors import ComparisonError, DataError
from rewriter.layers.registry import calibrated_layers
from rewriter.model.random_state import random_state_kept, seed_all
from rewriter.optimizer.groups import param_groups
from rewriter.planning.record import records_of
from rewriter.reporting.memory import PeakMemory

_TOO_FEW = "Expected more than 1 value per channel"
"""The error of torch's batch norms for a batch of one image whose map has one position."""

_WARM_UP = 5
"""Number of initial steps excluded from timing if there are more: caches fill and kernels are selected in them."""

OptimizerFactory = Callable[[nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class Setting:
    """What all runs of a comparison share.

    Attributes:
        data, scoring, recipe: as their names say.
        accelerator: an ``accelerate.Accelerator``: device and mixed precision.
        optimizer: the user's own ``optimizer(model)``; None for the recipe's.
    """

    data: Data
    scoring: Scoring
    recipe: Recipe
    accelerator: Any
    optimizer: OptimizerFactory | None = None


def train(model: nn.Module, arm: str, seed: int, setting: Setting, advance: Callable[[], None]) -> Run:
    """Train ``model`` in place, and measure it before the first and after every epoch.

    Data order, augmentation and the numbers that the model draws depend on ``seed`` alone. A loss that is not finite
    ends the run. The process's generators are restored. ``advance`` is called after every training step.
    """
    started = time.perf_counter()
    accelerator = setting.accelerator
    with random_state_kept():
        seed_all(seed_of_model(seed))
        if accelerator.scaler is not None:  # the loss scale of fp16 is searched anew: no run depends on earlier ones
            accelerator.scaler = type(accelerator.scaler)(accelerator.device.type)
        setting = replace(setting, scoring=setting.scoring.on(accelerator.device))
        try:
            return _Training(model, arm, seed, setting, advance).run(started)
        finally:
            accelerator.free_memory()


class _Training:
    def __init__(self, model: nn.Module, arm: str, seed: int, setting: Setting, advance: Callable[[], None]) -> None:
        self.arm, self.seed, self.setting, self.advance = arm, seed, setting, advance
        accelerator, recipe = setting.accelerator, setting.recipe
        assert setting.data.train is not None
        self.batches, self.steps_an_epoch = setting.data.train, len(setting.data.train)  # type: ignore[arg-type]
        model.to(accelerator.device)
        if not all(layer.calibrated for layer in calibrated_layers(model).values()):
            # on the first training batches, as a user would before training
            first = itertools.islice(batches(self.batches, seed, 0), recipe.calibration_batches)
            images = [in_type_of(model, pair_of(batch)[0]) for batch in first]
            calibrate(model, images, progress=False, all_ranks=False)
        self.model = model  # not prepared by accelerate: no wrapper, each process trains its own runs
        self.optimizer = accelerator.prepare_optimizer(_optimizer(model, setting))
        self.scheduler = _scheduler(self.optimizer.optimizer, recipe, self.steps_an_epoch)
        self.images_per_second: list[float] = []
        self.seen: list[str] = []
        self.classes = _Classes(setting, "training data")

    def run(self, started: float) -> Run:
        memory = PeakMemory(self.setting.accelerator.device)
        epochs = [self._tested(0, None)]
        stopped = ""
        for number in range(1, self.setting.recipe.epochs + 1):
            loss, stopped = self._epoch(number)
            if stopped:
                break
            tested = self._tested(number, loss)
            if not math.isfinite(tested.test_loss):
                stopped = f"test loss {tested.test_loss} after epoch {number}"
                break
            epochs.append(tested)
            if number == 1:
                self.classes.check()
        warm = self.images_per_second[_WARM_UP:] or self.images_per_second
        speed = round(statistics.median(warm), 1) if warm else None
        seconds = round(time.perf_counter() - started, 2)
        return Run(self.arm, self.seed, tuple(epochs), stopped, speed, memory.megabytes(), seconds, tuple(self.seen))

    def _epoch(self, number: int) -> tuple[float, str]:
        """Return the mean loss of the batches, and why training cannot continue."""
        setting, accelerator = self.setting, self.setting.accelerator
        self.model.train()
        self.optimizer.train()  # for optimizers that evaluate other weights than they train
        total = torch.zeros((), dtype=torch.float64)
        step, seen = 0, 0
        for step, batch in enumerate(batches(self.batches, self.seed, number), start=1):
            images, targets = self.classes.pair_of(batch, told=number == 1)
            seen = checksum((images, targets), seen)
            began = time.perf_counter()
            if self.scheduler is not None:
                self.scheduler.step_update((number - 1) * self.steps_an_epoch + step - 1)
            images, targets = _moved(self.model, images, targets, accelerator.device)
            with accelerator.autocast():
                loss = setting.scoring.loss(self._output(images, number, step), targets)
            value = loss.detach().double().cpu()  # waits for the device
            if not torch.isfinite(value):
                return math.nan, f"loss {value.item()} in epoch {number}, step {step}"
            self.optimizer.zero_grad()
            self.model.zero_grad()  # the user's optimizer may train a part, but clipping includes all gradients
            accelerator.backward(loss)
            if setting.recipe.clip_grad is not None:
                accelerator.clip_grad_norm_(self.model.parameters(), setting.recipe.clip_grad)
            self.optimizer.step()
            total += value
            self.images_per_second.append(len(images) / (time.perf_counter() - began))
            self.advance()
        if not step:
            raise DataError(f"{setting.data.name}: epoch {number} has no training batches; can it be read only once?")
        self.seen.append(f"{seen:08x}")
        return (total / step).item(), ""

    def _output(self, images: torch.Tensor, number: int, step: int) -> Any:
        try:
            return self.model(images)
        except ValueError as error:
            if _TOO_FEW not in str(error):
                raise
            raise DataError(
                f"{self.setting.data.name}: a batch norm cannot be trained on the batch of {len(images)} in epoch "
                f"{number}, step {step}: {error}. Use a larger batch_size, or drop_last=True in your own loader."
            ) from error

    def _tested(self, number: int, train_loss: float | None) -> Epoch:
        self.optimizer.eval()
        return Epoch(number, train_loss, *test(self.model, self.setting))


@torch.no_grad()
def test(model: nn.Module, setting: Setting) -> tuple[float, dict[str, float]]:
    """Return the mean loss over the test images, and their metrics, in evaluation mode; the mode is restored."""
    training, device = model.training, setting.accelerator.device
    model.eval()
    metrics, classes = setting.scoring.metrics(device), _Classes(setting, "test data")
    total = torch.zeros((), dtype=torch.float64)
    for batch in batches(setting.data.test, 0, 0):
        images, targets = _moved(model, *classes.pair_of(batch), device)
        with setting.accelerator.autocast():
            output = model(images)
            loss = setting.scoring.loss(output, targets)
        total += loss.double().cpu() * len(images)
        setting.scoring.update(metrics, output, targets)
    model.train(training)
    if not classes.images:
        raise DataError(f"{classes.where}: expected images, found none; can they be read only once?")
    classes.check()
    return (total / classes.images).item(), computed(metrics)


class _Classes:
    """Refuses targets that are not classes, and data in which all have the same one."""

    def __init__(self, setting: Setting, side: str) -> None:
        self.scoring, self.where = setting.scoring, f"{setting.data.name}, {side}"
        self.images, self.present = 0, set[int]()

    def pair_of(self, batch: Any, told: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images and targets of a batch, recording their classes if ``told``."""
        images, targets = pair_of(batch)
        self.scoring.check_targets(targets, self.where)
        self.images += len(images)
        if told and self.scoring.task is Task.CLASSIFICATION and self.scoring.own_loss is None:
            self.present |= set(targets.tolist())  # others may all be equal
        return images, targets

    def check(self) -> None:
        if len(self.present) == 1 and self.images > 1:
            raise DataError(f"{self.where}: expected at least two classes, found only {self.present.pop()}")


def check_optimizer(optimizer: Any, recipe: Recipe) -> None:
    """Check the optimizer before anything else is done.

    Raises:
        ComparisonError: the user's own is not a function, or timm has no such optimizer, or it needs a training step
            other than ours.
    """
    if optimizer is not None:
        if not callable(optimizer):
            raise ComparisonError(f"optimizer: expected a function of the model, found {type(optimizer).__name__}")
        return
    try:
        found = create_optimizer_v2([nn.Parameter(torch.zeros(2, 2))], recipe.optimizer, recipe.lr, recipe.weight_decay)
    except Exception as error:
        raise ComparisonError(
            f"optimizer: expected a name of timm.optim.list_optimizers(), found {recipe.optimizer!r} ({error})"
        ) from error
    _check_step(found)


def _check_step(optimizer: torch.optim.Optimizer) -> None:
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    what = "takes second derivatives" if getattr(optimizer, "is_second_order", False) else ""
    if closure is not None and closure.default is inspect.Parameter.empty:
        what = "runs the model itself, by a closure"
    if what:
        name = type(optimizer).__name__
        raise ComparisonError(f"optimizer: expected one whose step() takes gradients, found {name}, which {what}")


def _moved(model: nn.Module, images: torch.Tensor, targets: torch.Tensor, device: torch.device) -> tuple[Any, Any]:
    return in_type_of(model, images).to(device, non_blocking=True), targets.to(device, non_blocking=True)


def _optimizer(model: nn.Module, setting: Setting) -> torch.optim.Optimizer:
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ComparisonError("there is nothing to train: no parameter of the model requires a gradient")
    recipe = setting.recipe
    if setting.optimizer is None:
        groups: Any = partial(param_groups, weight_decay=recipe.weight_decay) if decays_by_place(model) else None
        return create_optimizer_v2(model, recipe.optimizer, recipe.lr, recipe.weight_decay, param_group_fn=groups)
    own = setting.optimizer(model)
    if not isinstance(own, torch.optim.Optimizer):
        raise ComparisonError(f"optimizer: expected it to give a torch.optim.Optimizer, found {type(own).__name__}")
    _check_step(own)
    trained = {id(parameter) for group in own.param_groups for parameter in group["params"]}
    if not any(id(parameter) in trained for parameter in model.parameters()):
        raise ComparisonError(
            "optimizer: expected parameters of the model that it is given, found none of them; write a function such "
            "as lambda model: torch.optim.SGD(model.parameters(), lr=0.1)"
        )
    return own


def decays_by_place(model: nn.Module) -> bool:
    """Whether the pass weight-decay was applied to the model."""
    return any(name == "weight-decay" for record in records_of(model) for name, _ in record.plan.passes)


def _scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, steps_an_epoch: int) -> Any:
    """Return a timm scheduler that counts steps; None for a constant learning rate."""
    if recipe.schedule == "none":
        return None
    lowest = min(group["lr"] for group in optimizer.param_groups) / 100
    rise: Any = recipe.warmup * recipe.epochs
    return create_scheduler_v2(
        optimizer, recipe.schedule, num_epochs=recipe.epochs, updates_per_epoch=steps_an_epoch, step_on_epochs=False,
        warmup_epochs=rise, warmup_lr=lowest, min_lr=lowest,
    )[0]  # fmt: skip
