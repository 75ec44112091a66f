"""Losses as they are found in training code, with the faults that `numeric-safety` is about."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class ScaleInvariantLog(nn.Module):
    """The scale-invariant loss of monocular depth: the root of the variance of log differences, plus their mean²."""

    eps = 1e-3

    def forward(self, prediction: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        valid = depth > 0
        difference = torch.log(prediction[valid] + self.eps) - torch.log(depth[valid] + self.eps)
        return torch.sqrt(torch.var(difference) + 0.15 * torch.pow(torch.mean(difference), 2))


class ScaleInvariantLogBiased(ScaleInvariantLog):
    """The same as the paper's author mends it."""

    def forward(self, prediction: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        valid = depth > 0
        difference = torch.log(prediction[valid] + self.eps) - torch.log(depth[valid] + self.eps)
        squared = torch.var(difference, unbiased=False) + 0.15 * torch.pow(torch.mean(difference), 2)
        return torch.sqrt(squared + 1e-6)


class ScaleInvariantLogByMeans(nn.Module):
    """The same loss as its paper writes it: with ``weight`` 1 it is 0 for every multiple of the depth."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, prediction: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        difference = torch.log(prediction) - torch.log(depth)
        return torch.sqrt((difference**2).mean() - self.weight * difference.mean() ** 2)


class ScaleInvariantLogOfAMask(nn.Module):
    """The same where the depth is known, by a power."""

    def forward(self, prediction: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        valid = depth > 0
        number = valid.sum()
        logs = torch.log(prediction) - torch.log(torch.where(valid, depth, 1))
        difference = torch.where(valid, logs, 0)
        return (difference.pow(2).sum() / number - (difference.sum() / number) ** 2) ** 0.5


class CrossEntropy(nn.Module):
    """Binary cross entropy, written out."""

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        p = torch.sigmoid(x)
        return -(target * torch.log(p) + (1 - target) * torch.log(1 - p)).mean()


class FocalByMethods(nn.Module):
    """A focal loss, with tensor methods, whose input is assigned again."""

    gamma = 2.0

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        x = x.sigmoid()
        positive = -((1 - x) ** self.gamma) * target * x.log()
        negative = -(x**self.gamma) * (1 - target) * (1 - x).log()
        return (positive + negative).sum()


class FocalByModules(nn.Module):
    """A focal loss with a layer as its sigmoid, on logits that it scales, with log1p."""

    def __init__(self) -> None:
        super().__init__()
        self.activation, self.scale = nn.Sigmoid(), nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        p = self.activation(self.scale * x)
        return -(target * p.log() + (1.0 - target) * torch.log1p(-p)).mean()


class Nested(nn.Module):
    """Without names."""

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return -(target * torch.log(F.sigmoid(x)) + (1 - target) * torch.log(1 - torch.sigmoid(x))).mean()


def binary_focal(x: torch.Tensor, target: torch.Tensor, gamma: float = 2.0) -> torch.Tensor:
    """A focal loss as a function."""
    p = torch.sigmoid(x * 1.0)
    return -(target * (1 - p) ** gamma * p.log() + (1 - target) * p**gamma * (1 - p).log()).mean()


class CallsAFunction(nn.Module):
    """A loss that calls a function."""

    gamma = 2.0

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return binary_focal(x, target, gamma=self.gamma)


class Adversarial(nn.Module):
    """Binary cross entropy of probabilities, level by level."""

    def __init__(self, weight: torch.Tensor | None = None) -> None:
        super().__init__()
        self.criterion = nn.BCELoss(weight)

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        total = x.new_zeros(())
        for level in (x, 2 * x):
            p = torch.sigmoid(level)
            total = total + self.criterion(p, target)
        return total


class FunctionalCrossEntropy(nn.Module):
    """The function, with arguments of its own."""

    reduction = "sum"

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        p = torch.sigmoid(x)
        return F.binary_cross_entropy(p, target, weight=1 + target, reduction=self.reduction)


class RootMeanSquare(nn.Module):
    """The root of a mean squared error."""

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.sqrt(F.mse_loss(x, target))


class Contrastive(nn.Module):
    """Hadsell's contrastive loss on Euclidean distances, by a power."""

    margin, half = 1.0, 0.5

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        distance = (x - other).pow(2).sum(1) ** self.half
        return (distance + (self.margin - distance).clamp(min=0) ** 2).mean()


class GradientMagnitude(nn.Module):
    """The length of the gradient of an image, as edge losses have it."""

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (self.length(x) - self.length(target)).abs().mean()

    def length(self, x: torch.Tensor) -> torch.Tensor:
        across, down = x[:, 1:] - x[:, :-1], x[1:] - x[:-1]
        return (across[:-1] ** 2 + down[:, :-1] ** 2).sqrt()


class MeansOfSquares(nn.Module):
    """A variance as a difference of means."""

    dims = (1,)

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        variance = x.pow(2).mean(self.dims, keepdim=True) - x.mean(self.dims, keepdim=True) ** 2
        return ((variance - target.var(1, correction=0, keepdim=True)) ** 2).mean()


class Spread(nn.Module):
    """The deviation of what a mask selects."""

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return x[target > 0.5].std() + x.mean()


class SafeForms(nn.Module):
    """What looks like the faults and is none: value and gradient are finite at every finite input."""

    eps, minimum = 1e-6, 1e-4

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        p = torch.sigmoid(x)
        bounded = p.clamp(self.minimum, 1 - self.minimum)
        terms = [
            torch.log(p + self.eps), torch.log(1 - p + self.eps), bounded.log(), torch.log(1 - bounded),
            F.logsigmoid(x), F.binary_cross_entropy_with_logits(x, target), F.binary_cross_entropy(target, target),
            torch.sqrt((x - target).pow(2).sum() + self.eps), (x - target).pow(2).mean().clamp(min=self.eps).sqrt(),
            torch.norm(x - target), (x - target).norm(dim=1), torch.linalg.norm(x), torch.linalg.vector_norm(x),
            x.std(), torch.std(x - x), x.var(1), torch.cdist(x, target), F.pairwise_distance(x, x),
            F.normalize(x), F.cosine_similarity(x, target), (x.pow(2).mean() + self.eps) ** 0.5, x.pow(2).mean() ** 1.5,
            torch.sqrt(target.sum()), torch.sqrt(x.detach().pow(2).sum()), x[target > 0.5].var(unbiased=False),
            torch.sqrt(F.softplus(x).sum() + 1), torch.sqrt(1 + x.pow(2).mean()),
            torch.sqrt(((x**2).sum(1)[:, None] + (x**2).sum(1)[None] - 2 * x @ x.t()).clamp(min=0)),
        ]  # fmt: skip
        with torch.no_grad():
            terms.append(torch.sqrt((x - target).pow(2).sum()))
        return sum(term.sum() for term in terms)


class GuardsTooSmall(nn.Module):
    """Guards that single precision does not see: 1 - 1e-8 is 1, and so is 1 + 1e-8."""

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        p = torch.sigmoid(x)
        bounded = p.clamp(1e-8, 1 - 1e-8)
        return (torch.log(1 - bounded) * (1 - target) + torch.log(1 + 1e-8 - p) * target).mean()


class Divides(nn.Module):
    """Roots that divide: what is divided is nan at zero, with a finite gradient of the root or without."""

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        by_root = x / torch.sqrt(x.pow(2).mean(1, keepdim=True))
        by_inverse = x * torch.rsqrt(x.pow(2).mean(1, keepdim=True))
        by_power = x * x.pow(2).mean(1, keepdim=True) ** -0.5
        guarded = x / (x.pow(2).mean(1, keepdim=True).sqrt() + 1e-6)
        return (by_root + by_inverse + by_power + guarded - target).mean()


class Elsewhere(nn.Module):
    """Sigmoids whose inputs the code around the logarithm does not have, or that come in another shape or type."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(6, 6), nn.Sigmoid())

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        p = torch.sigmoid(x)
        terms = (torch.log(self.head(x)) * target, torch.log(p.view(-1)), torch.log(p[target > 0.5]), p.double().log())
        return -sum(term.float().mean() for term in terms)


def unit_length(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Rows of length one, by a root."""
    return (x / x.pow(2).sum(-1, keepdim=True).sqrt() * target).sum()


def unit_length_by_power(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The same by a power, step by step."""
    squares = torch.pow(x, 2)
    length = torch.pow(torch.sum(squares, dim=-1), 0.5)
    return (x / length.unsqueeze(-1) * target).sum()


def unit_length_by_inverse(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The same by an inverse root."""
    return (x * torch.rsqrt((x * x).sum(-1, keepdim=True)) * target).sum()


def length_of_another(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The length of one tensor divides another."""
    return (target / x.pow(2).sum(-1, keepdim=True).sqrt()).sum()


def length_read_twice(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The length divides its tensor, and is a term of the loss."""
    length = x.pow(2).sum(-1, keepdim=True).sqrt()
    return (x / length * target).sum() + length.mean()


def by_keyword(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """A logarithm whose argument is given by name."""
    return (torch.log(input=torch.sigmoid(x)) * target).sum()


def to_other_bases(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Logarithms to the bases 2 and 10."""
    p = torch.sigmoid(x)
    return (torch.log2(p) * target + torch.log10(1 - p) * (1 - target)).sum()


def ones_less(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The complement by a tensor of ones."""
    p = torch.sigmoid(x)
    return (torch.log(torch.ones_like(p) - p) * target).sum()


def of_another_type(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """A change of the type that changes no value."""
    return (torch.log(torch.sigmoid(x).float()) * target).sum()


def divided(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """A sigmoid beside a prior."""
    q = torch.sigmoid(x)
    return (torch.log(q / 0.05) * target).sum()


def by_an_inner_function(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """A logarithm in a function that is defined in the loss."""

    def nll(p: torch.Tensor) -> torch.Tensor:
        return -torch.log(p)

    return (nll(torch.sigmoid(x)) * target).sum()
