"""gaussian-attention-bias on real architectures: what it finds, what it adds, and what it leaves as it was."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from attention_models import (
    PLAIN,
    RELATIVE,
    Biased,
    Known,
    beit,
    hf_beit,
    hf_vit,
    images_for,
    output_of,
    relpos,
    swin,
    vit,
)
from helpers import slow_but
from torch import nn

import rewriter
from rewriter.passes import GaussianAttentionBias
from rewriter.passes.gaussian_attention_bias.layers import GaussianBias
from rewriter.testing import check_contract

QUICK = {"relpos", "relpos, class token", "swin", "beit"}
ALL = {**RELATIVE, **PLAIN}


def pass_for(name: str, amplitude: float = 2.0, width: float = 5.0) -> GaussianAttentionBias:
    return GaussianAttentionBias(amplitude, width, plain=name in PLAIN)


def layers_of(model: nn.Module) -> list[GaussianBias]:
    return [module for module in model.modules() if isinstance(module, GaussianBias)]


def rewritten(name: str, known: Known, amplitude: float = 2.0, width: float = 5.0) -> tuple[nn.Module, nn.Module]:
    """The model with biases and gains that show, and as rewritten."""
    torch.manual_seed(0)
    model = known.make().eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "bias_table" in parameter_name:  # BEiT's begin at zero
                parameter.normal_()
            elif parameter_name.endswith("norm1.weight"):  # Swin V2's, behind the attention, too
                parameter.fill_(1.0)
    return model, rewriter.rewrite(
        model, pass_for(name, amplitude, width), example_inputs=images_for(known), verify=False
    )


@pytest.mark.thorough
@pytest.mark.parametrize("name", slow_but(QUICK | {"vit"}, ALL))
def test_each_attention_gets_the_closed_form_once(name: str) -> None:
    known = ALL[name]
    model, edited = rewritten(name, known, amplitude=1.5, width=2.0)
    found = {}
    for layer in layers_of(edited):
        assert layer.prefix_tokens == known.prefix
        found[layer.grid] = found.get(layer.grid, 0) + 1
    assert found == known.grids
    images = images_for(known)
    with Biased(known, 1.5, 2.0) as by_hand:
        expected = output_of(model, images)
    assert by_hand.added == sum(known.grids.values())
    got = output_of(edited, images)
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (got - output_of(model, images)).abs().max() > 1e-4 * expected.abs().max()


@pytest.mark.thorough
@pytest.mark.parametrize("name", slow_but(QUICK | {"vit"}, ALL))
def test_amplitude_zero_leaves_the_output_equal(name: str) -> None:
    known = ALL[name]
    model, edited = rewritten(name, known, amplitude=0.0)
    expected = output_of(model, images_for(known))
    difference = (output_of(edited, images_for(known)) - expected).abs().max()
    rounding = 1e-6 * max(1.0, expected.abs().max().item())
    assert difference <= (0 if name in RELATIVE else rounding)  # without a bias another kernel runs


@pytest.mark.parametrize("name", slow_but((), ALL))
def test_contract(name: str) -> None:
    known = ALL[name]
    check_contract(known.make(), pass_for(name), example_inputs=images_for(known), must_find=True)


@pytest.mark.thorough
@pytest.mark.parametrize("name", slow_but({"swin", "relpos, class token"}, RELATIVE))
def test_the_plan_of_a_model_without_values_is_the_same(name: str) -> None:
    known = RELATIVE[name]
    with torch.device("meta"):
        empty = known.make()
    made = [rewriter.plan(model, pass_for(name), example_inputs=images_for(known)) for model in (known.make(), empty)]
    assert made[0].sites and made[0].sites == made[1].sites


def switched(model: nn.Module, fused: bool) -> nn.Module:
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    return model


@pytest.mark.thorough
@pytest.mark.parametrize("name", slow_but({"relpos"}, [n for n in ALL if "hf" not in n and "torchvision" not in n]))
def test_one_layer_serves_both_branches(name: str) -> None:
    known = ALL[name]
    _, edited = rewritten(name, known)
    fused, by_hand = (output_of(switched(edited, fused), images_for(known)) for fused in (True, False))
    assert (fused - by_hand).abs().max() <= 1e-5 * by_hand.abs().max()
    assert len(layers_of(edited)) == sum(known.grids.values())


def test_planned_with_either_branch_is_the_same() -> None:
    plans = [rewriter.plan(switched(swin(), fused), GaussianAttentionBias(), input_size=64) for fused in (True, False)]
    assert plans[0].sites == plans[1].sites


# with a class token alone in the head, the last layer's bias would get no gradient
@pytest.mark.parametrize("name", slow_but({"swin"}, ["relpos, mlp", "swin", "vit, average pooling"]))
def test_both_numbers_are_trained_and_do_not_decay(name: str) -> None:
    known = ALL[name]
    _, edited = rewritten(name, known)
    edited.train()
    numbers = {n: p for n, p in edited.named_parameters() if "gaussian" in n}
    assert len(numbers) == 2 * sum(known.grids.values())
    groups = rewriter.param_groups(edited, weight_decay=0.05)
    decaying = {id(p) for group in groups for p in group["params"] if group["weight_decay"] > 0}
    assert decaying and not decaying & {id(p) for p in numbers.values()}
    before = {n: p.item() for n, p in numbers.items()}
    nn.functional.cross_entropy(edited(images_for(known)), torch.tensor([0, 1])).backward()
    assert all(p.grad is not None and p.grad.abs() > 0 for p in numbers.values())
    torch.optim.AdamW(groups, lr=0.01).step()
    assert all(abs(abs(p.item() - before[n]) - 0.01) < 1e-3 for n, p in numbers.items())  # decay would add to it


@pytest.mark.thorough
def test_a_checkpoint_of_the_original_loads_and_its_own_comes_back(tmp_path: Path) -> None:
    known = RELATIVE["relpos"]
    model, edited = rewritten("relpos", known)
    with torch.no_grad():
        for layer in layers_of(edited):
            layer.amplitude.fill_(0.7), layer.width.fill_(1.3)
    expected = output_of(edited, images_for(known))
    rewriter.save(edited, tmp_path / "saved")
    loaded = rewriter.load(tmp_path / "saved", relpos()).eval()
    assert torch.equal(output_of(loaded, images_for(known)), expected)
    file = io.BytesIO()
    torch.save(edited, file)
    file.seek(0)
    assert torch.equal(output_of(torch.load(file, weights_only=False), images_for(known)), expected)
    edited.load_state_dict(model.state_dict())  # strict
    assert torch.equal(output_of(edited, images_for(known)), expected)
    relpos().load_state_dict(rewriter.original_state_dict(edited))
    restored = rewriter.undo(edited)
    assert torch.equal(output_of(restored, images_for(known)), output_of(model, images_for(known)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["relpos, class token", "swin", "swin v2", "beit", "torchvision swin", "vit", "torchvision vit", "hf vit"],
)
def test_compiled_and_exported_it_computes_the_same(name: str) -> None:
    known = ALL[name]
    _, edited = rewritten(name, known)
    expected = output_of(edited, images_for(known))
    exported = torch.export.export(edited, (images_for(known),)).module()
    compiled = torch.compile(edited, backend="aot_eager", fullgraph=True)
    for other in (exported, compiled):
        assert (output_of(other, images_for(known)) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin", "beit", "relpos"])
def test_windows_of_another_size(name: str) -> None:
    model, edited = rewritten(name, RELATIVE[name])
    for each in (model, edited):
        each.set_input_size((96, 96), **({"window_size": (6, 6)} if name == "swin" else {}))
    other = RELATIVE[name]._replace(side=96, grids={(6, 6): 2})
    with Biased(other, 2.0, 5.0) as by_hand:
        expected = output_of(model, images_for(other))
    assert by_hand.added == 2
    assert (output_of(edited, images_for(other)) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.slow
def test_a_resolution_that_is_chosen_in_forward() -> None:
    known = PLAIN["vit"]._replace(make=lambda: vit(dynamic_img_size=True))
    model, edited = rewritten("vit", known)
    other = known._replace(side=96, grids={(6, 6): 2})
    with Biased(other, 2.0, 5.0):
        expected = output_of(model, images_for(other))
    assert (output_of(edited, images_for(other)) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ["swin", "beit", "vit", "vit, dynamic", "hf vit"])
def test_another_aspect_with_as_many_positions(name: str) -> None:
    """9 x 16 positions are as many as 12 x 12."""
    makers = {
        "swin": lambda: swin(img_size=48, window_size=12),
        "beit": lambda: beit(img_size=192, use_rel_pos_bias=True),
        "vit": lambda: vit(img_size=192),
        "vit, dynamic": lambda: vit(img_size=192, dynamic_img_size=True),
        "hf vit": lambda: hf_vit(image_size=192),
    }
    biased = name in ("swin", "beit")
    patch, prefix = (4, 0) if name == "swin" else (16, 1)
    known = Known(makers[name], 12 * patch, {(12, 12): 2}, prefix)
    model, edited = rewritten("swin" if biased else "vit", known)
    output_of(edited, images_for(known))
    size = 9 * patch, 16 * patch
    for each in (model, edited):
        if name in ("swin", "beit", "vit"):
            each.set_input_size(size, **({"window_size": (9, 16)} if name == "swin" else {}))
    other = known._replace(side=size[0], grids={(9, 16): 2})
    options = {"interpolate_pos_encoding": True} if name == "hf vit" else {}
    images = images_for(other)
    with torch.no_grad(), Biased(other, 2.0, 5.0) as by_hand:
        expected = model(images, **options)
    assert by_hand.added == 2
    with torch.no_grad():
        found = edited(images, **options)
    if options:
        expected, found = expected.logits, found.logits
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.slow
def test_hugging_face_beit_at_another_resolution() -> None:
    _, edited = rewritten("hf beit", RELATIVE["hf beit"])
    with torch.no_grad():
        assert edited(torch.randn(1, 3, 96, 96), interpolate_pos_encoding=True).logits.isfinite().all()


@pytest.mark.slow
def test_own_bias_before_one_for_all_layers() -> None:
    model = hf_beit(use_relative_position_bias=True, use_shared_relative_position_bias=True)
    edited = rewriter.rewrite(model, GaussianAttentionBias(), input_size=64)
    assert [path for path, module in edited.named_modules() if isinstance(module, GaussianBias)] == [
        f"beit.layers.{index}.relative_position_bias.gaussian_bias" for index in (0, 1)
    ]


@pytest.mark.slow
def test_a_bias_that_is_kept_in_evaluation_is_kept_without_the_gaussian() -> None:
    model = timm_levit()
    edited = rewriter.rewrite(model, GaussianAttentionBias(), input_size=224, verify=False).eval()
    images = torch.randn(1, 3, 224, 224)
    output_of(edited, images)
    assert torch.equal(output_of(rewriter.undo(edited), images), output_of(model.eval(), images))
    skipped = rewriter.plan(model, GaussianAttentionBias(), input_size=224).skipped
    assert {str(skip.reason) for skip in skipped} == {"gaussian-attention-bias/two-grids"}


def timm_levit() -> nn.Module:
    import timm

    return timm.create_model("levit_128s", num_classes=5)


def test_inside_torch_nothing_can_be_added() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 16, 8, 8)
            self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.stem(x).flatten(2).transpose(1, 2)).mean(1)  # type: ignore[no-any-return]

    assert not rewriter.plan(Encoder(), GaussianAttentionBias(), input_size=32).skipped
    (skip,) = rewriter.plan(Encoder(), GaussianAttentionBias(plain=True), input_size=32).skipped
    assert skip.reason == "gaussian-attention-bias/inside-torch"
    assert "torch.nn.TransformerEncoderLayer" in skip.detail and "module of your own" in skip.detail


def test_attentions_of_torch_and_of_functions_can_be_undone() -> None:
    for name in ("torchvision vit", "hf vit"):
        model = PLAIN[name].make()
        edited = rewriter.rewrite(model, GaussianAttentionBias(plain=True), input_size=64, verify=False)
        output_of(edited, torch.randn(1, 3, 64, 64))
        restored = rewriter.undo(edited)
        for one, other in zip(restored.modules(), model.modules(), strict=True):
            assert type(one) is type(other)
            assert set(vars(one)) == set(vars(other))


class Pairs(nn.Module):
    """Attention with a bias for each pair of positions, or each offset on a line."""

    def __init__(self, line: bool = False) -> None:
        super().__init__()
        self.stem, self.qkv = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 24)
        self.line = line
        self.bias = nn.Parameter(torch.randn(31) if line else torch.randn(1, 16, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(self.stem(x).flatten(2).transpose(1, 2)).chunk(3, dim=-1)
        scores = query @ key.transpose(1, 2)
        if self.line:
            index = torch.arange(16)
            scores = scores + self.bias[index[:, None] - index + 15]
        else:
            scores = scores + self.bias
        return (scores.softmax(-1) @ value).mean(1)


@pytest.mark.parametrize(("line", "reason"), [(False, "not-relative"), (True, "no-grid")])
def test_other_biases_are_left_alone(line: bool, reason: str) -> None:
    (skip,) = rewriter.plan(Pairs(line), GaussianAttentionBias(), input_size=32).skipped
    assert skip.reason == f"gaussian-attention-bias/{reason}"


def test_the_lint_names_the_line() -> None:
    found = [finding for finding in rewriter.check(beit(use_rel_pos_bias=True), select="RW10", input_size=64)]
    assert [finding.code for finding in found] == ["RW1001"] * 2
    assert all(finding.severity == "note" and finding.fixable for finding in found)
    assert all(Path(finding.file).name == "beit.py" for finding in found)


def test_it_is_not_among_the_passes_that_run_unasked() -> None:
    assert not [
        site for site in rewriter.plan(swin(), input_size=64).sites if site.pass_name == "gaussian-attention-bias"
    ]
