"""Resampled positions keep their variance: in forward, and once where a checkpoint was resized when it was loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
import transformers
from helpers import assert_unchanged, snapshot, timm_model
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

import rewriter
from rewriter.analysis.absolute_positions import find_absolute_positions
from rewriter.passes import PatchNorm, PositionVariance
from rewriter.passes.position_variance.layers import VarianceKeepingResampling
from rewriter.passes.position_variance.resized import resized_from
from rewriter.reasons import Reason
from rewriter.testing import check_contract


def variance(table: torch.Tensor) -> float:
    return float(table.detach().double().var(correction=0))


def drawn(size: int, channels: int = 64) -> torch.Tensor:
    """A table without structure, ``(1, size * size, channels)``."""
    return torch.randn(1, size * size, channels, generator=torch.Generator().manual_seed(0))


def as_map(table: torch.Tensor, size: int) -> torch.Tensor:
    return table.reshape(1, size, size, -1).permute(0, 3, 1, 2)


def as_tokens(table: torch.Tensor) -> torch.Tensor:
    return table.flatten(2).transpose(1, 2)


class TestLaw:
    """``PAPERS``: k of a table without structure, from 14x14 to 16, 20, 24 and 32."""

    @pytest.mark.parametrize(
        ("mode", "antialias", "low", "high"),
        [("bilinear", False, 0.45, 0.49), ("bicubic", False, 0.74, 0.77), ("bicubic", True, 0.66, 0.71)],
    )
    @pytest.mark.parametrize("size", [16, 20, 24, 32])
    def test_upsampling_lowers_the_variance(
        self, mode: str, antialias: bool, low: float, high: float, size: int
    ) -> None:
        table = as_map(drawn(14, 768), 14)  # 150528 numbers: the standard error of a variance is 0.4 %
        ratio = variance(F.interpolate(table, (size, size), mode=mode, antialias=antialias)) / variance(table)
        assert low < ratio < high

    def test_smooth_tables_keep_more(self) -> None:
        rows = torch.linspace(0, 3, 14)
        table = torch.sin(rows[None, :, None] + rows[None, None, :] + torch.arange(64)[:, None, None])[None]
        assert variance(F.interpolate(table, (24, 24), mode="bicubic")) / variance(table) > 0.95


class TestLayer:
    @pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
    @pytest.mark.parametrize("size", [(20, 24), (8, 10)])
    def test_it_divides_by_the_root_of_k(self, mode: str, size: tuple[int, int]) -> None:
        table = as_map(drawn(14), 14)
        plain = F.interpolate(table, size, mode=mode)
        found = VarianceKeepingResampling()(table, size, mode=mode)
        assert variance(found) == pytest.approx(variance(table), rel=1e-5)
        k = variance(plain) / variance(table)
        assert torch.allclose(found, plain / k**0.5, rtol=1e-5, atol=1e-7)

    def test_equal_sizes_and_tables_of_zeros_are_those_of_interpolate(self) -> None:
        table = as_map(drawn(6), 6)
        same = VarianceKeepingResampling()(table, size=(6, 6), mode="bicubic")
        assert torch.equal(same, F.interpolate(table, size=(6, 6), mode="bicubic"))
        zeros = torch.zeros(1, 4, 6, 6, requires_grad=True)
        found = VarianceKeepingResampling()(zeros, size=(8, 8), mode="bicubic")
        found.sum().backward()
        assert not found.any() and torch.isfinite(zeros.grad).all() and zeros.grad.any()

    def test_k_is_a_constant_for_gradients(self) -> None:
        table = as_map(drawn(6), 6).requires_grad_()
        weights = torch.randn(1, 64, 9, 9)
        k = variance(F.interpolate(table, (9, 9), mode="bicubic")) / variance(table)
        (VarianceKeepingResampling()(table, (9, 9), mode="bicubic") * weights).sum().backward()
        found, table.grad = table.grad, None
        (F.interpolate(table, (9, 9), mode="bicubic") * weights).sum().backward()
        assert torch.allclose(found, table.grad / k**0.5, rtol=1e-4, atol=1e-5)

    def test_half_precision_stays(self) -> None:
        found = VarianceKeepingResampling()(as_map(drawn(6), 6).bfloat16(), (9, 9), mode="bilinear")
        assert found.dtype is torch.bfloat16 and variance(found) == pytest.approx(variance(drawn(6)), rel=0.02)


def dynamic_vit() -> nn.Module:
    return timm_model("test_vit", dynamic_img_size=True)


def small_dinov2() -> nn.Module:
    options = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    return transformers.Dinov2Model(transformers.Dinov2Config(**options, image_size=56, patch_size=14))


class TestInForward:
    @pytest.mark.thorough
    def test_what_is_added_has_the_variance_of_the_table(self) -> None:
        model = dynamic_vit().eval()
        before = snapshot(model)
        rewritten = rewriter.rewrite(model, "position-variance", input_size=192)
        assert_unchanged(model, before)
        for size in (192, 224, 320, 96):
            added = positions_added(rewritten, size)
            assert variance(added[:, 1:]) == pytest.approx(variance(model.pos_embed[:, 1:]), rel=1e-4)
            assert torch.equal(added[:, :1], model.pos_embed[:, :1])  # the class token is no part of the grid
            plain = positions_added(model, size)
            k = variance(plain[:, 1:]) / variance(model.pos_embed[:, 1:])
            assert k < 0.75 and torch.allclose(added[:, 1:], plain[:, 1:] / k**0.5, rtol=1e-4, atol=1e-6)

    def test_at_its_own_size_the_output_is_equal_bit_for_bit(self) -> None:
        model = dynamic_vit().eval()
        rewritten = rewriter.rewrite(model, PositionVariance(), input_size=192, verify=False)
        x = torch.randn(2, 3, 160, 160)
        with torch.no_grad():
            assert torch.equal(rewritten(x), model(x))

    @pytest.mark.slow
    def test_contracts(self) -> None:
        check_contract(dynamic_vit(), PositionVariance(), input_size=192, must_find=True)
        check_contract(small_dinov2(), PositionVariance(), input_size=84, must_find=True)
        vit = transformers.ViTModel(
            transformers.ViTConfig(
                hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=64, patch_size=8
            )
        )
        inputs = {"pixel_values": torch.randn(1, 3, 96, 96), "interpolate_pos_encoding": True}
        check_contract(vit, PositionVariance(), example_inputs=inputs, must_find=True)

    def test_a_model_that_does_not_resample_at_this_size_has_no_place(self) -> None:
        plan = rewriter.plan(dynamic_vit(), PositionVariance())
        assert not plan.sites and not plan.skipped and not plan.advice

    @pytest.mark.slow
    def test_compiled_and_exported(self) -> None:
        model = timm_model("test_vit", dynamic_img_size=True, depth=1)
        rewritten = rewriter.rewrite(model, PositionVariance(), input_size=192, verify=False).eval()
        x = torch.randn(1, 3, 192, 192)
        with torch.no_grad():
            expected = rewritten(x)
            assert torch.allclose(torch.compile(rewritten, backend="eager", fullgraph=True)(x), expected, atol=1e-5)
            assert torch.allclose(torch.export.export(rewritten, (x,)).module()(x), expected, atol=1e-5)

    @pytest.mark.thorough
    def test_a_second_rewrite_finds_it_done(self) -> None:
        rewritten = rewriter.rewrite(dynamic_vit(), PositionVariance(), input_size=192, verify=False)
        plan = rewriter.plan(rewritten, PositionVariance(), input_size=192)
        assert [skip.reason for skip in plan.skipped] == [Reason.ALREADY_DONE]
        assert plan.contracts["position-variance"].state_dict  # which only a table that is scaled does not keep
        assert not rewriter.check(rewritten, select="RW11", input_size=192)

    def test_the_finding_is_at_the_line_that_resamples(self) -> None:
        (finding,) = rewriter.check(dynamic_vit(), select="RW11", input_size=192)
        assert (finding.code, finding.severity, finding.fixable) == ("RW1101", "warning", True)
        assert finding.file.endswith("pos_embed.py")

    def test_tables_that_are_summed_are_left_alone(self) -> None:
        class Summed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.proj = nn.Conv2d(3, 16, 8, 8)
                self.pos, self.window = nn.Parameter(as_map(drawn(2, 16), 2)), nn.Parameter(as_map(drawn(4, 16), 4))
                self.head = nn.Conv2d(16, 2, 1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                position = F.interpolate(self.pos, size=(4, 4), mode="bicubic") + self.window
                return self.head(self.proj(x) + position).mean((2, 3))

        (skip,) = rewriter.plan(Summed(), PositionVariance(), input_size=32).skipped
        assert skip.reason == "position-variance/part-of-a-sum"
        assert not rewriter.check(Summed(), select="RW1101", input_size=32)

    def test_other_resamplings_are_no_positions(self) -> None:
        import segmentation_models_pytorch as smp

        with torch.device("meta"):
            model = smp.Unet("resnet18", encoder_weights=None, decoder_interpolation="bilinear")
        plan = rewriter.plan(model, PositionVariance(), input_size=64)
        assert not plan.sites and not plan.skipped


class _Added(torch.overrides.TorchFunctionMode):
    """Keeps the table of positions that is added to tokens first."""

    def __init__(self) -> None:
        super().__init__()
        self.found: torch.Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [x for x in args if isinstance(x, torch.Tensor)]
        if self.found is None and getattr(func, "__name__", "") == "add" and len(tensors) == 2:
            self.found = tensors[1].detach().clone()
        return func(*args, **(kwargs or {}))


def positions_added(model: nn.Module, size: int) -> torch.Tensor:
    with torch.no_grad(), _Added() as mode:
        model.eval()(torch.randn(1, 3, size, size))
    assert mode.found is not None and mode.found.shape[1] == (size // 16) ** 2 + 1
    return mode.found


def loaded_larger(size: int = 256) -> tuple[nn.Module, nn.Module]:
    """A model, and one for larger images with its weights, loaded as timm does."""
    small, large = timm_model("test_vit"), timm.create_model("test_vit", img_size=size)
    large.load_state_dict(checkpoint_filter_fn(small.state_dict(), large))
    return small, large


class TestResizedOnLoading:
    @pytest.mark.parametrize("form", ["tensor", "state dict", "wrapped", "file"])
    def test_it_is_scaled_to_the_variance_of_the_original(self, form: str, tmp_path: Path) -> None:
        small, large = loaded_larger()
        state = small.state_dict()
        torch.save(state, tmp_path / "vit.pt")
        original = {
            "tensor": state["pos_embed"], "state dict": state, "file": str(tmp_path / "vit.pt"),
            "wrapped": {f"module.{key}": value for key, value in state.items()},
        }[form]  # fmt: skip
        before = snapshot(large)
        rewritten = rewriter.rewrite(large, PositionVariance(original=original), verify=False)
        assert_unchanged(large, before)
        assert variance(rewritten.pos_embed[:, 1:]) == pytest.approx(variance(small.pos_embed[:, 1:]), rel=1e-5)
        k = variance(large.pos_embed[:, 1:]) / variance(small.pos_embed[:, 1:])
        assert torch.allclose(rewritten.pos_embed[:, 1:], large.pos_embed[:, 1:] / k**0.5, rtol=1e-5)
        assert torch.equal(rewritten.pos_embed[:, :1], large.pos_embed[:, :1])
        (site,) = rewriter.report(rewritten).applied
        assert site.action.startswith(f"multiply pos_embed by {k**-0.5:.4f}, without its first 1")
        assert f"{k:.3f} of that of the original" in site.reason

    def test_undo_is_exact_and_keeps_what_was_trained(self) -> None:
        small, large = loaded_larger()
        rewritten = rewriter.rewrite(large, PositionVariance(original=small.state_dict()), verify=False)
        assert torch.equal(rewriter.undo(rewritten).pos_embed, large.pos_embed)
        with torch.no_grad():
            rewritten.pos_embed[0, 1] += 1
        factor = rewritten.pos_embed[0, 2] / large.pos_embed[0, 2]
        restored = rewriter.undo(rewritten).pos_embed
        assert torch.equal(restored[0, 2:], large.pos_embed[0, 2:])
        assert torch.allclose(restored[0, 1], large.pos_embed[0, 1] + 1 / factor, rtol=1e-5)

    @pytest.mark.slow
    def test_contract(self) -> None:
        small, large = loaded_larger()
        rewritten = check_contract(large, PositionVariance(original=small.state_dict()), must_find=True)
        (skip,) = rewriter.plan(rewritten, PositionVariance(original=small.state_dict())).skipped
        assert skip.reason is Reason.ALREADY_DONE and "1.000 of that of the original" in skip.detail

    @pytest.mark.thorough
    def test_the_plan_of_one_process_serves_another(self) -> None:
        small, large = loaded_larger()
        made = rewriter.plan(large, PositionVariance(original=small.state_dict()))
        again = type(made).from_json(made.to_json())
        assert again == made and not made.contracts["position-variance"].state_dict
        assert torch.equal(again.apply(large).pos_embed, made.apply(large).pos_embed)

    def test_tables_of_embeddings_and_of_torchvision(self) -> None:
        torch.manual_seed(0)
        config = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}
        small, large = (
            transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**config, image_size=size)) for size in (64, 96)
        )
        name = "embeddings.position_embedding.weight"
        table = small.get_parameter(name).detach()
        grid = as_tokens(F.interpolate(as_map(table[1:], 8), (12, 12), mode="bicubic"))
        with torch.no_grad():
            large.get_parameter(name)[1:] = grid[0]
        for original in (table, small.state_dict()):
            rewritten = rewriter.rewrite(large, PositionVariance(original=original), verify=False)
            assert variance(rewritten.get_parameter(name)[1:]) == pytest.approx(variance(table[1:]), rel=1e-5)

        small, large = (torchvision.models.VisionTransformer(size, 8, 1, 2, 32, 64, num_classes=4) for size in (64, 96))
        state = torchvision.models.vision_transformer.interpolate_embeddings(96, 8, small.state_dict())
        large.load_state_dict(state)
        (finding,) = rewriter.check(large, select="RW11")
        assert "bicubic, align_corners interpolation from 8x8" in finding.message
        rewritten = rewriter.rewrite(large, PositionVariance(original=small.state_dict()), verify=False)
        found, wanted = (m.encoder.pos_embedding[:, 1:] for m in (rewritten, small))
        assert variance(found) == pytest.approx(variance(wanted), rel=1e-5)

    def test_an_original_without_class_token_is_a_grid(self) -> None:
        small, large = loaded_larger()
        original = small.pos_embed[:, 1:]
        rewritten = rewriter.rewrite(large, PositionVariance(original=original), verify=False)
        assert variance(rewritten.pos_embed[:, 1:]) == pytest.approx(variance(original), rel=1e-5)


class TestNotice:
    """Without the original a table that was resized is told, where its values prove it, and not edited."""

    def test_it_is_told_and_left_as_it_is(self) -> None:
        small, large = loaded_larger()
        (finding,) = rewriter.check(large, select="RW11")
        assert (finding.code, finding.severity, finding.fixable) == ("RW1101", "warning", False)
        k = variance(large.pos_embed[:, 1:]) / variance(small.pos_embed[:, 1:])
        assert "PositionVariance(original=...)" in finding.message
        assert f"a bicubic, antialias interpolation from 10x10, with {k:.2f} of the variance" in finding.message
        plan = rewriter.plan(large, PositionVariance())
        assert not plan.sites and len(plan.advice) == 1

    def test_there_is_no_evidence_after_training(self) -> None:
        _, large = loaded_larger()
        optimizer = torch.optim.AdamW(large.parameters(), 1e-3)
        large(torch.randn(2, 3, 256, 256)).square().mean().backward()
        optimizer.step()
        assert not rewriter.check(large, select="RW11")

    @pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
    @pytest.mark.parametrize(("antialias", "align_corners"), [(False, False), (True, False), (False, True)])
    @pytest.mark.parametrize(("old", "new"), [(14, 16), (14, 24), (7, 32)])
    def test_each_way_of_interpolating_is_recognised(
        self, mode: str, antialias: bool, align_corners: bool, old: int, new: int
    ) -> None:
        table = as_map(drawn(old), old)
        larger = F.interpolate(table, (new, new), mode=mode, antialias=antialias, align_corners=align_corners)
        found = resized_from(as_tokens(larger), 2)
        assert found is not None and found.size == (old, old) and found.mode.startswith(mode)
        assert found.ratio == pytest.approx(variance(larger) / variance(table), rel=1e-3)
        assert resized_from(larger, 1) == found

    @pytest.mark.parametrize("size", [6, 14, 24])
    def test_no_false_alarm(self, size: int) -> None:
        rows = torch.arange(size, dtype=torch.float32)
        y, x = torch.meshgrid(rows, rows, indexing="ij")
        frequencies = 1 / 10000 ** (torch.arange(16) / 16)
        waves = [f(axis[..., None] * frequencies) for axis in (y, x) for f in (torch.sin, torch.cos)]
        tables = {
            "drawn": drawn(size),
            "zeros": torch.zeros(1, size * size, 64),
            "constant": torch.ones(1, size * size, 64),
            "ramps": torch.stack([y, x, y * x, y + x], -1).flatten(0, 1)[None],
            "sines": torch.cat(waves, -1).flatten(0, 1)[None],
            "rows and columns": (drawn(size)[:, :size, None] + drawn(size)[:, None, :size]).flatten(1, 2),
            "smaller": as_tokens(F.interpolate(as_map(drawn(32), 32), (size, size), mode="bicubic", antialias=True)),
            "rounded": as_tokens(F.interpolate(as_map(drawn(5), 5), (size, size), mode="bicubic")).bfloat16().float(),
            "not square": drawn(size)[:, 1:],
            "not finite": torch.full((1, size * size, 64), float("nan")),
        }
        assert not {name for name, table in tables.items() if resized_from(table, table.dim() - 1) is not None}

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "vit_tiny_patch16_384", "cait_xxs24_224", "pit_ti_224",
                                      "xcit_nano_12_p8_224", "nest_tiny"])  # fmt: skip
    def test_fresh_models_have_no_resized_table(self, name: str) -> None:
        model = timm.create_model(name, depth=1) if name[:4] in ("deit", "vit_", "cait", "xcit") else None
        model = timm.create_model(name) if model is None else model
        assert not rewriter.check(model, select="RW11")

    def test_tables_without_values_are_not_judged(self) -> None:
        with torch.device("meta"):
            model = timm.create_model("test_vit", img_size=256)
        assert not rewriter.check(model, select="RW11")
        (skip,) = rewriter.plan(model, PositionVariance(original=drawn(10))).skipped
        assert skip.reason == "position-variance/no-values" and "load the weights first" in skip.detail


class TestBadInput:
    @pytest.mark.parametrize(
        ("original", "message"),
        [
            (3, r"original: expected the tensor of positions before it was resized, a state dict .*, found int"),
            ({}, r"found a mapping without tensors$"),
            ({"model": {"pos_embed": 1}}, r"found a mapping without tensors; give what is in it under model"),
            (torch.zeros(3), r"found a tensor of torch.float32 and shape \(3,\)"),
            (torch.zeros(1, 5, 3, dtype=torch.long), r"found a tensor of torch.int64"),
        ],
    )
    def test_what_holds_no_positions_is_refused(self, original: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            PositionVariance(original=original)

    def test_a_file_that_is_not_there_is_refused(self) -> None:
        with pytest.raises(rewriter.StorageError, match=r"vit\.pth: no such file"):
            PositionVariance(original="vit.pth")

    def test_an_original_of_another_model_is_refused(self) -> None:
        model = timm_model("test_vit", img_size=256)
        with pytest.raises(rewriter.InputError, match=r"with 64 channels .*found the tensor of shape \(1, 100, 32\)"):
            rewriter.plan(model, PositionVariance(original=drawn(10, 32)))
        state = timm.create_model("test_resnet").state_dict()
        with pytest.raises(rewriter.InputError, match=r"a state dict with 'pos_embed', found none among \d+ tensors"):
            rewriter.plan(model, PositionVariance(original=state))
        zeros = torch.zeros(1, 101, 64)
        (skip,) = rewriter.plan(model, PositionVariance(original=zeros)).skipped
        assert skip.reason == "position-variance/no-variance"

    @pytest.mark.parametrize(
        ("tokens", "message"),
        [
            (198, r"expected a square of positions, .*pos_embed has 256 positions and the original 197"),
            (
                101,
                r"found one that it is no interpolation of \(correlation -?0.0\d\); pos_embed has 256 .* original 100",
            ),
        ],
    )
    def test_a_table_of_another_grid_or_model_is_refused(self, tokens: int, message: str) -> None:
        _, model = loaded_larger()
        with pytest.raises(rewriter.InputError, match=message):
            rewriter.plan(model, PositionVariance(original=torch.randn(1, tokens, 64)))

    def test_of_several_tables_the_tensor_could_be_either(self) -> None:
        model = timm_model("nest_tiny", img_size=112)
        state = {name: value.repeat(1, 1, 2, 1) for name, value in model.state_dict().items() if "pos_embed" in name}
        with pytest.raises(rewriter.InputError, match=r"expected a state dict, for the model has several tables"):
            rewriter.plan(model, PositionVariance(original=next(iter(state.values()))))

    def test_a_table_of_the_same_size_was_not_resized(self) -> None:
        model = timm_model("test_vit")
        (skip,) = rewriter.plan(model, PositionVariance(original=drawn(10).new_zeros(1, 101, 64) + 1)).skipped
        assert skip.reason is Reason.ALREADY_DONE and "has the size of the original" in skip.detail


class TestPositions:
    """Which sums are found, :mod:`rewriter.analysis.absolute_positions`."""

    def test_a_norm_of_the_patches_stands_before_the_sum(self) -> None:
        model = timm_model("test_vit")
        for rewritten, normed in ((model, False), (rewriter.rewrite(model, PatchNorm(), verify=False), True)):
            traced = rewriter.trace(rewritten)
            (found,) = find_absolute_positions(traced.flow, rewritten)
            assert (found.norm is not None) is normed and [node.op for node in found.images] == ["placeholder"]

    def test_a_bias_noise_and_relative_positions_are_none(self) -> None:
        class Others(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.proj, self.bias = nn.Conv2d(3, 8, 8, 8), nn.Parameter(torch.zeros(8))
                self.relative = nn.Parameter(torch.zeros(16, 16))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = self.proj(x).flatten(2).transpose(1, 2) + self.bias
                x = x + torch.randn(1, *x.shape[1:])
                scores = x @ x.transpose(1, 2) + self.relative
                return (scores.softmax(-1) @ x).mean(1)

        model = Others()
        assert not find_absolute_positions(rewriter.trace(model, input_size=32).flow, model)
