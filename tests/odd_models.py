"""Models whose forward leaves something behind, one for each way to, and a description of all that a model holds."""

from __future__ import annotations

import array
import collections.abc
import copy
import functools
import itertools
import random
import threading
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from rewriter.model.iterators import is_iterator

GENERATOR = torch.Generator().manual_seed(3)
"""A generator beside the classes, as scripts keep it."""

CALLS = 0
IDS = itertools.count()
CACHE: dict[str, Any] = {}


@dataclass
class Meter:
    """An object that is no module."""

    count: int = 0
    seen: list[int] = field(default_factory=list)


class Slots:
    """An object without a ``__dict__``."""

    __slots__ = ("absent", "count", "generator")

    def __init__(self) -> None:
        self.count = 0
        self.generator = random.Random(1)


class Odd(nn.Module):
    """A head with a dropout before its pooling's place, and one habit."""

    shared: dict[str, Any] = {}  # noqa: RUF012 (a cache of the class is what is tested)
    calls = 0
    of_the_class = np.random.default_rng(5)
    ids = itertools.count()
    bytes_of_the_class = bytearray(b"0")

    def __init__(self, habit: Callable[[Odd, torch.Tensor], Any], prepare: Callable[[Odd], Any] | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 4)
        self.habit = habit
        if prepare is not None:
            prepare(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn(self.conv(x)).relu()
        self.habit(self, x)
        return self.fc(self.drop(self.pool(x).flatten(1)))

    def counted(self, memo: list[int] = [0]) -> None:  # noqa: B006 (state in a default is what is tested)
        memo[0] += 1
        function = type(self).counted
        function.calls = getattr(function, "calls", 0) + 1  # type: ignore[attr-defined]

    @property
    def number(self, memo: list[int] = []) -> int:  # noqa: B006
        memo.append(1)
        return len(memo)

    @staticmethod
    def noted(memo: dict[int, int] = {}) -> None:  # noqa: B006
        memo[len(memo)] = 1

    @classmethod
    def rebound(cls, start: int = 0) -> None:
        cls.rebound.__func__.__defaults__ = (start + 1,)  # type: ignore[attr-defined]


def beside(memo: list[int] = [0]) -> None:  # noqa: B006
    """A function in the file of the model's class."""
    memo[0] += 1
    beside.calls = getattr(beside, "calls", 0) + 1  # type: ignore[attr-defined]


def _run_functions(m: Odd, x: torch.Tensor) -> None:
    _ = m.number
    m.noted()
    m.rebound()
    beside()


def _hold_iterators(m: Odd) -> None:
    m.ids_here = itertools.count(5)
    m.cycle, m.rows = itertools.cycle([1, 2, 3]), iter([1, 2, 3] * 100)
    next(m.cycle)
    m.meter = Meter()
    m.meter.seen = [zip(range(99), itertools.count()), {"map": map(abs, range(99))}]
    m.queue = collections.deque([enumerate("x" * 99)])
    m.slots = Slots()
    m.slots.absent = itertools.chain([1], range(99))
    steps = itertools.count()
    m.step = lambda: next(steps)


def _go_on(m: Odd, x: torch.Tensor) -> None:
    found = [m.ids_here, m.cycle, m.rows, m.meter.seen[0], m.meter.seen[1]["map"], m.queue[0], m.slots.absent]
    for iterator in (*found, IDS, m.ids):
        next(iterator)
    m.step()
    m.bytes_of_the_class.append(1)


def _hold_bytes(m: Odd) -> None:
    m.bytes, m.numbers = bytearray(b"0"), array.array("i", [0])


def _count_in_bytes(m: Odd, x: torch.Tensor) -> None:
    m.bytes[0] = (m.bytes[0] + 1) % 200
    m.numbers[0] += 1
    m.numbers.append(3)


def _new_center(m: Odd, x: torch.Tensor) -> None:
    if m.training:
        m.center = 0.9 * m.center + 0.1 * x.detach().mean((0, 2, 3))


def _fill(m: Odd, x: torch.Tensor) -> None:
    if m.center is None:
        m.center = torch.zeros(8, device=x.device)


def _register(m: Odd, x: torch.Tensor) -> None:
    m.register_buffer("late", torch.ones(x.shape[-1], device=x.device))


def _global(m: Odd, x: torch.Tensor) -> None:
    global CALLS
    CALLS += 1
    CACHE.setdefault("zeros", x.new_zeros(2))


def _of_class(m: Odd, x: torch.Tensor) -> None:
    type(m).calls += 1
    type(m).fresh = 1
    m.shared["zeros"] = x.new_zeros(2)
    m.of_the_class.normal()


def _objects(m: Odd, x: torch.Tensor) -> None:
    m.meter.count += 1
    m.meter.seen.append(1)
    m.slots.count += 1
    m.slots.absent = x.shape
    m.slots.generator.random()
    m.nested["deep"][0][1].append(x.shape)
    m.queue.append(1)
    m.names.add("new")
    m.ordered["b"] = 1
    m.counts["x"] += 1


def _hold_objects(m: Odd) -> None:
    m.meter, m.slots = Meter(), Slots()
    m.nested = {"deep": [({}, [1])]}
    m.queue = collections.deque([0], maxlen=2)
    m.names = {"old"}
    m.ordered = collections.OrderedDict(a=1)
    m.counts = collections.defaultdict(int)


def _hold_generators(m: Odd) -> None:
    m.gen = torch.Generator().manual_seed(0)
    m.gens = {"numpy": [np.random.default_rng(0)], "legacy": (np.random.RandomState(0), random.Random(0))}
    m.bits = np.random.PCG64(0)
    m.fc.gen = torch.Generator().manual_seed(1)
    m.draw = functools.partial(torch.rand, 1, generator=torch.Generator().manual_seed(2))
    inner = random.Random(4)
    m.draw_inner = lambda: inner.random()
    m.random = random  # the module itself


def _draw(m: Odd, x: torch.Tensor) -> None:
    for generator in (m.gen, m.fc.gen, GENERATOR):
        torch.rand(3, generator=generator, device="cpu")
    m.gens["numpy"][0].normal()
    m.gens["legacy"][0].normal()
    m.gens["legacy"][1].gauss(0, 1)
    m.bits.random_raw()
    with torch.device("cpu"):
        m.draw()
    m.draw_inner()
    m.random.random()


def _closure(m: Odd) -> None:
    count, log = 0, []

    def step() -> None:
        nonlocal count
        count += 1
        log.append(count)

    m.step = step
    m.read = lambda: (count, len(log))


def _tensors(m: Odd, x: torch.Tensor) -> None:
    m.plain.add_(1)
    m.held["grid"][0].mul_(2)
    m.replaced = torch.zeros(3, device=x.device)
    m.array += 1


def _hold_tensors(m: Odd) -> None:
    m.plain, m.held, m.replaced = torch.ones(2), {"grid": [torch.ones(2)]}, torch.ones(3)
    m.array = np.zeros(3)


def _weak(m: Odd) -> None:
    m.kept = [nn.BatchNorm2d(8)]  # in no registry
    m.reference = weakref.ref(m.kept[0])
    m.table = weakref.WeakKeyDictionary({m.fc: [1]})


def _run_weak(m: Odd, x: torch.Tensor) -> None:
    m.reference()(x)
    m.table[m.fc].append(2)


def _local(m: Odd) -> None:
    m.local = threading.local()
    m.local.count = 0


HABITS: dict[str, tuple[Callable[..., Any], Callable[..., Any] | None]] = {
    "replaced buffer": (_new_center, lambda m: m.register_buffer("center", torch.zeros(8))),
    "buffer of None": (_fill, lambda m: m.register_buffer("center", None)),
    "buffer of None that is not saved": (_fill, lambda m: m.register_buffer("center", None, persistent=False)),
    "buffer registered anew": (_register, None),
    "buffer that gets saved": (_register, lambda m: m.register_buffer("late", torch.ones(2), persistent=False)),
    "buffer of another shape": (
        lambda m, x: setattr(m, "grid", torch.zeros(x.shape[-1], device=x.device)),
        lambda m: m.register_buffer("grid", torch.zeros(1)),
    ),
    "buffer resized in place": (
        lambda m, x: m.grid.resize_(9).zero_(),
        lambda m: m.register_buffer("grid", torch.ones(1)),
    ),
    "buffer of other data": (
        lambda m, x: setattr(m.grid, "data", x.detach().mean((0, 2, 3))),
        lambda m: m.register_buffer("grid", torch.ones(1)),
    ),
    "buffer taken away": (
        lambda m, x: m._buffers.pop("grid", None),
        lambda m: m.register_buffer("grid", torch.ones(1)),
    ),
    "parameter of other data": (lambda m, x: setattr(m.fc.weight, "data", m.fc.weight.data * 0.5), None),
    "parameter written to": (lambda m, x: m.fc.bias.data.zero_(), None),
    "parameter replaced": (lambda m, x: setattr(m.fc, "bias", nn.Parameter(m.fc.bias.detach() * 2)), None),
    "frozen while it runs": (lambda m, x: m.fc.requires_grad_(False), None),
    "layer replaced": (lambda m, x: setattr(m, "pool", nn.AdaptiveAvgPool2d(1)), None),
    "mode": (lambda m, x: m.bn.eval(), None),
    "plain tensors": (_tensors, _hold_tensors),
    "objects and containers": (_objects, _hold_objects),
    "generators": (_draw, _hold_generators),
    "attributes of the class": (_of_class, None),
    "globals": (_global, None),
    "closure": (lambda m, x: m.step(), _closure),
    "weakly held": (_run_weak, _weak),
    "bytes and numbers": (_count_in_bytes, _hold_bytes),
    "default argument and attribute of a method": (lambda m, x: m.counted(), None),
    "functions of the class and beside it": (_run_functions, None),
    "iterators": (_go_on, _hold_iterators),
    "for this thread": (lambda m, x: setattr(m.local, "count", m.local.count + 1), _local),
}


def odd_model(name: str) -> Odd:
    """The model with that habit, with the same weights every time, and a clean class."""
    torch.manual_seed(0)
    return Odd(*HABITS[name])


def surroundings() -> Any:
    """What is around the models."""
    of_class = {name: item for name, item in vars(Odd).items() if not name.startswith("__")}
    return [described(item) for item in (GENERATOR, CALLS, IDS, CACHE, beside, *of_class, *of_class.values())]


def described(value: Any, seen: dict[int, int] | None = None) -> Any:
    """All that ``value`` holds, with the identity of what can be changed; equal only if nothing did."""
    seen = {} if seen is None else seen
    if id(value) in seen:
        return ("again", seen[id(value)])
    if value is None or isinstance(value, (bool, int, float, str, bytes, type, types.ModuleType, torch.Size)):
        return value
    seen[id(value)] = len(seen)
    found: Any
    if isinstance(value, torch.Tensor):
        gradient = value.grad if value.is_leaf else None
        found = (value.dtype, value.shape, value.requires_grad, value.detach().tolist(), id(gradient))
    elif isinstance(value, dict):
        found = [(described(key, seen), described(item, seen)) for key, item in value.items()]
    elif isinstance(value, (bytearray, array.array)):
        found = list(value)
    elif isinstance(value, (list, tuple, collections.deque)):
        found = [described(item, seen) for item in value]
    elif isinstance(value, (set, frozenset)):
        found = sorted(map(repr, value))
    elif isinstance(value, torch.Generator):
        found = value.get_state().tolist()
    elif isinstance(value, random.Random):
        found = value.getstate()
    elif isinstance(value, np.random.RandomState):
        found = repr(value.get_state())
    elif isinstance(value, (np.random.Generator, np.random.BitGenerator)):
        found = repr(getattr(value, "bit_generator", value).state)
    elif isinstance(value, np.ndarray):
        found = value.tolist()
    elif isinstance(value, functools.partial):
        found = [described(part, seen) for part in (value.func, value.args, value.keywords)]
    elif isinstance(value, weakref.ref):
        found = described(weakref.ref.__call__(value), seen)
    elif is_iterator(value):
        found = list(itertools.islice(copy.deepcopy(value), 3))
    elif isinstance(value, property):
        found = described(value.fget, seen)
    elif isinstance(value, (staticmethod, classmethod)):
        found = described(value.__func__, seen)
    elif isinstance(value, types.MethodType):
        found = described(value.__self__, seen)
    elif isinstance(value, types.FunctionType):
        held = [cell.cell_contents for cell in value.__closure__ or ()]
        found = [described(part, seen) for part in (*held, value.__defaults__, value.__dict__)]
    else:
        slots = [getattr(value, name, "empty") for name in getattr(type(value), "__slots__", ())]
        found = [described(part, seen) for part in (getattr(value, "__dict__", None), *slots)]
    return (type(value), id(value), found)
