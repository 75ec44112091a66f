"""Read weights from the file layouts that training scripts write."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch

from rewriter.errors import StorageError, listed

_STATES = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")
"""Where training checkpoints store the state dict. timm's order: averaged weights come first."""
_WRAPPERS = ("module.", "_orig_mod.")
"""The prefixes that DDP and torch.compile add to every key."""
_EXPECTED = "expected a state dict, in safetensors or of torch.save(model.state_dict(), FILE)"
_AGAIN = "Copy or download it again."
_WRITE = "Write it with torch.save(model.state_dict(), FILE), where the model can be made."


def read_checkpoint(file: str | Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint, from safetensors or from ``torch.save``; nothing in the file is executed.

    A state dict inside a training checkpoint is looked up under ``state_dict_ema``, ``model_ema``, ``state_dict``,
    ``model`` or ``model_state_dict``, the first one present, as in ``timm.models.load_state_dict``. The prefixes
    ``module.`` and ``_orig_mod.`` are stripped if every key has them.

    Raises:
        StorageError: there is no such file, or it holds no state dict; the message says what it holds.
    """
    path = Path(file)
    if path.is_dir():
        raise StorageError(f"{path} is a directory; {_EXPECTED}. Name the file in it.")
    if not path.is_file():
        raise StorageError(f"{path}: no such file")
    try:
        with path.open("rb") as opened:
            head = opened.read(512)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
    try:
        found: Any = read_safetensors(path) if head[8:9] == b"{" else _unpickled(path)
    except Exception as error:
        raise StorageError(f"{path}: {_EXPECTED}; found {_content(path, head, error)}") from error
    return _without_wrappers(_state_dict(found, path))


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a file; a shared tensor appears under each of its names."""
    with safetensors.safe_open(str(path), framework="pt") as file:
        shared = file.metadata() or {}
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    return state | {key: state[kept] for key, kept in shared.items() if kept in state}


def _unpickled(path: Path) -> Any:
    allowed = getattr(torch.serialization, "safe_globals", None)  # torch 2.4 has none
    # the options of a training script, which timm's checkpoints hold: a Namespace runs nothing
    with path.open("rb") as file, allowed([argparse.Namespace]) if allowed is not None else contextlib.nullcontext():
        return torch.load(file, map_location="cpu", weights_only=True)


def _state_dict(found: Any, path: Path) -> dict[str, torch.Tensor]:
    while isinstance(found, Mapping) and (inner := next((n for n in _STATES if _is_state(found, n)), None)):
        found = found[inner]
    if not isinstance(found, Mapping):
        raise StorageError(f"{path}: {_EXPECTED}; found a {type(found).__name__}. {_WRITE}")
    others = [
        f"{key} ({type(value).__name__})"
        for key, value in found.items()
        if not isinstance(key, str) or not (isinstance(value, torch.Tensor) or _is_extra(key))
    ]
    if others or not any(isinstance(value, torch.Tensor) for value in found.values()):
        raise StorageError(
            f"{path}: {_EXPECTED}, alone or under one of {', '.join(_STATES)}; found a dict with "
            f"{listed(others) if others else 'nothing in it'}. {_WRITE}"
        )
    return dict(found)


def _is_extra(key: str) -> bool:
    """Whether it is a module's ``get_extra_state``, which need not be a tensor."""
    return key.rpartition(".")[2] == "_extra_state"


def _is_state(checkpoint: Mapping[Any, Any], name: str) -> bool:
    return isinstance(checkpoint.get(name), Mapping)


def _without_wrappers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    while prefix := next((p for p in _WRAPPERS if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _content(path: Path, head: bytes, error: Exception) -> str:
    """Describe the content of a file that cannot be read, and what to do about it."""
    size = path.stat().st_size
    if not size:
        return f"an empty file. {_AGAIN}"
    code = re.search(r"GLOBAL (\S+)", str(error))
    if code is not None:
        return f"a pickle that calls {code[1]}: it could run any code, so nothing but tensors is read. {_WRITE}"
    if "TorchScript" in str(error):
        return f"a TorchScript archive. {_WRITE}"
    if head.startswith(b"PK") and not zipfile.is_zipfile(path):
        return f"the beginning of one only, {size} bytes. {_AGAIN}"
    text = _text(head)
    if text is not None:
        return f"text, which begins with {text[:60]!r}. Give the file of the weights."
    cause = error.__context__ or error  # torch puts its own advice before the unpickler's message
    reason = " ".join(str(cause).partition("\n")[0].split())
    reason = f"{type(error).__name__}{': ' if reason else ''}{reason}"
    return f"a file that is damaged or of another kind ({reason}). Copy or download it again, or give another one."


def _text(head: bytes) -> str | None:
    """Return the text that a file begins with; None if it is not text."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be cut off
    except UnicodeDecodeError:
        return None
    plain = all(character.isprintable() or character.isspace() for character in text)
    return " ".join(text.split()) if plain else None
