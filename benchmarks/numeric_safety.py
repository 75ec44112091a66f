"""What `numeric-safety` finds in the losses of four libraries: a table, one row a loss.

    python benchmarks/numeric_safety.py [--only NAME] [--plan]

Losses are made with their defaults. A function is called by a small module. What a loss is differentiated by requires a
gradient: predictions, not targets. Losses that need a network or a file of their own are left out, and listed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import rewriter


@dataclass(frozen=True)
class Subject:
    """A loss, and what it is run on."""

    library: str
    name: str
    loss: Callable[[], Any]
    inputs: Callable[[], tuple[Any, ...]]

    def module(self) -> nn.Module:
        made = self.loss()
        return made if isinstance(made, nn.Module) else Function(made)


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _logits(*shape: int) -> torch.Tensor:
    return _random(*shape).requires_grad_()


def _probabilities(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()


def _binary(*shape: int) -> torch.Tensor:
    return (_random(*shape) > 0).float()


def _one_hot(*shape: int) -> torch.Tensor:
    return nn.functional.one_hot(_random(*shape).argmax(1), shape[1]).movedim(-1, 1).float()


def _labels(*shape: int, classes: int = 3) -> torch.Tensor:
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(0))


def _boxes(number: int) -> torch.Tensor:
    corner = _random(number, 2).abs()
    return torch.cat([corner, corner + 1 + _random(number, 2).abs()], 1)


def subjects() -> Iterator[Subject]:
    """All losses of the libraries that are installed."""
    for library, found in _LIBRARIES.items():
        try:
            importlib.import_module(library)
        except ImportError:
            continue
        for name, loss, inputs in found():
            yield Subject(library, name, loss, inputs)


Found = Iterator[tuple[str, Callable[[], Any], Callable[[], tuple[Any, ...]]]]


def _torchvision() -> Found:
    from torchvision import ops

    yield "sigmoid_focal_loss", lambda: ops.sigmoid_focal_loss, lambda: (_logits(4, 3), _binary(4, 3))
    for name in ("generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss"):
        loss = getattr(ops, name)
        yield name, lambda loss=loss: loss, lambda: (_boxes(4).requires_grad_(), _boxes(4).flip(0))


def _smp() -> Found:
    from segmentation_models_pytorch import losses

    maps = lambda: (_logits(2, 3, 8, 8), _labels(2, 8, 8))  # noqa: E731
    labels = lambda: (_logits(2, 1, 8, 8), _binary(2, 1, 8, 8))  # noqa: E731
    for name in ("DiceLoss", "FocalLoss", "JaccardLoss", "LovaszLoss", "TverskyLoss"):
        for mode, inputs in (("binary", labels), ("multiclass", maps)):
            yield f"{name}({mode!r})", lambda name=name, mode=mode: getattr(losses, name)(mode), inputs
        if name in ("DiceLoss", "JaccardLoss", "TverskyLoss"):
            logarithmic = lambda name=name: getattr(losses, name)("binary", log_loss=True)  # noqa: E731
            yield f"{name}('binary', log_loss=True)", logarithmic, labels
    yield "MCCLoss", losses.MCCLoss, lambda: (_probabilities(2, 1, 8, 8), _binary(2, 1, 8, 8))
    yield "SoftBCEWithLogitsLoss", losses.SoftBCEWithLogitsLoss, labels
    yield "SoftCrossEntropyLoss", lambda: losses.SoftCrossEntropyLoss(smooth_factor=0.1), maps


def _kornia() -> Found:
    from kornia import losses

    maps = lambda: (_logits(2, 3, 8, 8), _labels(2, 8, 8))  # noqa: E731
    images = lambda: (_probabilities(2, 3, 16, 16), _probabilities(2, 3, 16, 16).detach().flip(0))  # noqa: E731
    volumes = lambda: (_probabilities(1, 1, 12, 12, 12), _probabilities(1, 1, 12, 12, 12).detach().flip(2))  # noqa: E731
    distributions = lambda: (_logits(2, 3, 8, 8).flatten(2).softmax(2).view(2, 3, 8, 8), _one_hot(2, 3, 8, 8))  # noqa: E731
    yield "BinaryFocalLossWithLogits", lambda: losses.BinaryFocalLossWithLogits(0.25), lambda: (
        _logits(2, 3, 8, 8), _binary(2, 3, 8, 8),
    )  # fmt: skip
    for name in ("DiceLoss", "LovaszSoftmaxLoss", "TverskyLoss", "FocalLoss"):
        options = {"TverskyLoss": (0.5, 0.5), "FocalLoss": (0.5,)}.get(name, ())
        yield name, lambda name=name, options=options: getattr(losses, name)(*options), maps
    yield "LovaszHingeLoss", losses.LovaszHingeLoss, lambda: (_logits(2, 1, 8, 8), _labels(2, 8, 8, classes=2))
    for name in ("CauchyLoss", "CharbonnierLoss", "GemanMcclureLoss", "WelschLoss"):
        yield name, getattr(losses, name), images
    yield (
        "HausdorffERLoss",
        losses.HausdorffERLoss,
        lambda: (_probabilities(1, 2, 8, 8), _labels(1, 1, 8, 8, classes=2)),
    )
    yield "HausdorffERLoss3D", losses.HausdorffERLoss3D, lambda: (
        _probabilities(1, 2, 8, 8, 8), _labels(1, 1, 8, 8, 8, classes=2),
    )  # fmt: skip
    yield "InverseDepthSmoothnessLoss", losses.InverseDepthSmoothnessLoss, lambda: (
        _probabilities(2, 1, 8, 8), _probabilities(2, 3, 8, 8).detach(),
    )  # fmt: skip
    yield "SSIMLoss", lambda: losses.SSIMLoss(5), images
    yield "SSIM3DLoss", lambda: losses.SSIM3DLoss(5), volumes
    yield "MS_SSIMLoss", losses.MS_SSIMLoss, lambda: tuple(t.repeat(1, 1, 4, 4) for t in images())
    yield "PSNRLoss", lambda: losses.PSNRLoss(1.0), images
    yield "TotalVariation", losses.TotalVariation, lambda: images()[:1]
    for name in ("js_div_loss_2d", "kl_div_loss_2d"):
        yield name, lambda name=name: getattr(losses, name), distributions
    for name in ("mutual_information_loss", "normalized_mutual_information_loss"):
        vectors = lambda: (_probabilities(1, 64), _probabilities(1, 64).detach().flip(1))  # noqa: E731
        yield name, lambda name=name: getattr(losses, name), vectors
        flat = lambda: (_probabilities(1, 8, 8), _probabilities(1, 8, 8).detach().flip(1))  # noqa: E731
        yield f"{name}_2d", lambda name=name: getattr(losses, f"{name}_2d"), flat


def _monai() -> Found:
    from monai import losses

    maps = lambda: (_logits(2, 3, 8, 8), _one_hot(2, 3, 8, 8))  # noqa: E731
    binary = lambda: (_logits(2, 1, 8, 8), _binary(2, 1, 8, 8))  # noqa: E731
    images = lambda: (_probabilities(2, 1, 16, 16), _probabilities(2, 1, 16, 16).detach().flip(0))  # noqa: E731
    features = lambda: (_logits(4, 16), _random(4, 16).flip(0))  # noqa: E731
    for name in ("DiceLoss", "DiceCELoss", "DiceFocalLoss", "GeneralizedDiceLoss", "GeneralizedDiceFocalLoss"):
        for option in ("sigmoid", "softmax"):
            made = lambda name=name, option=option: getattr(losses, name)(**{option: True})  # noqa: E731
            yield f"{name}({option}=True)", made, binary if option == "sigmoid" and "CE" not in name else maps
    for option in ({}, {"use_softmax": True}):
        yield f"FocalLoss({option or ''})", lambda option=option: losses.FocalLoss(**option), maps if option else binary
    yield "TverskyLoss", lambda: losses.TverskyLoss(softmax=True), maps
    yield "MCCLoss", lambda: losses.MCCLoss(sigmoid=True), binary
    yield "MaskedDiceLoss", lambda: losses.MaskedDiceLoss(sigmoid=True), lambda: (*binary(), _binary(2, 1, 8, 8))
    yield "GeneralizedWassersteinDiceLoss", lambda: losses.GeneralizedWassersteinDiceLoss(1 - torch.eye(3)), lambda: (
        _logits(2, 3, 8, 8), _labels(2, 8, 8),
    )  # fmt: skip
    yield "AsymmetricUnifiedFocalLoss", losses.AsymmetricUnifiedFocalLoss, lambda: (
        _probabilities(2, 2, 8, 8), _one_hot(2, 2, 8, 8),
    )  # fmt: skip
    yield "BarlowTwinsLoss", lambda: losses.BarlowTwinsLoss(0.1), features
    yield "ContrastiveLoss", losses.ContrastiveLoss, features
    yield "BendingEnergyLoss", losses.BendingEnergyLoss, lambda: (_logits(1, 3, 8, 8, 8),)
    yield "DiffusionLoss", losses.DiffusionLoss, lambda: (_logits(1, 3, 8, 8, 8),)
    yield "BoxGIoULoss", losses.BoxGIoULoss, lambda: (_boxes(4).requires_grad_(), _boxes(4).flip(0))
    yield "GlobalMutualInformationLoss", losses.GlobalMutualInformationLoss, images
    yield "LocalNormalizedCrossCorrelationLoss", lambda: losses.LocalNormalizedCrossCorrelationLoss(2), images
    yield "HausdorffDTLoss", lambda: losses.HausdorffDTLoss(sigmoid=True), binary
    yield "LogHausdorffDTLoss", lambda: losses.LogHausdorffDTLoss(sigmoid=True), binary
    yield "JukeboxLoss", lambda: losses.JukeboxLoss(2), images
    yield "NACLLoss", lambda: losses.NACLLoss(3, 2), lambda: (_logits(2, 3, 8, 8), _labels(2, 8, 8))
    yield "PatchAdversarialLoss", losses.PatchAdversarialLoss, lambda: (_logits(2, 1, 8, 8), True, False)
    for criterion in ("bce", "least_squares"):
        made = lambda criterion=criterion: losses.PatchAdversarialLoss(criterion=criterion)  # noqa: E731
        yield f"PatchAdversarialLoss({criterion!r})", made, lambda: (_logits(2, 1, 8, 8), True, False)
    yield "SSIMLoss", lambda: losses.SSIMLoss(2), images
    yield "SoftclDiceLoss", losses.SoftclDiceLoss, lambda: (_one_hot(2, 2, 16, 16), _probabilities(2, 2, 16, 16))
    yield (
        "SoftDiceclDiceLoss",
        losses.SoftDiceclDiceLoss,
        lambda: (_one_hot(2, 2, 16, 16), _probabilities(2, 2, 16, 16)),
    )
    yield "AUCMLoss", losses.AUCMLoss, lambda: (_logits(8, 1), _binary(8, 1))
    yield "MultiScaleLoss(DiceLoss)", lambda: losses.MultiScaleLoss(losses.DiceLoss(), scales=[1]), images


_LIBRARIES: dict[str, Callable[[], Found]] = {
    "torchvision": _torchvision,
    "segmentation_models_pytorch": _smp,
    "kornia": _kornia,
    "monai": _monai,
}


def findings_of(subject: Subject) -> str:
    """What is found in a loss, by code, or why it cannot be looked at."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = subject.module()
            found = rewriter.check(module, "numeric-safety", example_inputs=subject.inputs())
        except Exception as error:
            return f"error: {type(error).__name__}: {str(error)[:200]}"
    lines = []
    for each in found:
        where = f"{each.path or '(root)'} {each.file.rsplit('/', 1)[-1]}:{each.line}"
        lines.append(f"{each.code} {where} {'mended' if each.fixable else 'left'}: {each.message}")
    return "\n    ".join(lines) or "nothing"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument("--plan", action="store_true", help="show the source changes, too")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    count = 0
    for subject in subjects():
        if options.only not in f"{subject.library}.{subject.name}":
            continue
        count += 1
        print(f"{subject.library} {subject.name}: {findings_of(subject)}", flush=True)
        if options.plan:
            with contextlib.suppress(rewriter.RewriterError):
                made = rewriter.plan(subject.module(), "numeric-safety", example_inputs=subject.inputs())
                print(made.diff(subject.module()))
    print(f"{count} losses")


if __name__ == "__main__":
    main()
