"""What every source of models shares: the entry it returns and the errors it raises."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from rewriter import libraries

InputSize = tuple[int, int, int]


class ModelZooError(ValueError):
    """Base class of the errors raised here."""


class UnknownModel(ModelZooError):
    """No model has this name."""


class MissingLibrary(ModelZooError, ImportError):
    """The library that has the model is not installed."""


class CreationError(ModelZooError):
    """The model's constructor refused, or its weights are not available."""


@dataclass(frozen=True)
class Entry:
    """A model and how it was requested.

    Attributes:
        model: the model.
        name: the name it was requested by.
        input_size: ``(channels, height, width)`` of one input, without the batch; None if it takes no single image.
        options: options that, given with ``name``, build the same structure without its weights.
        example_inputs: arguments for one run, small and on the CPU, if ``input_size`` does not determine them: a tuple
            of positional ones (lists of images with targets, clips, pairs of images) or a dict of keyword arguments
            (latents with time steps and text); otherwise None.
    """

    model: nn.Module
    name: str
    input_size: InputSize | None
    options: Mapping[str, Any] = field(default_factory=dict)
    example_inputs: tuple[Any, ...] | dict[str, Any] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Source:
    """A library of models.

    Attributes:
        create: from the full name, the name within the library, ``pretrained`` and the constructor's options.
        names: every name within the library.
        quick_options: from the name within the library, options that make a run fast without changing the structure.
        class_option: the option that sets the number of classes; empty if there is none.
        channel_option: the option that sets the channels of images; empty if there is none.
        is_buildable: whether a name can be built by default. Unlike ``names``, it may import and build the model.
        is_unlisted: whether a name is one of those that ``names`` omits because they are too many.
    """

    create: Callable[[str, str, bool, dict[str, Any]], Entry]
    names: Callable[[], list[str]]
    class_option: str = ""
    channel_option: str = ""
    quick_options: Callable[[str], dict[str, Any]] = lambda local: {}
    is_buildable: Callable[[str], bool] = lambda local: True
    is_unlisted: Callable[[str], bool] = lambda local: False


def require(library: str) -> Any:
    """Import a library of models, or a module of it.

    Raises:
        MissingLibrary: with the command that installs it.
    """
    return libraries.load(library, libraries.install_command(library), MissingLibrary)


def build(
    name: str, constructor: Callable[..., Any], defaults: Mapping[str, Any], given: Mapping[str, Any]
) -> nn.Module:
    """Call a constructor with our defaults and the options that the caller gave.

    Raises:
        CreationError: it raised; the message has the name, the options given and the original message.
    """
    try:
        model = constructor(**{**defaults, **given})
    except Exception as error:
        options = ", ".join(f"{key}={value!r}" for key, value in given.items()) or "its default options"
        message = " ".join(str(error).split()) or "no message"
        raise CreationError(f"{name} cannot be created with {options}: {type(error).__name__}: {message}") from error
    if not isinstance(model, nn.Module):
        raise CreationError(f"{name}: expected a torch.nn.Module, the library made a {type(model).__name__}")
    return model


def unknown(name: str, local: str, known: Iterable[str], prefix: str = "") -> UnknownModel:
    """Return the error for a name that no model has."""
    return UnknownModel(f"unknown model {name!r}; {nearest(local, known, prefix)}")


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return ``did you mean …?`` with similar names, or what to do if there are none."""
    near = difflib.get_close_matches(name, list(known), n=5, cutoff=0.5)
    if near:
        return f"did you mean {', '.join(prefix + match for match in near)}?"
    return "no name is near; rewriter.zoo.names() lists all of them"
