"""The passes of ``examples/third_party``: what they do to real models, and the property of each as a number."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.layers import GroupNormAct, StdConv2d
from torch import nn

import rewriter
from rewriter import Reason
from rewriter.guideline.registry import installed_passes
from rewriter.testing import check_contract

FOLDER = Path(__file__).parents[2] / "examples" / "third_party"
sys.path.append(str(FOLDER))

from companion_passes.ibn import InstanceBatchNorm, InstanceBatchNormalization  # noqa: E402
from companion_passes.multi_sample_dropout import MultiSampleDropout, Repeat  # noqa: E402
from companion_passes.weight_standardization import (  # noqa: E402
    EstimatedBatchNorm,
    StandardizedConv,
    WeightStandardization,
)

PROJECT = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PASSES: dict[str, str] = PROJECT["entry-points"]["rewriter.passes"]


def reasons(model: nn.Module, guideline: rewriter.Pass, size: int = 32) -> list[str]:
    """Why places are left alone; nothing may be applied."""
    found = rewriter.plan(model, guideline, example_inputs=torch.zeros(2, 3, size, size))
    assert not found.sites, str(found)
    return [str(skipped.reason) for skipped in found.skipped]


class TestDistribution:
    @pytest.fixture
    def installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        information = tmp_path / "companion_passes-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: companion-passes\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in PASSES.items()]
        (information / "entry_points.txt").write_text("\n".join(["[rewriter.passes]", *lines]))
        monkeypatch.syspath_prepend(tmp_path)
        installed_passes.cache_clear()
        yield
        monkeypatch.undo()
        installed_passes.cache_clear()

    def test_its_passes_are_found_by_name(self, installed: None) -> None:
        found = installed_passes()
        for name, value in PASSES.items():
            module, _, attribute = value.partition(":")
            assert found[name] is getattr(import_module(module), attribute) and found[name].name == name
            assert not found[name].default
        made = rewriter.plan(timm.create_model("test_resnet", drop_rate=0.1), {"multi-sample-dropout": {"samples": 3}})
        assert [name for name, _ in made.passes] == ["multi-sample-dropout"] and len(made.sites) == 1

    @pytest.mark.parametrize("value", PASSES.values())
    def test_a_pass_is_one_short_file_with_one_import_of_ours(self, value: str) -> None:
        text = (FOLDER / f"{value.partition(':')[0].replace('.', '/')}.py").read_text(encoding="utf-8")
        imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Import, ast.ImportFrom))]
        ours = [ast.unparse(node).split()[1] for node in imports if "rewriter" in ast.unparse(node)]
        assert ours == ["rewriter.authoring"]
        assert len([line for line in text.splitlines() if line.strip()]) <= 125
        assert PASSES.keys() == {path.split("`")[1] for path in README if path.startswith("| `")}


README = (FOLDER / "README.md").read_text(encoding="utf-8").splitlines()


def convolution_and_norm(conv: type[nn.Conv2d] = nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(conv(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU())


class TestWeightStandardization:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "norm_layer"),
        [
            ("test_resnet", lambda channels, **_: nn.GroupNorm(4, channels)),
            ("test_efficientnet", partial(GroupNormAct, num_groups=4)),
        ],
    )
    def test_the_contract_holds(self, name: str, norm_layer: object) -> None:
        model = timm.create_model(name, norm_layer=norm_layer)
        rewritten = check_contract(model, WeightStandardization(), input_size=64, must_find=True)
        kinds = (nn.GroupNorm, StandardizedConv, EstimatedBatchNorm)
        counts = {sum(isinstance(module, kind) for module in rewritten.modules()) for kind in kinds}
        assert len(counts) == 1 and counts.pop() > 10

    def test_the_contract_holds_in_a_sequential(self) -> None:
        check_contract(convolution_and_norm(), WeightStandardization(), input_size=8, must_find=True)

    def test_scale_and_shift_of_weights_have_no_effect_and_get_no_gradient(self) -> None:
        model = rewriter.rewrite(convolution_and_norm(), WeightStandardization(batch_channel=False), input_size=8)
        assert not any(isinstance(module, EstimatedBatchNorm) for module in model.modules())
        conv, x = model[0], torch.randn(2, 3, 8, 8)
        before = conv(x)
        before.square().mul(torch.randn_like(before)).sum().backward()
        gradient, weight = conv.weight.grad.flatten(1), conv.weight.detach().flatten(1)
        for direction in (torch.ones_like(weight), weight):
            cosine = F.cosine_similarity(gradient, direction).abs().max()
            assert cosine < 1e-5
        with torch.no_grad():
            conv.weight.mul_(torch.linspace(0.5, 4, 8)[:, None, None, None]).add_(1)
        assert torch.allclose(conv(x), before, rtol=0, atol=1e-5 * before.abs().max().item())
        with torch.no_grad():  # the other way round: what is used has mean 0 and variance 1
            conv.bias.zero_()
            one = conv(torch.ones(1, 3, 3, 3))[0, :, 1, 1]
        assert one.abs().max() < 1e-4

    def test_the_batch_norm_uses_its_estimates_in_training_too(self) -> None:
        layer, x = EstimatedBatchNorm(4, rate=0.25), torch.randn(3, 4, 5, 5) * 2 + 1
        given = x.clone().requires_grad_()
        out = layer(given)
        var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
        assert torch.allclose(layer.mean, 0.25 * mean) and torch.allclose(layer.var, 0.75 + 0.25 * var)
        expected = F.batch_norm(x, layer.mean, layer.var)
        assert torch.allclose(out, expected, atol=1e-5)
        out.sum().backward()  # a batch norm that differentiates its statistics would give 0
        assert torch.allclose(given.grad, torch.rsqrt(layer.var + 1e-5)[:, None, None].expand_as(x))
        for _ in range(60):
            layer(x)
        assert torch.allclose(layer(x), F.batch_norm(x, mean, var), atol=1e-4)
        kept = layer.mean.clone()
        layer.eval()(x + 5)
        assert torch.equal(layer.mean, kept)

    def test_what_is_left_alone(self) -> None:
        assert reasons(convolution_and_norm(StdConv2d), WeightStandardization()) == [Reason.OWN_FORWARD]
        single = nn.Sequential(nn.Conv2d(3, 3, 1, groups=3), nn.GroupNorm(1, 3))
        assert reasons(single, WeightStandardization()) == ["weight-standardization/one-weight"]
        assert reasons(timm.create_model("test_resnet"), WeightStandardization()) == []  # batch norms
        with pytest.raises(ValueError, match="rate: expected"):
            WeightStandardization(rate=0)


class TestInstanceBatchNormalization:
    @pytest.mark.slow
    def test_the_contract_holds(self) -> None:
        model = check_contract(
            torchvision.models.resnet18(), InstanceBatchNormalization(), input_size=64, must_find=True
        )
        changed = [name for name, module in model.named_modules() if isinstance(module, InstanceBatchNorm)]
        assert changed == [f"layer{stage}.{block}.bn1" for stage in (1, 2, 3) for block in (0, 1)]

    def test_the_last_stage_keeps_its_norms(self) -> None:
        found = rewriter.plan(timm.create_model("test_resnet"), InstanceBatchNormalization(), input_size=64)
        assert [site.path for site in found.sites] == ["layer1.0.bn1", "layer2.0.bn1", "layer3.0.bn1"]
        assert [(place.path, place.reason) for place in found.skipped] == [("layer4.0.bn1", "ibn/last-stage")]

    @pytest.mark.parametrize("training", [True, False])
    def test_one_half_is_an_instance_norm_and_the_other_a_batch_norm(self, training: bool) -> None:
        model = timm.create_model("test_resnet").train(training)
        rewritten = rewriter.rewrite(model, InstanceBatchNormalization(), input_size=64, verify=False)
        norm, before = rewritten.layer2[0].bn1, model.layer2[0].bn1
        assert rewritten.state_dict().keys() - {"rewriter_plan"} == model.state_dict().keys()
        half = norm.num_features // 2
        nn.init.uniform_(norm.weight, 0.5, 2)
        before.load_state_dict(norm.state_dict())
        x = torch.randn(4, norm.num_features, 6, 6)
        ours, theirs = norm(x), before(x)
        assert torch.equal(ours[:, half:], theirs[:, half:]) and not torch.allclose(ours[:, :half], theirs[:, :half])
        scaled = ours[:, :half] / norm.weight[:half, None, None]
        assert scaled.mean((2, 3)).abs().max() < 1e-5
        assert (scaled.var((2, 3), correction=0) - 1).abs().max() < 1e-3
        assert torch.equal(norm.running_var, before.running_var)
        appearance = torch.rand(4, norm.num_features, 1, 1) + 0.5  # contrast and brightness of each image
        assert torch.allclose(norm(x * appearance + appearance)[:, :half], ours[:, :half], atol=1e-3)

    def test_norms_that_are_more_than_a_norm_are_left_alone(self) -> None:
        assert set(reasons(timm.create_model("test_efficientnet"), InstanceBatchNormalization(), 64)) <= {
            Reason.OWN_FORWARD,
            "ibn/last-stage",
            "ibn/last-norm",
        }


def classifier(rate: float = 0.4) -> nn.Sequential:
    hidden = nn.Sequential(nn.Flatten(), nn.Linear(48, 64), nn.Hardtanh())
    return nn.Sequential(hidden, nn.Dropout(rate, inplace=True), nn.Linear(64, 5))


class TestMultiSampleDropout:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["test_vit", "test_resnet"])  # nn.Dropout, and F.dropout
    def test_the_contract_holds(self, name: str) -> None:
        model = timm.create_model(name, drop_rate=0.3)
        rewritten = check_contract(model, MultiSampleDropout(), must_find=True)
        (repeat,) = [path for path, module in rewritten.named_modules() if isinstance(module, Repeat)]
        assert rewriter.report(rewritten).applied[0].rate_at == f"8 ({repeat}.samples)"

    def test_predictions_are_the_mean_over_masks(self) -> None:
        original, x = classifier(), torch.randn(6, 3, 4, 4)
        model = check_contract(original, MultiSampleDropout(samples=5), example_inputs=x, must_find=True)
        hidden = original[0](x)
        torch.manual_seed(1)
        found = model.train()(x)
        torch.manual_seed(1)
        samples = original[2](F.dropout(torch.stack([hidden] * 5), 0.4))
        assert torch.equal(found, samples.mean(0))
        assert len({tuple(sample.flatten().tolist()) for sample in samples}) == 5
        labels = torch.arange(6) % 5
        mean_of_losses = torch.stack([F.cross_entropy(sample, labels) for sample in samples]).mean()
        assert F.cross_entropy(found, labels) < mean_of_losses
        assert torch.equal(model.eval()(x), original.eval()(x))

    def test_their_variance_falls_with_the_number_of_masks(self) -> None:
        original, draws = classifier(), 2000
        model = rewriter.rewrite(original, MultiSampleDropout(samples=4), example_inputs=torch.zeros(1, 3, 4, 4))
        x = torch.randn(1, 3, 4, 4).expand(draws, -1, -1, -1)
        one, several = (m.train()(x).detach().var(0) for m in (original, model))
        assert (one / several / 4 - 1).abs().max() < 5 * (4 / draws) ** 0.5  # five standard errors

    def test_what_is_left_alone(self) -> None:
        assert reasons(classifier(0.0), MultiSampleDropout(), 4) == ["multi-sample-dropout/no-rate"]
        whole = nn.Sequential(nn.AdaptiveAvgPool2d((4, 1)), nn.Flatten(2), nn.Dropout1d(0.2), nn.Linear(4, 5))
        assert reasons(whole, MultiSampleDropout(), 4) == [Reason.DROPOUT_KIND]
        inside = timm.create_model("test_vit", proj_drop_rate=0.2, num_classes=0)
        assert reasons(inside, MultiSampleDropout(), 160) == []
        with pytest.raises(ValueError, match="samples: expected at least 2"):
            MultiSampleDropout(samples=1)
