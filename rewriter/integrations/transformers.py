"""The Trainer of transformers: our groups for its optimizer, and the plan in every checkpoint it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rewriter import libraries
from rewriter.edit.classes import original_class
from rewriter.errors import InstallationError
from rewriter.model.wrappers import looked_through
from rewriter.optimizer.groups import param_groups
from rewriter.storage.pretrained import from_pretrained, plans_of, write_plans

with libraries.needed("transformers", InstallationError, __name__):
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class RewriterCallback(TrainerCallback):  # type: ignore[misc]
    """Writes the plan beside the weights of each checkpoint, so that ``rewriter.from_pretrained`` reads it.

    A model that was not rewritten raises an error when training begins.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Refuse a model that was not rewritten."""
        plans_of(looked_through(given["model"]))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """Write the plan into the checkpoint, in the first process."""
        if state.is_world_process_zero:
            write_plans(looked_through(given["model"]), Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")


class RewriterTrainer(Trainer):  # type: ignore[misc]
    """A Trainer whose optimizer uses :func:`rewriter.param_groups`, with :class:`RewriterCallback`.

    Everything else is the Trainer's. Give it a rewritten model; ``save_model`` writes the plan, too, and a resumed run
    gets every weight of its checkpoint.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.add_callback(RewriterCallback)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create the optimizer of the arguments, on groups that decay and that do not."""
        if self.optimizer is None:
            trained: Any = self.model if model is None else model
            cls, settings = self.get_optimizer_cls_and_kwargs(self.args, trained)
            self.optimizer = cls(param_groups(trained, self.args.weight_decay), **settings)
        made: torch.optim.Optimizer = self.optimizer
        return made

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load as the Trainer does, then load all weights again.

        It writes some models with names of older versions, and loads without ``strict``: keys it does not find keep the
        values of a fresh model.
        """
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        target = looked_through(self.model if model is None else model)
        whole = from_pretrained(original_class(type(target)), resume_from_checkpoint)
        target.load_state_dict(whole.state_dict(), strict=True)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model as the Trainer does, and its plan."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            write_plans(looked_through(self.model), Path(str(output_dir or self.args.output_dir)))
