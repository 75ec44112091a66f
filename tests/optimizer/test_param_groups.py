"""Parameter groups for real optimizers, and optimizers that hold another model's parameters."""

from __future__ import annotations

import copy
import functools
import pickle
from collections import Counter
from typing import Any

import pytest
import timm
import torch
import torchvision
from helpers import assert_unchanged, image, snapshot, timm_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from torch import nn

import rewriter


def names_of(model: nn.Module, groups: list[dict[str, Any]], *, decaying: bool) -> set[str]:
    """The parameters of ``model`` in groups that decay, or in those that do not."""
    held = {id(p) for group in groups if (group["weight_decay"] > 0) is decaying for p in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in held}


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return timm.create_model("resnet18", num_classes=10)


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, patch_size=8, num_classes=10)


def train_step(model: nn.Module, optimizer: Any, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """One step; what each parameter was before."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images), torch.zeros(len(images), dtype=torch.long)).backward()
    optimizer.step()
    return before


# ------------------------------------------------------------------------------------------------------- who goes where


def test_gammas_of_a_resnet_go_by_their_place(resnet: nn.Module) -> None:
    before = snapshot(resnet)
    groups = rewriter.param_groups(resnet, 1e-4)
    assert_unchanged(resnet, before)
    assert [(group["name"], group["weight_decay"]) for group in groups] == [("decay", 1e-4), ("no_decay", 0.0)]
    decaying = names_of(resnet, groups, decaying=True)
    gammas = {name for name, p in resnet.named_parameters() if p.dim() == 1 and name.endswith("weight")}
    assert decaying & gammas == {name for name in gammas if name.startswith("layer") and "downsample" not in name}
    assert decaying - gammas == {name for name, p in resnet.named_parameters() if p.dim() > 1}


def test_everything_that_is_no_weight_is_found_by_what_it_does(vit: nn.Module) -> None:
    model = copy.deepcopy(vit)
    model.no_weight_decay = set  # timm names tokens and positions there; the graph alone tells
    undecided = {name for name, p in model.named_parameters() if p.dim() > 1} - names_of(
        model, rewriter.param_groups(model), decaying=True
    )
    assert undecided == {"cls_token", "pos_embed"}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "kept_from_decay"),
    [
        ("swin_tiny_patch4_window7_224", "relative_position_bias_table"),
        ("swinv2_tiny_window8_256", "logit_scale"),
        ("beit_base_patch16_224", "relative_position_bias_table"),
        ("nfnet_f0", "gain"),
        ("xcit_nano_12_p16_224", "temperature"),
    ],
)
def test_tables_scales_and_gains_do_not_decay(name: str, kept_from_decay: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    model.no_weight_decay = set
    groups = rewriter.param_groups(model)
    rest = names_of(model, groups, decaying=False)
    assert {n for n, _ in model.named_parameters() if n.endswith(kept_from_decay)} <= rest
    assert {n for n, p in model.named_parameters() if p.squeeze().dim() > 1 and "norm" not in n} - rest


def test_embeddings_do_not_decay_even_if_they_are_the_output_layer_too() -> None:
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=20, **small))
    groups = rewriter.param_groups(model, example_inputs={"input_ids": torch.zeros(2, 8, dtype=torch.long)})
    decaying = names_of(model, groups, decaying=True)
    assert all("embeddings" not in name and "LayerNorm" not in name and "bias" not in name for name in decaying)
    assert any("query.weight" in name for name in decaying)
    ids = [id(p) for group in groups for p in group["params"]]
    assert len(ids) == len(set(ids)) == len(list(model.parameters()))


def test_what_the_model_or_the_user_names_does_not_decay(resnet: nn.Module) -> None:
    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    model = Wrapper(copy.deepcopy(resnet))
    model.inner.no_weight_decay = lambda: {"fc.weight", "no_such_parameter"}
    groups = rewriter.param_groups(model, no_weight_decay=["*.layer1.*.bn2.weight"], input_size=64)
    rest = names_of(model, groups, decaying=False)
    assert {"inner.fc.weight", "inner.layer1.0.bn2.weight", "inner.layer1.1.bn2.weight"} <= rest
    assert "inner.layer2.0.bn2.weight" not in rest
    reasons = {decision.name: decision.reason for decision in groups.decisions}
    assert reasons["inner.fc.weight"] == "named by ResNet.no_weight_decay()"
    assert reasons["inner.layer1.0.bn2.weight"] == "named in no_weight_decay="


def test_a_model_that_names_one_or_something_else(resnet: nn.Module) -> None:
    model = copy.deepcopy(resnet)
    model.no_weight_decay = lambda: "fc.weight"
    assert "fc.weight" in names_of(model, rewriter.param_groups(model), decaying=False)
    model.no_weight_decay = lambda: 5
    with pytest.raises(rewriter.SelectorError, match=r"^ResNet\.no_weight_decay\(\): expected names .* found 5"):
        rewriter.param_groups(model)


@pytest.mark.slow
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_each_trainable_parameter_is_in_one_group(data: st.DataObject) -> None:
    with torch.device("meta"):
        model = timm.create_model("test_vit2", num_classes=0)
        model.head = nn.Linear(model.num_features, model.num_features)
    model.blocks[0].attn.proj.weight = model.head.weight  # shared
    for parameter in model.parameters():
        parameter.requires_grad_(data.draw(st.booleans()))
    gamma = data.draw(st.sampled_from(["guideline", "exclude-all", "decay-all"]))
    groups = rewriter.param_groups(model, gamma=gamma)
    trainable = Counter(id(parameter) for parameter in model.parameters() if parameter.requires_grad)
    assert Counter(id(parameter) for group in groups for parameter in group["params"]) == trainable
    assert all(group["params"] for group in groups)


def test_nothing_trainable_makes_no_group() -> None:
    model = nn.Conv2d(3, 4, 1).requires_grad_(False)
    assert rewriter.param_groups(model, input_size=8) == []


def test_policies_move_gammas_only(resnet: nn.Module) -> None:
    gammas = {decision.name for decision in rewriter.param_groups(resnet).decisions if "_" in decision.category}
    everything, none = (
        names_of(resnet, rewriter.param_groups(resnet, gamma=policy), decaying=True)
        for policy in ("decay-all", "exclude-all")
    )
    assert gammas <= everything - none
    assert all(resnet.get_parameter(name).dim() == 1 for name in everything - none)
    by_category = names_of(resnet, rewriter.param_groups(resnet, gamma={"main": True}), decaying=True)
    assert {"bn1.weight", "layer1.0.bn2.weight"} <= by_category


# ---------------------------------------------------------------------------------------------------------- the result


def test_the_table_explains_every_gamma(resnet: nn.Module) -> None:
    groups = rewriter.param_groups(resnet, 1e-4)
    lines = {line.split()[0]: line for line in groups.table.splitlines()}
    assert "shortcut" in lines["layer2.0.downsample.1.weight"] and "no decay" in lines["layer2.0.downsample.1.weight"]
    assert lines["layer2.0.bn2.weight"].endswith("decay     a smaller one brings the block closer to the identity")
    assert len([line for line in lines.values() if line.split()[0].endswith(".weight")]) == 20
    assert "21 x weight: decay" in groups.table and str(groups) == groups.table


def test_the_result_is_a_list_that_copies_and_pickles(resnet: nn.Module) -> None:
    groups = rewriter.param_groups(resnet)
    assert isinstance(groups, list) and all(type(group) is dict for group in groups)
    for other in (pickle.loads(pickle.dumps(groups)), copy.copy(groups), copy.deepcopy(groups)):
        assert other.table == groups.table
        assert [group["name"] for group in other] == ["decay", "no_decay"]


# ----------------------------------------------------------------------------------------------------------- optimizers


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_a_real_step_decays_what_the_groups_say(resnet: nn.Module, optimizer: Any) -> None:
    """With gradients of zero only the decay moves a parameter."""
    model = copy.deepcopy(resnet)
    groups = rewriter.param_groups(model, 0.1)
    stepper = optimizer(groups, lr=0.1)
    decaying = names_of(model, groups, decaying=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0).grad = torch.zeros_like(parameter)
    stepper.step()
    assert {name for name, parameter in model.named_parameters() if parameter.max() < 1} == decaying
    stepper.load_state_dict(stepper.state_dict())
    stepper.add_param_group({"params": nn.Linear(2, 2).parameters()})  # a loss with parameters


def test_timm_takes_the_function_itself(vit: nn.Module) -> None:
    model = rewriter.rewrite(vit)
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, param_group_fn=rewriter.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    before = train_step(model, optimizer, image(32))
    assert all(not torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    own = functools.partial(rewriter.param_groups, weight_decay=None)  # what the optimizer is given
    optimizer = create_optimizer_v2(model, "lookahead_sgd", lr=0.1, weight_decay=1e-3, param_group_fn=own)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-3, 0.0]
    rewriter.check_optimizer(model, optimizer)


def test_layer_decay_keeps_its_rates_and_gets_our_decay(vit: nn.Module) -> None:
    given = param_groups_layer_decay(vit, 0.3, no_weight_decay_list=vit.no_weight_decay(), layer_decay=0.5)
    scales = {id(p): group["lr_scale"] for group in given for p in group["params"]}
    groups = rewriter.param_groups(vit, 0.1, within=given)
    plain = rewriter.param_groups(vit, 0.1)
    assert len(groups) <= len(given)
    assert {id(p): group["lr_scale"] for group in groups for p in group["params"]} == scales
    assert names_of(vit, groups, decaying=True) == names_of(vit, plain, decaying=True)
    assert {group["weight_decay"] for group in groups} == {0.1, 0.0}
    assert len({group["name"] for group in groups}) == len(groups)
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    train_step(vit, optimizer, image(32))
    rewriter.check_optimizer(vit, optimizer)


def test_groups_with_names_and_with_other_parameters_are_kept(resnet: nn.Module) -> None:
    loss = nn.Linear(3, 3)
    head = set(resnet.fc.parameters())
    given = [
        {"params": [p for p in resnet.parameters() if p not in head], "lr": 0.1, "name": "body", "weight_decay": 7.0},
        {"params": iter([*head, *loss.parameters()]), "lr": 1.0, "betas": (0.9, 0.99)},
    ]
    groups = rewriter.param_groups(resnet, 0.1, within=given)
    assert [group["name"] for group in groups] == [
        "body_decay",
        "body_no_decay",
        "group_1",
        "group_1_decay",
        "group_1_no_decay",
    ]
    assert [group["lr"] for group in groups] == [0.1, 0.1, 1.0, 1.0, 1.0]
    assert groups[2]["params"] == list(loss.parameters()) and "weight_decay" not in groups[2]
    named = [
        {"params": [p for _, p in resnet.named_parameters()], "param_names": [n for n, _ in resnet.named_parameters()]}
    ]
    for group in rewriter.param_groups(resnet, 0.1, within=named):
        assert all(resnet.get_parameter(n) is p for n, p in zip(group["param_names"], group["params"], strict=True))
    pairs = rewriter.param_groups(resnet, 0.1, within=[{"params": resnet.named_parameters()}])
    optimizer = torch.optim.SGD(pairs, lr=0.1)
    assert all(
        resnet.get_parameter(n) is p
        for g in optimizer.param_groups
        for n, p in zip(g["param_names"], g["params"], strict=True)
    )


def test_groups_of_ours_can_be_split_again(resnet: nn.Module) -> None:
    first = rewriter.param_groups(resnet, 0.1)
    again = rewriter.param_groups(resnet, 0.2, gamma="exclude-all", within=first)
    assert [(group["name"], group["weight_decay"]) for group in again] == [
        ("decay", 0.2),
        ("no_decay", 0.0),
        ("no_decay_2", 0.0),
    ]
    layers = param_groups_layer_decay(resnet, layer_decay=0.5)
    split = rewriter.param_groups(resnet, within=layers)
    assert [g["name"] for g in rewriter.param_groups(resnet, within=split)] == [g["name"] for g in split]


def test_lightning_style_configure_optimizers(resnet: nn.Module) -> None:
    class Task(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.network(x)

        def configure_optimizers(self) -> dict[str, Any]:
            groups = rewriter.param_groups(self, 1e-4, input_size=64)
            optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
            return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ConstantLR(optimizer)}

    task = Task(copy.deepcopy(resnet)).train()
    configured = task.configure_optimizers()
    rewriter.check_optimizer(task, configured["optimizer"])
    rewriter.check_optimizer(task.network, [configured["optimizer"]])
    before = train_step(task, configured["optimizer"], image(64))
    configured["lr_scheduler"].step()
    assert not torch.equal(before["network.fc.weight"], task.network.fc.weight)


def test_hugging_face_trainer_builds_its_optimizer_from_the_groups() -> None:
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.ViTConfig(image_size=16, patch_size=8, **small)
    model = transformers.ViTForImageClassification(config)
    groups = rewriter.param_groups(model, 0.1)
    trainer = object.__new__(transformers.Trainer)  # its constructor needs accelerate
    trainer.model, trainer.optimizer = model, None
    trainer.args = type("Arguments", (), {"weight_decay": 0.0})()
    trainer.optimizer_cls_and_kwargs = (torch.optim.AdamW, {"params": groups, "lr": 1e-3})
    optimizer = trainer.create_optimizer()
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    rewriter.check_optimizer(model, optimizer)


def test_hugging_face_trainer_trains(tmp_path: Any) -> None:
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(image_size=16, patch_size=8, **small))
    optimizer = torch.optim.AdamW(rewriter.param_groups(model, 0.1), lr=1e-3)
    data = [{"pixel_values": torch.randn(3, 16, 16), "labels": 0} for _ in range(4)]
    arguments = transformers.TrainingArguments(tmp_path, max_steps=1, report_to=[], use_cpu=True)
    transformers.Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, None)).train()
    rewriter.check_optimizer(model, optimizer)


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weight_decay": -1}, rewriter.OptimizerError, "at least 0, or None, found -1"),
        ({"weight_decay": float("nan")}, rewriter.OptimizerError, "at least 0"),
        ({"weight_decay": "0.1"}, rewriter.OptimizerError, "found '0.1'"),
        ({"gamma": "most"}, rewriter.SelectorError, "expected one of 'guideline'"),
        ({"gamma": {"last": True}}, rewriter.SelectorError, "unknown category 'last'"),
        ({"no_weight_decay": "fc.wieght"}, rewriter.SelectorError, "did you mean 'fc.weight'"),
        ({"no_weight_decay": None}, rewriter.SelectorError, "no_weight_decay: expected names .* found None"),
        ({"no_weight_decay": [3]}, rewriter.SelectorError, "no_weight_decay: expected names .* found 3"),
        ({"within": 3}, rewriter.OptimizerError, "expected a list of parameter groups, found int"),
        ({"within": [torch.zeros(1)]}, rewriter.OptimizerError, "expected dicts with 'params', found Tensor"),
        (
            {"within": []},
            rewriter.OptimizerError,
            "every trainable parameter, found none for 62 of 62: conv1.weight, bn1",
        ),
    ],
)
def test_bad_input_is_refused(resnet: nn.Module, options: dict[str, Any], error: type, message: str) -> None:
    before = snapshot(resnet)
    with pytest.raises(error, match=message):
        rewriter.param_groups(resnet, **options)
    assert_unchanged(resnet, before)


def test_a_parameter_in_two_groups_is_refused(resnet: nn.Module) -> None:
    with pytest.raises(rewriter.OptimizerError, match=r"found several for 1 of 62: fc\.bias"):
        rewriter.param_groups(resnet, within=[{"params": resnet.parameters()}, {"params": resnet.fc.bias}])


def test_a_model_with_wrapped_parts_is_refused(resnet: nn.Module) -> None:
    holds = nn.Sequential(nn.DataParallel(resnet))
    with pytest.raises(rewriter.ModelError, match=r"module '0' is wrapped in DataParallel; give its \.module"):
        rewriter.param_groups(holds, input_size=64)


# ------------------------------------------------------------------------------------------------------ check_optimizer


def test_an_optimizer_of_the_model_before_the_rewrite_is_refused_by_name() -> None:
    model = timm_model("test_resnet", drop_rate=0.2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rewritten = rewriter.rewrite(model, "dropout", input_size=64)
    with pytest.raises(rewriter.OptimizerError, match=r"conv1.*or rewrite with inplace=True") as error:
        rewriter.check_optimizer(rewritten, optimizer)
    count = len(list(model.parameters()))
    assert f"lacks {count} of {count} trainable parameters" in str(error.value)
    assert f"and {count - 5} more" in str(error.value)
    rewriter.check_optimizer(model, optimizer)
    rewriter.check_optimizer(rewritten, torch.optim.SGD(rewritten.parameters(), lr=0.1))
    inplace = rewriter.rewrite(model, "dropout", input_size=64, inplace=True)
    rewriter.check_optimizer(inplace, optimizer)


def test_what_is_missing_is_named_and_what_is_more_is_fine(resnet: nn.Module) -> None:
    model = copy.deepcopy(resnet)
    body = [p for name, p in model.named_parameters() if not name.startswith("fc")]
    optimizer = torch.optim.SGD([*body, nn.Parameter(torch.zeros(3))], lr=0.1)
    with pytest.raises(rewriter.OptimizerError, match=r"lacks 2 of 62 .*: fc.weight, fc.bias\. Build it on this model"):
        rewriter.check_optimizer(model, optimizer)
    rewriter.check_optimizer(model, [optimizer, torch.optim.AdamW(model.fc.parameters())])
    model.fc.requires_grad_(False)
    rewriter.check_optimizer(model, optimizer)


def test_a_replaced_head_is_noticed(resnet: nn.Module) -> None:
    model = copy.deepcopy(resnet)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.fc = nn.Linear(512, 5)
    with pytest.raises(rewriter.OptimizerError, match=r"fc\.weight, fc\.bias"):
        rewriter.check_optimizer(model, optimizer)


@pytest.mark.parametrize("optimizer", [None, 3, [], "sgd", nn.Linear(2, 2), [nn.Linear(2, 2)]])
def test_what_is_no_optimizer_is_refused(resnet: nn.Module, optimizer: Any) -> None:
    with pytest.raises(rewriter.OptimizerError, match="expected an optimizer"):
        rewriter.check_optimizer(resnet, optimizer)


def test_swapped_arguments_are_refused(resnet: nn.Module) -> None:
    with pytest.raises(rewriter.ModelError, match="found SGD"):
        rewriter.check_optimizer(torch.optim.SGD(resnet.parameters(), lr=0.1), resnet)


def test_groups_of_a_rewritten_model_follow_its_rewrite() -> None:
    """The policy that its report shows, on the input size that it was rewritten for."""
    model = torchvision.models.resnet18()
    rewritten = rewriter.rewrite(model, {"weight-decay": {"gamma": "exclude-all"}}, input_size=64)
    for gamma, decays in ((None, {False}), ("guideline", {True})):
        decisions = rewriter.param_groups(rewritten, gamma=gamma).decisions
        assert {decision.decays for decision in decisions if decision.category == "branch_last"} == decays


def test_a_size_that_was_changed_after_the_rewrite_is_found() -> None:
    model: Any = rewriter.rewrite(timm.create_model("vit_tiny_patch16_224", depth=2))
    before = rewriter.param_groups(model, 0.05)
    model.set_input_size(img_size=96)
    after = rewriter.param_groups(model, 0.05)
    assert [decision.decays for decision in after.decisions] == [decision.decays for decision in before.decisions]
