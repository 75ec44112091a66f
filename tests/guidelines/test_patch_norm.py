"""A norm of patches before the position is added: where it goes, what it makes invariant, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
import transformers
from helpers import assert_unchanged, snapshot, timm_model
from torch import nn

import rewriter
from rewriter.passes import PatchNorm
from rewriter.passes.patch_norm.layers import RawPatchNorm, TokenNorm
from rewriter.reasons import Reason
from rewriter.testing import check_contract

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


def hugging_face(name: str, size: int = 32, **options: Any) -> nn.Module:
    cls = getattr(transformers, name)
    return cls(cls.config_class(**SMALL, **{"image_size": size, "patch_size": 8, **options}))


def small_deit() -> nn.Module:
    return timm.create_model("deit_tiny_distilled_patch16_224", img_size=64, depth=1)


def small_beit() -> nn.Module:
    model = timm.models.beit.Beit
    return model(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, use_abs_pos_emb=True)


MODELS: dict[str, tuple[Callable[[], nn.Module], int, str, int]] = {
    # a size of images, the projection, and the number of tokens that are no patches
    "timm vit": (lambda: timm.create_model("test_vit"), 160, "patch_embed.proj", 1),
    "timm deit": (small_deit, 64, "patch_embed.proj", 2),
    "timm beit": (small_beit, 32, "patch_embed.proj", 1),
    "torchvision vit": (
        lambda: torchvision.models.VisionTransformer(32, 8, 1, 2, 32, 64, num_classes=4), 32, "conv_proj", 1,
    ),
    "hf vit": (lambda: hugging_face("ViTModel"), 32, "embeddings.patch_embeddings.projection", 1),
    "hf deit": (lambda: hugging_face("DeiTModel"), 32, "embeddings.patch_embeddings.projection", 2),
    "hf beit": (
        lambda: hugging_face("BeitModel", use_absolute_position_embeddings=True),
        32, "embeddings.patch_embeddings.projection", 1,
    ),
    "hf clip": (lambda: hugging_face("CLIPVisionModel"), 32, "embeddings.patch_embedding", 1),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("where", ["projection", "patches"])
@pytest.mark.parametrize("name", MODELS)
def test_real_models(name: str, where: str) -> None:
    create, size, projection, _ = MODELS[name]
    torch.manual_seed(0)
    model = create()
    before = snapshot(model)
    rewritten = check_contract(model, PatchNorm(where), input_size=size, must_find=True)
    assert_unchanged(model, before)
    (site,) = rewriter.report(rewritten).applied
    assert site.path == projection
    (again,) = rewriter.plan(rewritten, PatchNorm(where), input_size=size).skipped
    assert again.reason is Reason.ALREADY_DONE


class TokensBeforePositions(torch.overrides.TorchFunctionMode):
    """Keeps the features that positions are first added to: of the shape of the table, before the sum."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table, self.found = table, None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.found is None and "add" in getattr(func, "__name__", "") and any(x is self.table for x in args):
            self.found = args[0].detach().clone()
        return func(*args, **(kwargs or {}))


def tokens(model: nn.Module, images: torch.Tensor, table: str) -> torch.Tensor:
    with torch.no_grad(), TokensBeforePositions(model.get_parameter(table)) as mode:
        model.eval()(images)
    assert mode.found is not None
    return mode.found


TABLES = {"timm vit": "pos_embed", "timm deit": "pos_embed", "torchvision vit": "encoder.pos_embedding",
          "hf vit": "embeddings.position_embeddings"}  # fmt: skip


@pytest.mark.parametrize("name", ["timm vit", *(pytest.param(n, marks=pytest.mark.slow) for n in list(TABLES)[1:])])
def test_class_tokens_are_left_alone_and_patches_are_normalised(name: str) -> None:
    create, size, _, extra = MODELS[name]
    torch.manual_seed(0)
    model = create()
    rewritten = rewriter.rewrite(model, PatchNorm(), input_size=size, verify=False)
    images = torch.randn(2, 3, size, size)
    before, after = (tokens(m, images, TABLES[name]) for m in (model, rewritten))
    assert torch.equal(after[:, :extra], before[:, :extra])
    assert torch.allclose(after[:, extra:], F.layer_norm(before[:, extra:], before.shape[-1:], eps=1e-6), atol=1e-6)


def without_bias(model: nn.Module) -> nn.Module:
    model.patch_embed.proj.bias = None
    return model


class TestContrast:
    """``PAPERS``: behind the projection invariant to ``a x`` only without a bias, on raw patches to ``a x + b``."""

    images = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(1))

    def change(self, model: nn.Module, images: torch.Tensor) -> float:
        """The change of the output, relative to that of the given images."""
        with torch.no_grad():
            before, after = model.eval()(self.images), model(images)
        return float((after - before).norm() / before.norm())

    @pytest.mark.parametrize("contrast", [0.25, 0.5, 2.0, 8.0])
    def test_projected_tokens_without_a_bias_do_not_follow_it(self, contrast: float) -> None:
        model = without_bias(timm_model("test_vit"))
        rewritten = rewriter.rewrite(model, PatchNorm(), verify=False)
        assert self.change(rewritten, contrast * self.images) < 1e-4
        assert self.change(model, contrast * self.images) > 5e-3

    def test_projected_tokens_follow_brightness(self) -> None:
        rewritten = rewriter.rewrite(without_bias(timm_model("test_vit")), PatchNorm(), verify=False)
        assert self.change(rewritten, self.images + 1) > 5e-3

    def test_a_bias_counts_as_much_as_it_is_beside_the_projected_image(self) -> None:
        model = timm_model("test_vit")
        rewritten = rewriter.rewrite(model, PatchNorm(), verify=False)
        proj, norm = rewritten.patch_embed.proj, rewritten.patch_embed.patch_norm
        nn.init.normal_(proj.bias)
        for contrast in (0.25, 0.5, 4.0):
            with torch.no_grad():
                found = norm(proj(contrast * self.images).permute(0, 2, 3, 1))
                derived = norm((F.conv2d(self.images, proj.weight, stride=16) + proj.bias[:, None, None] / contrast)
                               .permute(0, 2, 3, 1))  # fmt: skip
            assert torch.allclose(found, derived, atol=2e-4)
        lower, higher = (self.change(rewritten, contrast * self.images) for contrast in (0.25, 4.0))
        assert lower > 1e-3 and higher > 1e-3  # so the bias does count
        nn.init.zeros_(proj.bias)
        assert self.change(rewritten, 0.25 * self.images) < 1e-4

    @pytest.mark.parametrize(("contrast", "brightness"), [(0.5, 0.0), (2.0, 0.0), (1.0, 1.0), (0.5, -1.0), (4.0, 2.0)])
    def test_raw_patches_follow_neither_contrast_nor_brightness(self, contrast: float, brightness: float) -> None:
        model = timm_model("test_vit")
        nn.init.normal_(model.patch_embed.proj.bias)
        rewritten = rewriter.rewrite(model, PatchNorm("patches"), verify=False)
        assert self.change(rewritten, contrast * self.images + brightness) < 1e-4
        assert self.change(model, contrast * self.images + brightness) > 1e-3

    def test_the_plan_says_whether_the_bias_counts(self) -> None:
        (site,) = rewriter.plan(timm_model("test_vit"), PatchNorm()).sites
        assert "the bias of proj still counts more the lower the contrast" in site.reason
        (site,) = rewriter.plan(without_bias(timm_model("test_vit")), PatchNorm()).sites
        assert "proj has no bias, so images of any contrast then give the same tokens" in site.reason


class TestRawPatches:
    @pytest.mark.parametrize(("size", "kernel"), [((16, 24), (8, 8)), ((17, 30), (4, 8)), ((8, 8, 8), (2, 4, 4))])
    def test_each_window_of_the_convolution_is_normalised_alone(self, size: Any, kernel: Any) -> None:
        torch.manual_seed(0)
        image = torch.randn(2, 3, *size)
        norm = RawPatchNorm(3, kernel)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        found = norm(image)
        first = (slice(None), slice(None), *(slice(0, k) for k in kernel))
        ends = [s // k * k for s, k in zip(size, kernel, strict=True)]
        last = (slice(None), slice(None), *(slice(end - k, end) for end, k in zip(ends, kernel, strict=True)))
        for window in (first, last):
            patch = image[window].flatten(1)
            expected = F.layer_norm(patch, patch.shape[1:], norm.weight, norm.bias, eps=1e-6)
            assert torch.allclose(found[window].flatten(1), expected, atol=1e-5)
        assert list(found.shape[2:]) == ends

    def test_flat_patches_give_finite_values_and_gradients(self) -> None:
        image = torch.zeros(1, 3, 16, 16, requires_grad=True)
        norm = RawPatchNorm(3, (8, 8))
        norm(image).square().sum().backward()
        assert torch.isfinite(norm(image)).all() and torch.isfinite(image.grad).all()

    def test_linear_projections_of_patches_are_normalised_before_the_layer(self) -> None:
        rewritten = check_contract(Unfolded(), PatchNorm("patches"), input_size=32, must_find=True)
        assert isinstance(rewritten.patch_norm, TokenNorm) and rewritten.patch_norm.normalized_shape == (192,)
        x = torch.randn(2, 3, 32, 32)
        assert torch.allclose(rewritten.eval()(3 * x + 1), rewritten(x), atol=1e-4)

    def test_windows_that_overlap_are_no_patches(self) -> None:
        (skip,) = rewriter.plan(Unfolded(stride=4), PatchNorm("patches"), input_size=32).skipped
        assert skip.reason == "patch-norm/no-patches"


class Unfolded(nn.Module):
    """Patches by unfold, as tokens of a linear layer."""

    def __init__(self, stride: int = 8) -> None:
        super().__init__()
        self.stride, count = stride, ((32 - 8) // stride + 1) ** 2
        self.proj, self.pos = nn.Linear(192, 16), nn.Parameter(torch.randn(1, count, 16))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.proj(F.unfold(x, 8, stride=self.stride).transpose(1, 2))
        return self.head(self.norm(x + self.pos).mean(1))


class Map(nn.Module):
    """Positions are added to a map, channels first; the projection stands in a Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 8, 8))
        self.pos, self.head = nn.Parameter(torch.randn(1, 16, 4, 4)), nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stem(x) + self.pos).mean((2, 3))


def test_tokens_of_a_map_are_normalised_over_its_channels() -> None:
    torch.manual_seed(0)
    model = Map()
    rewritten = check_contract(model, PatchNorm(), input_size=32, must_find=True)
    nn.init.zeros_(model.stem[0].bias)
    rewritten.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = F.layer_norm(model.stem(x).permute(0, 2, 3, 1), (16,), eps=1e-6).permute(0, 3, 1, 2)
        assert torch.allclose(rewritten.eval()(x), model.head(expected + model.pos).mean((2, 3)), atol=1e-5)


class TestCheckpoints:
    def test_those_of_the_original_load_strictly_and_back(self) -> None:
        model = timm_model("test_vit")
        rewritten = rewriter.rewrite(model, PatchNorm(), verify=False)
        nn.init.constant_(rewritten.patch_embed.patch_norm.weight, 2.0)
        other = timm.create_model("test_vit")
        with pytest.warns(rewriter.RewriterWarning, match="carries no mark of a plan"):
            rewritten.load_state_dict(other.state_dict(), strict=True)
        assert torch.equal(rewritten.pos_embed, other.pos_embed)
        assert (rewritten.patch_embed.patch_norm.weight == 2).all()
        with pytest.warns(rewriter.RewriterWarning, match="normalise each token"):
            state = rewriter.original_state_dict(rewritten)
        model.load_state_dict(state, strict=True)
        assert torch.equal(model.pos_embed, other.pos_embed)

    def test_undo_gives_the_original_back(self) -> None:
        model = timm_model("test_vit").eval()
        restored = rewriter.undo(rewriter.rewrite(model, PatchNorm("patches"), verify=False))
        x = torch.randn(2, 3, 160, 160)
        assert torch.equal(restored(x), model(x)) and list(restored.state_dict()) == list(model.state_dict())

    @pytest.mark.thorough
    def test_a_model_made_without_memory_begins_with_the_norm_of_before_training(self) -> None:
        with torch.device("meta"):
            model = timm.create_model("test_vit")
        for where in ("projection", "patches"):
            norm = rewriter.rewrite(model, PatchNorm(where), verify=False).to_empty(device="cpu").patch_embed.patch_norm
            assert (norm.weight == 1).all() and (norm.bias == 0).all()


@pytest.mark.parametrize("where", ["projection", "patches"])
def test_gains_and_biases_do_not_decay(where: str) -> None:
    rewritten = rewriter.rewrite(timm_model("test_vit"), PatchNorm(where), verify=False)
    groups = rewriter.param_groups(rewritten, weight_decay=0.05)
    decay = {name: group["weight_decay"] for group, names in zip(groups, groups.names, strict=True) for name in names}
    assert decay["patch_embed.patch_norm.weight"] == decay["patch_embed.patch_norm.bias"] == 0
    assert decay["patch_embed.proj.weight"] == 0.05


def test_a_frozen_patch_embedding_in_half_precision_gets_a_norm_like_it() -> None:
    model = timm_model("test_vit").bfloat16()
    model.patch_embed.requires_grad_(False)
    norm = rewriter.rewrite(model, PatchNorm(), verify=False).patch_embed.patch_norm
    assert norm.weight.dtype is torch.bfloat16 and not norm.weight.requires_grad


class TestLeftAlone:
    @pytest.mark.parametrize(
        "create",
        [
            lambda: timm.create_model("test_vit", embed_norm_layer=nn.LayerNorm),
            lambda: transformers.SwinModel(
                transformers.SwinConfig(
                    image_size=32, embed_dim=8, depths=[1], num_heads=[1], window_size=4, use_absolute_embeddings=True
                )
            ),
        ],
    )
    def test_a_norm_of_its_own(self, create: Callable[[], nn.Module]) -> None:
        for where in ("projection", "patches"):
            plan = rewriter.plan(create(), PatchNorm(where))
            assert not plan.sites and {skip.reason for skip in plan.skipped} == {Reason.ALREADY_DONE}

    def test_one_norm_is_enough(self) -> None:
        rewritten = rewriter.rewrite(timm_model("test_vit"), PatchNorm("patches"), verify=False)
        (skip,) = rewriter.plan(rewritten, PatchNorm("projection")).skipped
        assert skip.reason is Reason.ALREADY_DONE and skip.detail.startswith("patch_norm normalises")

    def test_a_norm_behind_the_sum_does_not_count(self) -> None:
        model = timm.create_model("test_vit", pre_norm=True)  # as in CLIP: the position is in what it normalises
        assert len(rewriter.plan(model, PatchNorm()).sites) == 1

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "vit_relpos_small_patch16_224",
                                      "mixer_s32_224", "convnext_atto", "beit_base_patch16_224"])  # fmt: skip
    def test_no_position_is_added_to_tokens(self, name: str) -> None:
        with torch.device("meta"):
            model = timm.create_model(name)
        plan = rewriter.plan(model, PatchNorm())
        assert not plan.sites and not plan.skipped
        assert not rewriter.check(model, select="RW09")

    def test_what_another_one_reads_before_the_position_is_not_changed_for_it(self) -> None:
        class Returned(Unfolded):
            def forward(self, x: torch.Tensor) -> Any:
                patches = self.proj(F.unfold(x, 8, stride=8).transpose(1, 2))
                return self.head(self.norm(patches + self.pos).mean(1)), patches

        (skip,) = rewriter.plan(Returned(), PatchNorm(), input_size=32).skipped
        assert skip.reason is Reason.OTHER_READERS


@pytest.mark.thorough
def test_the_finding_is_a_note_at_the_line_of_the_projection() -> None:
    (finding,) = rewriter.check(timm_model("test_vit"), select="RW09")
    assert (finding.code, finding.severity, finding.path) == ("RW0901", "note", "patch_embed.proj")
    assert finding.fixable and finding.file.endswith("patch_embed.py")
    rewritten = rewriter.rewrite(timm_model("test_vit"), PatchNorm(), verify=False)
    assert not rewriter.check(rewritten, select="RW09")


def test_an_unknown_place_is_refused() -> None:
    with pytest.raises(ValueError, match="where: expected 'projection' or 'patches', found 'pixels'"):
        PatchNorm("pixels")
    with pytest.raises(rewriter.SelectorError, match=r"pass 'patch-norm': where: expected 'projection' or 'patches'"):
        rewriter.plan(timm_model("test_vit"), {"patch-norm": {"where": 3}})


def test_it_is_not_among_the_passes_that_are_applied_unasked() -> None:
    assert "patch-norm" not in [name for name, _ in rewriter.plan(timm_model("test_vit")).passes]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["projection", "patches"])
def test_compiled_and_exported(where: str) -> None:
    rewritten = rewriter.rewrite(timm_model("test_vit", depth=1), PatchNorm(where), verify=False).eval()
    x = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        expected = rewritten(x)
        assert torch.allclose(torch.compile(rewritten, backend="eager", fullgraph=True)(x), expected, atol=1e-5)
        assert torch.allclose(torch.export.export(rewritten, (x,)).module()(x), expected, atol=1e-5)
