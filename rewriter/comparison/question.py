"""What the runs of a comparison answer, as text: runs of another question are not taken for them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

import rewriter
from rewriter.comparison.loading import Data, pair_of
from rewriter.comparison.randomness import batches
from rewriter.comparison.recipe import Recipe
from rewriter.comparison.scoring import Scoring
from rewriter.comparison.subject import changes, name_of
from rewriter.inputs import tensors_in
from rewriter.planning import fingerprint
from rewriter.record import records_of

_VERSIONED = ("torch", "timm", "torchvision", "accelerate", "torchmetrics", "numpy")


def question_of(
    first: tuple[nn.Module, nn.Module], data: Data, scoring: Scoring, recipe: Recipe, optimizer: Any, device: str
) -> dict[str, dict[str, str]]:
    """Parts, each of texts with names.

    Functions of the user are known by their name and their code; what these use is not looked at.

    Args:
        first: both models of the first seed, on the CPU.
        data, scoring, recipe: how they are trained and tested.
        optimizer: the user's own, or None.
        device: its type.
    """
    before, after = first
    own = {"loss": scoring.own_loss, "optimizer": optimizer, **(scoring.own_metrics or {"metric": None})}
    return {
        "models": {
            "model": name_of(before), "structure": fingerprint(before), "change": "; ".join(changes(after)),
            "plans": _digest("".join(record.plan.to_json() for record in records_of(after)).encode()),
            "modules": _digest(f"{before!r}{after!r}".encode()),
            "initial weights": _digest_of_weights(before), "weights of after": _digest_of_weights(after),
        },
        "data": {
            "data": str(data), "task": str(data.task), "classes": str(scoring.num_classes),
            "first test batch": _first_batch(data),
        },
        "recipe": {name: repr(value) for name, value in recipe.to_data().items() if name != "seeds"},
        "own": {name: _identified(value) for name, value in own.items()},
        "versions": versions() | {"device": device, "threads": str(torch.get_num_threads())},
    }  # fmt: skip


def versions() -> dict[str, str]:
    """Of the libraries that the numbers depend on."""
    return {"rewriter": rewriter.__version__} | {name: importlib.metadata.version(name) for name in _VERSIONED}


def checksum(values: Iterable[Any], start: int = 0) -> int:
    """CRC-32 of the tensors in nested ``values``, going on from ``start``."""
    for tensor in tensors_in(list(values)):
        content = tensor.detach().cpu().contiguous().flatten()
        start = zlib.crc32(content.view(torch.uint8).numpy().data, start)
    return start


def _first_batch(data: Data) -> str:
    return next((f"{checksum(pair_of(batch)):08x}" for batch in batches(data.test, 0, 0)), "none")


def described(value: Any) -> str:
    """The name of a function, or how an object describes itself, without its address; of several, one after another."""
    if isinstance(value, Mapping):
        return ", ".join(described(item) for item in value.values())
    return getattr(value, "__qualname__", None) or re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _identified(value: Any) -> str:
    name = described(value)
    code = getattr(value, "__code__", None)
    return name if code is None else f"{name} {_digest(code.co_code + repr(code.co_names).encode() + _constants(code))}"


def _constants(code: Any) -> bytes:
    return repr([item for item in code.co_consts if not hasattr(item, "co_code")]).encode()


def _digest_of_weights(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
