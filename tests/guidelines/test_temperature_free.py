"""Log-odds in the place of temperatures: which losses and models, what stays, and what is left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers
from contrastive_losses import (
    Calls,
    CallsTwice,
    Clip,
    ClipLoss,
    MaskedFirst,
    MaskedLast,
    MoCo,
    MoCo3,
    Pairs,
    Selected,
    SupCon,
    Towers,
    both_ways,
    clip_loss,
    info_nce,
)
from helpers import assert_golden
from ranks import run_ranks
from torch import nn

import rewriter
from rewriter.passes import TemperatureFree
from rewriter.passes.temperature_free import LogOdds, TemperatureFreeInfoNCE
from rewriter.reasons import Reason
from rewriter.testing import check_contract

PASS = "temperature-free"


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(noise(*shape, seed=seed), dim=-1)


VIEWS = noise(4, 8), noise(4, 8, seed=1)
IMAGES = noise(4, 12), noise(4, 12, seed=1)
PAIRS = noise(4, 12), noise(4, 10, seed=1)
FEATURES = unit(4, 8), unit(4, 8, seed=1)

FOUND: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...], list[str]]] = {
    # the loss, what it is called with, and the parameters that are frozen
    "masked before": (MaskedFirst, VIEWS, []),
    "masked after": (MaskedLast, VIEWS, []),
    "selected": (Selected, (noise(8, 6),), []),
    "queue": (MoCo, IMAGES, []),
    "one method twice": (MoCo3, IMAGES, []),
    "supervised": (SupCon, (unit(4, 2, 8), torch.tensor([0, 0, 1, 1])), []),
    "pairs, distance in a module": (Pairs, VIEWS, []),
    "clip, loss alone": (ClipLoss, (*FEATURES, torch.tensor(14.3)), []),
    "clip, model alone": (Towers, PAIRS, ["logit_scale"]),
    "clip": (Clip, PAIRS, ["towers.logit_scale"]),
    "helper called twice": (CallsTwice, VIEWS, []),
    "helper with a learned scale": (Calls, PAIRS, ["scale"]),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return FOUND[name][0]()


def tiny_clip() -> nn.Module:
    torch.manual_seed(0)
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**text, "image_size": 16, "patch_size": 8}
    text |= {"vocab_size": 50, "max_position_embeddings": 8, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))


def clip_inputs(count: int = 4) -> dict[str, Any]:
    ids = torch.randint(3, 50, (count, 8), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "pixel_values": noise(count, 3, 16, 16), "return_loss": True}


@pytest.mark.parametrize("name", FOUND)
def test_losses_are_found_and_keep_the_contract(name: str) -> None:
    _, inputs, frozen = FOUND[name]
    original = made(name)
    model = check_contract(original, PASS, example_inputs=inputs, must_find=True)
    kept = {key for key, p in original.named_parameters() if p.requires_grad}
    assert kept - {key for key, p in model.named_parameters() if p.requires_grad} == set(frozen)
    assert all(p.requires_grad for p in rewriter.undo(model).parameters())
    assert len(rewriter.report(model).applied) == 1


LOSSES = {
    "masked before": ("all", VIEWS),
    "masked after": ("all", VIEWS),
    "clip, loss alone": ("symmetric", FEATURES),
}


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_rewritten_is_the_loss_of_the_paper(name: str) -> None:
    contrast, sides = LOSSES[name]
    model = rewriter.rewrite(made(name), PASS, example_inputs=FOUND[name][1])
    expected = TemperatureFreeInfoNCE(contrast)(*sides)  # type: ignore[arg-type]
    torch.testing.assert_close(model(*FOUND[name][1]), expected, rtol=1e-5, atol=1e-6)


def test_a_mask_of_before_the_temperature_stays_a_mask() -> None:
    model = rewriter.rewrite(MaskedFirst(), PASS, example_inputs=VIEWS)
    z = F.normalize(torch.cat(VIEWS), dim=1)
    logits = 2 * torch.atanh((z @ z.T).clamp(-1 + 1e-6, 1 - 1e-6))
    without = F.cross_entropy(logits, torch.arange(8).roll(4))  # each row would be its own best match
    assert abs(model(*VIEWS) - without) > 1


@pytest.mark.parametrize("name", ["masked before", "masked after"])
def test_gradients_are_finite_though_rows_are_more_alike_to_themselves_than_one(name: str) -> None:
    torch.manual_seed(0)
    views = torch.randn(32, 48), torch.randn(32, 48)
    rows = F.normalize(torch.cat(views), dim=1)
    assert ((rows @ rows.T).diagonal() > 1).sum() > 5
    model = rewriter.rewrite(made(name), PASS, example_inputs=views)
    views[0].requires_grad_()
    loss = model(*views)
    loss.backward()
    assert loss.isfinite() and views[0].grad is not None
    assert views[0].grad.isfinite().all() and views[0].grad.abs().sum() > 0


def test_the_factor_is_an_option_and_can_be_set_later() -> None:
    logits = {}
    for scale in (1.0, 2.0):
        model = rewriter.rewrite(made("queue"), TemperatureFree(scale=scale), example_inputs=IMAGES)
        logits[scale] = model(*IMAGES)[0]
    torch.testing.assert_close(2 * logits[1.0], logits[2.0])
    (layer,) = (module for module in model.modules() if isinstance(module, LogOdds))
    layer.scale = 1.0
    torch.testing.assert_close(model(*IMAGES)[0], logits[1.0])


@pytest.mark.parametrize("scale", [0, -1, "2", True, float("inf"), float("nan")])
def test_a_factor_that_is_none_is_refused(scale: Any) -> None:
    with pytest.raises(ValueError, match="scale: expected a number above 0"):
        TemperatureFree(scale=scale)


@pytest.mark.slow
def test_hugging_face_clip_trains_loads_and_goes_back() -> None:
    original, inputs = tiny_clip(), clip_inputs()
    model = check_contract(original, PASS, example_inputs=inputs, must_find=True)
    assert not model.logit_scale.requires_grad and torch.equal(model.logit_scale, original.logit_scale)
    assert "logit_scale" in model.state_dict() and "logit_scale" in rewriter.original_state_dict(model)
    given = model.eval()(**inputs)
    cosines = given.text_embeds @ given.image_embeds.T
    torch.testing.assert_close(given.logits_per_text, 2 * torch.atanh(cosines))
    ranks = given.logits_per_text.argsort(1)
    assert torch.equal(ranks, original.eval()(**inputs).logits_per_text.argsort(1))  # which image fits best

    groups = rewriter.param_groups(model, weight_decay=0.05)
    assert not any(p is model.logit_scale for group in groups for p in group["params"])
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    rewriter.check_optimizer(model, optimizer)
    losses = []
    for _ in range(20):
        loss = model.train()(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)  # as training scripts do
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2 and model.logit_scale.grad is None
    assert rewriter.undo(model).logit_scale.requires_grad


FUNCTIONS: dict[str, tuple[Callable[..., torch.Tensor], tuple[Any, ...]]] = {
    "info_nce": (info_nce, VIEWS),
    "a helper's caller": (both_ways, VIEWS),
    "clip_loss, given the scale": (clip_loss, (*VIEWS, torch.tensor(2.659))),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_plain_functions_are_rewritten_too(name: str) -> None:
    function, inputs = FUNCTIONS[name]
    before = function(*inputs)
    rewritten = rewriter.rewrite(function, PASS, example_inputs=inputs)
    logits = 2 * torch.atanh(F.normalize(inputs[0], dim=1) @ F.normalize(inputs[1], dim=1).T)
    labels = torch.arange(len(logits))
    one, other = F.cross_entropy(logits, labels), F.cross_entropy(logits.T, labels)
    expected = {"info_nce": one, "a helper's caller": (one + other) / 2}.get(name, one + other)
    torch.testing.assert_close(rewritten(*inputs), expected)
    assert torch.equal(function(*inputs), before)
    assert torch.equal(rewriter.undo(rewritten)(*inputs), before)


def test_the_contract_says_that_the_temperature_is_frozen() -> None:
    assert TemperatureFree.contract.freezes_parameters and TemperatureFree.contract.gradients
    assert "a gradient for every parameter that is not frozen" in str(TemperatureFree.contract)
    model = rewriter.rewrite(made("clip"), PASS, example_inputs=PAIRS)
    assert "freeze towers.logit_scale" in str(rewriter.report(model))


def test_a_temperature_that_was_frozen_stays_frozen_after_undo() -> None:
    model = made("clip")
    model.towers.logit_scale.requires_grad_(False)  # type: ignore[union-attr]
    rewritten = rewriter.rewrite(model, PASS, example_inputs=PAIRS)
    assert "freeze" not in str(rewriter.report(rewritten))
    assert not rewriter.undo(rewritten).towers.logit_scale.requires_grad  # type: ignore[union-attr]


class AlsoPenalised(Towers):
    """The temperature is trained by something else, too."""

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, ...]:
        a, b, scale = super().forward(image, text)
        return scale * a @ b.T, (a * self.logit_scale.view(1, 1)).relu()


def test_a_temperature_that_is_read_elsewhere_goes_on_training() -> None:
    model = rewriter.rewrite(AlsoPenalised(), PASS, example_inputs=PAIRS)
    assert model.logit_scale.requires_grad
    assert "logit_scale is read elsewhere and goes on training" in str(
        rewriter.plan(AlsoPenalised(), PASS, example_inputs=PAIRS)
    )


class Attention(nn.Module):
    """Cosine attention: a learned scale before a softmax, as in Swin V2, and no loss."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.proj = nn.Parameter(torch.tensor(1.0)), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = F.normalize(x, dim=-1)
        return self.proj(((q @ q.transpose(-2, -1)) * self.scale.exp()).softmax(-1) @ x)


class Classifier(nn.Module):
    """A cosine classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1)) / 0.05


class Distilled(ClipLoss):
    """One method makes the logits of the student and of the teacher."""

    def forward(self, image, text, scale, other_image, other_text, other_scale):  # type: ignore[no-untyped-def, override]
        student, _ = self.logits(image, text, scale)
        teacher, _ = self.logits(other_image, other_text, other_scale)
        return -(teacher.softmax(-1) * student.log_softmax(-1)).sum(1).mean()


class Mixed(nn.Module):
    """One temperature for cosines and for what is none."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        cosines = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
        return F.cross_entropy(torch.cat([cosines, a], dim=1) / 0.1, torch.arange(len(a)))


class Weighted(nn.Module):
    """A softmax of detached cosines weights samples; it is no loss."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
        weight = torch.softmax((a.detach() * b.detach()).sum(1) / 0.5, dim=0)
        return (weight * (a - b).square().sum(1)).sum()


SCALE, BIAS = torch.tensor(14.3), torch.tensor(-10.0)
LEFT: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...], str, str]] = {
    "sigmoid": (ClipLoss, (*FEATURES, SCALE, BIAS), "temperature-free/sigmoid-loss", "a bias is added to the logits"),
    "returned bias": (lambda: Towers(bias=True), PAIRS, "temperature-free/sigmoid-loss", "a scale and a bias"),
    "not normalised": (ClipLoss, (*VIEWS, SCALE), "temperature-free/not-normalised", "give example_inputs"),
    "classifier": (Classifier, (noise(4, 8),), "temperature-free/classifier", "a learned weight"),
    "teacher": (
        Distilled,
        (*FEATURES, SCALE, *FEATURES, SCALE + 1),
        "temperature-free/several-temperatures",
        "teacher",
    ),
    "mixed": (Mixed, VIEWS, "temperature-free/not-all-cosines", "input_0, which is no cosine"),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_alone_and_why(name: str) -> None:
    create, inputs, reason, detail = LEFT[name]
    plan = rewriter.plan(create(), PASS, example_inputs=inputs)
    assert not plan.sites and [str(skip.reason) for skip in plan.skipped] == [reason]
    assert detail in plan.skipped[0].detail


@pytest.mark.parametrize(
    ("model", "inputs"), [(Attention(), noise(2, 4, 8)), (Weighted(), VIEWS), (nn.Linear(8, 8), VIEWS[0])]
)
def test_what_is_no_contrast_is_not_even_mentioned(model: nn.Module, inputs: Any) -> None:
    plan = rewriter.plan(model, PASS, example_inputs=inputs)
    assert not plan.sites and not plan.skipped


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["swinv2_tiny_window8_256", "xcit_nano_12_p16_224", "vit_base_patch16_clip_224", "resnet18"]
)
def test_cosine_attention_of_timm_is_not_even_mentioned(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    plan = rewriter.plan(model, PASS)
    assert not plan.sites and not plan.skipped


def test_a_second_rewrite_says_that_it_is_done() -> None:
    model = rewriter.rewrite(made("clip"), PASS, example_inputs=PAIRS)
    plan = rewriter.plan(model, PASS, example_inputs=PAIRS)
    assert not plan.sites and {skip.reason for skip in plan.skipped} == {Reason.ALREADY_DONE}


@pytest.mark.parametrize(("name", "codes"), [("masked after", ["RW1201"]), ("clip, model alone", ["RW1202"])])
def test_check_finds_temperatures_as_notes(name: str, codes: list[str]) -> None:
    findings = rewriter.check(made(name), PASS, example_inputs=FOUND[name][1])
    assert [finding.code for finding in findings] == codes
    assert all(finding.severity == "note" and finding.fixable for finding in findings)
    assert all(finding.file.endswith("contrastive_losses.py") and finding.line for finding in findings)
    assert not findings.faults


GOLDEN = {
    "transformers-clip": (tiny_clip, clip_inputs),
    "simclr": (MaskedFirst, lambda: VIEWS),
    "clip-model-and-loss": (Clip, lambda: PAIRS),
    "helper-function": (Calls, lambda: PAIRS),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_plan_reads_as_written_down(name: str) -> None:
    create, inputs = GOLDEN[name]
    model = create()
    plan = rewriter.plan(model, PASS, example_inputs=inputs())  # type: ignore[no-untyped-call]
    assert_golden(f"temperature-free/{name}", f"{plan}\n\n{plan.diff(model)}")


@pytest.mark.slow
def test_the_rewritten_model_compiles_and_exports() -> None:
    model = rewriter.rewrite(made("clip"), PASS, example_inputs=PAIRS)
    expected = model(*PAIRS)
    exported = torch.export.export(model, PAIRS).module()
    torch.testing.assert_close(exported(*PAIRS), expected)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager")(*PAIRS), expected)


DISTRIBUTED = """
sys.path.insert(0, {folder!r})
import torch.nn.functional as F
from contrastive_losses import Clip, Gathering
from rewriter.passes.temperature_free import TemperatureFreeInfoNCE
from torch.nn.parallel import DistributedDataParallel

def steps(model):
    wrapped = DistributedDataParallel(model)
    for step in range(3):
        wrapped(torch.randn(4, 12), torch.randn(4, 10)).backward()
    return "trained"

inputs = (torch.randn(4, 12), torch.randn(4, 10))
free = rewriter.rewrite(Clip(), "temperature-free", example_inputs=inputs)
print(steps(free))
free.towers.logit_scale.requires_grad_()
try:
    print(steps(free))
except RuntimeError as error:
    print("unused" if "did not receive grad" in str(error) or "not used in producing loss" in str(error) else error)

everything = [F.normalize(torch.randn(8, 6, generator=torch.Generator().manual_seed(n)), dim=1) for n in (0, 1)]
own = [rows[4 * rank : 4 * rank + 4] for rows in everything]
for gradient in (True, False):
    loss = rewriter.rewrite(
        Gathering(gradient), "temperature-free", example_inputs=(*own, torch.tensor(14.3)), verify=False
    )
    print(torch.allclose(loss(*own, torch.tensor(1.0)), TemperatureFreeInfoNCE("symmetric")(*everything)))
"""


@pytest.mark.slow
def test_in_several_processes_nothing_is_unused_and_gathered_features_are_found(tmp_path: Any) -> None:
    from pathlib import Path

    script = DISTRIBUTED.format(folder=str(Path(__file__).parent))
    for printed in run_ranks(script, tmp_path):
        assert printed == ["trained", "unused", "True", "True"]
