"""timm's training script: the plan in its checkpoints, and our weight decay groups in its optimizers.

timm passes only the model to ``param_group_fn=``: ``weight_decay`` and ``layer_decay`` are lost on the way. The
functions here take them.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rewriter import libraries
from rewriter.api import rewrite
from rewriter.errors import InstallationError, OptimizerError, PlanError, RewriterError, StorageError
from rewriter.model.wrappers import looked_through
from rewriter.optimizer.grouped_parameters import ParamGroups
from rewriter.optimizer.groups import param_groups
from rewriter.planning.codec import to_text
from rewriter.planning.plan import Plan
from rewriter.planning.plan_file import check_passes, plan_of_text, rewritten_by
from rewriter.planning.record import records_of

with libraries.needed("timm", InstallationError, __name__):
    import timm.optim


class CheckpointHook:
    """Stores the plan in every checkpoint that timm's ``CheckpointSaver`` writes, and reads it from there.

    timm keeps the options of a run in its checkpoints. The hook adds the plan to them, and rewrites by the plan in the
    checkpoint that ``--resume`` (or ``--checkpoint`` of ``validate.py``) names::

        model = CheckpointHook(args).rewrite(model)  # after create_model

    Args:
        args: the options of ``train.py`` or ``validate.py``, as passed to ``CheckpointSaver(args=)``; the attribute
            ``rewrite_plan`` is added to them.

    Raises:
        StorageError: ``args`` is not a set of such options.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        if not isinstance(args, argparse.Namespace):
            raise StorageError(f"args: expected the options of timm's train.py or validate.py, found {args!r}")
        self._args = args

    def rewrite(self, model: nn.Module, passes: Any = None, **options: Any) -> nn.Module:
        """Rewrite like :func:`rewriter.rewrite`, or by the plan in the checkpoint that will be loaded.

        Args:
            model: the result of timm's ``create_model``.
            passes, **options: for :func:`rewriter.rewrite`. The plan of a checkpoint takes precedence.

        Raises:
            StorageError: the checkpoint cannot be read.
            PlanError: it holds no plan, or one with other passes, or the plan does not fit the model.
            RewriterError: as :func:`rewriter.rewrite`.
        """
        checkpoint = getattr(self._args, "resume", None) or getattr(self._args, "checkpoint", None)
        if checkpoint:
            plan, holder = _plan_in(Path(checkpoint)), f"checkpoint {checkpoint}"
            check_passes(plan, passes, holder)
            rewritten = rewritten_by(model, plan.to_json(), holder)
        else:
            rewritten = rewrite(model, passes, **options)
        self._args.rewrite_plan = to_text(records_of(rewritten)[-1].plan)
        return rewritten


def _plan_in(checkpoint: Path) -> Plan:
    """Return the plan in a checkpoint of a run with a hook, without reading its tensors."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise StorageError(f"checkpoint {checkpoint} cannot be read: {type(error).__name__}: {error}") from error
    kept = getattr(content.get("args"), "rewrite_plan", None) if isinstance(content, dict) else None
    if kept is None:
        raise PlanError(
            f"checkpoint {checkpoint} has no plan: it is of a run without CheckpointHook(args), or without a rewrite. "
            "If the plan is in a file, give it: rewriter.rewrite(model, plan_file=...). To begin with an original's "
            "weights, give them as --initial-checkpoint."
        )
    return plan_of_text(kept, f"checkpoint {checkpoint}")


def create_optimizer(model: nn.Module, args: Any, **changes: Any) -> torch.optim.Optimizer:
    """Make the optimizer of timm's ``create_optimizer_v2(model, **optimizer_kwargs(cfg=args))`` with our groups.

    Args:
        model: the model, rewritten or not.
        args: the options of timm's ``train.py`` (``opt``, ``lr``, ``weight_decay``, ``momentum``, ``layer_decay``, …),
            or a dict like the result of ``optimizer_kwargs``.
        **changes: options of ``create_optimizer_v2`` that override ``args``. With ``filter_bias_and_bn=False``, which
            asks for no split, the groups are timm's.

    Raises:
        OptimizerError: ``args`` is not a set of such options, ``param_group_fn`` is given, or as
            :func:`rewriter.param_groups`.
    """
    try:
        given = args if isinstance(args, Mapping) else timm.optim.optimizer_kwargs(cfg=args)  # type: ignore[no-untyped-call]
    except AttributeError as error:
        raise OptimizerError(f"args: expected the options of timm's train.py, found {args!r} ({error})") from error
    settings = {**given, **changes}
    if settings.pop("param_group_fn", None) is not None:
        raise OptimizerError("param_group_fn: the groups are ours here; give it to timm's create_optimizer_v2")
    model = looked_through(model)
    if not settings.pop("filter_bias_and_bn", True):
        return timm.optim.create_optimizer_v2(model, **settings, filter_bias_and_bn=False)
    names = {
        "layer_decay": "layer_decay",
        "layer_decay_min_scale": "min_scale",
        "layer_decay_no_opt_scale": "no_opt_scale",
        "fallback_list": "fallback_list",
        "fallback_no_weight_decay": "fallback_no_weight_decay",
    }
    of_groups = {names[name]: settings.pop(name) for name in list(settings) if name in names}
    groups = param_group_fn(settings.get("weight_decay", 0.0), **of_groups)(model)
    return timm.optim.create_optimizer_v2(groups, **settings)


def param_group_fn(
    weight_decay: float | None = 0.05,
    layer_decay: float | None = None,
    min_scale: float = 0.0,
    no_opt_scale: float | None = None,
    fallback_list: Collection[str] = (),
    fallback_no_weight_decay: bool = False,
) -> Callable[[nn.Module], ParamGroups]:
    """Return a function for the argument ``param_group_fn`` of timm's ``create_optimizer_v2``.

    Args:
        weight_decay: for the groups that decay.
        layer_decay: the factor of the learning rate from each layer to the one below it, as in timm's
            ``param_groups_layer_decay``; each of its groups is split in two. None disables it.
        min_scale, no_opt_scale: of ``param_groups_layer_decay``: the minimum factor, and the factor below which layers
            are frozen.
        fallback_list, fallback_no_weight_decay: as in timm, for optimizers with two parts (Muon): the parameters of the
            second part.
    """

    def theirs(model: nn.Module) -> list[dict[str, Any]] | None:
        """Return timm's groups, of which only the split into layers and kinds of optimizers is kept."""
        divided = bool(fallback_list) or fallback_no_weight_decay
        said = getattr(model, "no_weight_decay", None)
        options: dict[str, Any] = {}
        if divided:
            options["no_weight_decay_list"] = said() if callable(said) else ()
            options |= {"fallback_list": fallback_list, "fallback_no_weight_decay": fallback_no_weight_decay}
        if layer_decay is None:
            return list(timm.optim.param_groups_weight_decay(model, weight_decay, **options)) if divided else None
        options |= {"layer_decay": layer_decay, "min_scale": min_scale, "no_opt_scale": no_opt_scale}
        return list(timm.optim.param_groups_layer_decay(model, weight_decay or 0.0, **options))

    def groups(model: nn.Module) -> ParamGroups:
        model = looked_through(model)
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        try:
            return param_groups(model, weight_decay, within=theirs(model))
        except RewriterError:
            for parameter in trainable:
                parameter.requires_grad_(True)  # timm freezes layers below no_opt_scale
            raise

    return groups
