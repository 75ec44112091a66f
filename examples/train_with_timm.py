"""Where in a training script to rewrite: after the model and its checkpoint, before optimizer, EMA and compile."""

from __future__ import annotations

from functools import partial

import timm
import torch
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3

import rewriter


def main() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", drop_rate=0.2, num_classes=10)

    model = rewriter.rewrite(model)
    print(rewriter.report(model))

    groups = partial(rewriter.param_groups, weight_decay=0.05)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, param_group_fn=groups)
    rewriter.check_optimizer(model, optimizer)
    ema = ModelEmaV3(model)
    images, labels = torch.randn(16, 3, 64, 64), torch.randint(0, 10, (16,))
    for step in range(3):
        loss = torch.nn.functional.cross_entropy(model.train()(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model)
        print(f"step {step}: loss {loss.item():.3f}")

    rewriter.undo(model, inplace=True)
    print("undone:", type(model).__name__)


if __name__ == "__main__":
    main()
