"""A copy of a model, and the skeleton that is traced, lead to nothing of the model they were made of."""

from __future__ import annotations

import collections
import functools
import logging
import threading
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_unchanged, image, snapshot
from odd_models import described
from torch import nn

import rewriter
from rewriter.model.copying import copy_model
from rewriter.tracing.skeleton import meta_twin, skeleton


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.drop(self.bn(x).mean((2, 3))))


class NeedsValues(Head):
    """Is traced on real tensors: a skeleton that led to the model would write to its running statistics."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert float(x.detach().flatten()[0]) < 1e9
        return super().forward(x)


class Runner:
    """What frameworks put around a module: an object that is none."""

    __slots__ = ("__weakref__", "module")

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def run(self, x: torch.Tensor) -> torch.Tensor:
        return type(self.module).forward(self.module, x)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(x)


def _through_reference(reference: Callable[[], nn.Module], x: torch.Tensor) -> torch.Tensor:
    module = reference()
    return type(module).forward(module, x)


def _through_default(module: nn.Module) -> Callable[..., Any]:
    def forward(x: torch.Tensor, owner: nn.Module = module) -> torch.Tensor:
        return type(owner).forward(owner, x)

    return forward


def _through_closure(module: nn.Module) -> Callable[..., Any]:
    holder = {"it": [module]}
    return lambda x: type(holder["it"][0]).forward(holder["it"][0], x)


def _through_decorator(module: nn.Module) -> Callable[..., Any]:
    inner = module.forward

    @functools.wraps(inner)
    def forward(*args: Any) -> Any:
        return inner(*args)

    return forward


def _through_table(module: nn.Module) -> Callable[..., Any]:
    table = weakref.WeakValueDictionary(it=module)
    return lambda x: type(table["it"]).forward(table["it"], x)


def _through_set(module: nn.Module) -> Callable[..., Any]:
    members = weakref.WeakSet([module])
    return lambda x: next(type(member).forward(member, x) for member in members)


def _through_keys(module: nn.Module) -> Callable[..., Any]:
    table = weakref.WeakKeyDictionary({module: 1})
    return lambda x: next(type(key).forward(key, x) for key in table)


def _through_proxy(module: nn.Module) -> Callable[..., Any]:
    proxy = weakref.proxy(module)
    return lambda x: type(module).forward(proxy, x)


def _through_weak_method(module: nn.Module) -> Callable[..., Any]:
    module.runner = Runner(module)
    method = weakref.WeakMethod(module.runner.run)
    return lambda x: method()(x)


def _through_subclass(module: nn.Module) -> Callable[..., Any]:
    class Named(weakref.ref):  # type: ignore[type-arg]
        pass

    return functools.partial(_through_reference, Named(module))


def _through_cache(module: nn.Module) -> Callable[..., Any]:
    find = functools.lru_cache(lambda: module)
    find()
    return lambda x: type(find()).forward(find(), x)


def _through_keyed_dict(module: nn.Module) -> Callable[..., Any]:
    table = {module: "it"}
    return lambda x: next(type(key).forward(key, x) for key in table)


def _through_view(module: nn.Module) -> Callable[..., Any]:
    view = types.MappingProxyType({"it": module})
    return lambda x: type(view["it"]).forward(view["it"], x)


def _through_built_in(module: nn.Module) -> Callable[..., Any]:
    get = collections.deque([module]).__getitem__
    return lambda x: type(get(0)).forward(get(0), x)


def _through_namespace(module: nn.Module) -> Callable[..., Any]:
    namespace = types.SimpleNamespace(it=module)
    return lambda x: type(namespace.it).forward(namespace.it, x)


WAYS: dict[str, Callable[[nn.Module], Callable[..., Any]]] = {
    "partial": lambda m: functools.partial(type(m).forward, m),
    "partial over a reference": lambda m: functools.partial(_through_reference, weakref.ref(m)),
    "partial with a keyword": lambda m: functools.partial(
        lambda x, reference: _through_reference(reference, x), reference=weakref.ref(m)
    ),
    "bound method of an object": lambda m: Runner(m).run,
    "object": Runner,
    "default": _through_default,
    "closure over containers": _through_closure,
    "decorator": _through_decorator,
    "weak values": _through_table,
    "weak set": _through_set,
    "weak keys": _through_keys,
    "proxy": _through_proxy,
    "weak method": _through_weak_method,
    "subclass of a reference": _through_subclass,
    "cached function": _through_cache,
    "keys": _through_keyed_dict,
    "view of a dict": _through_view,
    "built-in method": _through_built_in,
    "namespace": _through_namespace,
}


def wrapped(way: str, head: type[Head] = Head) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), head())
    model[2].forward = WAYS[way](model[2])
    return model


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_computes_with_its_own_modules(way: str) -> None:
    model = wrapped(way).eval()
    x = image(8)
    with torch.no_grad():
        expected = model(x)
        before = snapshot(model)
        copy = copy_model(model)
        assert_unchanged(model, before)
        assert torch.equal(copy(x), expected)
        copy[2].fc.weight.zero_()
        copy[2].fc.bias.zero_()
        assert not copy(x).any() and torch.equal(model(x), expected)
        model[2].fc.weight.zero_()
        copy[2].fc.bias.fill_(1)
        assert (copy(x) == 1).all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("head", [Head, pytest.param(NeedsValues, marks=pytest.mark.slow)])
def test_a_trace_runs_the_skeletons_modules(way: str, head: type[Head]) -> None:
    model = wrapped(way, head).train()
    before = described(model)
    traced = rewriter.trace(model, input_size=8)
    assert traced.backend == ("cpu" if head is NeedsValues else "meta")
    found = [node.target for node in traced.train.graph.nodes if node.op == "call_module"]
    assert found == ["0", "1", "2.bn", "2.drop", "2.fc"]
    rewriter.plan(model, input_size=8)
    rewriter.param_groups(model, weight_decay=0.1, input_size=8)
    assert described(model) == before


@pytest.mark.parametrize("way", WAYS)
def test_undo_gives_back_a_copy_that_stands_alone(way: str) -> None:
    model = rewriter.rewrite(nn.Sequential(wrapped(way), nn.Identity()), input_size=8)
    if not rewriter.report(model).applied:
        model = rewriter.rewrite(nn.Sequential(wrapped(way)), "weight-decay", input_size=8)
    undone = rewriter.undo(model).eval()
    x = image(8)
    with torch.no_grad():
        expected = undone(x)
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(undone(x), expected)


@pytest.mark.thorough
def test_what_only_a_weak_reference_leads_to_is_shared_by_a_copy_and_doubled_for_a_trace() -> None:
    teacher = NeedsValues()

    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.teacher = nn.Conv2d(3, 8, 3), weakref.ref(teacher)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.teacher()(self.conv(x))

    model = Student().train()
    before = described(model)
    assert copy_model(model).teacher() is teacher
    assert rewriter.trace(model, input_size=8).backend == "cpu"
    assert described(model) == before


def test_references_that_are_dead_stay_dead() -> None:
    model = Head()
    model.gone = weakref.ref(nn.Linear(1, 1))
    model.__dict__["proxy"] = weakref.proxy(nn.Linear(1, 1))
    assert model.gone() is None
    rewriter.plan(nn.Sequential(nn.Conv2d(3, 8, 3), model), input_size=8)
    assert copy_model(model).gone() is None and skeleton(model, meta_twin).gone() is None


def test_hooks_report_to_the_user_and_work_on_the_copy() -> None:
    class Collector:
        def __init__(self, model: nn.Module) -> None:
            self.model, self.shapes = model, []
            model.fc.register_forward_hook(lambda module, args, output: self.shapes.append(output.shape))

    model, seen = Head().eval(), []
    collector = Collector(model)
    model.fc.register_forward_hook(lambda module, args, output: seen.append((module, len(collector.shapes))))
    model.fc.register_forward_hook(lambda module, args, output: output + model.fc.bias)
    with torch.no_grad():
        copy = copy_model(model)
        copy.fc.weight.zero_()
        copy.fc.bias.fill_(1)
        assert (copy(torch.ones(2, 8, 3, 3)) == 2).all()  # the last hook reads the copy's own bias
    assert [module for module, _ in seen] == [copy.fc] and collector.shapes == [(2, 4)]


class Locked(nn.Module):
    """Runs with, and holds, what cannot be copied."""

    def __init__(self, make: Callable[[], Any]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(8, 4)
        self.body.held = {"deep": [make()]}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.drop(self.body(x).mean((2, 3))))


class Guarded:
    """A user's object with a lock inside: it is copied, and the lock is not."""

    def __init__(self) -> None:
        self.lock, self.count, self.log = threading.Lock(), 0, logging.getLogger("guarded")


def _generator() -> Any:
    yield 1


SHARED: dict[str, Callable[[], Any]] = {
    "lock": threading.Lock,
    "reentrant lock": threading.RLock,
    "condition": threading.Condition,
    "event": threading.Event,
    "thread": threading.Thread,
    "logger": lambda: logging.getLogger("rewriter.tests"),
    "log handler": logging.NullHandler,
    "file": lambda: Path(__file__).open(encoding="utf-8"),  # noqa: SIM115 (the model holds it)
    "generator": _generator,
    "module of code": lambda: collections,
    "stream": lambda: torch.Stream("cpu") if hasattr(torch, "Stream") else threading.Lock(),
}


@pytest.mark.parametrize("kind", SHARED)
def test_what_cannot_be_copied_and_holds_nothing_of_the_model_is_shared(kind: str) -> None:
    try:
        model = Locked(SHARED[kind])
    except RuntimeError as error:
        pytest.skip(str(error))
    rewritten = rewriter.rewrite(model, "dropout", input_size=8)
    assert len(rewriter.report(rewritten).applied) == 1
    held = model.body.held["deep"][0]
    undone = rewriter.undo(rewritten)
    for copy in (rewritten, undone):
        assert copy.body.held["deep"] is not model.body.held["deep"]
        assert copy.body.held["deep"][0] is held
    if hasattr(held, "close"):
        held.close()


def test_an_object_around_a_lock_is_copied() -> None:
    model = Locked(Guarded)
    copy = rewriter.rewrite(model, "dropout", input_size=8)
    ours, theirs = model.body.held["deep"][0], copy.body.held["deep"][0]
    assert ours is not theirs and ours.lock is theirs.lock and ours.log is theirs.log
    theirs.count += 1
    assert ours.count == 0


def _running(model: nn.Module) -> Any:
    yield from model.modules()


def test_what_cannot_be_copied_and_holds_modules_is_refused_with_the_way_out() -> None:
    model = Locked(threading.Lock)
    model.body.running = _running(nn.Linear(2, 2))
    before = described(model)
    with pytest.raises(rewriter.RewriterError, match=r"'body\.running' of Locked cannot be copied.*inplace=True"):
        rewriter.rewrite(model, "dropout", input_size=8)
    assert described(model) == before
    assert rewriter.rewrite(model, "dropout", input_size=8, inplace=True) is model
    with pytest.raises(rewriter.RewriterError, match=r"'body\.running'.*rewriter\.undo\(model, inplace=True\)"):
        rewriter.undo(model)
    assert len(rewriter.report(model).applied) == 1
    assert rewriter.undo(model, inplace=True) is model


def test_a_skeleton_that_would_run_the_model_is_refused() -> None:
    model = Locked(threading.Lock)
    model.body.running = _running(model)
    next(model.body.running)
    before = snapshot(model)
    with pytest.raises(rewriter.RewriterError, match=r"'body\.running' of Locked.*remove the attribute"):
        rewriter.plan(model, input_size=8)
    assert_unchanged(model, before)


class Selfish:
    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __deepcopy__(self, memo: dict[int, Any]) -> Selfish:
        return self


class Unwilling(nn.Linear):
    def __reduce_ex__(self, protocol: Any) -> Any:
        raise NotImplementedError("not this one")


def test_objects_and_modules_that_copy_themselves_wrongly_are_refused() -> None:
    model = Locked(threading.Lock)
    model.body.runner = Selfish(model.fc)
    with pytest.raises(rewriter.RewriterError, match=r"'body\.runner' of Locked cannot be copied.*Selfish"):
        copy_model(model)
    model = Locked(threading.Lock)
    model.fc = Unwilling(8, 4)
    with pytest.raises(rewriter.RewriterError, match=r"module 'fc' of Locked.*Unwilling.*not this one.*inplace=True"):
        rewriter.rewrite(model, "dropout", input_size=8)


_KEPT: dict[str, Any] = {}


class Cached(Head):
    """The class hands out one object again and again."""

    def __new__(cls) -> Any:
        return _KEPT.setdefault(cls.__name__, super().__new__(cls))


class CachedElsewhere(Cached):
    """What the class hands out is another object than the model."""


class Rebuilt(nn.Module):
    """A new object at every copy, around the same child."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = _KEPT["head"] = head

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(x)

    def __reduce_ex__(self, _: Any) -> Any:
        return lambda: Rebuilt(_KEPT["head"]), ()


class Keeper:
    """An object that is made anew at every copy, and holds what it held."""

    def __init__(self, head: nn.Module) -> None:
        self.head = _KEPT["head"] = head

    def __reduce_ex__(self, _: Any) -> Any:
        return lambda: Keeper(_KEPT["head"]), ()


def _cached_elsewhere() -> nn.Module:
    model = CachedElsewhere()
    _KEPT["CachedElsewhere"] = other = object.__new__(CachedElsewhere)
    other.__init__()  # type: ignore[misc]
    return model


def _with_keeper() -> nn.Module:
    model: Any = Rebuilt.__base__()
    model.head = Head()
    model.keeper = Keeper(model.head)
    return model


@pytest.mark.parametrize("outer", [lambda model: model, nn.Sequential], ids=["itself", "as a part"])
@pytest.mark.parametrize("make", [Cached, _cached_elsewhere, lambda: Rebuilt(Head()), _with_keeper])
def test_a_copy_that_would_be_or_hold_the_model_itself_is_refused(
    make: Callable[[], nn.Module], outer: Callable[[nn.Module], nn.Module]
) -> None:
    _KEPT.clear()
    model = outer(make())
    before = snapshot(model), [snapshot(kept) for kept in _KEPT.values()]
    with pytest.raises(rewriter.ModelError, match=r"cannot be copied: .* Give inplace=True, which copies nothing"):
        copy_model(model)
    assert_unchanged(model, before[0])
    for kept, as_it_was in zip(_KEPT.values(), before[1], strict=True):
        assert_unchanged(kept, as_it_was)


def test_a_skeleton_that_holds_the_model_is_refused() -> None:
    with pytest.raises(rewriter.ModelError, match="attribute 'keeper' of Module cannot be copied"):
        skeleton(_with_keeper(), meta_twin)


def test_a_module_may_say_what_of_it_is_copied() -> None:
    class Own(Head):
        def __getstate__(self) -> dict[str, Any]:
            return {name: value for name, value in self.__dict__.items() if name != "cache"}

        def __setstate__(self, state: dict[str, Any]) -> None:
            super().__setstate__(state)
            self.cache = "fresh"

    class OwnCopy(Head):
        def __deepcopy__(self, memo: dict[int, Any]) -> OwnCopy:
            result = OwnCopy()
            memo[id(self)] = result
            result.load_state_dict(self.state_dict())
            return result

    model = nn.Sequential(Own(), OwnCopy())
    model[0].cache = "stale"
    copy = copy_model(model)
    assert copy[0].cache == "fresh" and torch.equal(copy[1].fc.weight, model[1].fc.weight)
    assert copy[1].fc.weight is not model[1].fc.weight


class Slotted(Head):
    """A module with an attribute outside of its dictionary."""

    __slots__ = ("count", "runner")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        return self.runner(x)


def test_slots_of_modules_are_copied_and_put_back() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Slotted()).eval()
    object.__setattr__(model[1], "count", 0)
    object.__setattr__(model[1], "runner", functools.partial(Head.forward, model[1]))
    result = rewriter.rewrite(model, "dropout", input_size=8).eval()
    assert model[1].count == result[1].count == 0
    with torch.no_grad():
        result[1].fc.weight.zero_()
        result[1].fc.bias.zero_()
        assert not result(image(8)).any() and model(image(8)).any()


def test_what_a_copy_shares_inside_itself_stays_shared() -> None:
    model = Head()
    model.again, model.tied, model.view = model.fc, nn.Linear(8, 4), [model.fc.weight, {"bn": model.bn}]
    model.tied.weight = model.fc.weight
    model.pair = collections.namedtuple("Pair", "left right")(model.bn, (1, 2))
    model.default = torch.default_generator
    copy = copy_model(model)
    assert copy.again is copy.fc and copy.tied.weight is copy.fc.weight and copy.fc is not model.fc
    assert copy.view[0] is copy.fc.weight and copy.view[1]["bn"] is copy.bn is copy.pair.left
    assert copy.default is torch.default_generator
    cached = (model.fc.weight * 2).sum()
    model.cached = cached
    assert not copy_model(model).cached.requires_grad and model.cached is cached
