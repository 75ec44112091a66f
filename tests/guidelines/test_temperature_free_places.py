"""Which spellings of a cosine similarity are recognised, and in which models of transformers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

import rewriter
from rewriter.testing import check_contract

X = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))

Tensors = Callable[..., torch.Tensor]

UNIT: dict[str, Tensors] = {
    "normalize": lambda x: F.normalize(x, dim=-1),
    "norm": lambda x: x / x.norm(dim=-1, keepdim=True),
    "norm, p=2": lambda x: x / torch.norm(x, p=2, dim=1, keepdim=True),
    "norm, expanded": lambda x: x / x.norm(p=2, dim=1).unsqueeze(1).expand_as(x),
    "linalg.norm": lambda x: x / torch.linalg.norm(x, dim=-1, keepdim=True).clamp_min(1e-6),
    "vector_norm": lambda x: x.div(torch.linalg.vector_norm(x, dim=-1, keepdim=True)),
    "in place": lambda x: x.clone().div_(x.norm(dim=-1, keepdim=True)),
    "root of the sum of squares": lambda x: x / torch.pow(torch.pow(x, 2).sum(dim=-1, keepdim=True), 0.5),
    "sqrt": lambda x: x / ((x * x).sum(-1, keepdim=True) + 1e-12).sqrt(),
    "rsqrt": lambda x: x * torch.rsqrt(x.square().sum(-1, keepdim=True)),
    "reciprocal": lambda x: x * x.norm(dim=-1, keepdim=True).reciprocal(),
    "one over": lambda x: (1 / x.norm(dim=-1, keepdim=True)) * x,
    "in parts": lambda x: torch.cat([F.normalize(x[:2], dim=1), F.normalize(x[2:], dim=1)]),
    "half and back": lambda x: F.normalize(x.double(), dim=1).float().contiguous(),
}

OTHER: dict[str, Tensors] = {
    "nothing": lambda x: x,
    "sum of absolutes": lambda x: F.normalize(x, p=1.0, dim=1),
    "norm of order 1": lambda x: x / x.norm(p=1, dim=1, keepdim=True),
    "sum of squares": lambda x: x / x.square().sum(1, keepdim=True),
    "the other dimension": lambda x: F.normalize(x, dim=0),
    "norm of something else": lambda x: x / (x + 1).norm(dim=1, keepdim=True),
    "multiplied by the norm": lambda x: x * x.norm(dim=1, keepdim=True),
    "layer norm": lambda x: F.layer_norm(x, (8,)),
    "a part of the vector": lambda x: F.normalize(torch.cat([x, x], dim=1), dim=1)[:, :8],
}

PRODUCTS: dict[str, Tensors] = {
    "@": lambda a, b: a @ b.T,
    "mm": lambda a, b: torch.mm(a, b.t()),
    "bmm": lambda a, b: torch.bmm(a.unsqueeze(0), b.unsqueeze(0).transpose(1, 2)).squeeze(0),
    "einsum": lambda a, b: torch.einsum("nc,mc->nm", a, b),
    "linear": lambda a, b: F.linear(a, b),
    "sum of a product": lambda a, b: (a.unsqueeze(1) * b.unsqueeze(0)).sum(-1),
    "cosine_similarity": lambda a, b: F.cosine_similarity(a.unsqueeze(1), b.unsqueeze(0), dim=-1),
    "by name": lambda a, b: F.cosine_similarity(x1=a.unsqueeze(1), x2=b.unsqueeze(0), dim=-1),
}


class Contrast(nn.Module):
    """Two linear towers, whatever makes their vectors unit vectors, a product and a temperature."""

    def __init__(self, unit: Tensors, product: Tensors = PRODUCTS["@"]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 8), nn.Linear(12, 8)
        self.unit, self.product = unit, product

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.unit(self.first(x)), self.unit(self.second(x))
        return F.cross_entropy(self.product(a, b) / 0.1, torch.arange(len(x)))


def sites(model: nn.Module) -> int:
    plan = rewriter.plan(model, "temperature-free", example_inputs=X)
    assert not plan.skipped
    return len(plan.sites)


@pytest.mark.parametrize("way", UNIT)
def test_ways_to_normalise(way: str) -> None:
    made = UNIT[way](torch.randn(4, 8))
    torch.testing.assert_close(made.norm(dim=1), torch.ones(4))
    assert sites(Contrast(UNIT[way])) == 1


@pytest.mark.parametrize("way", OTHER)
def test_what_gives_no_unit_vectors_is_no_cosine(way: str) -> None:
    made = OTHER[way](torch.randn(4, 8))
    assert ((made.norm(dim=1) - 1).abs() > 1e-2).any()
    assert sites(Contrast(OTHER[way])) == 0


@pytest.mark.parametrize("way", PRODUCTS)
def test_ways_to_multiply(way: str) -> None:
    model = Contrast(UNIT["normalize"], PRODUCTS[way])
    rewritten = rewriter.rewrite(model, "temperature-free", example_inputs=X)
    a, b = F.normalize(model.first(X), dim=1), F.normalize(model.second(X), dim=1)
    torch.testing.assert_close(rewritten(X), F.cross_entropy(2 * torch.atanh(a @ b.T), torch.arange(4)))


class Chosen(nn.Module):
    """Two ways through the code: both are edited."""

    def __init__(self) -> None:
        super().__init__()
        self.symmetric, self.temperature = False, 0.1

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
        if self.symmetric:
            logits = a @ b.T / self.temperature
            return (F.cross_entropy(logits, torch.arange(len(a))) + F.cross_entropy(logits.T, torch.arange(len(a)))) / 2
        logits = a @ b.T / self.temperature
        return F.cross_entropy(logits, torch.arange(len(a)))


def test_a_way_that_did_not_run_is_edited_too() -> None:
    views = X, X.flip(0)
    model = check_contract(Chosen(), "temperature-free", example_inputs=views, must_find=True)
    cosines = F.normalize(views[0], dim=1) @ F.normalize(views[1], dim=1).T
    logits = 2 * torch.atanh(cosines.clamp(1e-6 - 1, 1 - 1e-6))
    labels = torch.arange(4)
    torch.testing.assert_close(model(*views), F.cross_entropy(logits, labels))
    model.symmetric = True
    both = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(model(*views), both)


MODELS: dict[str, tuple[int, list[str], list[str]]] = {
    # the side of its images, the parameters that are frozen, and why it is left alone
    "ChineseCLIPModel": (224, ["logit_scale"], []),
    "GroupViTModel": (224, ["logit_scale"], []),
    "BlipModel": (384, ["logit_scale"], []),
    "SiglipModel": (224, [], ["temperature-free/sigmoid-loss"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_models_of_transformers(name: str) -> None:
    side, frozen, skipped = MODELS[name]
    cls = getattr(transformers, name)
    with torch.device("meta"):
        model = cls(cls.config_class())
        inputs = {"input_ids": torch.ones(2, 8, dtype=torch.long), "pixel_values": torch.empty(2, 3, side, side)}
    plan = rewriter.plan(model, "temperature-free", example_inputs={**inputs, "return_loss": True})
    assert [edit.name for edit in plan.edits if edit.kind == "freeze"] == frozen
    assert [str(skip.reason) for skip in plan.skipped] == skipped
    assert len(plan.sites) == len(frozen)
