"""What the examples share: their options, real images that come in packages, and what their tests compare."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler, Subset, TensorDataset

from rewriter import data


def parsed_options(description: str | None) -> argparse.Namespace:
    """RUN, the folder of the training, and how long it takes; a folder with a checkpoint is resumed."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("run", type=Path, help="the folder of this training; if it has a checkpoint, go on from there")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--weights", type=Path, help="begin with a checkpoint, of any number of classes (train_timm.py)"
    )
    parser.add_argument("--evaluate", action="store_true", help="load the checkpoint, and train no more")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    return options


def digits(count: int = 64, size: int = 64) -> tuple[TensorDataset, torch.Tensor]:
    """Images of handwritten digits ``(3, size, size)`` with their classes, and eight images for the test."""
    source = data.open_source("mnist5k")
    assert source.train is not None
    train = [source.train[index] for index in range(0, len(source.train), len(source.train) // count)][:count]
    images = torch.stack([_tensor(image, size) for image, _ in train])
    labels = torch.tensor([label for _, label in train])
    tests = range(0, len(source.test), len(source.test) // 8)
    return TensorDataset(images, labels), torch.stack([_tensor(source.test[index][0], size) for index in tests][:8])


def slices_of_a_head(count: int = 32, size: int = 64) -> tuple[TensorDataset, torch.Tensor]:
    """Slices ``(3, size, size)`` with maps of three classes ``(size, size)``, and four slices for the test."""
    source = data.open_source("mri-seg")
    assert source.train is not None
    train = [source.train[index] for index in range(0, len(source.train), len(source.train) // count)][:count]
    images = torch.stack([_tensor(image, size) for image, _ in train])
    classes = [np.asarray(target.resize((size, size), Image.Resampling.NEAREST)) for _, target in train]
    tests = range(0, len(source.test), len(source.test) // 4)
    maps = torch.from_numpy(np.stack(classes)).long()
    return TensorDataset(images, maps), torch.stack([_tensor(source.test[index][0], size) for index in tests][:4])


class ShuffledByEpoch(Sampler[int]):
    """Another order in every epoch, and in one epoch the same order in every run."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self._length, self.epoch = len(dataset), 0  # type: ignore[arg-type]

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(self._length, generator=torch.Generator().manual_seed(self.epoch)).tolist()


def batches_of(dataset: Dataset[Any], epoch: int, batch_size: int = 16, rank: int = 0, ranks: int = 1) -> DataLoader:
    """The batches of an epoch for one of several processes. Dropout, too, is drawn as in every run of this epoch."""
    torch.manual_seed(1000 * epoch + rank)
    sampler = ShuffledByEpoch(dataset)
    sampler.epoch = epoch
    return DataLoader(Subset(dataset, list(sampler)[rank::ranks]), batch_size)


def tell_loss(step: int, loss: torch.Tensor | float) -> None:
    value = loss.item() if isinstance(loss, torch.Tensor) else loss
    print(f"step {step}: loss {value!r}", flush=True)


def tell_logits(logits: torch.Tensor) -> None:
    """To compare them bit by bit: equal logits have equal digests."""
    digest = hashlib.sha256(logits.detach().float().numpy().tobytes()).hexdigest()[:16]
    print(f"logits of {len(logits)} test images: {digest}", flush=True)


def save_whole(content: dict[str, Any], path: Path) -> None:
    """Whole or not at all: a run may be broken off while it saves."""
    partial = path.with_suffix(".partial")
    torch.save(content, partial)
    partial.replace(path)


def _tensor(image: Image.Image, size: int) -> torch.Tensor:
    pixels = np.asarray(image.convert("RGB").resize((size, size)), dtype=np.float32)
    return torch.from_numpy(pixels / 127.5 - 1.0).permute(2, 0, 1)
