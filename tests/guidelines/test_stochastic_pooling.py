"""Stochastic pooling on real models: where it acts, what stays, and what changes in training."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from helpers import assert_unchanged, image, output, positions_read, snapshot, timm_model
from torch import nn

import rewriter
from rewriter.passes import Dropout, StochasticPooling
from rewriter.reasons import Reason
from rewriter.testing import check_contract

pytestmark = pytest.mark.slow

SAMPLED = [StochasticPooling()]


def reasons(plan: rewriter.Plan) -> list[Reason]:
    return [skip.reason for skip in plan.skipped if skip.pass_name == "stochastic-pooling"]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "a module": lambda: timm_model("resnet10t", num_classes=5),
    "timm's FastAdaptiveAvgPool": lambda: timm_model("test_convnext", num_classes=5, global_pool="fast"),
    "a method's mean": lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=5),
    "a function": lambda: torchvision.models.densenet121(num_classes=5),
    "a helper's mean of tokens": lambda: timm_model("test_vit", global_pool="avg", num_classes=5, img_size=64),
    "transitions": lambda: timm_model("densenet121", num_classes=5),
    "gates": lambda: timm_model("test_efficientnet", num_classes=5),
    "a pyramid": lambda: torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(weights_backbone=None),
}


@pytest.mark.parametrize("kind", MODELS)
def test_contract(kind: str) -> None:
    model = MODELS[kind]()
    rewritten = check_contract(model, [StochasticPooling(squeeze=True)], example_inputs=image(64))
    x = image(64)
    sites = rewriter.report(rewritten).applied
    assert sites
    first, second = (_tensor(output_of(rewritten, x, seed)) for seed in (0, 1))
    assert not torch.equal(first, second)


def output_of(model: nn.Module, x: torch.Tensor, seed: int) -> Any:
    torch.manual_seed(seed)
    with torch.no_grad():
        return model.train()(x)


def _tensor(value: Any) -> torch.Tensor:
    return value["out"] if isinstance(value, dict) else value


def test_the_head_reads_half_of_the_positions() -> None:
    model = rewriter.rewrite(timm_model("resnet18"), SAMPLED)
    assert positions_read(model, lambda m: m.layer4, image(224)) == [24, 24]
    model.global_pool.pool.keep_prob = 0.1
    assert positions_read(model, lambda m: m.layer4, image(224)) == [5, 5]
    model.global_pool.pool.keep_prob = 1
    assert positions_read(model, lambda m: m.layer4, image(224)) == [49, 49]
    assert positions_read(model, lambda m: m.layer4, image(96)) == [9, 9], "another resolution"


def test_every_classifier_input_is_the_scaled_average_of_a_subset() -> None:
    model = rewriter.rewrite(timm_model("resnet18"), SAMPLED).train()
    x = image(224)
    torch.manual_seed(5)
    features = model.forward_features(x)
    state = torch.get_rng_state()
    pooled = model.forward_head(features, pre_logits=True)
    torch.set_rng_state(state)
    kept = torch.rand(2, 1, 1, 49).argsort(-1).view(2, 49) < 24
    for sample in range(2):
        subset = features[sample].flatten(1)[:, kept[sample]]
        assert torch.allclose(pooled[sample], subset.mean(1) * math.sqrt(24 / 49), atol=1e-6)


def test_knobs_of_timm_turn_after_the_rewrite() -> None:
    for name, options in (("test_vit", {"global_pool": "avg", "img_size": 64}), ("resnet10t", {})):
        model = timm_model(name, **options)
        rewritten = rewriter.rewrite(model, SAMPLED, input_size=64)
        for pool in ("max", "avg"):
            for m in (model, rewritten):
                torch.manual_seed(0)
                m.reset_classifier(3, pool)
            assert torch.equal(output(rewritten, image()), output(model, image()))
        torch.manual_seed(0)
        for m in (model, rewritten):
            m.reset_classifier(3, "max")
        rewritten.load_state_dict(model.state_dict())
        assert torch.equal(output(rewritten, image(), training=True), output(model, image(), training=True)), name


def test_hooks_on_the_pooling_still_fire() -> None:
    model = timm_model("resnet10t")
    fired = []
    model.global_pool.pool.register_forward_hook(lambda *_: fired.append(1))
    rewritten = rewriter.rewrite(model, SAMPLED, input_size=64, inplace=True, verify=False)
    output(rewritten, image())
    assert fired and isinstance(rewritten.global_pool.pool, nn.AdaptiveAvgPool2d)


class TestDropoutAtTheSamePooling:
    def test_dropout_that_is_there_stays_and_the_pooling_is_left_alone(self) -> None:
        plan = rewriter.plan(timm_model("resnet10t", drop_rate=0.2))
        assert [site.pass_name for site in plan.sites] == ["dropout"]
        assert Reason.HEAD_DROPOUT in reasons(plan)

    def test_dropout_that_is_inserted_comes_first_whatever_the_order(self) -> None:
        plan = rewriter.plan(timm_model("resnetv2_50"), [StochasticPooling(), Dropout(p=0.1)], input_size=64)
        assert Reason.CLAIMED in reasons(plan)
        assert not [site for site in plan.sites if site.pass_name == "stochastic-pooling"]

    def test_without_dropout_the_pooling_is_sampled(self) -> None:
        plan = rewriter.plan(timm_model("resnet10t", drop_rate=0.0))
        assert [site.pass_name for site in plan.sites] == ["stochastic-pooling"]

    @pytest.mark.parametrize("name", ["test_convnext", "pvt_v2_b0", "swin_tiny_patch4_window7_224"])
    def test_dropout_that_is_switched_off_moves_and_the_pooling_is_sampled(self, name: str) -> None:
        model = timm_model(name, num_classes=5)
        rewritten = check_contract(model, [Dropout(), StochasticPooling()])
        report = rewriter.report(rewritten)
        found = [
            [site.pass_name for site in sites if site.pattern == "head"] for sites in (report.inactive, report.applied)
        ]
        assert found == [["dropout"], ["stochastic-pooling"]]

    def test_a_later_rewrite_does_not_put_dropout_where_sampling_acts(self) -> None:
        model = rewriter.rewrite(timm_model("resnet10t"), SAMPLED, input_size=64)
        plan = rewriter.plan(model, [Dropout(p=0.1)], input_size=64)
        assert not [site for site in plan.sites if site.pattern == "head"]
        assert Reason.CLAIMED in [skip.reason for skip in plan.skipped]
        undone = rewriter.undo(model)
        plan = rewriter.plan(undone, [Dropout(p=0.1)], input_size=64)
        assert [site for site in plan.sites if site.pattern == "head"]


def test_saved_models_keep_what_was_set(tmp_path: Any) -> None:
    model = rewriter.rewrite(timm_model("test_convnext", global_pool="fast"), SAMPLED, input_size=64)
    pool = model.head.global_pool.pool.stochastic_pooling
    pool.keep_prob, pool.scale = 0.75, "none"
    resnet = rewriter.rewrite(timm_model("resnet10t"), SAMPLED, input_size=64)
    resnet.global_pool.pool.keep_prob = 0.25
    for number, (m, fresh) in enumerate(
        ((model, timm_model("test_convnext", global_pool="fast")), (resnet, timm_model("resnet10t")))
    ):
        rewriter.save(m, tmp_path / str(number))
        loaded = rewriter.load(tmp_path / str(number), fresh)
        assert torch.equal(output(loaded, image(), training=True), output(m, image(), training=True))
    assert loaded.global_pool.pool.keep_prob == 0.25


def test_a_pooling_that_was_replaced_is_saved_as_it_is_now(tmp_path: Any) -> None:
    model = rewriter.rewrite(timm_model("resnet10t"), SAMPLED, input_size=64)
    model.reset_classifier(3, "avg")
    assert rewriter.report(model).stale == ("global_pool.pool",)
    rewriter.save(model, tmp_path / "plain")
    loaded = rewriter.load(tmp_path / "plain", timm_model("resnet10t", num_classes=3))
    assert not hasattr(loaded.global_pool.pool, "keep_prob")
    mended = rewriter.rewrite(model, SAMPLED, input_size=64)
    assert not rewriter.report(mended).stale and len(rewriter.report(mended).applied) == 1
    rewriter.save(mended, tmp_path / "mended")
    loaded = rewriter.load(tmp_path / "mended", timm_model("resnet10t", num_classes=3))
    assert torch.equal(output(loaded, image(), training=True), output(mended, image(), training=True))
    assert type(rewriter.undo(loaded).global_pool.pool) is nn.AdaptiveAvgPool2d


def test_the_report_tells_of_a_rewrite_that_found_nothing_to_do() -> None:
    model = rewriter.rewrite(timm_model("resnet10t"), SAMPLED, input_size=64)
    again = rewriter.rewrite(model, [StochasticPooling(keep_prob=0.2)], input_size=64)
    text = str(rewriter.report(again))
    assert "1 applied" in text and "0 applied" in text and "already-done" in text
    assert len(rewriter.report(rewriter.rewrite(again, SAMPLED, input_size=64)).records) == 2
    plan = rewriter.plan(again, [StochasticPooling(keep_prob=0.2)], input_size=64)
    assert "set its keep_prob (0.5) to change it" in str(plan)
    assert type(rewriter.undo(again).global_pool.pool) is nn.AdaptiveAvgPool2d


def test_undo_leaves_no_trace() -> None:
    model = timm_model("resnet10t")
    before = snapshot(model)
    rewriter.rewrite(model, SAMPLED, input_size=64, inplace=True)
    model.global_pool.pool.keep_prob = 0.25
    rewriter.undo(model, inplace=True)
    assert_unchanged(model, before)


class TestLeftAlone:
    """What is no place for it, each with the reason."""

    @pytest.mark.parametrize(
        ("name", "options", "reason"),
        [
            ("resnet26d", {}, Reason.SHORTCUT),
            ("resnetaa34d", {}, Reason.ANTI_ALIASING),
            ("seresnet18", {}, Reason.SQUEEZE),
            ("poolformer_s12", {}, Reason.OVERLAPPING_WINDOWS),
            ("test_vit", {}, Reason.CLASS_TOKEN),
            ("resnet10t", {"drop_rate": 0.1}, Reason.HEAD_DROPOUT),
            ("resnet10t", {"global_pool": "max"}, Reason.MAX_POOLING),
        ],
    )
    def test_with_the_reason(self, name: str, options: dict[str, Any], reason: Reason) -> None:
        with torch.device("meta"):
            model = timm.create_model(name, **options)
        assert reason in reasons(rewriter.plan(model, SAMPLED))

    def test_fewer_than_four_elements(self) -> None:
        plan = rewriter.plan(timm_model("resnet18"), SAMPLED, input_size=32)
        assert reasons(plan) == [Reason.FEW_ELEMENTS] and not plan.sites

    def test_statistics_are_no_poolings(self, import_text: Callable[[str], ModuleType]) -> None:
        net = import_text(
            """
            from torch import nn

            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.fc = nn.Linear(16, 3)

                def forward(self, x):
                    x = x - x.mean(-1, keepdim=True)
                    x = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
                    return self.fc(x)[:, 0]
            """
        ).Net()
        plan = rewriter.plan(net, SAMPLED, example_inputs=torch.randn(2, 8, 16))
        assert not plan.sites and reasons(plan) == [Reason.CLASS_TOKEN]

    def test_a_pooling_of_another_shape(self, import_text: Callable[[str], ModuleType]) -> None:
        net = import_text(
            """
            import torch
            from torch import nn

            class Pool(nn.AvgPool2d):
                def forward(self, x):
                    return super().forward(x.flip(-1)).flip(-1)

            class Net(nn.Sequential):
                def __init__(self):
                    super().__init__(nn.Conv2d(3, 4, 3), Pool(2), nn.Conv2d(4, 4, 3))
            """
        ).Net()
        assert Reason.OWN_FORWARD in reasons(rewriter.plan(net, SAMPLED, example_inputs=image(16)))


def test_a_pooling_module_that_is_used_twice(import_text: Callable[[str], ModuleType]) -> None:
    module = import_text(
        """
        from torch import nn

        class Net(nn.Module):
            def __init__(self, gated):
                super().__init__()
                self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
                self.gate = nn.Conv2d(4, 4, 1)
                self.pool, self.whole = nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1)
                self.gated = gated

            def forward(self, x):
                x = self.pool(self.first(x))
                if self.gated:
                    x = x * self.gate(self.whole(x)).sigmoid()
                x = self.pool(self.second(x))
                return self.whole(x).flatten(1)
        """
    )
    plain = check_contract(module.Net(False), SAMPLED, example_inputs=image(32))
    assert len(rewriter.report(plain).applied) == 2, "all uses of the shared pooling are places"
    plan = rewriter.plan(module.Net(True), SAMPLED, example_inputs=image(32))
    assert Reason.SQUEEZE in reasons(plan) and [site.path for site in plan.sites] == ["pool"]


@pytest.mark.parametrize(
    "call",
    [
        "x.mean((2, 3))",
        "x.mean(dim=[-1, -2])",
        "x.mean(axis=(2, 3))",
        "x.flatten(2).mean((2))",
        "(x + 1).mean((2, 3),)",
        "x.mean([2, 3], keepdim=True).flatten(1)",
        "torch.mean(x, (2, 3))",
        "torch.mean(input=x, dim=(2, 3))",
        "(x + 1).mean((2, 3))",
        "F.adaptive_avg_pool2d(x, 1).flatten(1)",
        "F.adaptive_avg_pool2d(x, output_size=(1, 1)).flatten(1)",
        "F.avg_pool2d(x, x.shape[-1]).flatten(1)",
        "F.avg_pool2d(x, kernel_size=x.shape[-2:]).flatten(1)",
        "x.flatten(2).mean(-1)",
        "x.flatten(2).transpose(1, 2).mean(1)",
        "x.permute(0, 2, 3, 1).mean((1, 2))",
    ],
)
def test_spellings(call: str, import_text: Callable[[str], ModuleType]) -> None:
    net = import_text(
        f"""
        import torch
        import torch.nn.functional as F
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

            def forward(self, x):
                x = self.conv(x)
                return self.fc({call})
        """
    ).Net()
    if "input=x" in call:
        assert reasons(rewriter.plan(net, SAMPLED, example_inputs=image(10))) == [Reason.NOT_MOVABLE]
        return
    rewritten = check_contract(net, SAMPLED, example_inputs=image(10))
    assert positions_read(rewritten, lambda m: m.conv, image(10)) == [32, 32]


def test_helper_functions_become_methods(import_text: Callable[[str], ModuleType]) -> None:
    module = import_text(
        """
        import torch.nn.functional as F
        from torch import nn

        def pooled(x, self=None, *, flat=True):
            x = F.adaptive_avg_pool2d(x, 1)
            return x.flatten(1) if flat else x

        def indirectly(x):
            return pooled(x)

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 3)

            def forward(self, x):
                return pooled(self.conv(x))

        class Indirect(Net):
            def forward(self, x):
                return indirectly(self.conv(x))
        """
    )
    rewritten = check_contract(module.Net(), SAMPLED, example_inputs=image(10))
    assert positions_read(rewritten, lambda m: m.conv, image(10)) == [32, 32]
    function = module.pooled
    assert function(torch.ones(1, 2, 3, 3), flat=False).shape == (1, 2, 1, 1), "the function itself is not changed"
    rewritten = check_contract(module.Indirect(), SAMPLED, example_inputs=image(10))
    assert positions_read(rewritten, lambda m: m.conv, image(10)) == [32, 32]
    assert "SampledPositions" in str(rewritten), "a helper of a helper: what it is given is sampled"


class TestBadInput:
    @pytest.mark.parametrize("keep_prob", [0, 0.0, -1, 1.01, math.nan, "0.5", None, True])
    def test_keep_prob(self, keep_prob: Any) -> None:
        with pytest.raises(ValueError, match="expected 0 < keep_prob <= 1, found"):
            StochasticPooling(keep_prob=keep_prob)
        model = timm_model("resnet10t")
        before = snapshot(model)
        with pytest.raises(rewriter.SelectorError, match=r"stochastic-pooling.*expected 0 < keep_prob <= 1"):
            rewriter.rewrite(model, {"stochastic-pooling": {"keep_prob": keep_prob}}, inplace=True)
        assert_unchanged(model, before)

    def test_scale_and_squeeze(self) -> None:
        with pytest.raises(ValueError, match="scale: expected one of"):
            StochasticPooling(scale="linear")
        with pytest.raises(ValueError, match="squeeze: expected True or False"):
            StochasticPooling(squeeze=2)  # type: ignore[arg-type]

    def test_a_plan_whose_options_were_edited(self) -> None:
        model = timm_model("resnet10t")
        text = rewriter.plan(model, SAMPLED, input_size=64).to_json()
        before = snapshot(model)
        for old, new in (('"keep_prob": 0.5', '"keep_prob": 5'), ('"scale": "sqrt"\n', '"forward": "sqrt"\n')):
            damaged = text.replace(old, new)
            assert damaged != text
            with pytest.raises(rewriter.PlanError):
                rewriter.Plan.from_json(damaged).apply(model, inplace=True)
            assert_unchanged(model, before)

    def test_an_empty_map(self) -> None:
        model = rewriter.rewrite(timm_model("resnet10t"), SAMPLED, input_size=64)
        with pytest.raises(ValueError, match="at least one position to average"):
            model.train().forward_head(torch.zeros(2, 512, 0, 3))


@torch.no_grad()
def test_compiled_training_draws_what_eager_training_draws() -> None:
    for model in (
        timm_model("test_convnext", global_pool="fast"),
        timm_model("test_vit", global_pool="avg", img_size=64),
    ):
        rewritten = rewriter.rewrite(model, SAMPLED, input_size=64)
        torch._dynamo.reset()
        compiled = torch.compile(rewritten, fullgraph=True, backend="aot_eager")
        for training in (True, False):
            rewritten.train(training)
            torch.manual_seed(1)
            expected = rewritten(image(64))
            torch.manual_seed(1)
            assert torch.allclose(compiled(image(64)), expected, atol=1e-5)


def test_noise_that_a_batch_norm_hides_in_training_shows_at_test_time() -> None:
    """The published factor shrinks the mean of ReLU features in training: at test time the pooled mean is larger."""
    model = timm_model("resnet18")
    x = image(224, batch=8)
    ratios = {}
    for scale in ("sqrt", "none"):
        rewritten = rewriter.rewrite(model, [StochasticPooling(scale=scale)])
        rewritten.eval()
        with torch.no_grad():
            features = rewritten.forward_features(x)
            tested = rewritten.forward_head(features, pre_logits=True).mean()
            rewritten.global_pool.train()
            trained = torch.stack([rewritten.forward_head(features, pre_logits=True).mean() for _ in range(200)]).mean()
        ratios[scale] = float(tested / trained)
    assert F.relu(features).equal(features), "these are ReLU features"
    assert abs(ratios["sqrt"] - math.sqrt(49 / 24)) < 0.03 and abs(ratios["none"] - 1) < 0.03


class TestWhatIsTheUsersStaysTheUsers:
    SCALED = """
        import torch.nn.functional as F
        from torch import nn

        class Pool(nn.AdaptiveAvgPool2d):
            def __init__(self):
                super().__init__(1)
                self.scale = 2.0

            def forward(self, x):
                return super().forward(x) * self.scale

        class Net(nn.Module):
            def __init__(self, pool=None):
                super().__init__()
                self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
                self.pool = pool or Pool()

            def forward(self, x):
                return self.fc(self.pool(self.conv(x)).flatten(1))
        """

    def test_attributes_of_the_same_name(self, import_text: Callable[[str], ModuleType]) -> None:
        module = import_text(self.SCALED)
        net = module.Net()
        before = snapshot(net)
        plan = rewriter.plan(net, SAMPLED, example_inputs=image(10))
        assert Reason.NOT_MOVABLE in reasons(plan) and not plan.sites
        assert_unchanged(net, before)
        rewritten = rewriter.rewrite(module.Net(nn.AdaptiveAvgPool2d(1)), SAMPLED, example_inputs=image(10))
        rewritten.pool = module.Pool()
        assert rewriter.undo(rewritten).pool.scale == 2.0

    @pytest.mark.parametrize("name", ["_parameters", "forward", "keep_prob", "training"])
    def test_options_of_a_damaged_plan(self, name: str, import_text: Callable[[str], ModuleType]) -> None:
        model = timm_model("resnet10t")
        text = rewriter.plan(model, SAMPLED, input_size=64).to_json()
        model.fc.keep_prob = 3
        before = snapshot(model)
        damaged = text.replace(
            '"path": "global_pool.pool",\n          "behaviour"', '"path": "fc",\n          "behaviour"'
        )
        damaged = damaged.replace('"keep_prob": 0.5', f'"{name}": 1', 2)
        with pytest.raises(rewriter.RewriterError):
            rewriter.Plan.from_json(damaged).apply(model, inplace=True, verify=False)
        assert_unchanged(model, before)

    @pytest.mark.parametrize("name", ["state_dict", "train", "__reduce_ex__", "_rewriter_base", "a-b"])
    def test_methods_of_a_damaged_plan(self, name: str) -> None:
        model = timm_model("test_vit", global_pool="avg", img_size=64)
        text = rewriter.plan(model, SAMPLED, input_size=64).to_json()
        before = snapshot(model)
        damaged = text.replace('"method": "global_pool_nlc"', f'"method": "{name}"')
        assert damaged != text
        with pytest.raises(rewriter.PlanError):
            rewriter.Plan.from_json(damaged).apply(model, inplace=True)
        assert_unchanged(model, before)

    def test_a_function_that_is_chosen_at_run_time(self, import_text: Callable[[str], ModuleType]) -> None:
        module = import_text(
            """
            from functools import partial
            import torch.nn.functional as F
            from torch import nn

            class Net(nn.Module):
                def __init__(self, how):
                    super().__init__()
                    self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
                    self.mode, self.how, self.pool = "avg", how, partial(F.avg_pool2d, kernel_size=8)

                def forward(self, x):
                    x = self.conv(x)
                    if self.how == "local":
                        pool = F.adaptive_avg_pool2d if self.mode == "avg" else F.adaptive_max_pool2d
                        x = pool(x, 1)
                    elif self.how == "getattr":
                        x = getattr(F, f"adaptive_{self.mode}_pool2d")(x, 1)
                    elif self.how == "partial":
                        x = self.pool(x)
                    else:
                        x = (F.adaptive_avg_pool2d)(x, 1)
                    return self.fc(x.flatten(1))
            """
        )
        for how in ("local", "getattr", "partial", "parentheses"):
            plan = rewriter.plan(module.Net(how), SAMPLED, example_inputs=image(10))
            assert reasons(plan) == [Reason.NOT_MOVABLE] and not plan.sites, how

    def test_a_forward_set_on_the_instance_does_not_hide_what_undo_has_to_restore(self) -> None:
        model = rewriter.rewrite(timm_model("test_vit", global_pool="avg", img_size=64), SAMPLED, input_size=64)
        original = model.forward
        model.forward = lambda x: original(x)
        again = rewriter.rewrite(model, "dropout", input_size=64, inplace=True)
        undone = rewriter.undo(again, inplace=True)
        del undone.forward
        assert not hasattr(undone, "stochastic_pooling") and not hasattr(undone, "global_pool_nlc")

    def test_an_inserted_dropout_stays_with_its_place_and_keeps_the_pooling_there(self) -> None:
        model = rewriter.rewrite(timm_model("test_convnext"), [Dropout(p=0.1)], input_size=64)
        assert Reason.HEAD_DROPOUT in reasons(rewriter.plan(model, SAMPLED, input_size=64))
        model = rewriter.rewrite(torchvision.models.resnet18(), [Dropout(p=0.1)], input_size=64)
        assert not rewriter.plan(model, SAMPLED, input_size=64).sites
        model.avgpool = nn.AdaptiveAvgPool2d(1)
        assert Reason.HEAD_DROPOUT in reasons(rewriter.plan(model, SAMPLED, input_size=64))
        assert rewriter.plan(rewriter.undo(model), SAMPLED, input_size=64).sites


def test_maps_without_a_batch_are_planned(import_text: Callable[[str], ModuleType]) -> None:
    net = import_text(
        """
        import torch.nn.functional as F
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

            def forward(self, x):
                x = F.avg_pool2d(self.conv(x)[0], (2, 2), ceil_mode=True)
                return self.fc(F.adaptive_avg_pool2d(x, 1).flatten())
        """
    ).Net()
    check_contract(net, SAMPLED, example_inputs=image(64))
