"""Calibration: constants of the whole data, measured level by level, with the model left as it was."""

from __future__ import annotations

import io
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from helpers import assert_unchanged, snapshot, timm_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import rewriter
from rewriter.constants.moments import Moments, moments_of
from rewriter.layers.registry import calibrated_layers
from rewriter.model.copying import copy_model

pytestmark = pytest.mark.slow

SIZE = 64


def data(batches: int = 3, batch: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, 3, SIZE, SIZE, generator=generator) + index for index in range(batches)]


@pytest.fixture(scope="module")
def fresh() -> nn.Module:
    torch.manual_seed(0)
    model = smp.DeepLabV3Plus("resnet18", encoder_weights=None, decoder_channels=32)
    return rewriter.rewrite(model, "scale-equalizer", input_size=SIZE, verify=False)


@pytest.fixture
def model(fresh: nn.Module) -> nn.Module:
    return copy_model(fresh)


def constants(model: nn.Module) -> dict[str, list[tuple[float, float]]]:
    return {path: layer.constants() for path, layer in calibrated_layers(model).items()}


def equalized(model: nn.Module, batches: Any) -> dict[str, list[Moments]]:
    """The moments of what each equalizer gives, over the data, as training begins: batch statistics, no dropout."""
    found = {path: [Moments()] * layer.operands for path, layer in calibrated_layers(model).items()}

    def watch(path: str) -> Any:
        def hook(module: nn.Module, args: Any, results: list[torch.Tensor]) -> None:
            found[path] = [a + moments_of(r.double()) for a, r in zip(found[path], results, strict=True)]

        return hook

    handles = [layer.register_forward_hook(watch(path)) for path, layer in calibrated_layers(model).items()]
    for module in model.train().modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for handle in handles:
        handle.remove()
    return found


def test_every_map_has_mean_0_and_variance_1_over_all_the_data_also_behind_other_fusions(
    model: nn.Module,
) -> None:
    assert rewriter.calibrate(model, data()) is model
    for path, moments in equalized(model, data()).items():
        for moment in moments:
            assert abs(moment.mean) < 1e-4 and abs(moment.std - 1) < 1e-4, (path, moment)


def test_nothing_else_changes(model: nn.Module) -> None:
    model.decoder.eval()  # modes of single modules are kept, too
    before = snapshot(model)
    rewriter.calibrate(model, data(1), progress=False)
    after = snapshot(model)
    changed = {name for name in after.tensors if after.tensors[name] != before.tensors[name]}
    assert changed == {f"{path}.{name}" for path in calibrated_layers(model) for name in ("mean", "inverse_std")}
    assert (before.random, before.training, before.hooks, before.attributes) == (
        after.random, after.training, after.hooks, after.attributes,
    )  # fmt: skip


def test_all_forms_of_batches_give_the_same(model: nn.Module) -> None:
    images = torch.cat(data())
    targets = torch.zeros(len(images))
    loader = DataLoader(TensorDataset(images, targets), batch_size=2)
    forms: dict[str, Any] = {
        "list of tensors": data(),
        "loader with targets": loader,
        "tuples": [(x, None) for x in data()],
        "dicts with more than the model takes": [{"x": x, "mask": x} for x in data()],
        "an iterator that is kept": iter(data()),
        "a list that is too long": data(5),
    }
    found = {}
    for form, batches in forms.items():
        rewriter.calibrate(model, batches, max_batches=3, progress=False)
        found[form] = constants(model)
    assert all(values == found["list of tensors"] for values in found.values())
    rewriter.calibrate(model, images, progress=False)  # one batch
    assert constants(model).keys() == found["list of tensors"].keys()


PREPARED: dict[str, tuple[Callable[[torch.Tensor], Any], Callable[[Any], Any]]] = {
    "a tensor": (lambda x: {"image": x, "name": "a"}, lambda batch: batch["image"]),
    "arguments": (lambda x: [x, "target"], lambda batch: (batch[0],)),
    "keywords": (lambda x: {"pixels": x}, lambda batch: {"x": batch["pixels"]}),
    "of another type": (lambda x: x.numpy(), torch.from_numpy),
    "double precision": (lambda x: x.double(), lambda batch: batch),
    "scaled": (lambda x: x / 4, lambda batch: 4 * batch),
}


@pytest.mark.parametrize("form", PREPARED)
def test_prepare_makes_the_input_of_a_batch(form: str, model: nn.Module) -> None:
    given, prepare = PREPARED[form]
    rewriter.calibrate(model, data(), progress=False)
    expected = constants(model)
    rewriter.calibrate(model, [given(x) for x in data()], prepare=prepare)
    assert constants(model) == expected


def test_uint8_images_are_those_that_prepare_makes_of_them(model: nn.Module) -> None:
    images = [x.sub(x.min()).mul(32).byte() for x in data()]
    rewriter.calibrate(model, [x / 255 - 0.5 for x in images], progress=False)
    expected = constants(model)
    rewriter.calibrate(model, [(x, x[:, 0]) for x in images], prepare=lambda batch: batch[0] / 255 - 0.5)
    assert constants(model) == expected


def test_a_model_that_takes_uint8_gets_it(fresh: nn.Module) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = copy_model(fresh)

        def forward(self, x: torch.Tensor) -> Any:
            assert x.dtype is torch.uint8
            return self.net(x / 255)

    model, images = Scaled(), [x.sub(x.min()).mul(32).byte() for x in data()]
    rewriter.calibrate(model, images, prepare=lambda batch: batch)
    plain = rewriter.calibrate(copy_model(fresh), [x / 255 for x in images])
    assert list(constants(model).values()) == list(constants(plain).values())


def test_images_in_double_precision_are_given_the_type_of_the_model(model: nn.Module) -> None:
    rewriter.calibrate(model, data(), progress=False)
    expected = constants(model)
    rewriter.calibrate(model, [x.double() for x in data()])
    assert constants(model) == expected
    rewriter.calibrate(model.double(), [x.double() for x in data()])
    for path, pairs in constants(model).items():
        assert torch.tensor(pairs).allclose(torch.tensor(expected[path]), rtol=1e-4)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "rank", "progress", "shown"),
    [(Terminal, 0, True, True), (Terminal, 1, True, False), (Terminal, 0, False, False), (io.StringIO, 0, True, False)],
)
def test_one_display_in_the_first_process_on_a_terminal(
    stream: type[io.StringIO], rank: int, progress: bool, shown: bool, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream())
    rewriter.calibrate(model, data(), progress=progress)
    printed = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert ("calibrating, 2 passes over the data" in printed) is bool(printed) is shown


def test_calibrating_again_measures_anew(model: nn.Module) -> None:
    rewriter.calibrate(model, data(), progress=False)
    first = constants(model)
    rewriter.calibrate(model, [10 * x for x in data(1)], progress=False)
    assert constants(model) != first
    rewriter.calibrate(model, data(), progress=False)
    assert constants(model) == first


class TestNorms:
    """Batch statistics where running ones were never updated, otherwise what training will use."""

    def test_never_updated_ones_normalise_by_the_batch_even_if_frozen(self, model: nn.Module) -> None:
        rewriter.calibrate(model, data(1), progress=False)
        expected = constants(model)
        for part in (model.encoder, model):
            rewriter.calibrate(part.eval() and model, data(1), progress=False)
            assert constants(model) == expected

    def test_frozen_ones_use_their_statistics(self, model: nn.Module) -> None:
        with torch.no_grad():
            for batch in data():
                model.train()(5 * batch)
        rewriter.calibrate(model, data(1), progress=False)
        by_batch = constants(model)
        model.encoder.eval()
        rewriter.calibrate(model, data(1), progress=False)
        assert constants(model) != by_batch
        model.eval()  # the whole model, as from_pretrained leaves it: training will normalise by the batch
        rewriter.calibrate(model, data(1), progress=False)
        assert constants(model) == by_batch


def _not_finite() -> list[torch.Tensor]:
    batches = data()
    batches[1][0, 0, 0, 0] = math.nan
    return batches


def _exhausted() -> Iterator[torch.Tensor]:
    iterator = iter(data())
    list(iterator)
    return iterator


class ShrinkingData:
    """Data whose second pass is shorter."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        self.passes += 1
        return iter(data(3 if self.passes < 3 else 1))


BAD: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "empty": (list, {}, "there are no batches"),
    "exhausted": (_exhausted, {}, "the iterator was read to its end before"),
    "one pass only": (lambda: iter(data()), {}, "nested 2 deep, which takes 2 passes .* max_batches="),
    "shrinking": (ShrinkingData, {}, "gave 1 batches, the one before 3"),
    "of one value": (
        lambda: [torch.ones_like(batch) for batch in data()],
        {},
        "constant .* every value in all .* is 1",
    ),
    "of no value": (lambda: [torch.zeros(0, 3, SIZE, SIZE)], {}, "empty: the batches hold no values.*training data"),
    "NaN": (_not_finite, {}, "batch 1 of the data holds values that are not finite"),
    "no tensors": (lambda: ["text"], {}, "batch 0 holds no tensor"),
    "no iterable": (lambda: 5, {}, "expected a data loader or another iterable of batches, found int"),
    "other keys": (
        lambda: [{"index": torch.arange(2), "image": data()[0]}],
        {},
        r"has the keys index, image; the model takes x. .* prepare=lambda batch: batch\['image'\]",
    ),
    "uint8": (lambda: [(255 * batch).byte() for batch in data()], {}, "batch 0 holds images of uint8.* prepare="),
    "prepare that is none": (data, {"prepare": "x"}, "prepare: expected a callable .* found str"),
    "prepare that fails": (
        lambda: [{"image": batch} for batch in data()],
        {"prepare": lambda batch: batch["images"]},
        "prepare failed on batch 0, a dict with the keys image: KeyError: 'images'",
    ),
    "prepare that fails later": (
        lambda: [*data(2), "text"],
        {"prepare": lambda batch: batch + 0},
        "prepare failed on batch 2, a str: TypeError",
    ),
    "prepare that gives a list": (
        data,
        {"prepare": lambda batch: [batch, None]},
        "expected a tensor, a tuple of arguments or a dict of .* batch 0, found a list of Tensor, NoneType",
    ),
    "prepare that gives nothing": (data, {"prepare": lambda batch: None}, "of batch 0, found a NoneType"),
    "prepare that gives no tensor": (data, {"prepare": lambda batch: ()}, "of batch 0 holds no tensor"),
    "prepare that gives other names": (data, {"prepare": lambda batch: {"y": batch}}, "does not fit the model"),
    "prepare that gives no names": (data, {"prepare": lambda batch: {0: batch}}, "keyword arguments of batch 0"),
    "prepare that writes": (data, {"prepare": lambda batch: batch.mul_(2)}, "prepare wrote into a tensor of batch 0"),
    "other channels": (lambda: [torch.zeros(2, 4, SIZE, SIZE)], {}, "the first batch does not fit the model"),
    "a last batch of one image": (
        lambda: [*data(1), data(1, batch=1)[0]],
        {},
        "Expected more than 1 value per channel .* drop_last=True",
    ),
    "a later batch": (lambda: [*data(1), torch.zeros(2, 4, SIZE, SIZE)], {}, "does not run on batch 1"),
    "max_batches": (data, {"max_batches": 0}, "max_batches: expected a positive int or None, found 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_refused_and_leaves_the_model_as_it_was(case: str, fresh: nn.Module) -> None:
    make, options, message = BAD[case]
    before = snapshot(fresh)
    with pytest.raises(rewriter.CalibrationError, match=message):
        rewriter.calibrate(fresh, make(), progress=False, **options)
    assert_unchanged(fresh, before)


@pytest.mark.parametrize("error", [FileNotFoundError, KeyboardInterrupt])
def test_what_interrupts_the_data_leaves_the_constants(error: type[BaseException], model: nn.Module) -> None:
    class Failing:
        whole_passes = 0

        def __iter__(self) -> Iterator[torch.Tensor]:
            yield from data(1)
            if self.whole_passes:  # the first level was measured
                raise error
            self.whole_passes += 1

    rewriter.calibrate(model, data(1), progress=False)
    before = snapshot(model)
    with pytest.raises(error):
        rewriter.calibrate(model, Failing(), progress=False)
    assert_unchanged(model, before)


def test_a_model_without_values_is_refused() -> None:
    with torch.device("meta"):
        model = smp.PSPNet("resnet18", encoder_weights=None)
    rewritten = rewriter.rewrite(model, "scale-equalizer", input_size=SIZE, verify=False)
    with pytest.raises(rewriter.CalibrationError, match="on the meta device; load its weights first"):
        rewriter.calibrate(rewritten, data())


def test_a_model_without_equalizers_is_refused() -> None:
    with pytest.raises(rewriter.CalibrationError, match="ResNet has no layer to calibrate: rewrite it"):
        rewriter.calibrate(timm_model("test_resnet"), data())


def test_a_rewritten_model_without_equalizers_is_returned_with_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = rewriter.rewrite(timm_model("test_resnet"), verify=False)
    before = snapshot(model)
    with caplog.at_level("INFO", "rewriter"):
        assert rewriter.calibrate(model, data()) is model
        assert rewriter.calibrate(holder := nn.Sequential(model), data()) is holder
    assert [record.message for record in caplog.records] == [
        f"calibrate: {name} was rewritten and has no equalizers: nothing to measure"
        for name in ("ResNet", "Sequential")
    ]
    assert_unchanged(model, before)
    with pytest.raises(rewriter.CalibrationError, match="max_batches"):
        rewriter.calibrate(model, data(), max_batches=0)
    with pytest.raises(rewriter.CalibrationError, match="ResNet has no layer to calibrate"):
        rewriter.calibrate(rewriter.undo(model), data())


def test_equalizers_that_were_replaced_are_missed(model: nn.Module) -> None:
    for path in calibrated_layers(model):
        model.set_submodule(path, nn.Identity())
    with pytest.raises(rewriter.CalibrationError, match=r"rewrite it .* again if its layers were replaced"):
        rewriter.calibrate(model, data())


def test_a_constant_map_is_left_as_it_is_with_a_warning(model: nn.Module) -> None:
    nn.init.zeros_(model.decoder.block1[1].weight)  # the low-level branch becomes zero
    with pytest.warns(
        UserWarning, match=r"decoder.scale_equalizer: map 1 has mean 0 and .* deviation 0, it is constant"
    ):
        rewriter.calibrate(model, data(1), progress=False)
    first, second = model.decoder.scale_equalizer.constants()
    assert second == (0.0, 1.0) != first


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=8), min_size=1, max_size=5))
def test_partial_moments_merge_to_those_of_the_whole(parts: list[list[float]]) -> None:
    merged = sum((moments_of(torch.tensor(part, dtype=torch.float64)) for part in parts), Moments())
    whole = torch.tensor([value for part in parts for value in part], dtype=torch.float64)
    assert merged.count == len(whole)
    assert merged.mean == pytest.approx(whole.mean().item(), abs=1e-9)
    assert merged.std == pytest.approx(whole.std(correction=0).item(), rel=1e-9, abs=1e-7)


def test_an_empty_tensor_adds_nothing() -> None:
    some = moments_of(torch.randn(5))
    assert some + moments_of(torch.empty(0, 4)) == some


def test_a_large_mean_does_not_drown_the_variance() -> None:
    """The difference of mean square and squared mean would be off by more than itself in single precision."""
    x = 1000.1 + 0.2 * torch.rand(4, 10_000, generator=torch.Generator().manual_seed(0))
    merged = sum((moments_of(row) for row in x), Moments())
    assert merged.std == pytest.approx(x.double().std(correction=0).item(), rel=1e-4)
    assert merged.std != pytest.approx(math.sqrt(abs(x.square().mean() - x.mean().square())), rel=0.1)


def _unreadable() -> Iterator[torch.Tensor]:
    yield from data(1)
    raise FileNotFoundError("image.png")


def _calibrate_in_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = smp.PSPNet("resnet18", encoder_weights=None).eval()
    for module in model.modules():  # statistics of their own, so that the split into batches does not matter
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(2.0)
    model = rewriter.rewrite(model.train(), "scale-equalizer", input_size=SIZE, verify=False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    rewriter.calibrate(model, data()[rank::2], progress=False)
    torch.save(constants(model), f"{folder}/{rank}.pt")
    try:
        rewriter.calibrate(model, [] if rank else data(1), progress=False)
    except rewriter.CalibrationError as error:
        Path(folder, f"{rank}.txt").write_text(str(error))
    try:
        rewriter.calibrate(model, _unreadable() if rank else data(1), progress=False)
    except rewriter.CalibrationError as error:
        with Path(folder, f"{rank}.txt").open("a") as file:
            file.write(str(error))
    if rank == 0:
        torch.distributed.destroy_process_group()
        rewriter.calibrate(model, data(), progress=False)
        torch.save(constants(model), f"{folder}/alone.pt")


def test_ranks_share_their_moments_and_their_errors(tmp_path: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.multiprocessing.spawn(_calibrate_in_process, (str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / f"{name}.pt") for name in ("0", "1", "alone")]
    assert found[0] == found[1]
    for path, pairs in found[2].items():
        assert torch.tensor(found[0][path]).allclose(torch.tensor(pairs), rtol=1e-6)
    for rank in (0, 1):
        errors = (tmp_path / f"{rank}.txt").read_text()
        assert "rank 1: there are no batches" in errors
        assert "rank 1: FileNotFoundError: image.png" in errors


def test_the_report_tells_the_constants(model: nn.Module) -> None:
    rewriter.calibrate(model, data(), progress=False)
    report = rewriter.report(model)
    assert report.uncalibrated == () and dict(report.calibrated).keys() == calibrated_layers(model).keys()
    mean, std = dict(report.calibrated)["decoder.scale_equalizer"][1]
    assert f"calibrated: decoder.scale_equalizer: mean {report.calibrated[-1][1][0][0]:.3g}, {mean:.3g};" in str(report)
    assert std == pytest.approx(1 / model.decoder.scale_equalizer.inverse_std[1].item())


def test_trained_weights_behind_the_equalizers_are_warned_of(model: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for module in model.encoder.modules():  # a pretrained encoder before them is as it should be
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean)
        rewriter.calibrate(model, data(1), progress=False)
    nn.init.uniform_(model.decoder.block2[1].running_mean)
    with pytest.warns(UserWarning, match=r"decoder.block2.1 and what else is behind the equalizers carries trained"):
        rewriter.calibrate(model, data(1), progress=False)
