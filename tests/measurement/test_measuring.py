"""What a measurement refuses, the files that it writes, and the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from helpers import image, timm_model
from torch import nn

import rewriter

ERF, DEAD, CAM = "effective-receptive-field", "dead-pixels", "extended-cam"


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x.detach()).mean((2, 3)))


def decoder() -> nn.Module:
    return torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=3)


MISTAKES: dict[str, tuple[Callable[[], nn.Module], str, Any, dict[str, Any], str]] = {
    "unknown name": (nn.Identity, "erf", image(8), {}, "unknown measurement 'erf'; there are effective-"),
    "unknown option": (nn.Identity, ERF, image(8), {"output": 1}, "no option 'output'; it takes layer, max_images"),
    "no images": (lambda: timm_model("test_resnet"), DEAD, [], {}, "expected at least one, found none"),
    "a number": (lambda: timm_model("test_resnet"), DEAD, 3, {}, "an iterable of them, found int"),
    "one image": (lambda: timm_model("test_resnet"), DEAD, image(64)[0], {}, r"for one image, image\[None\]"),
    "strings": (lambda: timm_model("test_resnet"), DEAD, ["a.png"], {}, r"batch 0: expected a tensor .* found str"),
    "bytes": (
        lambda: timm_model("test_resnet"), DEAD, torch.zeros(1, 3, 64, 64, dtype=torch.uint8), {},
        r"found torch.uint8; give what the model is given: normalize\(images / 255\)",
    ),
    "NaN": (lambda: timm_model("test_resnet"), DEAD, image(64) * float("nan"), {}, "expected finite values, found NaN"),
    "two sizes": (
        lambda: timm_model("test_resnet"), DEAD, [image(64), image(96)], {}, "one size, found 3x64x64 and 3x96x96",
    ),
    "max_images": (lambda: timm_model("test_resnet"), DEAD, image(64), {"max_images": 0}, "a positive int or None"),
    "on meta": (lambda: timm_model("test_resnet").to("meta"), DEAD, image(64), {}, "no values to measure"),
    "no such layer": (
        lambda: timm_model("test_resnet"), ERF, image(64), {"layer": "layer9"}, "no module 'layer9'; its parts are",
    ),
    "no map": (lambda: timm_model("test_resnet"), ERF, image(64), {"layer": "fc"}, "no map over positions"),
    "an output that is a map": (decoder, DEAD, image(64), {}, r"expected scores \(N, classes\).* output=lambda result"),
    "no head": (
        lambda: torchvision.models.vgg11(num_classes=2), ERF, image(64), {}, "no head that pools .* layer='features'",
    ),
    "no such class": (
        lambda: timm_model("test_resnet", num_classes=3), DEAD, image(64), {"output": 3}, "from 0 to 2, found 3",
    ),
    "not one number": (
        lambda: timm_model("test_resnet"), DEAD, image(64), {"output": lambda result: result}, "returns one number",
    ),
    "a width of zero": (lambda: timm_model("test_resnet"), CAM, image(64), {"sigma": 0}, "a width above 0 in pixels"),
    "no gradient": (Detached, ERF, image(64), {}, "no gradient reaches the image"),
    "no gradient of the score": (Detached, DEAD, image(64), {}, "no gradient reaches the image"),
    "all zero": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Hardtanh(9.0, 10.0), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        ERF, image(16), {}, "nowhere positive",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told(name: str) -> None:
    make, what, images, options, said = MISTAKES[name]
    with pytest.raises(rewriter.MeasurementError, match=said):
        rewriter.measure(make(), what, images, **options)


def test_what_is_no_model_and_what_does_not_run_are_refused_as_elsewhere() -> None:
    with pytest.raises(rewriter.ModelError):
        rewriter.measure(lambda x: x, DEAD, image(64))  # type: ignore[arg-type]
    with pytest.raises(rewriter.TraceError):
        rewriter.measure(timm_model("test_resnet"), DEAD, image(64, channels=4))


@pytest.fixture(scope="module")
def results() -> dict[str, rewriter.Measurement]:
    model = timm_model("test_resnet", num_classes=4)
    return {what: rewriter.measure(model, what, image(64)) for what in (ERF, DEAD, CAM)}


@pytest.mark.parametrize("what", [ERF, DEAD, CAM])
def test_its_files(what: str, results: dict[str, rewriter.Measurement], tmp_path: Path) -> None:
    result = results[what]
    assert result.save(tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    read = json.loads(result.save(str(tmp_path / "x.json")).read_text(), parse_constant=pytest.fail)
    assert read["what"] == what and read["summary"] == dict(result.summary)
    assert {name: tuple(torch.tensor(values).shape) for name, values in read["data"].items()} == {
        name: array.shape for name, array in result.data.items()
    }
    lines = str(result).splitlines()
    assert lines[0] == f"{what} of ResNet" and all(len(line) < 80 for line in lines)


@pytest.mark.thorough
def test_a_picture_shows_each_image_once_more_with_either_map(tmp_path: Path) -> None:
    from PIL import Image

    model = timm_model("test_resnet", num_classes=4)
    heights = []
    for number in (1, 3):
        rewriter.measure(model, CAM, image(64, batch=number)).save(tmp_path / f"{number}.png")
        with Image.open(tmp_path / f"{number}.png") as picture:
            heights.append(picture.height)
    assert heights[1] > 2.5 * heights[0]


def test_a_number_that_is_none_is_null(tmp_path: Path) -> None:
    result = rewriter.measure(timm_model("test_resnet"), CAM, image(64), sigma=4.0)
    assert json.loads(result.save(tmp_path / "x.json").read_text())["summary"]["r_squared"] is None


@pytest.mark.parametrize(
    ("file", "said"), [("x.jpg", "ends in .png or .json"), ("x", "ends in .png"), ("none/x.json", "there is no folder")]
)
def test_a_file_that_cannot_be_written(
    file: str, said: str, results: dict[str, rewriter.Measurement], tmp_path: Path
) -> None:
    with pytest.raises(rewriter.MeasurementError, match=said):
        results[DEAD].save(tmp_path / file)


def test_a_picture_without_matplotlib_says_what_to_install(
    results: dict[str, rewriter.Measurement], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(rewriter.MeasurementError, match='pip install "matplotlib'):
        results[DEAD].save(tmp_path / "x.png")
    results[DEAD].save(tmp_path / "x.json")


@pytest.mark.slow
class TestCommand:
    @staticmethod
    def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "rewriter", "measure", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, "NO_COLOR": "1"})

    def test_one_document(self, tmp_path: Path) -> None:
        asked = ("test_resnet", DEAD, "--data", "mnist5k", "--images", "2", "--class", "3")
        done = self.run(*asked, "--json", "-o", "x.json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert told["what"] == DEAD and told["data"] == "mnist5k" and told["about"] == {"output": "class 3"}
        assert told["summary"]["images"] == 2 and told["summary"]["l1"] > 0
        assert json.loads((tmp_path / "x.json").read_text())["summary"] == told["summary"]

    def test_the_model_may_be_rewritten_first(self, tmp_path: Path) -> None:
        done = self.run(
            "test_resnet", CAM, "--data", "mnist5k", "--images", "1", "--pass", "kernel-padding", "-o", "cam.png",
            cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{CAM} of ResNet") and "written to cam.png" in done.stdout
        assert (tmp_path / "cam.png").stat().st_size > 10_000

    @pytest.mark.parametrize(
        ("arguments", "code", "said"),
        [
            (("test_resnet", "erf"), 1, "unknown measurement 'erf'"),
            (("test_resnet", DEAD, "--layer", "fc"), 1, "no option 'layer'"),
            (("test_resnet", DEAD, "-o", "x.jpg"), 1, "ends in .png"),
            (("test_resnet", DEAD, "--data", "nothing"), 1, "unknown data 'nothing'"),
            (("test_resnet", DEAD, "--images", "0"), 2, "--images"),
            (("test_resnet",), 2, "Missing argument 'what'"),
        ],
    )
    def test_its_exit_codes(self, arguments: tuple[str, ...], code: int, said: str) -> None:
        done = self.run(*arguments)
        assert done.returncode == code and said in done.stderr
