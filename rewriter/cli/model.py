"""Makes the model that was asked for on the command line, for the commands that take one."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from torch import nn

from rewriter.cli.asked import Asked
from rewriter.cli.output import described_inputs, show_model
from rewriter.errors import listed
from rewriter.guideline.base import Pass
from rewriter.guideline.registry import resolve_passes
from rewriter.planning.data import PlanData
from rewriter.planning.record import Record
from rewriter.planning.structure import has_structure_of
from rewriter.reporting.progress import progress_bar
from rewriter.storage.checkpoint import check_weights, classes_and_channels, read_checkpoint


@dataclass
class Work:
    """Names the step that runs, if ``shown``, and times the steps."""

    seconds: dict[str, float] = field(default_factory=dict)
    shown: bool = True

    @contextlib.contextmanager
    def step(self, name: str, text: str) -> Iterator[None]:
        started = time.perf_counter()
        with progress_bar(f"{text} …", 1, shown=self.shown):
            yield
        self.seconds[name] = time.perf_counter() - started


class Wanted:
    """A model as asked for on the command line, and what is to be done to it.

    Attributes:
        of_data: options of the model's constructor that the data set, not the user.
        is_trained: whether the model is trained afterwards, or handed to somebody who may; only then can a checkpoint
            of another number of classes be of use, without its classifier.
        new_classifier: what is told of a classifier that was not loaded; empty if all weights were.
    """

    def __init__(self, asked: Asked) -> None:
        self.name, self.model_kwargs, self.size = asked.name, asked.model_kwargs, asked.size
        self.passes, self.only, self.skip, self.preserve = asked.passes, asked.only, asked.skip, asked.preserve
        self.pretrained, self.checkpoint = asked.pretrained, asked.checkpoint
        self.of_data: dict[str, Any] = {}
        self.is_trained, self.new_classifier = True, ""

    def create(self, work: Work, meta: bool = False) -> Any:
        """The model, with the weights asked for.

        Args:
            work: names and times the steps.
            meta: without memory or trained weights, where the constructor allows that.
        """
        self.check_files_and_passes()
        entry = self._created(work, meta)
        if self.weights is not None:
            weights = self._but_for_classifier(entry.model, self.weights) if self.is_trained else self.weights
            note = self._other_options(entry.model, weights)
            check_weights(entry.model, weights, f"the weights in {self.checkpoint}", note)
            if not meta:
                entry.model.load_state_dict(weights, strict=True)
        return entry

    def _but_for_classifier(self, model: nn.Module, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The weights, with the model's own classifier where the number of classes was asked to be another one."""
        from rewriter import zoo

        classes, channels = classes_and_channels(model, weights)
        options = self.of_data | self.model_kwargs
        asked = [options[option] for option in zoo.data_options(self.name, classes or 0, 0) if option in options]
        if classes is None or channels is not None or not asked:
            return weights
        own = model.state_dict()
        new = {key: tensor for key, tensor in own.items() if tensor.shape != weights[key].shape}
        self.new_classifier = f"a new classifier ({listed(list(new))}): the checkpoint has {classes} classes"
        return weights | new

    def check_files_and_passes(self) -> None:
        """Refuse passes and options of passes that there are not, and a checkpoint that cannot be read."""
        _ = self.resolved, self.weights

    def check_model(self) -> None:
        """Refuse a name and options that no model has, at the cost of a model without memory."""
        self._created(Work(), meta=True)

    @functools.cached_property
    def resolved(self) -> list[Pass] | None:
        """The passes asked for; None for all."""
        return None if self.passes is None else resolve_passes(self.passes)

    @functools.cached_property
    def weights(self) -> dict[str, torch.Tensor] | None:
        """The weights in the checkpoint, read once for all models that are made."""
        return read_checkpoint(self.checkpoint) if self.checkpoint is not None else None

    def _created(self, work: Work, meta: bool) -> Any:
        from rewriter import zoo

        quick = zoo.quick_options(self.name) if meta else {}  # only a model that is kept must be as usual
        options = quick | self.of_data | self.model_kwargs
        with work.step("create", f"creating {self.name}"):
            try:
                with torch.device("meta") if meta else contextlib.nullcontext():
                    entry = zoo.create(self.name, pretrained=self.pretrained and not meta, **options)
            except zoo.CreationError as error:
                if self.pretrained and not meta:
                    raise zoo.CreationError(
                        f"{error} If its weights cannot be downloaded, give them with --checkpoint FILE."
                    ) from error
                if not meta:
                    raise
                entry = zoo.create(self.name, **options)
        return entry

    def _other_options(self, model: nn.Module, weights: dict[str, torch.Tensor]) -> str:
        """The options of the constructor that the weights were made with, where their shapes tell."""
        from rewriter import zoo

        classes, channels = classes_and_channels(model, weights)
        found = zoo.data_options(self.name, classes or 0, channels or 0)
        told = " ".join(f"-k {option}={value}" for option, value in found.items() if value)
        own = ", ".join(
            f"{option}={self.of_data[option]}" for option in found if found[option] and option in self.of_data
        )
        otherwise = f"; without that, {own} is set" if own else ""
        return f". They fit a model made with {told}{otherwise}" if told else ""

    def arguments(self, entry: Any) -> dict[str, Any]:
        """Arguments of :func:`rewriter.plan` and :func:`rewriter.rewrite`."""
        own_inputs = entry.example_inputs if self.size is None else None
        size = None if own_inputs is not None else self.size or entry.input_size
        if size is not None and len(size) == 2 and entry.input_size is not None:
            size = (entry.input_size[0], *size)
        return {
            "passes": self.resolved,
            "example_inputs": own_inputs,
            "input_size": size,
            "only": self.only,
            "skip": self.skip,
            "preserve": self.preserve.value,
        }

    def needs_values(self, made: PlanData) -> bool:
        """Whether a pass that decides by the values of weights found a place."""
        deciding = {item.name for item in self.resolved or () if item.needs_values}
        return any(site.pass_name in deciding for site in made.sites)

    def show(self, console: Console, entry: Any, made: PlanData) -> None:
        """Print the model and what is asked of it."""
        options = "".join(f", {key}={value!r}" for key, value in self.model_kwargs.items())
        weights = "pretrained" if self.pretrained else f"from {self.checkpoint}" if self.checkpoint else "as created"
        weights += f", with {self.new_classifier}" if self.new_classifier else ""
        inputs = described_inputs(self.arguments(entry))
        show_model(console, self.name, entry.model, options, weights, inputs, made)

    def recipe(self, entry: Any, record: Record) -> dict[str, Any] | None:
        """How :func:`rewriter.load` makes the original; None where weights decide about the structure."""
        from rewriter import zoo

        if self.pretrained:
            with torch.device("meta"):
                again = zoo.create(self.name, **entry.options)
            if not has_structure_of(record.plan, again.model):
                return None
        return {"model": self.name, "kwargs": dict(entry.options)}
