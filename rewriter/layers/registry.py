"""Registry of the layers and behaviours that passes add to models.

Plans, saved directories and pickles refer to layers by name, and only layers that an installed pass has registered here
can be named. So loading one never imports or runs anything that the file chooses.
"""

from __future__ import annotations

import abc
import functools
import importlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import nn

from rewriter.entry_points import PASS_GROUP, entry_points, is_own, loaded
from rewriter.errors import InstallationError, PlanError
from rewriter.layers.added import AddedLayer
from rewriter.layers.measured import MeasuredConstants
from rewriter.model.wrappers import named_modules_inside

_LAYERS: dict[str, type[nn.Module]] = {}

Layer = TypeVar("Layer", bound=type[nn.Module])


class CalibratedLayer(AddedLayer, abc.ABC):
    """Base class of layers that subtract and divide by constants of the data, one pair for each input tensor.

    The constants are buffers.

    The forward takes one tensor or a sequence of tensors. The layer is the identity until :func:`rewriter.calibrate`
    has measured the constants; :func:`rewriter.fold` moves them into the weights that follow.

    Attributes:
        operands: number of tensors that the forward takes.
        absorbed: after folding, the padding to apply to each tensor (as ``torch.nn.functional.pad`` takes it) and the
            value to pad with; None before.
        measured: the result of the last calibration; copies can see later ones.
    """

    operands: int
    absorbed: list[tuple[list[int], float]] | None

    def __init__(self) -> None:
        super().__init__()
        self.measured = MeasuredConstants()

    @property
    @abc.abstractmethod
    def calibrated(self) -> bool:
        """Whether it does more than the identity."""

    @abc.abstractmethod
    def constants(self) -> list[tuple[float, float]]:
        """For each tensor, what is subtracted and the factor that the difference is multiplied by."""

    @abc.abstractmethod
    def set_constants(self, constants: Sequence[tuple[float, float]]) -> None:
        """Set what :meth:`constants` returns."""

    def train(self, mode: bool = True) -> CalibratedLayer:
        """Set the mode as usual; a copy made before its original was calibrated warns on entering evaluation mode.

        This is done here rather than in the forward, which is traced, compiled and exported.
        """
        super().train(mode)
        if not mode and self.absorbed is None and not any(buffer.is_meta for buffer in self.buffers()):
            self.measured.warn_if_missed(self.constants)
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        own = {"measured": MeasuredConstants(), **state}  # missing in pickles of earlier versions
        super().__setstate__(own)  # type: ignore[no-untyped-call]


def calibrated_layers(model: nn.Module) -> dict[str, CalibratedLayer]:
    """The layers of ``model`` that need calibration, by path."""
    return {path: module for path, module in named_modules_inside(model) if isinstance(module, CalibratedLayer)}


def register_layer(name: str) -> Callable[[Layer], Layer]:
    """Class decorator that registers a layer as ``name`` (``"pass-name/layer-name"``).

    Raises:
        InstallationError: the name is taken, belongs to a built-in pass, or does not have this form.
    """
    if not isinstance(name, str):
        raise InstallationError("expected @register_layer('pass-name/layer-name'), with the name of the layer")
    if not re.fullmatch(r"[a-z0-9-]+/[a-z0-9-]+", name):
        raise InstallationError(f"layer name {name!r}: expected 'pass-name/layer-name', in lower case with hyphens")
    module = str(sys._getframe(1).f_globals.get("__name__", ""))

    def register(cls: Layer) -> Layer:
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise InstallationError(f"the layer {name!r}: expected a class of modules, found {cls!r}")
        known = _LAYERS.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise InstallationError(
                f"the layer name {name!r} is taken by {known.__module__}.{known.__qualname__}; "
                f"name {cls.__module__}.{cls.__qualname__} after a pass of its own"
            )
        pass_name, package = name.partition("/")[0], module.partition(".")[0]
        if _own_packages().get(pass_name, package) != package:
            raise InstallationError(
                f"the layer name {name!r}, which {module} registers, belongs to the pass {pass_name!r} of rewriter; "
                f"name the layer after a pass of {package}"
            )
        _LAYERS[name] = cls
        return cls

    return register


def is_layer(cls: type) -> bool:
    """Whether a pass registered this class itself, not just a base of it."""
    return cls in _LAYERS.values()


def layer_name(cls: type[nn.Module]) -> str:
    """The name under which ``cls`` is registered.

    Raises:
        InstallationError: it is not registered.
    """
    for name, known in _LAYERS.items():
        if known is cls:
            return name
    if not isinstance(cls, type):
        raise InstallationError(f"expected a registered layer, its class or its name, found {cls!r}")
    raise InstallationError(
        f"{cls.__module__}.{cls.__qualname__} is not registered, so no plan can name it; decorate it with "
        "@register_layer('pass-name/layer-name')"
    )


@functools.cache
def _own_packages() -> dict[str, str]:
    """The top-level package of each built-in pass; only that package may name layers after the pass."""
    return {entry.name: entry.module.partition(".")[0] for entry in entry_points(PASS_GROUP) if is_own(entry)}


def layer_class(name: str) -> type[nn.Module]:
    """The layer registered as ``name``.

    Raises:
        PlanError: no installed pass registers such a layer.
        InstallationError: the built-in passes cannot be imported.
    """
    if name.startswith("rewriter/"):
        importlib.import_module("rewriter.layers.around")
    if name not in _LAYERS:  # in a fresh process the passes have not been imported yet
        for _, cls in loaded(PASS_GROUP):
            for module in getattr(cls, "layers", ()):
                importlib.import_module(module)
    if name not in _LAYERS:
        raise PlanError(
            f"no installed pass provides the layer {name!r} (known: {', '.join(sorted(_LAYERS)) or 'none'}). "
            "Install the package whose pass made this plan."
        )
    return _LAYERS[name]
