"""Create the model requested on the command line, for the commands that take one."""

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
from rewriter.cli.subject import create_subject, is_own
from rewriter.errors import listed
from rewriter.guideline.base import Pass
from rewriter.guideline.registry import resolve_passes
from rewriter.model.checkpoint_file import read_checkpoint
from rewriter.planning.data import PlanData
from rewriter.planning.record import Record
from rewriter.planning.structure import has_structure_of
from rewriter.reporting.progress import progress_bar
from rewriter.storage.checkpoint import check_weights, classes_and_channels


@dataclass
class Work:
    """Shows the current step, if ``shown``, and times the steps."""

    seconds: dict[str, float] = field(default_factory=dict)
    shown: bool = True

    @contextlib.contextmanager
    def step(self, name: str, text: str) -> Iterator[None]:
        started = time.perf_counter()
        with progress_bar(f"{text} …", 1, shown=self.shown):
            yield
        self.seconds[name] = time.perf_counter() - started


class Wanted:
    """A model as requested on the command line, and what to do with it.

    Attributes:
        of_data: options of the model's constructor that were set by the data, not by the user.
        is_trained: whether the model will be trained here, or may be by its recipient; only then is a checkpoint with
            another number of classes of use, without its classifier.
        new_classifier: message about a classifier that was not loaded; empty if all weights were.
    """

    def __init__(self, asked: Asked) -> None:
        self.name, self.model_kwargs, self.size = asked.name, asked.model_kwargs, asked.size
        self.passes, self.only, self.skip, self.preserve = asked.passes, asked.only, asked.skip, asked.preserve
        self.pretrained, self.checkpoint = asked.pretrained, asked.checkpoint
        self.of_data: dict[str, Any] = {}
        self.is_trained, self.new_classifier = True, ""

    def create(self, work: Work, meta: bool = False) -> Any:
        """Create the model with the requested weights.

        Args:
            work: shows and times the steps.
            meta: without memory or trained weights, if the constructor allows it.
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
        """Return the weights, with the model's own classifier if another number of classes was requested."""
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
        """Refuse unknown passes and pass options, and a checkpoint that cannot be read."""
        _ = self.resolved, self.weights

    def check_model(self) -> None:
        """Refuse an unknown name or options, by creating the model without memory."""
        self._created(Work(), meta=True)

    @functools.cached_property
    def resolved(self) -> list[Pass] | None:
        """Return the requested passes; None for all."""
        return None if self.passes is None else resolve_passes(self.passes)

    @functools.cached_property
    def weights(self) -> dict[str, torch.Tensor] | None:
        """The weights in the checkpoint, read once for all models created."""
        return read_checkpoint(self.checkpoint) if self.checkpoint is not None else None

    def _created(self, work: Work, meta: bool) -> Any:
        from rewriter import zoo

        meta = meta and not is_own(self.name)  # code of the user's runs once, and as it would run in a training
        quick = zoo.quick_options(self.name) if meta else {}  # only a model that is kept needs its usual options
        options = quick | self.of_data | self.model_kwargs
        with work.step("create", f"creating {self.name}"):
            try:
                with torch.device("meta") if meta else contextlib.nullcontext():
                    entry = create_subject(self.name, pretrained=self.pretrained and not meta, **options)
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
        """Return the constructor options that the weights were made with, if their shapes determine them."""
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
        """Return arguments of :func:`rewriter.plan` and :func:`rewriter.rewrite`."""
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
        """Whether a pass that depends on the values of weights found a place."""
        deciding = {item.name for item in self.resolved or () if item.needs_values}
        return any(site.pass_name in deciding for site in made.sites)

    def show(self, console: Console, entry: Any, made: PlanData) -> None:
        """Print the model and the request."""
        options = "".join(f", {key}={value!r}" for key, value in self.model_kwargs.items())
        weights = "pretrained" if self.pretrained else f"from {self.checkpoint}" if self.checkpoint else "as created"
        weights += f", with {self.new_classifier}" if self.new_classifier else ""
        inputs = described_inputs(self.arguments(entry))
        show_model(console, self.name, entry.model, options, weights, inputs, made)

    def described_original(self, entry: Any) -> str:
        """What to give to :func:`rewriter.load` where there is no recipe, and why."""
        why = "its code is yours" if is_own(self.name) else "its weights decided its structure"
        return f"a fresh {type(entry.model).__name__}: {why}"

    def recipe(self, entry: Any, record: Record) -> dict[str, Any] | None:
        """Return how :func:`rewriter.load` makes the original; None if weights determine it, or code of the user's."""
        from rewriter import zoo

        if is_own(self.name):
            return None
        if self.pretrained:
            with torch.device("meta"):
                again = zoo.create(self.name, **entry.options)
            if not has_structure_of(record.plan, again.model):
                return None
        return {"model": self.name, "kwargs": dict(entry.options)}
