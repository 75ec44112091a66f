"""Every verb on models as trainers and libraries hold them: right, or refused with the remedy.

python tests/integrations/trainer_table.py     # writes docs/trainers.md
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import rewriter
from rewriter.layers.registry import calibrated_layers
from rewriter.model.wrappers import inside, named_modules_inside, parameter_names_inside

PAGE = Path(__file__).parents[2] / "docs" / "trainers.md"
RIGHT, UNSUPPORTED = "right", "not with any model"
IMAGES = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


class NotOfTheLibrary(Exception):
    """What is asked for does not work with any model there."""


class Scene(nn.Module):
    """Norms of groups, dropout that is misplaced, and maps of two scales side by side."""

    def __init__(self) -> None:
        import timm

        super().__init__()
        self.body = timm.create_model("test_efficientnet_gn", num_classes=0, global_pool="", drop_path_rate=0.1)
        width = self.body.num_features
        self.fine, self.coarse = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(width, 8, 1)
        self.branch = nn.Sequential(nn.Conv2d(16, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.Dropout(0.2))
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        coarse = nn.functional.interpolate(self.coarse(self.body(x)), x.shape[-2:], mode="bilinear")
        x = torch.cat([self.fine(x), coarse], 1)
        return self.head(x + self.branch(x)).mean((2, 3))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Situation:
    """How a trainer or a library holds a model.

    Attributes:
        original: makes an original of a library.
        hold: what is done to an original or a rewritten model, in place or around it.
        options: of :func:`rewriter.rewrite`.
        images: what it runs on.
        logits: the tensor in what it gives.
        tolerance: of outputs, relative to the largest; 0 for bit by bit.
        groups: whether distributed processes (one of them) are needed.
    """

    original: Callable[[], nn.Module] = Scene
    hold: Callable[[nn.Module], Any] = lambda model: model
    options: dict[str, Any] = field(default_factory=lambda: {"input_size": 64})
    images: Callable[[], Any] = lambda: (IMAGES,)
    logits: Callable[[Any], torch.Tensor] = lambda found: found
    tolerance: float = 0.0
    groups: bool = False

    def fresh(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return self.original()

    def rewritten(self, seed: int = 0) -> nn.Module:
        model = rewriter.rewrite(self.fresh(seed), **self.options, all_ranks=False)
        if calibrated_layers(model):
            rewriter.calibrate(model, [self.images()], progress=False, all_ranks=False)
        return model

    @torch.no_grad()
    def run(self, model: Any) -> torch.Tensor:
        torch.manual_seed(0)
        return self.logits(model.eval()(*self.images())).float()

    def check_same(self, found: Any, expected: Any, tolerance: float = 0.0) -> None:
        """Both compute the same in evaluation mode."""
        ours, theirs = self.run(found), self.run(expected)
        limit = max(self.tolerance, tolerance) * float(theirs.abs().max())
        assert ours.shape == theirs.shape and float((ours - theirs).abs().max()) <= limit


def plan(situation: Situation) -> None:
    expected = rewriter.plan(situation.fresh(), **situation.options)
    found = rewriter.plan(situation.hold(situation.fresh()), **situation.options)
    prefix = "model." if len(found.edits) and found.edits != expected.edits else ""  # within a LightningModule
    assert [edit.path for edit in found.edits] == [f"{prefix}{edit.path}".rstrip(".") for edit in expected.edits]
    assert found.edits


def rewrite(situation: Situation) -> None:
    held = situation.hold(situation.fresh())
    found = rewriter.rewrite(held, **situation.options, all_ranks=False)
    if calibrated_layers(found):
        rewriter.calibrate(found, [situation.images()], progress=False, all_ranks=False)
    assert not rewriter.report(found).stale
    situation.check_same(found, situation.hold(situation.rewritten()))


def report(situation: Situation) -> None:
    plain = situation.rewritten()
    found = rewriter.report(situation.hold(copy.deepcopy(plain)))
    expected = rewriter.report(plain)
    assert not found.stale and len(found.applied) == len(expected.applied) > 0
    assert found.uncalibrated == expected.uncalibrated == ()


def undo(situation: Situation) -> None:
    held = situation.hold(situation.rewritten())
    before = situation.run(held)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rewriter.RewriterWarning)  # groups and equalizers were in force
        undone = rewriter.undo(held)
    situation.check_same(undone, situation.hold(situation.fresh()))
    assert torch.equal(situation.run(held), before)
    try:
        rewriter.undo(undone)
    except rewriter.UndoError:
        return
    raise AssertionError("something was left to take back")


def param_groups(situation: Situation) -> None:
    held = situation.hold(situation.rewritten())
    groups = rewriter.param_groups(held, 0.05)
    trainable = [parameter for parameter in held.parameters() if parameter.requires_grad]
    found = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert found.keys() == {id(parameter) for parameter in trainable} and trainable
    plain = situation.rewritten()
    names = {id(parameter): name for name, parameter in plain.named_parameters()}
    expected = {
        names[id(parameter)]: group["weight_decay"]
        for group in rewriter.param_groups(plain, 0.05)
        for parameter in group["params"]
    }
    held_names = parameter_names_inside(inside(held))
    for name, parameter in inside(held).named_parameters():
        wanted = expected.get(held_names[name].removeprefix("model."))
        assert not parameter.requires_grad or wanted is None or found[id(parameter)] == wanted


def check_optimizer(situation: Situation) -> None:
    held = situation.hold(situation.rewritten())
    rewriter.check_optimizer(held, torch.optim.SGD(rewriter.param_groups(held, 0.05), lr=0.1))
    early = torch.optim.SGD(situation.rewritten().parameters(), lr=0.1)
    try:
        rewriter.check_optimizer(held, early)
    except rewriter.OptimizerError:
        return
    raise AssertionError("an optimizer of other parameters was taken")


def calibrate(situation: Situation) -> None:
    plain = rewriter.rewrite(situation.fresh(), **situation.options, all_ranks=False)
    held = situation.hold(copy.deepcopy(plain))
    rewriter.calibrate(held, [situation.images()], progress=False, all_ranks=False)
    expected = constants(situation.hold(situation.rewritten()))
    for ours, theirs in zip(constants(held), expected, strict=True):
        assert (
            ours == theirs if not situation.tolerance else torch.allclose(*map(torch.tensor, (ours, theirs)), rtol=0.1)
        )


def constants(model: nn.Module) -> list[Any]:
    from rewriter.layers.registry import CalibratedLayer

    return [module.constants() for _, module in named_modules_inside(model) if isinstance(module, CalibratedLayer)]


def fold(situation: Situation) -> None:
    held = situation.hold(situation.rewritten())
    situation.check_same(rewriter.fold(held), held, tolerance=1e-5)


def save(situation: Situation) -> None:
    plain = situation.rewritten()
    with tempfile.TemporaryDirectory() as folder:
        rewriter.save(situation.hold(copy.deepcopy(plain)), Path(folder) / "saved")
        original = situation.fresh(1)
        if isinstance(situation.hold(situation.fresh()), _task()):  # no wrapper, but a module that has a model
            original = situation.hold(original)
        situation.check_same(rewriter.load(Path(folder) / "saved", original), plain)


def state_dict(situation: Situation) -> None:
    """There and back: into what another process makes, and the original's out of it."""
    originals = [situation.hold(situation.fresh(seed)) for seed in (0, 1)]
    originals[1].load_state_dict(copy.deepcopy(originals[0].state_dict()))
    try:
        situation.check_same(*originals)
    except AssertionError:
        raise NotOfTheLibrary("its state dict has no values") from None
    held = situation.hold(situation.rewritten())
    other = situation.hold(situation.rewritten(seed=1))
    state = held.state_dict()
    other.load_state_dict(copy.deepcopy(state))
    situation.check_same(other, held)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rewriter.RewriterWarning)
        original = rewriter.original_state_dict(held)
    expected = inside(situation.hold(situation.fresh(1)))
    assert original.keys() == expected.state_dict().keys()
    assert not any(hasattr(value, "full_tensor") for value in original.values())


def curve(situation: Situation) -> None:
    """Some steps of training, with passes that promise to change nothing yet: the same losses to the last digit."""

    def losses(model: nn.Module) -> list[float]:
        held = situation.hold(model)
        trained = [parameter for parameter in held.parameters() if parameter.requires_grad]
        optimizer, found = torch.optim.SGD(trained, lr=0.01), []
        before = [parameter.detach().clone() for parameter in trained]
        torch.manual_seed(1)
        for _ in range(3):
            loss = situation.logits(held.train()(*situation.images())).float().square().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            found.append(float(loss.detach()))
        if all(map(torch.equal, before, trained)):
            raise NotOfTheLibrary("its parameters are elsewhere, and are not trained")
        return found

    try:
        expected = losses(situation.fresh())
    except (RuntimeError, NotImplementedError) as error:
        raise NotOfTheLibrary("it cannot be trained") from error
    assert len(set(expected)) == 3
    keeping = ["scale-equalizer", "weight-decay"]  # not calibrated yet
    assert losses(rewriter.rewrite(situation.fresh(), keeping, **situation.options, all_ranks=False)) == expected


VERBS: dict[str, Callable[[Situation], None]] = {
    "plan": plan, "rewrite": rewrite, "report": report, "undo": undo, "param_groups": param_groups,
    "check_optimizer": check_optimizer, "calibrate": calibrate, "fold": fold, "save": save, "state dict": state_dict,
    "curve": curve,
}  # fmt: skip


def _timm() -> nn.Module:
    import timm

    return timm.create_model("test_efficientnet_gn", num_classes=4, drop_rate=0.2)  # type: ignore[no-any-return]


def _torchvision() -> nn.Module:
    from torchvision.models import segmentation

    options = {"weights": None, "weights_backbone": None, "num_classes": 3}
    return segmentation.deeplabv3_mobilenet_v3_large(**options)  # type: ignore[no-any-return]


def _smp() -> nn.Module:
    import segmentation_models_pytorch as smp

    return smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=3)


def _segformer() -> nn.Module:
    import transformers

    config = transformers.SegformerConfig(
        hidden_sizes=[16, 24, 32, 48], depths=[1] * 4, num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=32,
    )  # fmt: skip
    return transformers.SegformerForSemanticSegmentation(config)


def _diffusion() -> nn.Module:
    import diffusers

    return diffusers.UNet2DModel(
        sample_size=64, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8, dropout=0.1,
    )  # fmt: skip


@functools.cache
def _task() -> Any:
    import lightning

    class Task(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> Any:
            return self.model(x)

    return Task


def _lightning(model: nn.Module) -> Any:
    return _task()(model)


def _prepared(precision: str) -> Callable[[nn.Module], Any]:
    def hold(model: nn.Module) -> Any:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
        return Accelerator(cpu=True, mixed_precision=precision).prepare(model)

    return hold


def _offloaded(model: nn.Module) -> Any:
    from accelerate import cpu_offload

    return cpu_offload(model, execution_device=torch.device("cpu"))


def _fsdp1(model: nn.Module) -> Any:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))


def _fsdp2(model: nn.Module) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    fully_shard(model.body, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def _in_place(model: nn.Module) -> Any:
    model.compile(backend="eager")
    return model


def _part_compiled(model: nn.Module) -> Any:
    model.branch = torch.compile(model.branch, backend="eager")  # type: ignore[assignment]
    return model


def _checkpointed(model: nn.Module) -> Any:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, nn.Sequential))
    return model


def _timm_checkpointed(model: nn.Module) -> Any:
    model.body.set_grad_checkpointing(True)  # type: ignore[operator, union-attr]
    return model


def _adapted(model: nn.Module) -> Any:
    import peft

    torch.manual_seed(5)
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["fine", "branch.0"], r=2))


def _quantized(model: nn.Module) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig())
    return model


def _quantizable() -> nn.Module:
    import timm

    return timm.create_model("test_vit", img_size=64, num_classes=4, proj_drop_rate=0.2)  # type: ignore[no-any-return]


def _timm_average(model: nn.Module) -> Any:
    from timm.utils import ModelEmaV3

    return ModelEmaV3(model).module


def _normed(model: nn.Module) -> Any:
    from torch.nn.utils import parametrizations

    parametrizations.weight_norm(model.head)
    return model


def _bfloat16() -> tuple[torch.Tensor]:
    return (IMAGES.bfloat16(),)


def _out(found: Any) -> torch.Tensor:
    return found["out"]  # type: ignore[no-any-return]


SITUATIONS: dict[str, Situation] = {
    "timm": Situation(original=_timm),
    "torchvision": Situation(original=_torchvision, logits=_out),
    "segmentation_models_pytorch": Situation(original=_smp),
    "transformers": Situation(original=_segformer, logits=lambda found: found.logits),
    "diffusers": Situation(
        original=_diffusion, logits=lambda found: found.sample, images=lambda: (IMAGES, torch.tensor(3)),
        options={"example_inputs": (IMAGES, torch.tensor(3))},
    ),
    "Lightning: in a LightningModule": Situation(hold=_lightning),
    "accelerate: prepared": Situation(hold=_prepared("no")),
    "accelerate: prepared, bf16": Situation(hold=_prepared("bf16"), tolerance=0.05),
    "accelerate: offloaded": Situation(hold=_offloaded),
    "DistributedDataParallel": Situation(hold=nn.parallel.DistributedDataParallel, groups=True),
    "FSDP, first form": Situation(hold=_fsdp1, groups=True),
    "FSDP2": Situation(hold=_fsdp2, groups=True),
    "torch.compile": Situation(hold=lambda model: torch.compile(model, backend="eager")),
    "model.compile()": Situation(hold=_in_place),
    "a compiled submodule": Situation(hold=_part_compiled),
    "activation checkpointing, torch": Situation(hold=_checkpointed),
    "activation checkpointing, timm": Situation(hold=_timm_checkpointed),
    "peft, LoRA": Situation(hold=_adapted),
    "torchao, int8 weights": Situation(original=_quantizable, hold=_quantized),
    "AveragedModel": Situation(hold=torch.optim.swa_utils.AveragedModel),
    "timm's ModelEmaV3": Situation(hold=_timm_average),
    "weight norm on a layer": Situation(hold=_normed, tolerance=1e-6),
    "bfloat16": Situation(original=lambda: Scene().bfloat16(), images=_bfloat16, tolerance=0.02),
    "channels_last": Situation(hold=lambda model: model.to(memory_format=torch.channels_last), tolerance=1e-5),
}  # fmt: skip


@contextlib.contextmanager
def one_process() -> Iterator[None]:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        store = torch.distributed.FileStore(f"{folder}/store", 1)
        torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
        try:
            yield
        finally:
            torch.distributed.destroy_process_group()


def measured(situation: str, verb: str) -> str:
    """:data:`RIGHT`, or what a refusal says; anything else raises."""
    found = SITUATIONS[situation]
    with one_process() if found.groups else contextlib.nullcontext():
        try:
            VERBS[verb](found)
        except rewriter.RewriterError as error:
            return " ".join(str(error).split())
        except NotOfTheLibrary as error:
            return f"{UNSUPPORTED}: {error}"
    return RIGHT


def page(cells: dict[str, dict[str, str]]) -> str:
    """docs/trainers.md: the table, and below it what each refusal says."""
    notes: dict[str, int] = {}
    rows = []
    for name, row in cells.items():
        texts = [_CHECK if text == RIGHT else f"[{notes.setdefault(text, len(notes) + 1)}]" for text in row.values()]
        rows.append(f"| {name} | {' | '.join(texts)} |")
    head = f"| | {' | '.join(f'`{verb}`' if '_' in verb or ' ' not in verb else verb for verb in VERBS)} |"
    told = "\n".join(f"{number}. {text}" for text, number in notes.items())
    return _PAGE.format(table="\n".join([head, "| --- " * (len(VERBS) + 1) + "|", *rows]), notes=told)


def documented() -> dict[str, dict[str, str]]:
    """The cells of the page, as :func:`measured` gives them."""
    text = PAGE.read_text(encoding="utf-8")
    notes = dict(re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE))
    found: dict[str, dict[str, str]] = {}
    verbs: list[str] = []
    for line in text.splitlines():
        name, *entries = (entry.strip("` ") for entry in line.strip("|").split("|"))
        if entries[:1] == ["plan"]:
            verbs = entries
        elif name in SITUATIONS and verbs:
            texts = [RIGHT if entry == _CHECK else notes[entry.strip("[]")] for entry in entries]
            found[name] = dict(zip(verbs, texts, strict=True))
    return found


_CHECK = "✓"
_PAGE = """# Trainers and libraries

The order in a script, resuming and evaluation: [training.md](training.md). One page with an example each, which is
tested by killing it and going on to the same curve:

| | page | example |
| --- | --- | --- |
| timm's `train.py` | [timm](trainers/timm.md) | `examples/train_timm.py` |
| Lightning | [lightning](trainers/lightning.md) | `examples/train_lightning.py` |
| transformers' `Trainer` | [transformers](trainers/transformers.md) | `examples/train_transformers.py` |
| accelerate | [accelerate](trainers/accelerate.md) | `examples/train_accelerate.py` |
| torchvision's loop | [torchvision](trainers/torchvision.md) | `examples/train_torchvision_segmentation.py` |
| segmentation_models_pytorch | [smp](trainers/segmentation_models.md) | `examples/train_segmentation_models.py` |
| DistributedDataParallel, `torchrun` | [ddp](trainers/ddp.md) | `examples/train_ddp.py` |
| FSDP2, `torchrun` | [fsdp2](trainers/fsdp2.md) | `examples/train_fsdp2.py` |

`make test-trainers` runs them all, and what the table below says.

## What each verb does with a model that somebody holds

{check} is right: the same edits, groups, constants, outputs and keys as of the model by itself, bit by bit where
nothing casts. A number is a refusal, with the model as it was, and what it says below. `plan` and `rewrite` are asked
of an original that is held so, all others of a model that was rewritten before. `state dict` is loading there and
back, and `original_state_dict`; `curve` is training after a rewrite that promises to change nothing yet, to the same
losses to the last digit. Written by `python tests/integrations/trainer_table.py`.

{table}

{notes}
""".replace("{check}", _CHECK)


def main() -> None:
    """Measure the verbs named on the command line anew, all of them if none is."""
    warnings.simplefilter("ignore")
    shown, anew = documented(), sys.argv[1:] or list(VERBS)
    cells = {
        name: {verb: measured(name, verb) if verb in anew else shown[name][verb] for verb in VERBS}
        for name in SITUATIONS
    }
    PAGE.write_text(page(cells), encoding="utf-8")


if __name__ == "__main__":
    main()
