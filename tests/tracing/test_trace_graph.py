"""A trace shows what the model computes: its operations, shapes, writes in place, and what torch does not see."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
import torch.nn.functional as F
import torchvision
from helpers import image, output, slow_but, timm_model
from networks import NETWORKS
from torch import fx, nn

import rewriter
from rewriter.tracing.kinds import Kind

# What the graph says


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [False, True])
def test_every_node_carries_its_meta_data(name: str, training: bool) -> None:
    make, size = NETWORKS[name]
    model = make().train(training)
    trace = rewriter.trace(model, input_size=size)
    assert type(trace.graph) is fx.Graph
    trace.graph.lint()
    assert trace.graph is (trace.train if training else trace.eval).graph
    paths = {path for path, _ in model.named_modules()}
    for node in trace.graph.nodes:
        meta = node.meta
        assert isinstance(meta["kind"], Kind)
        assert meta["shape"] is None or type(meta["shape"]) is tuple
        assert meta["dtype"] is None or isinstance(meta["dtype"], torch.dtype)
        assert meta["module_path"] in paths and set(meta["module_stack"]) <= paths
        assert meta["owner"].path in paths
        if node.op in ("call_module", "call_function"):
            assert meta["shape"] is not None and meta["dtype"] in (torch.float32, torch.int64)
            assert meta["module_stack"][0] == ""
            assert meta["owner"].file.endswith(".py") and meta["owner"].line > 0
            owner_class = type(model.get_submodule(meta["owner"].path))
            assert hasattr(owner_class, meta["owner"].method)
            for outer, inner in zip(meta["module_stack"], meta["module_stack"][1:], strict=False):
                assert inner.startswith(outer)
        if node.op == "call_module":
            assert node.target == meta["module_path"]
    kinds = {node.meta["kind"] for node in trace.graph.nodes}
    assert {Kind.INPUT, Kind.OUTPUT, Kind.CONV, Kind.NORM, Kind.LINEAR, Kind.ACTIVATION} <= kinds
    assert Kind.OPAQUE not in kinds


SHAPES = {
    "resnet18": (lambda: timm_model("resnet18"), 96),
    "vit_tiny": (lambda: timm_model("vit_tiny_patch16_224"), 224),
    "torchvision resnet18": (lambda: torchvision.models.resnet18(), 97),
    "torchvision mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(), 65),
    "densenet121": (lambda: timm_model("densenet121"), 66),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("training", [False, True])
def test_shapes_are_those_of_a_real_run(name: str, training: bool) -> None:
    make, size = SHAPES[name]
    model, x = make().train(training), image(size)
    trace = rewriter.trace(model, example_inputs=x)
    real: dict[str, list[Any]] = defaultdict(list)
    handles = [
        module.register_forward_hook(lambda _, __, y, path=path: real[path].append((tuple(y.shape), y.dtype)))
        for path, module in model.named_modules()
        if not list(module.children())
    ]
    y = model(x)
    for handle in handles:
        handle.remove()
    found: dict[str, list[Any]] = defaultdict(list)
    for node in trace.graph.nodes:
        if node.op == "call_module":
            found[node.target].append((node.meta["shape"], node.meta["dtype"]))
    assert found == real
    assert next(n for n in trace.graph.nodes if n.op == "output").meta["shape"] == tuple(y.shape)


class _Checked(fx.Interpreter):
    """Runs a graph and compares every tensor with what its node says."""

    checked = 0

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor) and n.op != "output":
            assert (tuple(result.shape), result.dtype) == (n.meta["shape"], n.meta["dtype"]), n.format_node()
            self.checked += 1
        return result


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_of_functions_too_are_those_of_a_real_run(name: str) -> None:
    make, size = SHAPES[name]
    model, x = make().eval(), image(size)
    interpreter = _Checked(rewriter.to_graph_module(model, example_inputs=x))
    with torch.no_grad():
        assert torch.equal(interpreter.run(x), model(x))
    assert interpreter.checked > 30


GRAPHS = {
    "resnet18": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "vit_tiny_patch16_224": 224,
    "swin_tiny_patch4_window7_224": 224,
    "test_resnet": 64,
}


@pytest.mark.parametrize("name", slow_but(["resnet18", "efficientnet_b0", "test_resnet"], GRAPHS))
def test_a_graph_module_computes_what_the_model_computes(name: str) -> None:
    model, x = timm_model(name).eval(), image(GRAPHS[name])
    flat = rewriter.to_graph_module(model, example_inputs=x)
    assert isinstance(flat, fx.GraphModule) and not flat.training
    assert torch.equal(output(flat, x), output(model, x))
    assert all(p is model.get_parameter(n) for n, p in flat.named_parameters())
    other = torch.randn_like(x)
    assert torch.equal(output(flat, other), output(model, other)), "the input is baked in"


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_a_graph_module_of_training_mode_trains_alike(name: str) -> None:
    model = timm_model(name, drop_rate=0.3).train()
    x = image(160 if name == "test_vit" else 64)
    flat = rewriter.to_graph_module(model, example_inputs=x)
    assert flat.training
    torch.manual_seed(3)
    first = model(x)
    torch.manual_seed(3)
    assert torch.equal(flat(x), first)
    with torch.no_grad():
        assert not torch.equal(model(x), first), "dropout is active"


class Operators(nn.Module):
    """Operators that torch writes in Python, under other names than those that they are called by."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.abs() + 1
        return (x**2 + 2**y + (3 - x) / (1 / y) + 3 // y + x % 2 - (-x)).split(2)[0]


def test_operators_are_called_as_methods_in_a_graph_module() -> None:
    x = image(8, batch=4)
    flat = rewriter.to_graph_module(Operators(), example_inputs=x)
    assert torch.equal(output(flat, x + 1), output(Operators(), x + 1))


# Writing in place


class InPlace(nn.Module):
    """Two convolutions, whose results a function of the test brings together."""

    def __init__(self, body: Callable[..., Any]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.relu = nn.ReLU(inplace=True)
        self.body = body

    def forward(self, x: torch.Tensor) -> Any:
        return self.body(self, self.first(x), self.second(x))


def _statements(text: str) -> Callable[..., Any]:
    namespace: dict[str, Any] = {"torch": torch, "F": F}
    body = "\n".join(f"    {line}" for line in text.strip().splitlines())
    exec(f"def body(self, a, b):\n{body}\n", namespace)
    return namespace["body"]


IN_PLACE = {
    "item assignment": "a[:, 0] = b[:, 0]\nreturn a",
    "item assignment twice": "a[:, 0] = b[:, 0]\na[0] = 3.0\nreturn a",
    "masked assignment": "a[a > 0] = 0.5\na[b > 0] = 1.5\nreturn a",
    "write through a view": "y = a[0]\ny.add_(b[0])\nreturn a",
    "write through a view of a view": "y = a.view(2, -1)[:, 5:].unsqueeze(0)\ny.mul_(b.flatten(1)[:, 5:])\nreturn a",
    "view sees a write to its base": "y = a[0]\na.mul_(b)\nreturn y",
    "view sees a write through another": "y, z = a[0], a.transpose(0, 1)\nz.mul_(b.transpose(0, 1))\nreturn y",
    "chunks": "p, q = a.chunk(2, 1)\np += b[:, :2]\nreturn a",
    "augmented addition": "a += b\nreturn a",
    "augmented addition of an alias": "y = a\ny += b\nreturn a",
    "augmented product": "a *= b\na -= 1\na /= 2\nreturn a",
    "out argument": "y = torch.empty_like(a)\ntorch.add(a, b, out=y)\nreturn y",
    "out argument of a view": "y = torch.zeros_like(a)\ntorch.mul(a[0], b[0], out=y[1])\nreturn y",
    "functional in place": "F.relu(a, inplace=True)\nreturn a + b",
    "module in place, result dropped": "self.relu(a)\nreturn a + b",
    "module in place on a view": "y = a[:, :2]\nself.relu(y)\nreturn a + b",
    "module in place on an alias": "y = F.dropout(a, 0.5, False)\nself.relu(y)\nreturn a + b",
    "view of a detached": "y = a.detach()[0]\ny.copy_(b[0])\nreturn a",
    "module in place, read before": "y = a + 0\nself.relu(a)\nreturn a + b + y",
    "copy": "y = torch.empty_like(a)\ny.copy_(b)\nreturn y + a",
    "fill and zero": "a.zero_()\nreturn a + b",
    "index_put": "a.index_put_((torch.tensor([0]),), b[:1])\nreturn a",
    "index_add": "a.index_add_(0, torch.tensor([1]), b[:1])\nreturn a",
    "detached": "a.detach().add_(b)\nreturn a",
    "data": "a.data.mul_(b)\nreturn a",
    "foreach": "ys = [a, b]\ntorch._foreach_mul_(ys, 2.0)\nreturn ys[0] + ys[1]",
    "list changed in place": "ys = [a]\nys.append(b)\nys[0] = ys[0] + 1\nreturn torch.cat(ys)",
    "attributes": "y = a.mT + b.transpose(2, 3)\nreturn y.T.real",
    "transposed in place": "a.transpose_(2, 3)\nreturn a + b",
    "squeezed in place": "y = a[:1]\ny.squeeze_(0)\nreturn y.mul(b)",
    "two results": "a += 1\nreturn a, b",
    "a dict": "a += 1\nreturn {'a': a, 'b': [b, a]}",
    "where": "torch.where(a > 0, a, b, out=a)\nreturn a",
    "clamp with tensors": "a.clamp_(min=b)\nreturn a",
    "no use of the second": "a.add_(1)\nreturn a",
}


def _ancestors(trace: rewriter.Trace) -> set[str]:
    """Targets of the modules and inputs that the output depends on, as passes see it."""
    flow = trace.eval.dataflow
    return {str(node.target) for node in nx.ancestors(flow.graph, flow.output)}


@pytest.mark.parametrize("text", IN_PLACE.values(), ids=IN_PLACE)
def test_a_write_in_place_is_followed(text: str) -> None:
    model, x = InPlace(_statements(text)).eval(), image(8)
    given = x.clone()
    trace = rewriter.trace(model, example_inputs=x)
    assert torch.equal(x, given)
    expected = {"first", "second"} if "b" in text.replace("body", "") else {"first"}
    if text.startswith(("a.zero_", "y = torch.empty_like(a)\ny.copy_")):
        expected = {"second"}
    assert expected <= _ancestors(trace)
    flat = rewriter.to_graph_module(model, example_inputs=x)
    with torch.no_grad():
        _assert_equal(flat(x.clone()), model(x.clone()))
        _assert_equal(flat(-x), model(-x))


@pytest.mark.parametrize(
    "write",
    ["self.relu(y)", "F.relu(y, inplace=True)", "y.add_(1)", "y[0] = 1", "torch._foreach_add_([y], 1)"],
)
@pytest.mark.parametrize("alias", ["a[:, :2]", "a.detach()", "a.data", "F.dropout(a, 0.5, False)"])
def test_a_write_to_an_alias_is_on_the_way_to_the_output(alias: str, write: str) -> None:
    model = InPlace(_statements(f"y = {alias}\n{write}\nreturn a * 2")).eval()
    flow = rewriter.trace(model, input_size=8).eval.dataflow
    (last,) = flow.nodes(Kind.MULTIPLY)
    (source,) = last.all_input_nodes
    (writer,) = source.meta["after"]
    assert writer in nx.ancestors(flow.graph, last) and source.meta["kind"] is Kind.IDENTITY
    assert source.meta["frames"] == writer.meta["frames"] and source.meta["call"] is writer.meta["call"]


def _assert_equal(a: Any, b: Any) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        _assert_equal(list(a.values()), list(b.values()))
    else:
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            _assert_equal(x, y)


@pytest.mark.thorough
def test_an_input_that_the_model_overwrites_is_not_overwritten_by_the_trace() -> None:
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x.mul_(2)
            return self.conv(x)

    model, x = Overwrites().eval(), image(8)
    given = x.clone()
    flat = rewriter.to_graph_module(model, example_inputs=x)
    rewriter.rewrite(model, example_inputs=x)
    assert torch.equal(x, given)
    with torch.no_grad():
        assert torch.equal(flat(x.clone()), model(x.clone()))


# Code that torch does not see


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 2


class _Unseen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        with torch._C.DisableTorchFunction():
            return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 2


def _scripted(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def _through_numpy(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(x.detach().numpy() * 2)


OUTSIDE: dict[str, Callable[[], Callable[[torch.Tensor], torch.Tensor]]] = {
    "autograd.Function": lambda: _Double.apply,
    "autograd.Function without torch functions": lambda: _Unseen.apply,
    "scripted function": lambda: torch.jit.script(_scripted),
    "numpy": lambda: _through_numpy,
    "disabled torch functions": lambda: lambda x: torch._C._disabled_torch_function_impl(torch.neg, (), (x,), {}),
}


class Outside(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.part = OutsidePart(function)
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.part(x))


class OutsidePart(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 4, 3), function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.conv(x))


@pytest.mark.parametrize("make", OUTSIDE.values(), ids=OUTSIDE)
def test_what_torch_does_not_see_is_opaque_or_seen_and_never_a_constant(make: Any) -> None:
    model, x = Outside(make()).eval(), image(8)
    trace = rewriter.trace(model, example_inputs=x)
    last = next(n for n in trace.graph.nodes if n.target == "last")
    assert "input_0" in _ancestors(trace), "the result has lost its input"
    (source,) = last.all_input_nodes
    assert source.op != "get_attr" and source.meta["kind"] is not Kind.CONSTANT
    opaque = [n for n in trace.graph.nodes if n.meta["kind"] is Kind.OPAQUE]
    if opaque:
        assert opaque[0].meta["owner"].path == opaque[0].meta["module_path"] == "part"
        assert "part.conv" in _ancestors(trace), "the branch that led to it is lost"
        with pytest.raises(rewriter.TraceError, match="module 'part' makes a tensor outside torch's sight"):
            rewriter.to_graph_module(model, example_inputs=x)
    else:
        flat = rewriter.to_graph_module(model, example_inputs=x)
        with torch.no_grad():
            assert torch.equal(flat(-x), model(-x))


@pytest.mark.slow
def test_reading_the_recording_is_not_recorded() -> None:
    package = Path(rewriter.__file__).parent
    for make, size in NETWORKS.values():
        trace = rewriter.trace(make(), input_size=size)
        for node in (*trace.train.graph.nodes, *trace.eval.graph.nodes):
            assert not Path(node.meta["owner"].file).is_relative_to(package), node.format_node()


@pytest.mark.parametrize("keyword", [False, True])
def test_what_torch_does_not_see_belongs_to_the_call_that_made_it(keyword: bool) -> None:
    class Inner(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    class Middle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.inner = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), Inner()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            left, right = self.left(x), self.right(x)
            with torch._C.DisableTorchFunction():
                y = left * right
            return self.inner(x=y) if keyword else self.inner(y)

    trace = rewriter.trace(nn.Sequential(Middle(), nn.Conv2d(4, 4, 1)), input_size=16)
    (opaque,) = (n for n in trace.graph.nodes if n.meta["kind"] is Kind.OPAQUE)
    assert opaque.meta["owner"].path == "0" and opaque.meta["module_stack"] == ("", "0")
    assert {str(n.target) for n in opaque.all_input_nodes} == {"input_0", "0.left", "0.right"}


@pytest.mark.thorough
def test_the_dataflow_is_acyclic_and_ends_in_one_output() -> None:
    for make, size in NETWORKS.values():
        trace = rewriter.trace(make(), input_size=size)
        for recording in (trace.train, trace.eval):
            flow = recording.dataflow
            edges = [(source, node) for node in recording.graph.nodes for source in flow.sources(node)]
            graph = nx.DiGraph(edges)
            assert nx.is_directed_acyclic_graph(graph)
            assert [n.op for n in graph if graph.out_degree(n) == 0].count("output") == 1
