"""Lightning: a callback that rewrites the model before optimizers are made, and stores the plan in every checkpoint."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

from torch import nn

from rewriter import libraries
from rewriter.api import rewrite, undo
from rewriter.constants.calibration import calibrate
from rewriter.errors import InstallationError, ModelError, PlanError, RewriterError, RewriterWarning
from rewriter.model.wrappers import looked_through
from rewriter.planning.codec import to_text
from rewriter.planning.plan_file import check_passes, is_rewritten_by, plan_of_text, rewritten_by
from rewriter.planning.record import Record, records_of

with libraries.needed("lightning", InstallationError, __name__):
    from lightning.pytorch import Callback, LightningModule, Trainer

KEY = "rewriter"
"""The key of the plan in a checkpoint, and of the name of the attribute whose model it is for."""


class RewriterCallback(Callback):  # type: ignore[misc]
    """Rewrites the model of a LightningModule during setup, before its optimizers are made.

    The plan is in every checkpoint. A run that resumes (``fit(ckpt_path=)``), and ``validate``, ``test`` and
    ``predict`` of a checkpoint, apply that plan before weights are loaded. For ``load_from_checkpoint``, add
    :class:`RewriterMixin` to the LightningModule's class.

    Args:
        passes: as for :func:`rewriter.rewrite`.
        part: the name of the attribute that holds the model.
        calibrate: whether to calibrate equalizers on the training data when a first run begins.
        max_batches: maximum number of batches for that; None for all.
        prepare: turns a batch into the model's input, as for :func:`rewriter.calibrate`.
        **options: for :func:`rewriter.rewrite`, such as ``input_size``.

    Raises:
        RewriterError: when it is used: the LightningModule has no such part, the part was rewritten or replaced after
            optimizers were made, the checkpoint has no plan or one with other passes, or as :func:`rewriter.rewrite`
            and :func:`rewriter.calibrate`.
    """

    def __init__(
        self,
        passes: Any = None,
        *,
        part: str = "model",
        calibrate: bool = True,
        max_batches: int | None = 100,
        prepare: Any = None,
        **options: Any,
    ) -> None:
        self._passes, self._part, self._options = passes, part, options
        self._calibrates, self._max_batches, self._prepare = calibrate, max_batches, prepare
        self._is_calibrated = False
        self._records: tuple[Record, ...] = ()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Rewrite if the model is to be trained and has not been rewritten yet."""
        model = _part_of(pl_module, self._part)
        if stage == "fit" and not records_of(looked_through(model)):
            setattr(pl_module, self._part, rewrite(model, self._passes, **self._options))
            self._is_calibrated = False
        # on this object only, and permanently: checkpoints are saved after fit, too
        setattr(pl_module, "on_save_checkpoint", partial(_keep_plan, pl_module, self._part))  # noqa: B010
        setattr(pl_module, "on_load_checkpoint", partial(_follow_plan, pl_module, self._part, self._passes))  # noqa: B010

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the rewrite that the optimizers were made for."""
        self._records = records_of(looked_through(_part_of(pl_module, self._part)))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a model that was rewritten or replaced since; calibrate, once per training."""
        model = looked_through(_part_of(pl_module, self._part))
        if records_of(model) != self._records or not _is_trained(model, trainer):
            raise RewriterError(
                f"{type(pl_module).__name__}.{self._part} was rewritten or exchanged after its optimizers were made: "
                "they train parameters of before, or none of it. Rewrite in __init__ or leave it to RewriterCallback, "
                f"and give self.{self._part}'s parameters to the optimizers in configure_optimizers."
            )
        if self._calibrates and not self._is_calibrated:
            batches: Any = trainer.train_dataloader
            calibrate(model, batches, self._max_batches, prepare=self._prepare)
        self._is_calibrated = True

    def state_dict(self) -> dict[str, Any]:
        """Return whether this training was calibrated."""
        return {"calibrated": self._is_calibrated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._is_calibrated = bool(state_dict["calibrated"])


class RewriterMixin:
    """Makes ``load_from_checkpoint`` apply the plan in a checkpoint before weights are loaded::

        class Classifier(RewriterMixin, LightningModule): ...

    Without it, ``load_from_checkpoint`` makes the original, and rejects the keys of edits as unexpected.
    """

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Rewrite the model, then call the method of the base class.

        Raises:
            PlanError: the plan does not fit the model.
            RewriterError: every other refusal.
        """
        assert isinstance(self, LightningModule)
        if (kept := checkpoint.get(KEY)) is not None:
            model = _part_of(self, kept["part"])
            setattr(self, kept["part"], rewritten_by(model, kept["plan"], "the checkpoint", all_ranks=False))
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]


def _keep_plan(module: LightningModule, part: str, checkpoint: dict[str, Any]) -> None:
    """Replaces a LightningModule's ``on_save_checkpoint``."""
    records = records_of(looked_through(_part_of(module, part)))
    if records:
        checkpoint[KEY] = {"part": part, "plan": to_text(records[-1].plan)}
    type(module).on_save_checkpoint(module, checkpoint)


def _follow_plan(module: LightningModule, part: str, passes: Any, checkpoint: dict[str, Any]) -> None:
    """Replaces a LightningModule's ``on_load_checkpoint``: runs before weights are loaded."""
    model = _part_of(module, part)
    kept = checkpoint.get(KEY)
    if kept is not None:
        plan = plan_of_text(kept["plan"], "the checkpoint")
        check_passes(plan, passes, "the checkpoint")
        if not is_rewritten_by(looked_through(model), plan):
            if module.trainer.strategy.restore_checkpoint_after_setup:
                raise PlanError(
                    f"the checkpoint has another plan than {type(module).__name__}.{part} was rewritten with, and "
                    f"{type(module.trainer.strategy).__name__} loads it after optimizers were made. Give "
                    "RewriterCallback(plan_file=...), the file of the first run."
                )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RewriterWarning)  # no weights are kept that belong to the edits
                original = undo(model) if records_of(model) else model
            setattr(module, part, plan.apply(original))
    elif records_of(looked_through(model)):
        raise PlanError(
            f"the checkpoint has no plan, and {type(module).__name__}.{part} is rewritten: it is of a run without "
            "RewriterCallback. To begin with its weights, load them before fit, without ckpt_path."
        )
    type(module).on_load_checkpoint(module, checkpoint)


def _is_trained(model: nn.Module, trainer: Trainer) -> bool:
    """Whether an optimizer holds a parameter of ``model``, if it has any trainable ones."""
    held = {id(p) for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return not trainable or any(id(parameter) in held for parameter in trainable)


def _part_of(module: LightningModule, name: str) -> nn.Module:
    try:
        part: nn.Module = module.get_submodule(name)
    except AttributeError:
        names = ", ".join(child for child, _ in module.named_children()) or "none"
        raise ModelError(
            f"part: {type(module).__name__} has no module {name!r} when it is set up; its modules: {names}. Make the "
            "model in __init__, and name its attribute: RewriterCallback(part=...)"
        ) from None
    return part
