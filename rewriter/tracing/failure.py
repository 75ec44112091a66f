"""Explain why a model could not be traced: where it failed, and what to do about it."""

from __future__ import annotations

import traceback
import types
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rewriter.errors import TraceError
from rewriter.model import hooks
from rewriter.tracing.inputs import Origin

_UNSTARTED: dict[type, str] = {
    types.GeneratorType: "a generator function",
    types.CoroutineType: "an async function",
    types.AsyncGeneratorType: "an async generator function",
    map: "a function that returns a map which nobody has gone through",
    filter: "a function that returns a filter which nobody has gone through",
}

_NOT_THEIRS = (Path(__file__).parent, Path(hooks.__file__), *map(Path, torch.__path__))
"""The code that calls the user's modules during a trace: an error should point at the user's line instead."""


def explained(error: Exception, path: str | None, model: nn.Module, origin: Origin, training: bool) -> TraceError:
    """The error for a run that failed in the module at ``path``, with the original message and the user's line."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _is_in(f.filename, _NOT_THEIRS)]
    where = f" at {frames[-1].filename}:{frames[-1].lineno} (`{frames[-1].line}`)" if frames else ""
    module = f"module {path!r} ({type(model.get_submodule(path)).__name__})" if path else type(model).__name__
    message = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return TraceError(
        f"the model could not be run in {'training' if training else 'evaluation'} mode: "
        f"{type(error).__name__}: {message} in {module}{where}. "
        f"The input came from {origin}{_remedy(origin, message)}."
    )


def _is_in(file: str, places: tuple[Path, ...]) -> bool:
    return any(Path(file).is_relative_to(place) for place in places)


def _remedy(origin: Origin, message: str) -> str:
    if "missing" in message and "argument" in message:
        return "; the model takes more than that: give example_inputs= with all its arguments, by name as a dict"
    if origin is Origin.INPUT_SIZE and "channels" in message:
        return "; for another number of channels give input_size=(channels, height, width)"
    return "" if origin is Origin.BATCH else "; if it needs another, give input_size= or example_inputs="


def own_tensor_reached(model: nn.Module, tensor: object) -> str:
    """Why a trace that reached one of the model's own tensors cannot continue."""
    registered = (*model.named_parameters(), *model.named_buffers())
    name = next(name for name, other in registered if other is tensor)
    return (
        f"{type(model).__name__} reaches {name} by a way that does not begin at its attributes (a global variable or "
        "an attribute of a class). Let the module that uses it hold it."
    )


def unstarted_result(model: nn.Module, result: Any) -> str | None:
    """Why a trace with this ``result`` recorded nothing: it has not started to run; None if it has run."""
    if type(result) not in _UNSTARTED:
        return None
    return (
        f"the forward of {type(model).__name__} is {_UNSTARTED[type(result)]}: what it does runs later, outside of "
        "the call. Give a model whose forward returns what it computed."
    )
