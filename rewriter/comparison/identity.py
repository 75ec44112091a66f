"""Describe as text what the results of a comparison depend on, so that runs of different ones are not confused."""

from __future__ import annotations

import contextlib
import hashlib
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from rewriter import libraries
from rewriter.comparison.loading import Data, first_batch
from rewriter.comparison.model_pairs import changes, name_of
from rewriter.comparison.recipe import Recipe
from rewriter.comparison.scoring import Scoring
from rewriter.planning.codec import to_text
from rewriter.planning.record import records_of
from rewriter.planning.structure import named_fingerprint
from rewriter.renamed import forward_names
from rewriter.tracing.containers import tensors_in
from rewriter.version import __version__

_VERSIONED = ("torch", "timm", "torchvision", "accelerate", "torchmetrics", "numpy")
_PLAIN = (str, int, float, type(None))


def identity_of(
    first: tuple[nn.Module, nn.Module], data: Data, scoring: Scoring, recipe: Recipe, optimizer: Any, device: str
) -> dict[str, dict[str, str]]:
    """Return named parts, each with named texts.

    The user's functions are identified by name, code and options, not by what they call. Losses and metrics are
    identified by their options, data loaders by their number of batches and the first one.

    Both models are those of the first seed, on the CPU; None as optimizer means the recipe's.
    """
    before, after = first
    own = {"loss": scoring.own_loss, "optimizer": optimizer, **(scoring.own_metrics or {"metric": None})}
    of_data = {
        "data": str(data), "task": str(data.task), "classes": str(scoring.num_classes),
        "first test batch": _checksum_of_first_batch(data.test),
    }  # fmt: skip
    if data.train is not None and data.without_effect:  # for a source they follow from its name and the recipe
        first_batches = {_checksum_of_first_batch(data.train) for _ in range(2)}
        of_data["training batches"] = str(len(data.train))  # type: ignore[arg-type]
        of_data["first training batch"] = first_batches.pop() if len(first_batches) == 1 else "another one each time"
    return {
        "models": {
            "model": name_of(before), "structure": named_fingerprint(before), "change": "; ".join(changes(after)),
            "plans": _digest("".join(to_text(record.plan) for record in records_of(after)).encode()),
            "modules": _digest(f"{before!r}{after!r}".encode()),
            "initial weights": _digest(*_weights(before)), "weights of after": _digest(*_weights(after)),
        },
        "data": of_data,
        "recipe": {name: repr(value) for name, value in recipe.to_data().items() if name != "seeds"},
        "own": {name: _identified(value) for name, value in own.items()},
        "versions": versions_of_libraries() | {"device": device, "threads": str(torch.get_num_threads())},
    }  # fmt: skip


def versions_of_libraries() -> dict[str, str]:
    """Return the versions of the libraries that the results depend on."""
    return {"rewriter": __version__} | libraries.versions(_VERSIONED)


def checksum(values: Iterable[Any], start: int = 0) -> int:
    """Return the CRC-32 of the tensors in nested ``values``, continued from ``start``."""
    for tensor in tensors_in(list(values)):
        start = zlib.crc32(_bytes_of(tensor), start)
    return start


def described(value: Any) -> str:
    """Return the name of a function, or an object's description without its address; joined for several."""
    if isinstance(value, Mapping):
        return ", ".join(described(item) for item in value.values())
    return getattr(value, "__qualname__", None) or re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _checksum_of_first_batch(loader: Iterable[Any]) -> str:
    batch = first_batch(loader)
    return "none" if batch is None else f"{checksum(batch):08x}"


def _identified(value: Any) -> str:
    """Identify a function by its code, default arguments and plain closure values; a module by its contents."""
    name = described(value)
    code = getattr(value, "__code__", None)
    if code is not None:
        # the order of a frozenset differs between processes
        constants = [
            sorted(map(repr, item)) if isinstance(item, frozenset) else item
            for item in code.co_consts
            if not hasattr(item, "co_code")
        ]
        around = []
        for cell in value.__closure__ or ():
            with contextlib.suppress(ValueError):  # not filled yet
                around += [cell.cell_contents] if isinstance(cell.cell_contents, _PLAIN) else []
        given = described([value.__defaults__, value.__kwdefaults__, around])
        texts = (repr(code.co_names), repr(constants), given)
        return f"{name} {_digest(code.co_code, *(text.encode() for text in texts))}"
    if isinstance(value, nn.Module):  # repr leaves out most of its options
        parts = [vars(part).items() for part in value.modules()]
        options = [{key: item for key, item in part if key[0] != "_" and isinstance(item, _PLAIN)} for part in parts]
        return f"{name} {_digest((repr(options) + _digest(*_weights(value))).encode())}"
    return name


def _weights(model: nn.Module) -> Iterable[bytes | memoryview]:
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor):
            yield name.encode()
            yield _bytes_of(value)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _digest(*contents: bytes | memoryview) -> str:
    digest = hashlib.sha256()
    for content in contents:
        digest.update(content)
    return digest.hexdigest()[:16]


__getattr__ = forward_names(__name__, {"versions": "versions_of_libraries"})
