"""What a name on the command line stands for: a model of a library, a saved directory, or code of the user's."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from rewriter import zoo
from rewriter.errors import SubjectError, listed
from rewriter.storage.directory import RECIPE, load
from rewriter.subjects.function_module import as_module

_FORMS = "file.py:factory, package.module:factory, or a directory of rewriter.save"


def create_subject(name: str, *, pretrained: bool = False, **options: Any) -> zoo.Entry:
    """Create what ``name`` stands for.

    In this order: a name with the prefix of a library (``smp:unet-resnet18``), a timm name, a directory that
    :func:`rewriter.save` wrote with its recipe, ``file.py:factory``, ``package.module:factory``. A factory is called
    with ``options`` and returns a model or a loss, or one of them and ``example_inputs``; a model in its place is taken
    as it is. Only in the last two forms is code of the user's run.

    Raises:
        SubjectError: the code cannot be imported, has no such factory, or the factory raises or returns something else.
        ModelZooError: of names of libraries.
        StorageError: of directories.
    """
    if is_directory(name):
        if options or pretrained:
            raise SubjectError(f"{name} is a saved model, which takes no options and no other weights")
        return zoo.Entry(load(name), name, None)
    if not is_code(name):
        return _of_library(name, pretrained, options)
    if pretrained:
        raise SubjectError(
            f"{name}: --pretrained is for models of libraries; give --checkpoint, or load in the factory"
        )
    where, _, attribute = name.rpartition(":")
    found = _called(name, _attribute(_module(where, name), attribute, name), options)
    model, inputs = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    if not callable(model) or isinstance(model, type):
        raise SubjectError(f"{name}: expected a model, or (model, example_inputs), found {type(found).__name__}")
    if inputs is not None and not isinstance(inputs, (tuple, dict)):
        inputs = (inputs,)
    return zoo.Entry(as_module(model), name, None, dict(options), inputs)


def is_own(name: str) -> bool:
    """Whether ``name`` is no model of a library."""
    return is_code(name) or is_directory(name)


def is_directory(name: str) -> bool:
    """Whether ``name`` is a directory with a recipe; the name of a model of timm is not."""
    return (Path(name) / RECIPE).is_file() and not _is_of_library(name)


def is_code(name: str) -> bool:
    """Whether ``name`` has the form of a factory in code of the user's."""
    return ":" in name and name.partition(":")[0] not in zoo.SOURCES


def _is_of_library(name: str) -> bool:
    return name.partition(":")[0] in zoo.SOURCES or (os.sep not in name and bool(zoo.names(name)))


def _of_library(name: str, pretrained: bool, options: Mapping[str, Any]) -> zoo.Entry:
    try:
        return zoo.create(name, pretrained=pretrained, **options)
    except zoo.UnknownModel as error:
        raise zoo.UnknownModel(f"{error}; your own is {_FORMS}") from error


def _module(where: str, name: str) -> ModuleType:
    """Import the file or module that the factory is in, as Python would in the current directory."""
    path = Path(where)
    try:
        folder = str(path.resolve().parent) if path.suffix == ".py" else os.getcwd()
        if folder not in sys.path:
            sys.path.insert(0, folder)  # and left there: functions import when they run
        return _of_file(path, name) if path.suffix == ".py" else importlib.import_module(where)
    except SubjectError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == where.partition(".")[0]:
            prefixes = ", ".join(f"{prefix}:NAME" for prefix in zoo.SOURCES)
            detail = f"there is no module {error.name!r} here, and it is none of {prefixes}"
        else:
            detail = f"importing it raised {type(error).__name__}: {error}"
        raise SubjectError(f"{name}: {detail}; expected {_FORMS}") from error


def _of_file(path: Path, name: str) -> ModuleType:
    if not path.is_file():
        raise SubjectError(f"{name}: there is no file {path}")
    taken = importlib.util.find_spec(path.stem) if path.stem.isidentifier() else None
    beside = taken is not None and taken.origin == str(path.resolve())
    module_name = path.stem if taken is None or beside else f"{path.stem}_of_subject"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # its classes are looked up there
    spec.loader.exec_module(module)
    return module


def _attribute(module: ModuleType, attribute: str, name: str) -> Any:
    found: Any = module
    for part in attribute.split("."):
        found = getattr(found, part, None)
        if found is None:
            own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
            raise SubjectError(f"{name}: there is no {attribute!r} in it; it defines {listed(own) or 'nothing'}")
    return found


def _called(name: str, factory: Any, options: Mapping[str, Any]) -> Any:
    if isinstance(factory, nn.Module) or not callable(factory):
        return factory
    called: Callable[..., Any] = factory
    try:
        return called(**options)
    except Exception as error:
        given = ", ".join(f"{key}={value!r}" for key, value in options.items())
        raised = f"{type(error).__name__} in {called.__name__}({given}): {error}"
        raise SubjectError(f"{name}: {raised}; its options are given with -k OPTION=VALUE") from error
