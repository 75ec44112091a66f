"""A segmentation model with equalized fusions: rewrite, calibrate, train, fold."""

from __future__ import annotations

import segmentation_models_pytorch as smp
import torch
from torch.utils.data import DataLoader, TensorDataset

import rewriter


def main() -> None:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(16, 3, 128, 128), torch.randint(0, 4, (16, 128, 128)))
    loader = DataLoader(data, batch_size=4, shuffle=True)
    model = smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=4)

    model = rewriter.rewrite(model, input_size=128)
    rewriter.calibrate(model, loader)
    print(rewriter.report(model))

    groups = rewriter.param_groups(model, weight_decay=1e-4, input_size=128)
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9)
    rewriter.check_optimizer(model, optimizer)
    for step, (images, labels) in enumerate(loader):
        loss = torch.nn.functional.cross_entropy(model.train()(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {loss.item():.3f}")

    folded = rewriter.fold(model.eval())
    with torch.no_grad():
        difference = (folded(images) - model(images)).abs().max() / model(images).abs().max()
    print(f"folded: outputs differ by {difference:.1e} of the largest")


if __name__ == "__main__":
    main()
