"""Contrastive losses and models in the ways in which libraries write them, in words of our own."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed.nn
import torch.nn.functional as F
from torch import nn


class MaskedFirst(nn.Module):
    """SimCLR: the diagonal is masked before the temperature divides, in place."""

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        z = torch.cat([F.normalize(a, dim=1), b / b.norm(dim=1, keepdim=True)])
        similarity = z @ z.T
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        similarity = similarity.masked_fill(itself, float("-inf"))
        similarity /= self.temperature
        return F.cross_entropy(similarity, torch.arange(len(z), device=z.device).roll(len(a)))


class MaskedLast(nn.Module):
    """SimCLR: the diagonal is masked after the temperature."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        z = F.normalize(torch.cat([a, b]), dim=1)
        logits = torch.mm(z, z.t()) / 0.5
        logits.fill_diagonal_(float("-inf"))
        return F.cross_entropy(logits, torch.arange(len(z), device=z.device).roll(len(a)))


class Selected(nn.Module):
    """SimCLR as first ported to torch: masks select, positives come first; it runs on real tensors only."""

    def __init__(self) -> None:
        super().__init__()
        self.criterion, self.temperature = nn.CrossEntropyLoss(), 0.07

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        n = features.shape[0] // 2
        views = torch.arange(n).repeat(2)
        positive = views.unsqueeze(0) == views.unsqueeze(1)
        features = F.normalize(features, dim=1)
        similarity = torch.matmul(features, features.T)
        others = ~torch.eye(2 * n, dtype=torch.bool)
        positive = positive[others].view(2 * n, -1)
        similarity = similarity[others].view(2 * n, -1)
        first = similarity[positive].view(2 * n, -1)
        rest = similarity[~positive].view(2 * n, -1)
        return torch.cat([first, rest], dim=1) / self.temperature

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        logits = self.logits(features)
        return self.criterion(logits, torch.zeros(len(logits), dtype=torch.long))


class MoCo(nn.Module):
    """MoCo: a queue of keys in a buffer; it returns logits and targets."""

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        self.temperature = temperature
        self.query, self.key = nn.Linear(12, 8), nn.Linear(12, 8)
        self.register_buffer("queue", F.normalize(torch.randn(8, 16), dim=0))

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q = F.normalize(self.query(a), dim=1)
        with torch.no_grad():
            k = F.normalize(self.key(b), dim=1)
        positive = torch.einsum("nc,nc->n", [q, k]).unsqueeze(-1)
        negative = torch.einsum("nc,ck->nk", [q, self.queue.clone().detach()])
        logits = torch.cat([positive, negative], dim=1)
        logits /= self.temperature
        return logits, torch.zeros(logits.shape[0], dtype=torch.long, device=logits.device)


class MoCo3(nn.Module):
    """MoCo v3: one method is called for both directions."""

    def __init__(self, temperature: float = 0.2) -> None:
        super().__init__()
        self.temperature = temperature
        self.query, self.key = nn.Linear(12, 8), nn.Linear(12, 8)

    def contrast(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        q, k = F.normalize(q, dim=1), F.normalize(k, dim=1)
        logits = torch.einsum("nc,mc->nm", [q, k]) / self.temperature
        labels = torch.arange(logits.shape[0], dtype=torch.long, device=logits.device)
        return nn.CrossEntropyLoss()(logits, labels) * (2 * self.temperature)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.contrast(self.query(a), self.key(b)) + self.contrast(self.query(b), self.key(a))


class SupCon(nn.Module):
    """SupCon: features come normalised, and the softmax is written out."""

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        b, n = features.shape[:2]
        rows = torch.cat(torch.unbind(features, dim=1), dim=0)
        logits = torch.div(torch.matmul(rows, rows.T), self.temperature)
        largest, _ = torch.max(logits, dim=1, keepdim=True)
        logits = logits - largest.detach()
        others = 1 - torch.eye(b * n, device=features.device)
        same = torch.eq(labels.view(-1, 1), labels.view(1, -1)).float().repeat(n, n) * others
        log_probability = logits - torch.log((torch.exp(logits) * others).sum(1, keepdim=True))
        return -((same * log_probability).sum(1) / same.sum(1)).mean()


class Distance(nn.Module):
    """The similarity of a library that keeps distances in modules of their own."""

    def forward(self, query: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        return torch.matmul(F.normalize(query, p=2, dim=1), F.normalize(reference, p=2, dim=1).t())


class Pairs(nn.Module):
    """NT-Xent on pairs picked out of a matrix, with exponentials written out; the distance is another module."""

    def __init__(self) -> None:
        super().__init__()
        self.distance, self.temperature = Distance(), 0.07

    def forward(self, embeddings: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        similarity = self.distance(embeddings, reference)
        positive = similarity.diagonal().unsqueeze(1) / self.temperature
        negative = similarity / self.temperature
        negative = negative.masked_fill(torch.eye(len(similarity), dtype=torch.bool), torch.finfo(negative.dtype).min)
        largest = torch.max(positive, torch.max(negative, dim=1, keepdim=True)[0]).detach()
        numerator = torch.exp(positive - largest).squeeze(1)
        denominator = torch.sum(torch.exp(negative - largest), dim=1) + numerator
        return -torch.log(numerator / denominator).mean()


class ClipLoss(nn.Module):
    """CLIP's loss apart from its model: it is given normalised features and the scale, which multiplies one side."""

    def logits(
        self, image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        per_image = scale * image @ text.T
        per_text = scale * text @ image.T
        if bias is not None:
            per_image += bias
            per_text += bias
        return per_image, per_text

    def forward(
        self, image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        per_image, per_text = self.logits(image, text, scale, bias)
        labels = torch.arange(len(image), device=image.device)
        return (F.cross_entropy(per_image, labels) + F.cross_entropy(per_text, labels)) / 2


class Gathering(ClipLoss):
    """The loss between all processes: features are gathered, with or without their gradient."""

    def __init__(self, gradient: bool) -> None:
        super().__init__()
        self.gradient = gradient

    def gathered(self, rows: torch.Tensor) -> torch.Tensor:
        if self.gradient:
            return torch.cat(torch.distributed.nn.all_gather(rows), dim=0)
        found = [torch.zeros_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(found, rows)
        found[dist.get_rank()] = rows
        return torch.cat(found)

    def forward(  # type: ignore[override]
        self, image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        return super().forward(self.gathered(image), self.gathered(text), scale)


class Towers(nn.Module):
    """CLIP's model for such a loss: it returns normalised features and a learned scale."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(12, 8), nn.Linear(10, 8)
        self.logit_scale = nn.Parameter(torch.tensor(2.659))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0)) if bias else None

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = F.normalize(self.image(image), dim=-1), F.normalize(self.text(text), dim=-1)
        scale = self.logit_scale.exp()
        return (*features, scale) if self.logit_bias is None else (*features, scale, self.logit_bias)


class Clip(nn.Module):
    """The model and the loss in one."""

    def __init__(self) -> None:
        super().__init__()
        self.towers, self.loss = Towers(), ClipLoss()

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return self.loss(*self.towers(image, text))  # type: ignore[no-any-return]


def info_nce(query: torch.Tensor, key: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    """A loss as a function."""
    query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
    similarity = query @ key.transpose(-2, -1)
    return F.cross_entropy(similarity / temperature, torch.arange(len(query), device=query.device))


def both_ways(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A loss as a function that calls another one."""
    return 0.5 * (info_nce(a, b, 0.2) + info_nce(b, a))


def clip_loss(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """A loss as a function, whose scale multiplies one side."""
    image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    logits = scale.exp() * image @ text.t()
    labels = torch.arange(len(image), device=image.device)
    return F.cross_entropy(logits, labels) + F.cross_entropy(logits.t(), labels)


class CallsTwice(nn.Module):
    """A helper function is called for both directions."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return 0.5 * (info_nce(a, b, 0.2) + info_nce(b, a))


class Calls(nn.Module):
    """A helper function is given the learned temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(12, 8), nn.Linear(10, 8)
        self.scale = nn.Parameter(torch.tensor(2.659))

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return clip_loss(self.image(image), self.text(text), self.scale)
