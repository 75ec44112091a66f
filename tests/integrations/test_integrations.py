"""A rewritten model under torch.compile, torch.export, DDP, FSDP2, channels_last, autocast and half precision."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
import torchvision
from torch import nn

import rewriter
from rewriter.passes import Dropout

pytestmark = pytest.mark.slow

MODELS: dict[str, Any] = {
    "moved within a method": lambda: timm.create_model("test_resnet", drop_rate=0.3),
    "moved across modules": lambda: torchvision.models.mobilenet_v2(num_classes=10),
    "inserted and removed": lambda: timm.create_model("test_vit", drop_rate=0.3, proj_drop_rate=0.1, img_size=64),
}


@pytest.fixture(params=MODELS)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = MODELS[request.param]()
    rewritten = rewriter.rewrite(model, [Dropout(p=0.1)], input_size=64)
    return model.eval(), rewritten.eval(), torch.randn(2, 3, 64, 64)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@torch.no_grad()
def test_compiles_as_one_graph(pair: tuple[nn.Module, nn.Module, torch.Tensor]) -> None:
    model, rewritten, x = pair
    torch._dynamo.reset()
    compiled = torch.compile(rewritten, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), model(x))
    rewritten.train()
    torch.manual_seed(1)
    eager = copy.deepcopy(rewritten)(x)
    torch.manual_seed(1)
    assert torch.equal(compiled(x), eager)


@torch.no_grad()
def test_exports(pair: tuple[nn.Module, nn.Module, torch.Tensor]) -> None:
    model, rewritten, x = pair
    exported = torch.export.export(rewritten, (x,)).module()
    assert torch.equal(exported(x), model(x))


@torch.no_grad()
def test_memory_format_and_precision_are_the_users(pair: tuple[nn.Module, nn.Module, torch.Tensor]) -> None:
    model, rewritten, x = pair
    images = x.to(memory_format=torch.channels_last)
    last = [copy.deepcopy(m).to(memory_format=torch.channels_last) for m in (model, rewritten)]
    assert torch.equal(last[0](images), last[1](images))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(x), rewritten(x))
    half = [copy.deepcopy(m).bfloat16() for m in (model, rewritten)]
    assert torch.equal(*(m(x.bfloat16()) for m in half))
    again = rewriter.rewrite(half[0], [Dropout(p=0.1)], input_size=64)
    assert torch.equal(again(x.bfloat16()), half[0](x.bfloat16()))
    assert next(again.parameters()).dtype is torch.bfloat16


def test_trains_under_ddp(pair: tuple[nn.Module, nn.Module, torch.Tensor], process_group: None) -> None:
    _, rewritten, x = pair
    wrapped = nn.parallel.DistributedDataParallel(rewritten.train())
    wrapped(x).sum().backward()
    assert all(p.grad is not None for p in rewritten.parameters())
    with pytest.raises(rewriter.ModelError, match=r"\.module"):
        rewriter.rewrite(wrapped)


def test_trains_under_fsdp2(
    pair: tuple[nn.Module, nn.Module, torch.Tensor], process_group: None, tmp_path: Path
) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, rewritten, x = pair
    expected = model(x).detach()
    fully_shard(rewritten, mesh=init_device_mesh("cpu", (1,)))
    with torch.no_grad():
        assert torch.equal(rewritten.eval()(x), expected)
    rewritten.train()(x).sum().backward()
    report = rewriter.report(rewritten)
    assert report.applied and not report.stale
    state = rewriter.original_state_dict(rewritten)
    assert not any(hasattr(value, "full_tensor") for value in state.values())
    model.load_state_dict(state)
    with pytest.raises(rewriter.ModelError, match="Gather them, on every process"):
        rewriter.save(rewritten, tmp_path / "saved")
    with pytest.raises(rewriter.ModelError, match="FSDP"):
        rewriter.rewrite(rewritten)
    if "" in report.records[0].applied.edited_classes:  # of the others fully_shard left the class
        with pytest.raises(rewriter.UndoError, match="undo before fully_shard"):
            rewriter.undo(rewritten, inplace=True)


def test_a_mixed_train_and_eval_model_keeps_its_modes() -> None:
    model = timm.create_model("test_resnet", drop_rate=0.3).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    rewritten = rewriter.rewrite(model)
    assert {name: module.training for name, module in rewritten.named_modules()} == modes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_the_eval_output_is_the_same() -> None:
    model = timm.create_model("resnet18", drop_rate=0.3).cuda()
    rewritten = rewriter.rewrite(model)
    assert next(rewritten.parameters()).is_cuda
    assert not rewriter.report(rewritten).records[-1].verdict.failed
