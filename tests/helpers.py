"""Helper functions of the tests: models, and a record of everything that a refused rewrite must leave as it is."""

from __future__ import annotations

import hashlib
import os
import random
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rewriter import trace
from rewriter.analysis.gammas import find_gammas

_HOOKS = (
    "_backward_hooks", "_backward_pre_hooks", "_forward_hooks", "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip

_PLAIN = (type(None), bool, int, float, str, bytes, tuple, torch.dtype, torch.device)


def timm_model(name: str, **options: Any) -> nn.Module:
    """A timm model whose weights are always the same."""
    torch.manual_seed(0)
    return timm.create_model(name, **options)


def slow_but(quick: Iterable[str], names: Iterable[str]) -> list[Any]:
    """``names`` as parameters of a test, of which all but ``quick`` are marked slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def image(size: int = 64, channels: int = 3, batch: int = 2) -> torch.Tensor:
    """A batch of noise, always the same."""
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0))


class LastInSequential(nn.Module):
    """A last weight that gets a class of its own, since a Sequential calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 8, 8)
        self.branch = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8), nn.Dropout(0.5))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = x + self.branch(x)
        return self.head(self.norm(x).mean(1))


@torch.no_grad()
def output(model: nn.Module, x: torch.Tensor, *, training: bool = False) -> torch.Tensor:
    """What ``model`` computes in one mode with a fixed seed; its mode is kept, its buffers are not."""
    modes = {module: module.training for module in model.modules()}
    state = torch.get_rng_state()
    model.train(training)
    torch.manual_seed(0)
    try:
        return model(x)
    finally:
        torch.set_rng_state(state)
        for module, mode in modes.items():
            module.training = mode


@dataclass(frozen=True)
class RandomState:
    """The states of torch's, Python's and numpy's generators."""

    torch: bytes
    python: Any
    numpy: str


def random_state() -> RandomState:
    """The states of all generators now."""
    return RandomState(
        torch.get_rng_state().numpy().tobytes(), random.getstate(), repr(np.random.get_state(legacy=True)[1:])
    )


@dataclass(frozen=True)
class Snapshot:
    """Everything that can be seen of a model and of the process around it."""

    modules: dict[str, int]
    classes: dict[str, type]
    attributes: dict[str, tuple[str, ...]]
    values: dict[str, dict[str, Any]]
    children: dict[str, tuple[tuple[str, int], ...]]
    training: dict[str, bool]
    hooks: dict[str, tuple[Any, ...]]
    tensors: dict[str, tuple[Any, ...]]
    random: RandomState
    globals: tuple[Any, ...]


def snapshot(model: nn.Module) -> Snapshot:
    """Note the state of ``model`` and of the process, to be compared by :func:`assert_unchanged`."""
    modules = dict(model.named_modules(remove_duplicate=False))
    return Snapshot(
        modules={path: id(m) for path, m in modules.items()},
        classes={path: type(m) for path, m in modules.items()},
        attributes={path: tuple(sorted(m.__dict__)) for path, m in modules.items()},
        values={path: {k: v for k, v in m.__dict__.items() if isinstance(v, _PLAIN)} for path, m in modules.items()},
        children={path: tuple((k, id(c)) for k, c in m._modules.items()) for path, m in modules.items()},
        training={path: m.training for path, m in modules.items()},
        hooks={path: tuple(_hooks(m)) for path, m in modules.items()},
        tensors={name: _tensor(t) for name, t in (*model.named_parameters(), *model.named_buffers())},
        random=random_state(),
        globals=global_state(),
    )


class Allocations(TorchDispatchMode):
    """Bytes of memory that operations on real tensors take, beside the parameters and buffers of ``model``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.bytes = 0
        self._known = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (list, tuple)) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self._known:
                    self._known.add(storage.data_ptr())
                    self.bytes += storage.nbytes()
        return result


def global_state() -> tuple[Any, ...]:
    """Modes of torch that hold for the whole thread."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch._C._len_torch_function_stack(),
        torch._C._len_torch_dispatch_stack(),
        torch.are_deterministic_algorithms_enabled(),
    )


def assert_unchanged(model: nn.Module, before: Snapshot) -> None:
    """The model and the process are bit for bit what they were."""
    after = snapshot(model)
    for part in fields(Snapshot):
        old, new = getattr(before, part.name), getattr(after, part.name)
        if isinstance(old, dict):
            differing = [path for path in {**old, **new} if old.get(path) != new.get(path)]
            assert not differing, f"{part.name} changed at {differing[:5]}"
        assert old == new, f"{part.name} changed"


def _hooks(module: nn.Module) -> list[Any]:
    return [(name, tuple((k, id(v)) for k, v in module.__dict__.get(name, {}).items())) for name in _HOOKS]


def _tensor(tensor: torch.Tensor) -> tuple[Any, ...]:
    data = tensor.detach()
    whole = data.device.type != "meta" and type(data) is torch.Tensor and hasattr(data, "untyped_storage")
    values = ""
    if whole:
        values = hashlib.sha256(data.contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
    gradient = tensor.grad if tensor.is_leaf else None
    return (
        id(tensor),
        values,
        data.shape,
        data.dtype,
        data.stride(),
        tensor.requires_grad,
        None if gradient is None else (id(gradient), gradient.sum().item()),
    )


def interruptible(command: list[str]) -> list[str]:
    """The command with Ctrl-C in force: a shell that starts the tests in the background has it ignored."""
    code = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    return [sys.executable, "-c", code, *command]


def positions_read(model: nn.Module, features: Callable[[nn.Module], nn.Module], x: torch.Tensor) -> list[int]:
    """At how many positions the loss depends on the output of the module that ``features`` picks, for each sample."""
    grads: list[torch.Tensor] = []
    handle = features(model).register_forward_hook(lambda m, args, out: out.register_hook(grads.append) and None)
    model.train()(x).square().sum().backward()
    handle.remove()
    return [int(sample.abs().sum(0).ne(0).sum()) for sample in grads[0]]


def assert_golden(name: str, text: str) -> None:
    """That ``text`` is as it was written down under ``name``; with ``REWRITER_UPDATE_GOLDEN`` it is written down."""
    golden = Path(__file__).parent / "golden" / f"{name}.txt"
    if os.environ.get("REWRITER_UPDATE_GOLDEN"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text.rstrip() + "\n", encoding="utf-8")
    assert text.rstrip() + "\n" == golden.read_text(encoding="utf-8")


def gamma_categories(model: nn.Module, size: int = 16) -> dict[str, str]:
    """The place of each norm, by its path."""
    return {gamma.path: str(gamma.category) for gamma in find_gammas(trace(model, input_size=size))}
