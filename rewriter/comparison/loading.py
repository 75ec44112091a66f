"""Turn a source of data, or the user's own loaders, into batches for training and testing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset

from rewriter.comparison.randomness import batches
from rewriter.comparison.recipe import Recipe
from rewriter.data.checks import check, check_trainable
from rewriter.data.source import Examples, Source, Task
from rewriter.errors import DataError

YOUR_DATA = "your data"
_Transform = Callable[[Any, Any], tuple[Any, Any]]
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """How a model expects its images.

    Attributes:
        channels: 1 or 3.
        size: ``(height, width)``.
        mean, std: of the values in [0, 1], one per channel.
        interpolation: how images are resized in testing.
        crop: fraction of a test image's side that is kept.
    """

    channels: int
    size: tuple[int, int]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    interpolation: str = "bilinear"
    crop: float = 1.0

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation; those of ImageNet if none are given, their average for one channel."""
        found = self.mean or _MEAN, self.std or _STD
        mean, std = (v if len(v) == self.channels else (sum(v) / len(v),) * self.channels for v in found)
        return mean, std


@dataclass(frozen=True)
class Data:
    """Batches ``(images, targets)`` for both arms.

    Attributes:
        name: of the source.
        task: what the targets are.
        num_classes: number of classes; 0 if the user's own loss and metric decide.
        train: can be iterated once per epoch; None if there are only test images.
        test: the same for testing; always in the same order.
        train_images, test_images: their numbers; None if unknown.
        ignore_index: pixels of this value are ignored.
        image_shape: ``(channels, height, width)`` of the models' input; empty if not known yet.
        without_effect: fields of the recipe that have no effect here, because the user's data decide.
    """

    name: str
    task: Task
    num_classes: int
    train: Iterable[Any] | None
    test: Iterable[Any]
    train_images: int | None
    test_images: int | None
    ignore_index: int | None = None
    image_shape: tuple[int, ...] = ()
    without_effect: frozenset[str] = frozenset()

    def __str__(self) -> str:
        numbers = ((self.train_images, "training"), (self.test_images, "test"))
        known = [f"{number} {kind}" for number, kind in numbers if number is not None]
        parts = [f"{' and '.join(known)} images"] if known else []
        if self.image_shape:
            parts.append(f"{'' if known else 'images '}of {' × '.join(map(str, self.image_shape))}")
        shown = " ".join(parts) + (f", {self.num_classes} classes" if self.num_classes else "")
        return f"{self.name} ({shown})" if shown else self.name


def data_of_source(source: Source, preprocessing: Preprocessing, recipe: Recipe, *, training: bool) -> Data:
    """Return batches of a source for testing, and for training if ``training`` is set.

    Raises:
        DataError: there are no images, fewer than a batch, one class only, or labels out of range.
    """
    check(source)
    test = _limited(source.test, recipe.test_images)
    train = _limited(source.train, recipe.train_images) if training and source.train is not None else None
    if training:
        check_trainable(replace(source, train=train), recipe.batch_size)
    transform = _segmentation if source.task is Task.SEGMENTATION else _classification
    mode = "L" if preprocessing.channels == 1 else "RGB"

    def loader(examples: Any, augmented: bool) -> DataLoader[Any]:
        change = transform(preprocessing, recipe, augmented)
        changed = _Transformed(examples, lambda image, target: change(image.convert(mode), target))
        return _loader(changed, recipe.batch_size, augmented)

    return Data(
        source.name, source.task, source.num_classes, None if train is None else loader(train, True),
        loader(test, False), None if train is None else len(train), len(test), source.ignore_index,
    )  # fmt: skip


def data_of_user(data: Any, task: str | Task | None, num_classes: int | None, recipe: Recipe) -> Data:
    """Return the user's own ``(train, test)`` or ``{"train": …, "test": …}``.

    Each is a data loader, a data set or another iterable of batches that can be iterated several times; one alone is
    only used for testing. Images are passed to the model unchanged.

    Raises:
        DataError: it has none of these forms.
    """
    if task is not None and task not in list(Task):
        raise DataError(f"task: expected one of {', '.join(Task)}, found {task!r}")
    if isinstance(data, Mapping):
        train, test = data.get("train"), data.get("test", data.get("val"))
    elif isinstance(data, (tuple, list)) and len(data) == 2:
        train, test = data
    else:
        train, test = None, data
    if test is None:
        raise DataError("data: expected (train, test) or {'train': …, 'test': …}, found no test data")
    # what data sets and loaders have done already
    by_us = {"train_images": _is_set_of_images(train), "test_images": _is_set_of_images(test)}
    by_user = {"crop_scale", "hflip"} | {name for name, ours in by_us.items() if not ours}
    by_user |= set() if any(by_us.values()) else {"batch_size"}
    train_loader = None if train is None else _own_loader(train, recipe, True)
    test_loader = _own_loader(test, recipe, False)
    return Data(
        YOUR_DATA, Task(task or Task.CLASSIFICATION), num_classes or 0, train_loader, test_loader,
        _images(train_loader), _images(test_loader), without_effect=frozenset(by_user),
    )  # fmt: skip


def _is_set_of_images(item: Any) -> bool:
    """Whether it gives single images; other iterables, including an ``IterableDataset``, give batches."""
    return isinstance(item, Dataset) and not isinstance(item, torch.utils.data.IterableDataset)


def _own_loader(item: Any, recipe: Recipe, shuffled: bool) -> Iterable[Any]:
    if _is_set_of_images(item):
        examples = _limited(item, recipe.train_images if shuffled else recipe.test_images)
        if shuffled and len(examples) < recipe.batch_size:
            raise DataError(
                f"data: expected at least one batch of {recipe.batch_size} training images, found {len(examples)}; "
                "choose a smaller batch_size"
            )
        return _loader(examples, recipe.batch_size, shuffled)
    kind = type(item).__name__
    if isinstance(item, Iterator) or not isinstance(item, Iterable):
        raise DataError(
            f"data: expected a data loader, a data set or a list of batches, found {kind}; it is read once an epoch by "
            "both arms"
        )
    if not isinstance(item, Sized):
        raise DataError(f"data: expected something of known length, found {kind} without len()")
    try:
        is_empty = shuffled and not len(item)
    except TypeError as error:  # a data loader of an IterableDataset
        raise DataError(
            f"data: the training {kind} has no length ({error}); give its data set a __len__, or a list of batches, so "
            "that the learning rate can be scheduled"
        ) from error
    if is_empty:
        raise DataError(f"data: expected training batches, the {kind} has none: too few images for one batch")
    return item


def pair_of(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images and targets of one batch.

    Raises:
        DataError: it is not a pair of them.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        found = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, Sized) else type(batch).__name__
        raise DataError(f"data: expected batches (images, targets), found {found}; wrap the loader")
    images, targets = batch
    if not isinstance(images, torch.Tensor):
        raise DataError(f"data: expected images as a tensor (N, C, H, W), found {type(images).__name__}")
    if not isinstance(targets, torch.Tensor):
        try:
            targets = torch.as_tensor(targets)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"data: expected targets as a tensor, found {type(targets).__name__}") from error
    if len(images) != (len(targets) if targets.dim() else 0):
        raise DataError(f"data: expected a target for each of {len(images)} images, found {tuple(targets.shape)}")
    return images, targets


def first_batch(loader: Iterable[Any]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return images and targets of the first batch, the same each time; None if there is none."""
    return next((pair_of(batch) for batch in batches(loader, 0, 0)), None)


def _images(loader: Any) -> int | None:
    """Return the number of images; None if unknown."""
    if isinstance(loader, (list, tuple)):
        return sum(len(pair_of(batch)[0]) for batch in loader)
    if not isinstance(loader, DataLoader) or loader.batch_size is None:
        return None
    try:
        number = len(loader.sampler)  # type: ignore[arg-type]
    except TypeError:
        return None
    return number - number % loader.batch_size if loader.drop_last else number


def _limited(examples: Any, most: int | None) -> Any:
    """Return the first ``most`` examples of a fixed shuffle, so that all classes are among them."""
    if most is None or most >= len(examples):
        return examples
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))
    return Subset(examples, order[:most].tolist())


def _loader(examples: Any, batch_size: int, training: bool) -> DataLoader[Any]:
    return DataLoader(examples, batch_size, shuffle=training, drop_last=training)


@dataclass(frozen=True)
class _Transformed(Dataset[Any]):
    """Examples as tensors: image ``(C, H, W)`` and target."""

    examples: Examples
    transform: _Transform

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.transform(*self.examples[index])


def _classification(preprocessing: Preprocessing, recipe: Recipe, augmented: bool) -> _Transform:
    from timm.data import create_transform

    mean, std = preprocessing.statistics
    change = create_transform(
        (preprocessing.channels, *preprocessing.size), is_training=augmented, mean=mean, std=std,
        interpolation=preprocessing.interpolation, crop_pct=preprocessing.crop, scale=(recipe.crop_scale, 1.0),
        ratio=(0.9, 1.1), hflip=recipe.hflip, color_jitter=None,  # type: ignore[arg-type]
    )  # fmt: skip
    return lambda image, target: (change(image), target)


def _segmentation(preprocessing: Preprocessing, recipe: Recipe, augmented: bool) -> _Transform:
    """Return a transform that applies the same crop and flip to image and mask."""
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    steps: list[Any] = [v2.Resize(preprocessing.size, antialias=True)]
    if augmented:
        scale = (recipe.crop_scale, 1.0)
        crop = v2.RandomResizedCrop(preprocessing.size, scale, ratio=(0.9, 1.1), antialias=True)
        steps = [crop, v2.RandomHorizontalFlip(recipe.hflip)]
    to_values = {tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64, "others": None}
    normalized = v2.Normalize(*preprocessing.statistics)
    change = v2.Compose([v2.ToImage(), *steps, v2.ToDtype(to_values, scale=True), normalized, v2.ToPureTensor()])

    def both(image: Any, target: Any) -> tuple[Any, Any]:
        changed, mask = change(image, tv_tensors.Mask(v2.functional.pil_to_tensor(target)))
        return changed, mask[0]

    return both
