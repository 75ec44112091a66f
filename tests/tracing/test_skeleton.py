"""The skeleton is the model without its memory: same structure, nothing shared that a run could change."""

from __future__ import annotations

import collections
import functools
import threading
from typing import Any

import pytest
import timm
import torch
import torchvision
from helpers import Allocations, assert_unchanged, image, snapshot, timm_model
from torch import nn

import rewriter
from rewriter.tracing.skeleton import meta_twin, skeleton

Pair = collections.namedtuple("Pair", "left right")


class Odd(nn.Module):
    """Attributes of every form that models carry besides parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.tied = nn.Conv2d(3, 4, 3)
        self.tied.weight = self.conv.weight
        self.again = self.norm
        self.empty = None
        self.register_module("nothing", None)
        self.register_parameter("no_parameter", None)
        self.register_buffer("no_buffer", None)
        self.register_buffer("temporary", torch.zeros(2), persistent=False)
        self.plain = torch.ones(3)
        self.cached = {"grid": [torch.ones(2)], 5: (self.conv, self.plain)}
        self.names = ["a", ["b"]]
        self.both = Pair(self.conv, 3)
        self.ordered = collections.OrderedDict(last=self.norm)
        self.chosen = {1, 2}
        self.method = self.conv.forward
        self.partial = functools.partial(self.conv.forward)
        self.lock = threading.Lock()
        self.unregistered = [nn.Linear(2, 2)]
        object.__setattr__(self, "parent", (self,))
        self.cached_graph = (self.conv.weight * 2).sum()


def test_structure_and_sharing_are_those_of_the_model() -> None:
    model = Odd().train()
    model.norm.eval()
    model.conv.weight.requires_grad_(False)
    before = snapshot(model)
    copy = skeleton(model, meta_twin)
    assert_unchanged(model, before)
    assert type(copy) is Odd and list(copy.__dict__) == list(model.__dict__)
    assert [(n, type(m)) for n, m in copy.named_modules(remove_duplicate=False)] == [
        (n, type(m)) for n, m in model.named_modules(remove_duplicate=False)
    ]
    for kind in ("named_parameters", "named_buffers"):
        ours, theirs = dict(getattr(model, kind)()), dict(getattr(copy, kind)())
        assert list(ours) == list(theirs)
        for name, tensor in theirs.items():
            assert tensor.device.type == "meta" and tensor is not ours[name]
            assert (tensor.shape, tensor.dtype, tensor.stride()) == (
                ours[name].shape, ours[name].dtype, ours[name].stride(),
            )  # fmt: skip
            assert tensor.requires_grad == ours[name].requires_grad
            assert type(tensor) is type(ours[name])
    assert copy.tied.weight is copy.conv.weight and copy.again is copy.norm
    assert copy.nothing is None and copy.no_parameter is None and copy.no_buffer is None
    assert [m.training for m in copy.modules()] == [m.training for m in model.modules()]
    assert list(copy.state_dict()) == list(model.state_dict())


def test_attributes_refer_to_the_skeleton_and_never_to_the_model() -> None:
    model = Odd()
    copy = skeleton(model, meta_twin)
    assert copy.plain.device.type == "meta" and copy.cached["grid"][0].device.type == "meta"
    assert copy.cached[5][0] is copy.conv and copy.cached[5][1] is copy.plain
    assert copy.cached is not model.cached and copy.names is not model.names and copy.names[1] is not model.names[1]
    assert type(copy.both) is Pair and copy.both.left is copy.conv
    assert type(copy.ordered) is collections.OrderedDict and copy.ordered["last"] is copy.norm
    assert copy.chosen == {1, 2} and copy.chosen is not model.chosen
    assert copy.method.__self__ is copy.conv
    assert copy.partial.func.__self__ is copy.conv
    assert copy.parent[0] is copy
    assert copy.unregistered[0] is not model.unregistered[0]
    assert copy.lock is model.lock  # what cannot be copied is shared
    assert copy.cached_graph.device.type == "meta"


def test_functions_are_shared_unless_they_hold_something_of_the_model() -> None:
    factor = 3

    def plain(x: Any, by: tuple[int, ...] = (1, 2)) -> Any:
        return plain(x * factor) if by else x

    model = nn.Conv2d(3, 4, 3)
    model.shared = [plain, torch.nn.functional.relu, functools.partial(plain, by=())]
    shared_by_two = {"weight": model.weight}
    model.rebuilt = [lambda: shared_by_two, lambda: (shared_by_two, model), functools.partial(lambda: model.bias)]
    copy = skeleton(model, meta_twin)
    assert copy.shared[:2] == model.shared[:2] and copy.shared[2].func is plain
    first, second = copy.rebuilt[0](), copy.rebuilt[1]()
    assert first is second[0] and second[1] is copy
    assert first["weight"] is copy.weight and copy.rebuilt[2]() is copy.bias
    assert model.rebuilt[1]()[1] is model and shared_by_two["weight"] is model.weight


def test_modules_that_are_not_registered_get_a_skeleton_of_their_own() -> None:
    model = Odd()
    with torch.device("meta"):
        copy = skeleton(model, meta_twin)
    assert type(copy.unregistered[0]) is nn.Linear and copy.unregistered[0] is not model.unregistered[0]
    assert all(p.device.type == "meta" for p in copy.unregistered[0].parameters())


def test_the_twin_is_made_once_for_each_tensor() -> None:
    seen: list[torch.Tensor] = []

    def twin(tensor: torch.Tensor) -> torch.Tensor:
        seen.append(tensor)
        return meta_twin(tensor)

    model = timm_model("test_resnet")
    model.fc.weight = nn.Parameter(model.fc.weight)
    model.also_the_head = model.fc
    skeleton(model, twin)
    assert len({id(t) for t in seen}) == len(seen) == len({*model.parameters()}) + len({*model.buffers()})


@pytest.mark.parametrize(
    "register", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]
)
def test_hooks_stay_with_the_model(register: str) -> None:
    model = timm_model("test_resnet")
    handle = getattr(model.conv1, register)(lambda *_: pytest.fail("a hook was called"))
    copy = skeleton(model, meta_twin)
    for name, value in copy.conv1.__dict__.items():
        if name.endswith("_hooks") and "state_dict" not in name:
            assert not value, name
    copy(image().to("meta"))
    assert sum(len(v) for k, v in model.conv1.__dict__.items() if k.endswith("_hooks")) >= 1
    handle.remove()


@pytest.mark.parametrize("model_name", ["test_resnet", "test_vit", "densenet121", "torchvision mobilenet_v2"])
def test_a_skeleton_runs_and_changes_nothing_of_the_model(model_name: str) -> None:
    model = torchvision.models.mobilenet_v2() if " " in model_name else timm_model(model_name)
    model.train()
    x = image(160 if "vit" in model_name else 64)
    expected = model(x).shape
    before = snapshot(model)
    assert skeleton(model, meta_twin)(x.to("meta")).shape == expected
    assert_unchanged(model, before)


@pytest.mark.slow
def test_models_that_deepcopy_refuses_have_a_skeleton_and_a_plan() -> None:
    model = timm_model("levit_128s")
    x = image(224)
    model.eval()(x)  # fills attention_bias_cache with tensors that have a graph
    import copy

    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    before = snapshot(model)
    assert skeleton(model, meta_twin)(x.to("meta"))[0].device.type == "meta"
    rewriter.plan(model)
    assert_unchanged(model, before)
    assert type(rewriter.rewrite(model)).__name__ == type(model).__name__
    assert_unchanged(model, before)


@pytest.mark.thorough
def test_planning_takes_no_memory_for_weights_or_activations() -> None:
    model = timm_model("vit_small_patch16_224")
    weights = sum(p.nbytes for p in model.parameters())
    with Allocations(model) as allocations:
        plan = rewriter.plan(model)
    assert plan.skipped
    assert allocations.bytes < weights / 20, (
        f"{allocations.bytes / 1e6:.1f} MB beside {weights / 1e6:.1f} MB of weights"
    )
    with Allocations(model) as allocations:  # the measure sees what it should
        model(image(224))
    assert allocations.bytes > weights / 20


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["vit_huge_patch14_224", "resnet50", "test_vit"])
def test_a_model_on_the_meta_device_is_planned_like_the_real_one(name: str) -> None:
    options = {"drop_rate": 0.1} | ({"proj_drop_rate": 0.1} if "vit" in name else {})
    with torch.device("meta"):
        model = timm.create_model(name, **options)
    before = snapshot(model)
    plan = rewriter.plan(model, "dropout")
    assert plan.sites
    assert all(t.device.type == "meta" for t in (*model.parameters(), *model.buffers()))
    assert_unchanged(model, before)
    if name != "vit_huge_patch14_224":
        assert plan.to_json() == rewriter.plan(timm.create_model(name, **options), "dropout").to_json()
