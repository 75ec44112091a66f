"""One model for each of timm's model modules: the one with the fewest parameters."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import rewriter
from rewriter.tracing.inputs import Inputs, tensors_in

FAMILIES: dict[str, str] = json.loads((Path(__file__).parent / "timm_families.json").read_text())

_SMALL_IMAGES = (
    "beit", "cait", "coat", "convit", "deit", "efficientformer_v2", "gcvit", "hiera", "levit", "maxxvit", "mlp_mixer",
    "nest", "pit", "swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr", "tnt", "visformer",
    "vision_transformer_hybrid", "vision_transformer_relpos", "vitamin", "volo",
)  # fmt: skip
"""Families whose models take images of one size only, which is an option of theirs."""

FEW_BLOCKS: dict[str, dict[str, Any]] = {
    "beit": {"depth": 3},
    "deepseek_vit": {"depth": 2, "img_size": 112},
    "gemma4_vit": {"depth": 2},
    "sequencer": {"layers": (1, 1, 1, 1)},
    "swin_transformer": {"depths": (2, 2, 2, 2)},
    "swin_transformer_v2": {"depths": (2, 2, 2, 2)},
    "swin_transformer_v2_cr": {"depths": (2, 2, 2, 2)},
    "tnt": {"depth": 3},
    "vision_transformer_sam": {"depth": 3},
}
"""Fewer blocks of the same kinds, where the smallest model takes long; whole/test_coverage.py plans them whole."""


def create(family: str, **kwargs: Any) -> nn.Module:
    """The family's model with dropout and stochastic depth on, where it takes them."""
    for drops in ({"drop_rate": 0.1, "drop_path_rate": 0.1}, {"drop_rate": 0.1}, {}):
        try:
            return timm.create_model(FAMILIES[family], **drops, **kwargs).train()
        except TypeError:
            continue
    raise AssertionError(f"{FAMILIES[family]} cannot be created")


def created(family: str) -> nn.Module:
    """The family's model with weights, made so that runs with numbers are quick."""
    torch.manual_seed(0)
    size = {"img_size": 64} if family in _SMALL_IMAGES else {}
    return create(family, **size, **FEW_BLOCKS.get(family, {}))


@contextlib.contextmanager
def no_dropout(model: nn.Module) -> Iterator[None]:
    """With every drop rate 0."""
    rates = [
        (module, name, value)
        for module in model.modules()
        for name in ("p", "drop_rate")
        if isinstance(value := module.__dict__.get(name), float)
    ]
    for module, name, _ in rates:
        setattr(module, name, 0.0)
    yield
    for module, name, value in rates:
        setattr(module, name, value)


def runs(model: nn.Module, size: int) -> bool:
    """Whether the model takes square images of ``size``."""
    try:
        rewriter.trace(model, input_size=size)
    except rewriter.TraceError:
        return False
    return True


def small_inputs(model: nn.Module, batch: int = 2) -> Inputs:
    """Images as small as the model takes, so that the whole sweep is quick."""
    size = next((size for size in (64, 96, 112, 128) if runs(model, size)), None)
    inputs = rewriter.trace(model, input_size=size).inputs
    generator = torch.Generator().manual_seed(0)
    return inputs.map(lambda t: torch.randn(batch, *t.shape[1:], generator=generator))


def saved_bytes(model: nn.Module, inputs: Inputs) -> int:
    """Bytes that a training forward keeps for the backward pass, outside of checkpointed parts."""
    total = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    state = torch.get_rng_state()
    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = model.train()(*inputs.args, **inputs.kwargs)
    # the backward pass frees the graph: checkpoints whose backward never runs keep the model alive
    torch.stack([t.sum() for t in tensors_in(result) if t.requires_grad]).sum().backward()
    model.zero_grad()
    torch.set_rng_state(state)
    return total
