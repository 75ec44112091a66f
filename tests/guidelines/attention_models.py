"""Small models with attention, and what the Gaussian is for in each: its grids and prefix tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
import transformers
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision.models.maxvit import MaxVit
from torchvision.models.swin_transformer import SwinTransformer as TorchvisionSwin
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionVit


class Known(NamedTuple):
    """A model, the side of its images, and the grid, prefix tokens and number of its attentions."""

    make: Callable[[], nn.Module]
    side: int
    grids: dict[tuple[int, int], int]
    prefix: int = 0


def relpos(**options: Any) -> nn.Module:
    given = {"img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    return VisionTransformerRelPos(**{**given, "rel_pos_type": "bias", "init_values": None, **options})  # type: ignore[arg-type]


def vit(**options: Any) -> nn.Module:
    given = {"img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    return VisionTransformer(**{**given, **options})


def swin(**options: Any) -> nn.Module:
    given = {"img_size": 64, "patch_size": 4, "embed_dim": 16, "depths": (2,), "num_heads": (2,), "num_classes": 5}
    return SwinTransformer(**{**given, "window_size": 4, **options})  # type: ignore[arg-type]


def swin_v2() -> nn.Module:
    return SwinTransformerV2(
        img_size=64, patch_size=4, embed_dim=16, depths=(2,), num_heads=(2,), window_size=4, num_classes=5
    )


def beit(**options: Any) -> nn.Module:
    given = {"img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    return Beit(**{**given, "init_values": None, **options})


def torchvision_swin() -> nn.Module:
    return TorchvisionSwin([4, 4], 16, [2], [2], [4, 4], num_classes=5)


def torchvision_maxvit() -> nn.Module:
    return MaxVit((64, 64), 8, 4, [16], [1], 8, 0.0, num_classes=5)


def hf_swin(**options: Any) -> nn.Module:
    config = transformers.SwinConfig(
        image_size=64, patch_size=4, embed_dim=16, depths=[2], num_heads=[2], window_size=4, num_labels=5, **options
    )
    return transformers.SwinForImageClassification(config)


def hf_beit(**options: Any) -> nn.Module:
    config = transformers.BeitConfig(
        image_size=64, patch_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        num_labels=5, layer_scale_init_value=1.0, **options,
    )  # fmt: skip
    return transformers.BeitForImageClassification(config)


def hf_vit(**options: Any) -> nn.Module:
    given = {"image_size": 64, "patch_size": 16, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.ViTConfig(**{**given, "intermediate_size": 64, "num_labels": 5, **options})
    return transformers.ViTForImageClassification(config)


def torchvision_vit() -> nn.Module:
    model = TorchvisionVit(64, 16, 2, 2, 32, 64, num_classes=5)
    nn.init.normal_(model.heads[-1].weight)  # it begins at zero
    return model


def eva() -> nn.Module:
    return Eva(img_size=64, patch_size=16, embed_dim=32, depth=2, num_heads=2, num_classes=5, use_rot_pos_emb=True)


RELATIVE = {
    "relpos": Known(relpos, 64, {(4, 4): 2}),
    "relpos, class token": Known(lambda: relpos(class_token=True), 64, {(4, 4): 2}, 1),
    "relpos, mlp": Known(lambda: relpos(rel_pos_type="mlp", class_token=True), 64, {(4, 4): 2}, 1),
    "relpos, shared": Known(lambda: relpos(shared_rel_pos=True), 64, {(4, 4): 2}),
    "relpos, not square": Known(lambda: relpos(img_size=(64, 96)), 64, {(4, 6): 2}),
    "swin": Known(swin, 64, {(4, 4): 2}),
    "swin, not square": Known(lambda: swin(img_size=(64, 128), window_size=(4, 8)), 64, {(4, 8): 2}),
    "swin v2": Known(swin_v2, 64, {(4, 4): 2}),
    "beit": Known(lambda: beit(use_rel_pos_bias=True), 64, {(4, 4): 2}, 1),
    "beit, shared": Known(lambda: beit(use_shared_rel_pos_bias=True), 64, {(4, 4): 2}, 1),
    "maxvit": Known(lambda: timm.create_model("test_maxvit"), 160, {(5, 5): 8}),
    "coatnet": Known(lambda: timm.create_model("test_coatnet"), 160, {(10, 10): 2, (5, 5): 1}),
    "torchvision swin": Known(torchvision_swin, 64, {(4, 4): 2}),
    "torchvision maxvit": Known(torchvision_maxvit, 64, {(4, 4): 2}),
    "hf swin": Known(hf_swin, 64, {(4, 4): 2}),
    "hf swin, eager": Known(lambda: hf_swin(attn_implementation="eager"), 64, {(4, 4): 2}),
    "hf beit": Known(lambda: hf_beit(use_relative_position_bias=True), 64, {(4, 4): 2}, 1),
    "hf beit, shared": Known(lambda: hf_beit(use_shared_relative_position_bias=True), 64, {(4, 4): 2}, 1),
}

PLAIN = {
    "vit": Known(vit, 64, {(4, 4): 2}, 1),
    "vit, registers": Known(lambda: vit(reg_tokens=4), 64, {(4, 4): 2}, 5),
    "vit, not square": Known(lambda: vit(img_size=(64, 96)), 64, {(4, 6): 2}, 1),
    "eva": Known(eva, 64, {(4, 4): 2}, 1),
    "torchvision vit": Known(torchvision_vit, 64, {(4, 4): 2}, 1),
    "hf vit": Known(hf_vit, 64, {(4, 4): 2}, 1),
    "hf vit, eager": Known(lambda: hf_vit(attn_implementation="eager"), 64, {(4, 4): 2}, 1),
    "vit, average pooling": Known(lambda: vit(class_token=False, global_pool="avg"), 64, {(4, 4): 2}),
}


def size_of(known: Known) -> tuple[int, int]:
    """Height and width of the images."""
    rows, columns = next(iter(known.grids))
    return known.side, known.side * columns // rows if len(known.grids) == 1 and columns != rows else known.side


def images_for(known: Known, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, *size_of(known), generator=torch.Generator().manual_seed(0))


def output_of(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found = model(images)
    return found if isinstance(found, torch.Tensor) else found.logits  # type: ignore[no-any-return]


def closed_form(rows: int, columns: int, prefix: int, amplitude: float, width: float) -> torch.Tensor:
    """The Gaussian bias, element by element, in double precision."""
    tokens = prefix + rows * columns
    table = torch.zeros(tokens, tokens, dtype=torch.float64)
    for query in range(rows * columns):
        for key in range(rows * columns):
            down, across = query // columns - key // columns, query % columns - key % columns
            exponent = -(down**2 + across**2) / (2 * width**2)
            table[prefix + query, prefix + key] = amplitude**2 * math.exp(exponent)
    return table


class Biased(TorchFunctionMode):
    """Adds the closed form to the scores of every attention that runs inside, without any edit of a model."""

    def __init__(self, known: Known, amplitude: float, width: float) -> None:
        super().__init__()
        self._tables = {
            known.prefix + rows * columns: closed_form(rows, columns, known.prefix, amplitude, width)
            for rows, columns in known.grids
        }
        self.added = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            query, mask = args[0], kwargs.get("attn_mask")
            table = self._tables[query.shape[-2]].to(query.dtype)
            kwargs["attn_mask"] = table if mask is None else mask + table
            self.added += 1
        elif func is F.multi_head_attention_forward:  # tokens first
            assert kwargs.get("attn_mask") is None
            kwargs.update(attn_mask=self._tables[args[0].shape[0]].to(args[0].dtype), is_causal=False)
            self.added += 1
        elif getattr(func, "__name__", "") == "softmax" and args[0].shape[-1] in self._tables:
            scores = args[0]
            assert scores.shape[-2] == scores.shape[-1]
            args = (scores + self._tables[scores.shape[-1]].to(scores.dtype), *args[1:])
            with torch._C.DisableTorchFunction():  # nn.functional.softmax calls Tensor.softmax
                self.added += 1
                return func(*args, **kwargs)
        return func(*args, **kwargs)
