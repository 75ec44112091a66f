"""Whatever is wrong with a request, one clear error says so, and the model is bit for bit what it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torchvision
from helpers import assert_unchanged, image, snapshot, timm_model
from torch import nn

import rewriter
from rewriter import (
    InputError,
    ModelError,
    SelectorError,
    TraceError,
    UndoError,
)
from rewriter.passes import Dropout

VERBS: dict[str, Callable[[Any], Any]] = {
    "plan": rewriter.plan,
    "rewrite": rewriter.rewrite,
    "report": rewriter.report,
    "undo": rewriter.undo,
    "trace": rewriter.trace,
    "to_graph_module": rewriter.to_graph_module,
    "original_state_dict": rewriter.original_state_dict,
}


# Not a model that can be rewritten


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("thing", [None, 5, "resnet18", {}, torch.relu, torch.zeros(1)], ids=type)
def test_what_is_not_a_module_is_refused_with_its_type(verb: str, thing: Any) -> None:
    with pytest.raises(ModelError, match=f"expected a torch.nn.Module, found {type(thing).__name__}"):
        VERBS[verb](thing)


@pytest.mark.parametrize("verb", VERBS)
def test_a_class_is_refused_and_the_message_says_to_call_it(verb: str) -> None:
    with pytest.raises(ModelError, match=r"found the class ResNet; call it first: ResNet\(\.\.\.\)"):
        VERBS[verb](torchvision.models.ResNet)


@pytest.fixture(scope="module")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    distributed = torch.distributed
    if not distributed.is_available() or distributed.is_initialized():
        pytest.skip("no process group of our own")
    store = tmp_path_factory.mktemp("store") / "file"
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def _compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile()
    return model


def _with_wrapped_part(model: nn.Module) -> nn.Module:
    model.layer2 = nn.DataParallel(model.layer2)
    return model


@pytest.mark.parametrize("verb", ["plan", "rewrite", "trace", "to_graph_module"])
@pytest.mark.parametrize(
    ("wrap", "remedy"),
    [
        (nn.DataParallel, "the model is wrapped in DataParallel; give its .module instead"),
        (torch.compile, "the model was compiled by torch.compile\\(\\); give its ._orig_mod instead"),
        (_compiled_in_place, r"compiled in place by \.compile\(\)"),
        (_with_wrapped_part, "module 'layer2' is wrapped in DataParallel; give its .module instead"),
    ],
)
def test_wrapped_and_compiled_models_are_refused_with_the_remedy(verb: str, wrap: Any, remedy: str) -> None:
    wrapped = wrap(timm_model("test_resnet"))
    before = snapshot(wrapped)
    with pytest.raises(ModelError, match=f"{remedy}.*Rewrite first.*then compile and wrap"):
        VERBS[verb](wrapped)
    assert_unchanged(wrapped, before)


def test_ddp_is_refused_with_the_remedy(process_group: None) -> None:
    wrapped = nn.parallel.DistributedDataParallel(timm_model("test_resnet"))
    before = snapshot(wrapped)
    with pytest.raises(ModelError, match=r"DistributedDataParallel; give its \.module instead.*Rewrite first"):
        rewriter.rewrite(wrapped, inplace=True)
    assert_unchanged(wrapped, before)


@pytest.mark.parametrize("part", ["", "layer1"])
def test_fsdp2_is_refused_with_when_to_rewrite(process_group: None, part: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = timm_model("test_resnet")
    fully_shard(model.get_submodule(part), mesh=init_device_mesh("cpu", (1,)))
    classes = [type(m) for m in model.modules()]
    where = f"module '{part}'" if part else "the model"
    with pytest.raises(ModelError, match=f"{where} is sharded by FSDP.*Rewrite first"):
        rewriter.rewrite(model, inplace=True)
    assert [type(m) for m in model.modules()] == classes


def test_scripted_and_traced_models_are_refused() -> None:
    model = timm_model("test_resnet").eval()
    for gone in (torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3))), torch.jit.trace(model, image())):
        with pytest.raises(ModelError, match=r"its Python code is gone. Rewrite, then script it"):
            rewriter.rewrite(gone, input_size=64)


def test_a_scripted_part_is_refused_by_its_path() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), torch.jit.script(nn.Sequential(nn.ReLU())))
    with pytest.raises(ModelError, match=r"module '1' is a \w+: its Python code is gone"):
        rewriter.plan(model, input_size=64)


def test_a_lazy_module_is_refused_by_its_path_until_it_has_run() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.BatchNorm2d(4))
    with pytest.raises(ModelError, match=r"module '0': 'weight' of the lazy LazyConv2d .*Run the model once"):
        rewriter.plan(model, input_size=32)
    model(image(32))
    assert rewriter.plan(model, input_size=32).sites == ()


# A model that does not run on the input


@pytest.mark.parametrize(
    ("name", "size", "module", "line"),
    [
        ("test_resnet", (5, 64, 64), r"module 'conv1\.0' \(Conv2d\)", r"resnet\.py:\d+"),
        ("test_vit", 100, r"module 'patch_embed' \(PatchEmbed\)", r"patch_embed\.py:\d+"),
        ("densenet121", (1, 64, 64), r"module 'features\.conv0' \(Conv2d\)", r"densenet\.py:\d+"),
        ("resnet18", (3, 0, 8), None, None),
    ],
)
def test_an_input_that_does_not_fit_names_the_module_and_the_line(
    name: str, size: Any, module: str | None, line: str | None
) -> None:
    model = timm_model(name)
    before = snapshot(model)
    expected = TraceError if module else InputError
    for verb in (rewriter.plan, rewriter.rewrite):
        with pytest.raises(expected, match=f"could not be run.*{module} at .*{line}" if module else "positive ints"):
            verb(model, input_size=size)
    assert_unchanged(model, before)


def test_an_error_inside_the_users_own_code_names_file_line_and_text(import_text: Callable[[str], ModuleType]) -> None:
    made = import_text(
        """
        import torch
        from torch import nn

        class Inner(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 3)

            def forward(self, x):
                x = self.conv(x)
                return x.view(7, -1, 11)

        class Outer(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = Inner()

            def forward(self, x):
                return self.inner(x)
        """
    )
    model = made.Outer()
    before = snapshot(model)
    with pytest.raises(TraceError) as caught:
        rewriter.rewrite(model, input_size=32, inplace=True)
    text = str(caught.value)
    assert "module 'inner' (Inner)" in text
    assert f"{made.__file__}:12 (`return x.view(7, -1, 11)`)" in text
    assert_unchanged(model, before)


def test_the_torchvision_model_without_configuration_asks_for_a_size() -> None:
    model = torchvision.models.resnet18()
    before = snapshot(model)
    for verb in (rewriter.plan, rewriter.rewrite, rewriter.trace, rewriter.to_graph_module):
        with pytest.raises(InputError, match=r"no input size found: ResNet .*Give input_size=224"):
            verb(model)
    assert_unchanged(model, before)


@pytest.mark.parametrize("size", [(2, 3, 64, 64), [1, 3, 64, 64], torch.Size([2, 3, 64, 64])], ids=str)
def test_a_size_with_a_batch_is_refused(size: Any) -> None:
    with pytest.raises(InputError, match=r"four numbers; leave the batch away: \(C, H, W\)"):
        rewriter.plan(timm_model("test_resnet"), input_size=size)


@pytest.mark.parametrize("size", [0, -1, 2.5, "big", (64,), (64.0, 64), (64, -64), {"a": 1}, object, True], ids=str)
def test_a_size_of_another_form_is_refused(size: Any) -> None:
    with pytest.raises(InputError, match=r"input_size: expected an int, \(H, W\) or \(C, H, W\)"):
        rewriter.plan(timm_model("test_resnet"), input_size=size)


@pytest.mark.parametrize("examples", [5, "x", object(), [], {}, (), {"x": 3}], ids=type)
def test_examples_without_a_tensor_are_refused(examples: Any) -> None:
    with pytest.raises(InputError, match="example_inputs: expected"):
        rewriter.plan(timm_model("test_resnet"), example_inputs=examples)


def test_size_and_examples_together_are_refused() -> None:
    with pytest.raises(InputError, match="not both"):
        rewriter.plan(timm_model("test_resnet"), example_inputs=image(), input_size=64)


@pytest.mark.parametrize(
    "examples",
    [
        {"nope": image()},
        (image(), image(), image(), image()),
        image()[0, 0],
        torch.zeros(2, 3, 64, 64, dtype=torch.long),
        torch.zeros(2, 3, 64, 64, dtype=torch.float64),
    ],
    ids=["unknown argument", "too many arguments", "too few dimensions", "integers", "double"],
)
def test_examples_that_the_model_does_not_take_are_refused(examples: Any) -> None:
    model = timm_model("test_resnet", drop_rate=0.1)
    before = snapshot(model)
    with pytest.raises((InputError, TraceError)):
        rewriter.rewrite(model, "dropout", example_inputs=examples, inplace=True)
    assert_unchanged(model, before)


# What was asked for


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        ("dropuot", r"unknown pass 'dropuot'; did you mean 'dropout'"),
        (["dropout", "nonsense"], "unknown pass 'nonsense'; known: .*dropout"),
        ({"dropout": {"q": 0.1}}, "pass 'dropout' has no option 'q'; its options: p, head_p"),
        ({"dropout": {"p": 2}}, "dropout: p is a drop rate, expected 0 <= p < 1, found 2"),
        ({"dropout": {"p": "high"}}, "dropout: p is a drop rate.*found 'high'"),
        ({"dropout": {"head_p": -0.1}}, "dropout: head_p is a drop rate.*found -0.1"),
        ({"dropout": {"p": float("nan")}}, "dropout: p is a drop rate.*found nan"),
        (["dropout", "dropout"], "pass 'dropout' is asked for 2 times"),
        (["dropout", Dropout(p=0.1)], "pass 'dropout' is asked for 2 times"),
        ({"dropout": {}, "other": {}}, "not a pass"),
        ({"dropout": 0.1}, "not a pass"),
        ([5], "not a pass: 5"),
        ([None], "not a pass: None"),
        (5, "expected a sequence of passes, found int"),
        ({"dropout"}, "expected a sequence of passes, found set"),
    ],
    ids=str,
)
def test_passes_that_do_not_exist_or_take_no_such_option_are_refused(passes: Any, message: str) -> None:
    model = timm_model("test_resnet")
    before = snapshot(model)
    for verb in (rewriter.plan, rewriter.rewrite):
        with pytest.raises(SelectorError, match=message):
            verb(model, passes)
    assert_unchanged(model, before)


@pytest.mark.parametrize("value", ["all", "", None, True, "EVAL", ["auto"]], ids=str)
def test_an_unknown_value_of_preserve_is_refused_with_the_known_ones(value: Any) -> None:
    with pytest.raises(SelectorError, match="preserve: expected one of 'auto', 'eval', 'nothing'"):
        rewriter.plan(timm_model("test_resnet"), preserve=value)


@pytest.mark.parametrize("argument", ["only", "skip"])
@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ("layer5", "'layer5' matches no module of ResNet; did you mean .*'layer4'"),
        ("layer1.0.conv9", "did you mean .*'layer1.0.conv1'"),
        ("layer1.*.nothing", "matches no module"),
        ("re:layer9.*", "'re:layer9.*' matches no module"),
        ("re:(", r"'re:\(' is not a regular expression"),
        (nn.LSTM, "'LSTM' matches no module of ResNet; .*BatchNorm2d"),
        (["layer1", "layer_4"], "'layer_4' matches no module of ResNet; did you mean .*'layer4'"),
        ([5], "not a selector: 5"),
        (5, "not a selector"),
        ("re:ayer1", "matches no module"),
        ("", None),
    ],
    ids=str,
)
def test_a_selector_that_matches_nothing_is_refused_with_near_names(
    argument: str, selector: Any, message: str | None
) -> None:
    model = timm_model("test_resnet")
    before = snapshot(model)
    if message is None:  # the path of the model itself
        rewriter.plan(model, **{argument: selector})
    else:
        with pytest.raises(SelectorError, match=message):
            rewriter.rewrite(model, inplace=True, **{argument: selector})
    assert_unchanged(model, before)


@pytest.mark.parametrize("inplace", [False, True])
def test_undo_of_a_model_that_was_not_rewritten_is_refused(inplace: bool) -> None:
    model = timm_model("test_resnet")
    before = snapshot(model)
    with pytest.raises(UndoError, match="ResNet was not rewritten"):
        rewriter.undo(model, inplace=inplace)
    rewritten = rewriter.rewrite(model, "dropout")
    with pytest.raises(UndoError, match="was not rewritten"):
        rewriter.undo(rewriter.undo(rewritten), inplace=inplace)
    with pytest.raises(UndoError, match="only a part of a model that was"):
        rewriter.undo(rewritten.layer1, inplace=inplace)
    assert_unchanged(model, before)


@pytest.mark.parametrize("text", ["../x", "\x00", "a" * 5000])
def test_a_path_as_a_pass_name_is_only_a_name(text: str, tmp_path: Path) -> None:
    with pytest.raises(SelectorError, match="unknown pass"):
        rewriter.plan(timm_model("test_resnet"), text)


def test_a_model_that_takes_more_than_an_image_is_told_how_to_give_it() -> None:
    class Conditioned(nn.Module):
        def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            return sample * timestep

    with pytest.raises(rewriter.TraceError, match=r"missing .* give example_inputs= with all its arguments"):
        rewriter.plan(Conditioned(), input_size=16)


class StemMadeLast(nn.Module):
    """Its first convolution that is registered does not read the image."""

    def __init__(self, colours: int) -> None:
        super().__init__()
        self.body = nn.Conv2d(32, 8, 3)
        self.stem = nn.Conv2d(colours, 32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(self.stem(x))


def test_the_convolution_that_was_made_first_need_not_read_the_image() -> None:
    assert rewriter.trace(StemMadeLast(3), input_size=16).inputs.image_size == (3, 16, 16)
    with pytest.raises(rewriter.TraceError, match=r"give input_size=\(channels, height, width\)"):
        rewriter.trace(StemMadeLast(5), input_size=16)
    assert rewriter.trace(StemMadeLast(5), input_size=(5, 16, 16)).inputs.image_size == (5, 16, 16)
