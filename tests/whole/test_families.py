"""The promises on one model of each of timm's 98 families."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from families import FAMILIES, FEW_BLOCKS, create, created, no_dropout, saved_bytes, small_inputs
from torch import nn
from torch.overrides import TorchFunctionMode

import rewriter
from rewriter.passes import Dropout, StochasticPooling
from rewriter.testing import behaviour, check_contract, differences, null_rewrite
from rewriter.tracing.containers import tensors_in
from rewriter.tracing.inputs import Inputs
from rewriter.tracing.skeleton import meta_twin, skeleton


@pytest.mark.sweep("family", FAMILIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_traces_on_meta_in_both_modes(family: str) -> None:
    with torch.device("meta"):
        model = create(family, **FEW_BLOCKS.get(family, {}))
    trace = rewriter.trace(model)
    assert trace.backend == "meta", trace.notes
    for recording in (trace.train, trace.eval):
        read = {str(node.target) for node in recording.graph.nodes if node.op == "get_attr"}
        called = {str(node.target) for node in recording.graph.nodes if node.op == "call_module"}
        unread = {n for n, _ in model.named_parameters() if n not in read and n.rpartition(".")[0] not in called}
        assert unread <= _unused_parameters(model, recording.training)
        assert not [node for node in recording.graph.nodes if node.meta["kind"] == "opaque"]


@pytest.fixture(scope="module", params=FAMILIES)
def subject(request: pytest.FixtureRequest) -> tuple[nn.Module, Inputs]:
    """A family's model with weights and what it is run on, made once for the tests below."""
    model = created(request.param)
    return model, small_inputs(model)


@pytest.mark.sweep("subject", FAMILIES)
def test_re_emitting_every_method_changes_nothing(subject: tuple[nn.Module, Inputs]) -> None:
    model, inputs = subject
    rewritten = null_rewrite(model)
    assert type(rewritten) is not type(model) and isinstance(rewritten, type(model))
    assert list(rewritten.state_dict()) == list(model.state_dict())
    rewritten.load_state_dict(model.state_dict(), strict=True)
    for training in (False, True):
        assert_same(model, rewritten, inputs, training)
    _switch_and_compare(model, rewritten, inputs)


@pytest.mark.sweep("subject", FAMILIES)
def test_both_passes_keep_their_contracts(subject: tuple[nn.Module, Inputs]) -> None:
    """Heads have a dropout here, so that stochastic pooling takes gates and transitions."""
    model, inputs = subject
    check_contract(model, [Dropout(p=0.1), StochasticPooling(squeeze=True)], example_inputs=inputs.args)


@pytest.mark.sweep("subject", FAMILIES)
def test_heads_without_dropout_are_sampled(subject: tuple[nn.Module, Inputs]) -> None:
    model, inputs = subject
    with no_dropout(model):
        rewritten = rewriter.rewrite(model, [StochasticPooling()], example_inputs=inputs.args)
    assert rewriter.report(rewritten).verified is not False


def assert_same(first: nn.Module, second: nn.Module, inputs: Inputs, training: bool) -> None:
    found = differences(behaviour(first, inputs, training=training), behaviour(second, inputs, training=training))
    assert not found, f"training={training}: {found[:5]}"


def _switch_and_compare(model: nn.Module, rewritten: nn.Module, inputs: Inputs) -> None:
    """Turn every knob after the rewrite, on both models, and compare."""
    both = (model, rewritten)
    assert_same(*both, inputs.map(lambda t: torch.cat([t, t[:1]])), training=False)
    larger = inputs.map(lambda t: torch.nn.functional.interpolate(t, scale_factor=1.5))
    if _accepts(model, larger):
        assert_same(*both, larger, training=False)
    if hasattr(model, "drop_rate"):
        rates = [m.drop_rate for m in both]
        for m in both:
            m.drop_rate = 0.4
        assert_same(*both, inputs, training=True)
        for m, rate in zip(both, rates, strict=True):
            m.drop_rate = rate
    if "pre_logits" in _parameters(getattr(model, "forward_head", None)):
        with torch.no_grad():
            outputs = [m.eval().forward_head(m.forward_features(*inputs.args), pre_logits=True) for m in both]
        assert not differences(*outputs)
    if hasattr(model, "set_grad_checkpointing"):
        _compare_checkpointing(both, inputs)
    for m in both:
        m.train()


def _compare_checkpointing(both: tuple[nn.Module, nn.Module], inputs: Inputs) -> None:
    plain = [saved_bytes(m, inputs) for m in both]
    try:
        for m in both:
            m.set_grad_checkpointing(True)
    except AssertionError:
        return  # timm's way of saying that the family has no checkpointing
    assert_same(*both, inputs, training=True)
    checkpointed = [saved_bytes(m, inputs) for m in both]
    for m in both:
        m.set_grad_checkpointing(False)
    assert plain[0] == plain[1] and checkpointed[0] == checkpointed[1]


def _accepts(model: nn.Module, inputs: Inputs) -> bool:
    try:
        rewriter.trace(model, example_inputs=inputs.args)
    except rewriter.TraceError:
        return False
    return True


def _parameters(function: Any) -> Any:
    return inspect.signature(function).parameters if callable(function) else ()


def _unused_parameters(model: nn.Module, training: bool) -> set[str]:
    """Parameters that no torch call of a run with a plain function mode sees, neither alone nor inside a module."""
    copy = skeleton(model, meta_twin).train(training)
    names = {id(parameter): name for name, parameter in copy.named_parameters()}
    seen: set[str] = set()

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.update(names[id(t)] for t in tensors_in((args, kwargs)) if id(t) in names)
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), torch.device("meta"), Watch():
        copy(*rewriter.trace(model).inputs.args)
    return set(names.values()) - seen
