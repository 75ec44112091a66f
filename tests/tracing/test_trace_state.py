"""The model, the process and other threads do not notice a trace."""

from __future__ import annotations

import contextlib
import functools
import gc
import random
import threading
import types
import weakref
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_unchanged, global_state, image, random_state, slow_but, snapshot, timm_model
from networks import NETWORKS
from torch import nn
from torch.nn.modules import module as module_hooks

import rewriter

VERBS: dict[str, Callable[..., Any]] = {
    "trace": rewriter.trace,
    "plan": rewriter.plan,
    "to_graph_module": rewriter.to_graph_module,
}


# Nothing notices


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", slow_but(["test_resnet", "test_vit"], NETWORKS))
def test_parameters_buffers_modes_and_gradients_stay(name: str, verb: str) -> None:
    make, size = NETWORKS[name]
    model, x = make().train(), image(size)
    model(x).mean().backward()  # running statistics and gradients that can be lost
    for number, module in enumerate(model.modules()):
        module.training = number % 3 != 0
    next(model.parameters()).requires_grad_(False)
    before, input_before = snapshot(model), x.clone()
    VERBS[verb](model, example_inputs=x)
    assert_unchanged(model, before)
    assert torch.equal(x, input_before) and x.grad is None


@pytest.mark.parametrize("verb", VERBS)
def test_hooks_are_not_called_and_stay(verb: str) -> None:
    model = timm_model("test_vit").train()
    called: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_, **__: called.append(name)

    handles = []
    for module in (model, model.patch_embed, model.blocks[0], model.blocks[0].attn.proj, model.head):
        for register in (
            "register_forward_pre_hook", "register_forward_hook", "register_full_backward_hook",
            "register_full_backward_pre_hook", "register_state_dict_pre_hook",
        ):  # fmt: skip
            handles.append(getattr(module, register)(note(register)))
    for register_globally in (
        module_hooks.register_module_forward_pre_hook,
        module_hooks.register_module_forward_hook,
        module_hooks.register_module_full_backward_hook,
        module_hooks.register_module_module_registration_hook,
        module_hooks.register_module_parameter_registration_hook,
        module_hooks.register_module_buffer_registration_hook,
    ):
        handles.append(register_globally(note(register_globally.__name__)))
    try:
        VERBS[verb](model)
        seen = set(called)
        called.clear()
        model(image(160)).sum().backward()
        assert {"register_forward_hook", "register_module_forward_hook"} <= set(called), "the hooks themselves work"
    finally:
        for handle in handles:
            handle.remove()
    # a GraphModule that is built for the user does register modules
    allowed = {n for n in seen if "registration" in n} if verb == "to_graph_module" else set()
    assert seen <= allowed


@pytest.mark.thorough
def test_what_was_cached_while_tracing_is_forgotten() -> None:
    @functools.cache
    def unbounded(size: int) -> torch.Tensor:
        return torch.ones(size)

    @functools.lru_cache(maxsize=8)
    def bounded(size: int) -> torch.Tensor:
        return torch.ones(size)

    @functools.lru_cache(maxsize=8)
    def other(size: int) -> str:
        return str(size)

    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scale = unbounded(3) + bounded(3)
            assert scale.shape == (3,) and other(3)
            return x * scale if (x == x).all() else x  # reads a value: not on meta

    model, x = Model(), torch.rand(2, 3)
    assert rewriter.trace(model, example_inputs=x).backend == "cpu"
    assert torch.equal(model(x), 2 * x)
    assert other.cache_info().currsize == 1, "nothing of a trace is in it"


def test_what_was_cached_by_a_run_on_meta_is_forgotten() -> None:
    @functools.lru_cache(maxsize=8)
    def positions(size: int) -> torch.Tensor:
        return torch.ones(size)

    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * positions(3)

    model, x = Model(), torch.rand(2, 3)
    assert rewriter.trace(model, example_inputs=x).backend == "meta"
    assert torch.equal(model(x), x)


class DrawsNumbers(nn.Module):
    """Draws from every generator while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shift = random.random() + np.random.rand() + torch.rand(()) + torch.randperm(3)[0]
        return F.dropout(self.conv(x), 0.5, True) * random.gauss(0, 1) + shift


@pytest.mark.parametrize("verb", VERBS)
def test_random_numbers_go_on_as_if_nothing_had_been_drawn(verb: str) -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    random.gauss(0, 1), np.random.randn()  # both keep a second number for the next call
    model = DrawsNumbers()
    before = random_state()
    VERBS[verb](model, input_size=16)
    assert random_state() == before
    model(image(16))
    assert random_state() != before


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "context",
    [
        torch.no_grad,
        torch.enable_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: torch.device("cpu"),
        lambda: torch.set_grad_enabled(False),
    ],
    ids=["no_grad", "enable_grad", "inference_mode", "autocast", "default device", "set_grad_enabled"],
)
def test_a_mode_of_torch_is_kept_and_does_not_disturb(verb: str, context: Any) -> None:
    model = timm_model("test_resnet", drop_rate=0.1)
    wanted = rewriter.plan(model, input_size=64).to_json()
    outside, before = global_state(), snapshot(model)
    with context():
        inside = global_state()
        VERBS[verb](model, input_size=64)
        assert global_state() == inside
        assert rewriter.plan(model, input_size=64).to_json() == wanted
    assert global_state() == outside
    assert_unchanged(model, before)


def test_modes_are_kept_when_a_trace_fails() -> None:
    model = timm_model("test_resnet")
    before = snapshot(model)
    with torch.autocast("cpu"), pytest.raises(rewriter.TraceError):
        inside = global_state()
        try:
            rewriter.trace(model, input_size=(7, 64, 64))
        finally:
            assert global_state() == inside
    assert_unchanged(model, before)


class Stateful(nn.Module):
    """Changes every kind of state that a module can have while it runs."""

    def __init__(self, *, real: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("seen", torch.zeros(4))
        self.scale = nn.Parameter(torch.ones(()))
        self.count, self.history, self.memo = 0, [], {}
        self.plain = torch.zeros(4)
        self.unregistered = [nn.BatchNorm2d(4)]
        self.through_closure = lambda x: self.norm(x)
        self.real = real

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        if self.real:
            float(x.mean().item())  # meta tensors cannot tell
        self.count += 1
        self.history.append(x.shape)
        self.memo[self.count] = x
        self.latest = x
        self.seen += 1
        self.plain.add_(1)
        with torch.no_grad():
            self.scale.mul_(1.5)
        return self.norm(x) * self.scale


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("real", [False, True], ids=["meta", "real tensors"])
def test_state_that_a_model_changes_while_it_runs_stays(verb: str, real: bool) -> None:
    model = Stateful(real=real).train()
    before, plain = snapshot(model), model.plain
    VERBS[verb](model, input_size=16)
    assert_unchanged(model, before)
    assert (model.count, model.history, model.memo) == (0, [], {})
    assert model.plain is plain and not model.plain.any()
    assert rewriter.trace(model, input_size=16).backend == ("cpu" if real else "meta")


@pytest.mark.parametrize("real", [False, True], ids=["meta", "real tensors"])
def test_modules_reached_through_closures_and_lists_stay(real: bool) -> None:
    class Closure(Stateful):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.through_closure(self.conv(x))
            return self.unregistered[0](x)

    model = Closure(real=real).train()
    before, statistics = snapshot(model), model.unregistered[0].running_mean.clone()
    with contextlib.suppress(rewriter.RewriterError):  # it may be refused, with the model as it was
        rewriter.trace(model, input_size=16)
    assert_unchanged(model, before)
    assert torch.equal(model.unregistered[0].running_mean, statistics)
    assert model.unregistered[0].num_batches_tracked == 0


class Captured(nn.Module):
    """Reaches its own modules and tensors through functions of every form that a module can store."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        norm, seen, modules, count = self.norm, torch.zeros(()), {"norm": self.norm}, 0
        self.seen = seen

        def closure(x: torch.Tensor) -> torch.Tensor:
            nonlocal count
            count += 1
            seen.add_(1)
            return norm(x)

        def default(x: torch.Tensor, apply: Any = norm, *, also: Any = (modules,)) -> torch.Tensor:
            return also[0]["norm"](apply(x))

        def recursive(x: torch.Tensor, depth: int = 2) -> torch.Tensor:
            return recursive(norm(x), depth - 1) if depth else x

        self.functions = [
            closure,
            lambda x: closure(x),
            default,
            recursive,
            functools.partial(closure),
            functools.partial(functools.partial(lambda model, x: model.norm(x), self)),
            types.MethodType(lambda _, x: norm(x), self),
            self.norm.forward,
        ]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        for function in self.functions:
            x = function(x)
        return x


@pytest.mark.parametrize("verb", VERBS)
def test_functions_that_are_stored_run_on_the_skeleton(verb: str) -> None:
    model = Captured().train()
    before = snapshot(model)
    VERBS[verb](model, input_size=16)
    assert_unchanged(model, before)
    assert model.norm.num_batches_tracked == 0 and model.seen == 0
    trace = rewriter.trace(model, input_size=16)
    assert trace.backend == "meta"
    assert sum(n.target == "norm" for n in trace.graph.nodes) == 10 - 1, "norm.forward, stored, is not a call of norm"


# What is kept alive


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        raise ValueError(f"no way on from {y.shape}")


@pytest.mark.thorough
@pytest.mark.parametrize("make", [lambda: timm_model("test_resnet"), Failing, lambda: nn.Conv2d(3, 4, 99), Captured])
def test_a_trace_keeps_nothing_of_the_model_alive(make: Callable[[], nn.Module]) -> None:
    model = make()
    alive = [weakref.ref(t) for t in (*model.parameters(), *model.buffers())]
    if isinstance(model, Captured):
        model.functions.clear()  # they hold the model in a cycle
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(rewriter.TraceError):
            rewriter.trace(model, input_size=64)
        alive.append(weakref.ref(model))
        del model
        assert [ref() for ref in alive] == [None] * len(alive)
    finally:
        gc.enable()


@pytest.mark.slow
@pytest.mark.parametrize("real", [False, True], ids=["meta", "real tensors"])
def test_the_skeleton_does_not_outlive_the_trace(real: bool) -> None:
    seen: list[Any] = []

    class Reports(Stateful):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.extend(weakref.ref(t) for t in (self, self.conv, self.conv.weight, self.plain))
            return super().forward(x)

    model = Reports(real=real)
    del model.through_closure  # it holds the skeleton in a cycle
    gc.collect()
    gc.disable()
    try:
        trace = rewriter.trace(model, input_size=16)
        assert trace.backend == ("cpu" if real else "meta")
        assert len(seen) >= 8 and not any(ref() for ref in seen[-8:])
    finally:
        gc.enable()


# Threads


def _graph_text(trace: rewriter.Trace) -> str:
    nodes = [
        (n.op, str(n.target), str(n.args), str(n.kwargs), n.meta["shape"], n.meta["kind"], n.meta["module_stack"])
        for recording in (trace.train, trace.eval)
        for n in recording.graph.nodes
    ]
    return "\n".join(f"{kind} {op} {args} {kwargs} {shape} {stack}" + (str(t) if op == "call_module" else "")
                     for op, t, args, kwargs, shape, kind, stack in nodes)  # fmt: skip


@pytest.mark.slow
def test_threads_that_trace_disturb_neither_each_other_nor_a_model_that_runs() -> None:
    makers = [make for make, _ in NETWORKS.values()] * 2
    sizes = [size for _, size in NETWORKS.values()] * 2
    models = [make().train() for make in makers]
    bystander, x = timm_model("test_resnet").eval(), image()
    wanted = bystander(x)
    expected = [_graph_text(rewriter.trace(m, input_size=s)) for m, s in zip(models, sizes, strict=True)]
    befores = [snapshot(m) for m in models]
    state = global_state()
    found: dict[int, list[str]] = defaultdict(list)
    problems: list[BaseException] = []
    done = threading.Event()

    def tracing(number: int) -> None:
        try:
            for _ in range(2):
                found[number].append(_graph_text(rewriter.trace(models[number], input_size=sizes[number])))
        except BaseException as error:
            problems.append(error)

    def running() -> None:
        try:
            while not done.is_set():
                # a module of the same classes, in a thread that traces nothing
                y = bystander(x)
                assert torch.equal(y, wanted) and y.requires_grad and y.device.type == "cpu"
                assert torch.is_grad_enabled() and torch.empty(1).device.type == "cpu"
                assert global_state() == state
                assert type(bystander).forward is type(models[0]).forward
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=tracing, args=(n,)) for n in range(len(models))]
    watcher = threading.Thread(target=running)
    watcher.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    watcher.join()
    assert not problems, problems[0]
    assert len(models) == 8 and found == {number: [text, text] for number, text in enumerate(expected)}
    for model, before in zip(models, befores, strict=True):
        assert_unchanged(model, before)


@pytest.mark.thorough
def test_many_threads_trace_one_model() -> None:
    model = timm_model("test_vit")
    expected, before = _graph_text(rewriter.trace(model)), snapshot(model)
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(_graph_text(rewriter.trace(model)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4
    assert_unchanged(model, before)
