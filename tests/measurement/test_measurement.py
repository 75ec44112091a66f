"""Measurements against what their definitions give by hand, on networks of several libraries."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
import transformers
from helpers import assert_unchanged, image, slow_but, snapshot, timm_model
from scipy.optimize import curve_fit
from torch import nn

import rewriter
import rewriter.data
from rewriter import zoo
from rewriter.measurement.dead_pixels import imbalance
from rewriter.measurement.gaussian import Gaussian, fit_gaussian

ERF, DEAD, CAM = "effective-receptive-field", "dead-pixels", "extended-cam"


class TestGaussian:
    @pytest.mark.parametrize("sigma", [0.8, 6.0, 40.0])
    def test_a_gaussian_is_found_again(self, sigma: float) -> None:
        true = Gaussian(0.7, 20.3, 11.8, sigma, 1.5 * sigma, 1.0)
        found = fit_gaussian(true.values(32, 40))
        for name in ("amplitude", "center_x", "center_y", "sigma_x", "sigma_y", "r_squared"):
            assert getattr(found, name) == pytest.approx(getattr(true, name), rel=1e-6), name

    def test_of_noise_around_one_it_finds_what_scipy_finds(self) -> None:
        noise = np.random.default_rng(0).uniform(0, 0.3, (48, 56))
        values = Gaussian(1.0, 30.0, 20.0, 9.0, 6.0, 1.0).values(48, 56) + noise
        y, x = (grid.ravel() for grid in np.mgrid[:48, :56])

        def gaussian(_: Any, *p: float) -> Any:
            return p[0] * np.exp(-((x - p[1]) ** 2) / (2 * p[3] ** 2) - (y - p[2]) ** 2 / (2 * p[4] ** 2))

        best, _ = curve_fit(gaussian, None, values.ravel(), p0=[1, 28, 24, 8, 8], xtol=1e-12, ftol=1e-12)
        found = fit_gaussian(values)
        mine = [found.amplitude, found.center_x, found.center_y, found.sigma_x, found.sigma_y]
        assert mine == pytest.approx(list(best), rel=1e-4)
        rest = ((values.ravel() - gaussian(None, *best)) ** 2).sum()
        assert found.r_squared == pytest.approx(1 - rest / ((values - values.mean()) ** 2).sum(), rel=1e-6)


class Means(nn.Module):
    """Convolutions that average 3x3 pixels: the receptive field of a stack is almost a Gaussian of known width."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Conv2d(1, 1, 3, padding=1, bias=False) for _ in range(depth)))
        for layer in self.layers:
            nn.init.constant_(layer.weight, 1 / 9)
        self.head = nn.Linear(1, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x).mean((2, 3)))


@pytest.mark.parametrize("depth", [6, 15])
def test_the_field_of_averages_has_the_width_that_theory_gives(depth: int) -> None:
    result = rewriter.measure(Means(depth), ERF, torch.randn(2, 1, 65, 65))
    for side in ("x", "y"):  # one average over three pixels has the variance 2 / 3
        assert result.summary[f"sigma_{side}"] == pytest.approx(math.sqrt(depth * 2 / 3), rel=0.04)
        assert result.summary[f"center_{side}"] == pytest.approx(32, abs=1e-6)
    assert result.summary["r_squared"] > 0.995
    assert (result.data["map"] > 0).sum() == (2 * depth + 1) ** 2  # the theoretical field, and nothing outside


def hf_vit() -> nn.Module:
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return transformers.ViTForImageClassification(transformers.ViTConfig(image_size=64, patch_size=16, **small))


def torchvision_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(64, 16, 2, 2, 32, 64, num_classes=5)


def vit(**options: Any) -> nn.Module:
    return timm_model("vit_tiny_patch16_224", img_size=64, depth=2, **options)


def centre_of_map(value: torch.Tensor) -> torch.Tensor:
    return value[0, :, value.shape[2] // 2, value.shape[3] // 2].mean()


def token(number: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda value: value[0, number].mean()


# what the head reads (before a layer norm), and its centre; of the 4x4 tokens of 64 pixels it is row 2, column 2
MAPS: dict[str, tuple[Callable[[], nn.Module], str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "timm resnet": (lambda: timm_model("test_resnet"), "layer4", centre_of_map),
    "torchvision resnet": (torchvision.models.resnet18, "layer4", centre_of_map),
    "timm convnext": (lambda: timm_model("convnext_atto"), "stages", centre_of_map),
    "timm efficientnet": (lambda: timm_model("test_efficientnet"), "bn2", centre_of_map),
    "timm vit": (vit, "blocks", token(1 + 10)),
    "timm vit, averaged": (lambda: vit(global_pool="avg", fc_norm=False), "blocks", token(1 + 10)),
    "timm vit, four registers": (lambda: vit(reg_tokens=4), "blocks", token(1 + 4 + 10)),
    "timm deit, distilled": (
        lambda: timm_model("deit_tiny_distilled_patch16_224", img_size=64, depth=2),
        "blocks",
        token(2 + 10),
    ),
    "torchvision vit": (torchvision_vit, "encoder.layers", token(1 + 10)),
    "transformers vit": (hf_vit, "vit.layers.1", token(1 + 10)),
    "timm swin": (
        lambda: timm_model("swin_tiny_patch4_window7_224", img_size=64, depths=(1, 1, 1, 1)),
        "layers",
        lambda value: value[0, 1, 1].mean(),  # channels last
    ),
}


@pytest.mark.parametrize("name", slow_but(("timm resnet", "timm vit", "torchvision vit", "timm swin"), MAPS))
def test_the_field_is_the_gradient_of_what_the_head_reads(name: str) -> None:
    make, path, centre = MAPS[name]
    model, images = make().eval(), image(64)
    kept: list[Any] = []
    hooked = model.get_submodule(path).register_forward_hook(lambda module, args, result: kept.append(result))
    expected = torch.zeros(64, 64, dtype=torch.float64)
    for single in images.split(1):
        given = single.clone().requires_grad_()
        model(given)
        value = kept.pop()
        (gradient,) = torch.autograd.grad(centre(value[0] if isinstance(value, tuple) else value), given)
        expected += gradient[0].double().mean(0).relu()
    hooked.remove()
    found = rewriter.measure(model, ERF, images)
    assert np.allclose(found.data["map"], (expected / expected.max()).numpy(), atol=1e-5)
    assert found.data["map"].max() == 1 and found.summary["images"] == 2


def test_a_layer_that_is_named_is_measured() -> None:
    model = timm_model("test_resnet").eval()
    given = image(64, batch=1).requires_grad_()
    value = model.layer2(model.layer1(model.maxpool(model.act1(model.bn1(model.conv1(given))))))
    (gradient,) = torch.autograd.grad(centre_of_map(value), given)
    expected = gradient[0].double().mean(0).relu()
    found = rewriter.measure(model, ERF, given.detach(), layer="layer2")
    assert np.allclose(found.data["map"], (expected / expected.max()).numpy(), atol=1e-5)
    assert found.summary["sigma_x"] < rewriter.measure(model, ERF, given.detach()).summary["sigma_x"]


class TestImbalance:
    def test_by_its_definition(self) -> None:
        field = torch.rand(7, 5, dtype=torch.float64)
        first = [abs(field[i, j + 1] - field[i, j]) for i in range(7) for j in range(4)]
        first += [abs(field[i + 1, j] - field[i, j]) for i in range(6) for j in range(5)]
        second = [abs(field[i, j] - 2 * field[i, j + 1] + field[i, j + 2]) for i in range(7) for j in range(3)]
        second += [abs(field[i, j] - 2 * field[i + 1, j] + field[i + 2, j]) for i in range(5) for j in range(5)]
        assert imbalance(field) == pytest.approx((float(sum(first)) / len(first), float(sum(second)) / len(second)))

    @pytest.mark.parametrize("size", [4, 9])
    def test_of_a_square_it_is_the_sum_over_two_w_times_w_less_one(self, size: int) -> None:
        field = torch.rand(size, size, dtype=torch.float64)
        total = field.diff(dim=0).abs().sum() + field.diff(dim=1).abs().sum()
        assert imbalance(field)[0] == pytest.approx(float(total / (2 * size * (size - 1))))

    def test_even_pixels_have_none_and_a_checkerboard_has_all(self) -> None:
        assert imbalance(torch.ones(6, 6)) == (0.0, 0.0)
        assert imbalance((torch.arange(6)[:, None] + torch.arange(6)).remainder(2).double()) == (1.0, 2.0)


class OneConvolution(nn.Module):
    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, kernel, stride, kernel // 2 if kernel % 2 else 0, bias=False)
        nn.init.ones_(self.conv.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3))


@pytest.mark.parametrize(
    ("kernel", "rows"), [(1, [1, 0]), (2, [1, 1]), (3, [1, 2]), (4, [1, 1])], ids=["1x1/2", "2x2/2", "3x3/2", "4x4/2"]
)
def test_pixels_count_as_often_as_the_kernel_reads_them(kernel: int, rows: list[int]) -> None:
    field = rewriter.measure(OneConvolution(kernel, 2), DEAD, image(16)).data["map"][4:12, 4:12]
    times = np.tile(np.outer(rows, rows), (4, 4)).astype(float)
    assert np.allclose(field, times / times.max())


def test_another_score_than_the_largest() -> None:
    model, images = timm_model("test_resnet", num_classes=5).eval(), image(64, batch=1)
    given = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(given)[0, 3], given)
    expected = gradient[0].double().mean(0).relu()
    for output in (3, lambda result: result[:, 3]):
        found = rewriter.measure(model, DEAD, images, output=output).data["map"]
        assert np.allclose(found, (expected / expected.max()).numpy(), atol=1e-6)
    largest = int(model(images).argmax())
    of_largest = rewriter.measure(model, DEAD, images, output=largest)
    assert np.array_equal(rewriter.measure(model, DEAD, images).data["map"], of_largest.data["map"])


def swin() -> nn.Module:
    return timm_model("swin_tiny_patch4_window7_224", img_size=64, depths=(1, 1, 1, 1), num_classes=7)


CLASSIFIERS: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    # the map that is pooled, and the classifier
    "timm resnet": (lambda: timm_model("test_resnet", num_classes=7), "layer4", "fc"),
    "torchvision resnet": (lambda: torchvision.models.resnet18(num_classes=7), "layer4", "fc"),
    "torchvision densenet": (lambda: torchvision.models.DenseNet(8, (1, 1, 1, 1), 16, num_classes=7), "", "classifier"),
    "timm efficientnet": (lambda: timm_model("test_efficientnet", num_classes=7), "bn2", "classifier"),
    "timm swin": (swin, "norm", "head.fc"),
}


class TestExtendedCam:
    @pytest.mark.parametrize("name", slow_but(("timm resnet", "timm efficientnet", "timm swin"), CLASSIFIERS))
    def test_it_sums_to_the_score_and_its_cells_are_those_of_the_classifier(self, name: str) -> None:
        make, path, head = CLASSIFIERS[name]
        model, images = make().eval(), image(64, batch=3)
        classifier: Any = model.get_submodule(head)
        nn.init.normal_(classifier.bias)
        result = rewriter.measure(model, CAM, images)
        with torch.no_grad():
            scores = model(images).double()
        classes = scores.argmax(1)
        assert result.data["class"].tolist() == classes.tolist()
        assert np.allclose(result.data["score"], scores.amax(1).numpy(), rtol=1e-5)
        for upsampled in ("map", "bilinear"):
            assert np.allclose(result.data[upsampled].sum((1, 2)), result.data["score"], rtol=1e-9)
        assert np.allclose(result.data["bias"], classifier.bias.detach()[classes].numpy(), atol=1e-5)
        if not path:
            return
        kept: list[torch.Tensor] = []
        hooked = model.get_submodule(path).register_forward_hook(lambda module, args, value: kept.append(value))
        with torch.no_grad():
            model(images)
        hooked.remove()
        features = kept[0].movedim(3, 1) if name == "timm swin" else kept[0]
        weights = classifier.weight.detach()[classes]
        cells = torch.einsum("nk,nkhw->nhw", weights, features) / math.prod(features.shape[2:])
        assert np.allclose(result.data["cells"], cells.numpy(), atol=1e-5)

    def test_a_cell_becomes_a_gaussian_at_its_centre(self) -> None:
        model = timm_model("test_resnet", num_classes=2).eval()
        result = rewriter.measure(model, CAM, image(64, batch=1), sigma=(3.0, 5.0))
        cells, height, width = result.data["cells"][0], *result.data["map"].shape[1:]
        expected = np.full((height, width), result.data["bias"][0] / (height * width))
        for row, column in itertools.product(*map(range, cells.shape)):
            y, x = ((n + 0.5) * size / len(cells) for n, size in ((row, height), (column, width)))
            v, u = np.mgrid[:height, :width] + 0.5
            kernel = np.exp(-((u - x) ** 2) / 18 - (v - y) ** 2 / 50)
            expected += cells[row, column] * kernel / kernel.sum()
        assert np.allclose(result.data["map"][0], expected)

    def test_its_width_is_that_of_the_receptive_field(self) -> None:
        model, images = timm_model("test_resnet").eval(), image(64)
        field, result = rewriter.measure(model, ERF, images), rewriter.measure(model, CAM, images)
        for name in ("sigma_x", "sigma_y", "r_squared"):
            assert result.summary[name] == field.summary[name]

    def test_for_a_class_that_is_named(self) -> None:
        model, images = timm_model("test_resnet", num_classes=4).eval(), image(64)
        result = rewriter.measure(model, CAM, images, output=2)
        assert np.allclose(result.data["map"].sum((1, 2)), model(images)[:, 2].detach().numpy(), rtol=1e-4)

    @pytest.mark.parametrize(
        ("make", "said"),
        [
            (lambda: timm_model("convnext_atto"), "stands norm, which is not linear"),
            (lambda: timm_model("mobilenetv3_small_100"), "which is not linear"),
            (lambda: timm_model("resnet10t", global_pool="catavgmax"), "no head with average pooling|is not linear"),
            (vit, "no head with average pooling"),
        ],
        ids=["layer norm", "activation", "maximum beside the average", "class token"],
    )
    def test_what_is_no_linear_head_is_refused(self, make: Callable[[], nn.Module], said: str) -> None:
        with pytest.raises(rewriter.MeasurementError, match=said):
            rewriter.measure(make(), CAM, image(64))


@pytest.mark.slow
def test_on_photographs_and_trained_weights() -> None:
    model = zoo.create("tf_efficientnet_lite0", pretrained=True).model.train()
    source = rewriter.data.open_source("photos")
    config = {"input_size": (3, 128, 128), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 0.875}
    transform = timm.data.create_transform(**config)  # type: ignore[attr-defined]
    images = torch.stack([transform(source.test[index][0]) for index in range(4)])
    result = rewriter.measure(model, CAM, images)
    assert np.allclose(result.data["map"].sum((1, 2)), result.data["score"], rtol=1e-9)
    bias = model.classifier.bias.detach()[torch.from_numpy(result.data["class"])]
    assert np.allclose(result.data["bias"], bias.numpy(), atol=1e-4)
    assert all(result.summary[name] > 0 for name in ("sigma_x", "sigma_y", "r_squared"))


@pytest.mark.parametrize("what", [ERF, DEAD, CAM])
def test_the_model_is_left_as_it_was(what: str) -> None:
    model = timm_model("test_resnet", drop_rate=0.5).train()
    model.bn1.eval()
    model(image(64)).sum().backward()
    before, state = snapshot(model), torch.get_rng_state()
    result = rewriter.measure(model, what, image(64))
    assert_unchanged(model, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(np.array_equal(a, b) for a, b in _pairs(result, rewriter.measure(model.eval(), what, image(64))))


@pytest.mark.parametrize("what", [ERF, DEAD, CAM])
def test_under_no_grad_with_frozen_weights_and_in_double_precision(what: str) -> None:
    model = timm_model("test_resnet").requires_grad_(False).double()
    with torch.no_grad():
        result = rewriter.measure(model, what, image(64).double())
    again = rewriter.measure(model.float(), what, image(64))
    assert np.allclose(result.data["map"], again.data["map"], atol=1e-4)


@pytest.mark.thorough
def test_batches_and_their_targets_are_the_images() -> None:
    model, images = timm_model("test_resnet"), image(64, batch=4)
    whole = rewriter.measure(model, DEAD, images)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, torch.arange(4)), 3)
    for given in (images.split(1), iter(images.split(2)), loader):
        assert all(np.array_equal(a, b) for a, b in _pairs(whole, rewriter.measure(model, DEAD, given)))
    assert rewriter.measure(model, DEAD, loader, max_images=2).summary["images"] == 2


@pytest.mark.thorough
def test_a_rewritten_model_is_measured_like_any_other() -> None:
    model = timm_model("test_resnet", drop_rate=0.2)
    rewritten = rewriter.rewrite(model, ["dropout", "stochastic-pooling"], input_size=64)
    for what in (ERF, DEAD, CAM):
        found = (rewriter.measure(each, what, image(64)) for each in (model, rewritten))
        assert all(np.allclose(a, b, atol=1e-6) for a, b in _pairs(*found))


def test_large_maps_take_no_more_than_their_own_size() -> None:
    field = rewriter.measure(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), ERF, image(32))
    assert field.data["map"].shape == field.data["fit"].shape == (32, 32)
    assert F.relu(torch.from_numpy(field.data["map"])).sum() > 0


def _pairs(first: Any, second: Any) -> Any:
    assert first.data.keys() == second.data.keys()
    return [(first.data[name], second.data[name]) for name in first.data]
