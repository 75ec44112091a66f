"""Adapters of peft and mixed precision of accelerate: functions that look for places to edit must run before them."""

from __future__ import annotations

from torch import nn

from rewriter.errors import ModelError
from rewriter.model.wrappers import holds_adapters


def refuse_mixed_precision(model: nn.Module) -> None:
    """Refuse a model whose ``forward`` accelerate has wrapped: edits of it would not run.

    Raises:
        ModelError: says at which point of a script to rewrite.
    """
    for path, module in model.named_modules():
        if "_original_forward" in module.__dict__ and hasattr(module.__dict__.get("forward"), "__wrapped__"):
            where = f"module {path!r}" if path else "the model"
            raise ModelError(
                f"{where} was prepared by accelerate for mixed precision, which set another forward. Rewrite first, "
                "then prepare; accelerator.unwrap_model(model, keep_fp32_wrapper=False) takes it off"
            )


def refuse_adapters(model: nn.Module) -> None:
    """Refuse a model in which peft has put adapters around layers: guidelines no longer recognise the layers.

    Raises:
        ModelError: says at which point of a script to rewrite.
    """
    for path, module in model.named_modules():
        if holds_adapters(module):
            where = f"module {path!r}" if path else "the model"
            raise ModelError(
                f"{where} has adapters of peft, which hide layers and dropouts. Rewrite first (and calibrate), then "
                "add adapters; or merge them first: model.merge_and_unload()"
            )
