"""Models of libraries that this project does not know: each by a name, with what builds it.

A library is listed by its own registry where it has one. Otherwise its classes are built with :data:`ARGUMENTS`, by the
names of their parameters; a class that needs another one is left out.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from rewriter.libraries import is_installed

Build = Callable[[], nn.Module]

ARGUMENTS: dict[str, Any] = {
    "spatial_dims": 2, "n_dims": 2, "in_channels": 3, "n_channels": 3, "input_channels": 3, "out_channels": 4,
    "num_classes": 10, "class_num": 10, "img_size": (64, 64), "image_size": 64, "in_shape": (3, 64, 64),
    "image_height": 64, "image_width": 64, "patch_size": 8, "dim": 64, "depth": 2, "heads": 2, "dim_head": 32,
    "mlp_dim": 128, "channels": (16, 32, 64), "strides": (2, 2), "pretrained": False, "dropout": 0.1,
    "dropout_prob": 0.1, "dropout_rate": 0.1, "emb_dropout": 0.1, "kernel_size": (3, 3, 3),
    "upsample_kernel_size": (2, 2),
    "model_name": "efficientnet-b0", "backbone": "resnet18", "weights_init": False, "num_channels": (32, 64),
    "attention_levels": (False, True), "num_head_channels": 32, "num_res_blocks": 1, "norm_num_groups": 8,
    "latent_channels": 4, "cls_depth": 1, "depths": (1, 1, 2, 1), "num_tokens_per_dim": 4, "mlp_ratio": 2,
    "transformer_depth": 2, "ff_mult": 2, "cross_attn_depth": 1, "window_size": 2, "block_repeats": (1, 1, 2, 1),
    "max_depth": 2, "expansion": 2, "loc_dropout": 0.0, "num_attention_heads": 2, "local_window_size": 2,
}  # fmt: skip
"""What constructors of classes are given, by the names of their parameters."""


def libraries() -> dict[str, Mapping[str, Build]]:
    """The models of every library that is installed, by the name it is installed under."""
    found = {}
    for name, models in _LIBRARIES.items():
        if is_installed(name):
            found[name] = dict(models())
    return found


def _pytorchcv() -> Iterator[tuple[str, Build]]:
    provider = importlib.import_module("pytorchcv.model_provider")
    return ((name, lambda name=name: provider.get_model(name, pretrained=False)) for name in provider._models)


def _vit_pytorch() -> Iterator[tuple[str, Build]]:
    import vit_pytorch

    modules = (info.name for info in pkgutil.iter_modules(vit_pytorch.__path__, "vit_pytorch."))
    return _classes(modules, wanted={"num_classes"})


def _monai() -> Iterator[tuple[str, Build]]:
    from monai.networks import nets

    modules = (info.name for info in pkgutil.iter_modules(nets.__path__, "monai.networks.nets."))
    return _classes(modules, wanted={"out_channels", "num_classes"})


def _kornia() -> Iterator[tuple[str, Build]]:
    import kornia

    parts = ("kornia.feature.", "kornia.contrib.", "kornia.models.", "kornia.filters.")
    modules = [info.name for info in pkgutil.walk_packages(kornia.__path__, "kornia.") if info.name.startswith(parts)]
    return _classes(modules, wanted={"pretrained", "num_classes", "image_size"})


def _nnunet() -> Iterator[tuple[str, Build]]:
    from torch.nn import BatchNorm2d, Conv2d, Dropout2d, InstanceNorm2d, LeakyReLU

    architectures = importlib.import_module("dynamic_network_architectures.architectures.unet")
    for name in ("PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet"):
        for norm in (BatchNorm2d, InstanceNorm2d):
            blocks = "n_conv_per_stage" if name == "PlainConvUNet" else "n_blocks_per_stage"
            options = {blocks: 2, "n_conv_per_stage_decoder": 2} if hasattr(architectures, name) else {}
            common = dict(
                input_channels=3, n_stages=4, features_per_stage=(16, 32, 64, 64), conv_op=Conv2d, kernel_sizes=3,
                strides=(1, 2, 2, 2), num_classes=4, conv_bias=True, norm_op=norm, norm_op_kwargs={"affine": True},
                dropout_op=Dropout2d, dropout_op_kwargs={"p": 0.1}, nonlin=LeakyReLU, deep_supervision=False,
            )  # fmt: skip
            yield (
                f"{name}-{norm.__name__}",
                lambda name=name, options=options, common=common: getattr(architectures, name)(**common, **options),
            )


def _open_clip() -> Iterator[tuple[str, Build]]:
    import open_clip

    for name in open_clip.list_models():
        yield name, lambda name=name: open_clip.create_model(name, pretrained=None).visual


def _pretrainedmodels() -> Iterator[tuple[str, Build]]:
    library = importlib.import_module("pretrainedmodels")
    for name in library.model_names:
        yield name, lambda name=name: library.__dict__[name](num_classes=1000, pretrained=None)


def _ultralytics() -> Iterator[tuple[str, Build]]:
    import ultralytics
    from ultralytics.nn import tasks

    kinds = {
        "cls": "ClassificationModel", "seg": "SegmentationModel", "pose": "PoseModel", "obb": "OBBModel",
        "world": "WorldModel", "rtdetr": "RTDETRDetectionModel",
    }  # fmt: skip
    for file in sorted((Path(ultralytics.__file__).parent / "cfg" / "models").rglob("*.yaml")):
        kind = next((cls for part, cls in kinds.items() if part in file.stem), "DetectionModel")
        yield file.stem, lambda file=file, kind=kind: getattr(tasks, kind)(str(file), ch=3, nc=10, verbose=False)


def _doctr() -> Iterator[tuple[str, Build]]:
    for task in ("classification", "detection", "recognition"):
        zoo = importlib.import_module(f"doctr.models.{task}.zoo")
        functions = importlib.import_module(f"doctr.models.{task}")
        for name in zoo.ARCHS:
            if isinstance(name, str) and hasattr(functions, name):
                yield name, lambda functions=functions, name=name: getattr(functions, name)(pretrained=False)


def _efficientnet() -> Iterator[tuple[str, Build]]:
    from efficientnet_pytorch import EfficientNet

    return ((f"efficientnet-b{n}", lambda n=n: EfficientNet.from_name(f"efficientnet-b{n}")) for n in range(0, 8, 2))


def _resnest() -> Iterator[tuple[str, Build]]:
    library = importlib.import_module("resnest.torch")
    names = ("resnest50", "resnest101", "resnest50_fast_1s1x64d", "resnest50_fast_4s1x64d")
    return ((name, lambda name=name: getattr(library, name)(pretrained=False)) for name in names)


def _lightly() -> Iterator[tuple[str, Build]]:
    from lightly.models import ResNetGenerator

    return ((name, lambda name=name: ResNetGenerator(name)) for name in ("resnet-9", "resnet-18", "resnet-50"))


def _compressai() -> Iterator[tuple[str, Build]]:
    zoo = importlib.import_module("compressai.zoo")
    for name in ("bmshj2018_factorized", "bmshj2018_hyperprior", "mbt2018", "cheng2020_anchor", "cheng2020_attn"):
        yield name, lambda name=name: getattr(zoo, name)(quality=1, pretrained=False)


def _torchxrayvision() -> Iterator[tuple[str, Build]]:
    models = importlib.import_module("torchxrayvision.models")
    yield "densenet", lambda: models.DenseNet(in_channels=3, num_classes=10)
    autoencoder = importlib.import_module("torchxrayvision.autoencoders")
    yield (
        "resnet-autoencoder",
        lambda: autoencoder._ResNetAE(autoencoder._Bottleneck, autoencoder._DeconvBottleneck, [1] * 4, 3),
    )


def _of_zoo(prefix: str) -> Callable[[], Iterator[tuple[str, Build]]]:
    """Models of a library that this project knows: those that its sweep does not cover, too."""

    def models() -> Iterator[tuple[str, Build]]:
        from rewriter import zoo

        for name in zoo.names(f"{prefix}:*", check=False):
            yield name.partition(":")[2], lambda name=name: zoo.create(name)

    return models


def _classes(modules: Iterable[str], wanted: set[str]) -> Iterator[tuple[str, Build]]:
    """Classes of ``modules`` that take one of the ``wanted`` arguments, and no argument that is not known."""
    seen = set()
    for module in modules:
        try:
            loaded = importlib.import_module(module)
        except Exception:  # it needs another library
            continue
        for name, cls in vars(loaded).items():
            ours = inspect.isclass(cls) and issubclass(cls, nn.Module) and cls.__module__ == module
            if not ours or cls in seen:
                continue
            seen.add(cls)
            given = _arguments(cls, wanted)
            if given is not None:
                yield f"{module.rpartition('.')[2]}.{name}", lambda cls=cls, given=given: cls(**given)


def _arguments(cls: type, wanted: set[str]) -> dict[str, Any] | None:
    """What :data:`ARGUMENTS` has for ``cls``, where it has no default; None if that is not enough."""
    parameters = [
        p for p in inspect.signature(cls).parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if not wanted & {p.name for p in parameters}:
        return None
    needed = [p.name for p in parameters if p.default is p.empty]
    if any(name not in ARGUMENTS for name in needed):
        return None
    noise = [p.name for p in parameters if ("dropout" in p.name and p.default == 0.0) or p.name == "spatial_dims"]
    return {name: ARGUMENTS[name] for name in (*needed, *noise) if name in ARGUMENTS} | {
        name: False for name in ("pretrained",) if name in {p.name for p in parameters}
    }


_LIBRARIES: dict[str, Callable[[], Iterator[tuple[str, Build]]]] = {
    "pytorchcv": _pytorchcv,
    "vit_pytorch": _vit_pytorch,
    "monai": _monai,
    "kornia": _kornia,
    "dynamic_network_architectures": _nnunet,
    "open_clip": _open_clip,
    "pretrainedmodels": _pretrainedmodels,
    "ultralytics": _ultralytics,
    "doctr": _doctr,
    "efficientnet_pytorch": _efficientnet,
    "resnest": _resnest,
    "lightly": _lightly,
    "compressai": _compressai,
    "torchxrayvision": _torchxrayvision,
    "segmentation_models_pytorch": _of_zoo("smp"),
    "transformers": _of_zoo("hf"),
    "diffusers": _of_zoo("diffusers"),
}
