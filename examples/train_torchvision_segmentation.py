"""The loop of torchvision's references/segmentation: auxiliary loss, groups of its own, polynomial learning rate."""

from __future__ import annotations

import shared
import torch
import torchvision
from torch.nn import functional

import rewriter


def criterion(outputs: dict[str, torch.Tensor], classes: torch.Tensor) -> torch.Tensor:
    losses = {name: functional.cross_entropy(output, classes, ignore_index=255) for name, output in outputs.items()}
    return losses["out"] + 0.5 * losses["aux"]


def main() -> None:
    options = shared.parsed_options(__doc__)
    dataset, test = shared.slices_of_a_head()
    checkpoint = options.run / "checkpoint.pth"

    model = torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3, aux_loss=True
    )
    model = rewriter.rewrite(model, input_size=64, plan_file=options.run / "rewrite-plan.json")
    if not checkpoint.exists():
        rewriter.calibrate(model, shared.batches_of(dataset, epoch=0), progress=False)

    theirs = [
        {"params": list(model.backbone.parameters())},
        {"params": list(model.classifier.parameters())},
        {"params": list(model.aux_classifier.parameters()), "lr": 0.01 * 10},
    ]
    groups = rewriter.param_groups(model, weight_decay=1e-4, within=theirs)  # each divided in two
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9)
    rewriter.check_optimizer(model, optimizer)
    steps = options.epochs * len(shared.batches_of(dataset, 0))
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=steps, power=0.9)

    start = 0
    if checkpoint.exists():
        kept = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        schedule.load_state_dict(kept["lr_scheduler"])
        start = kept["epoch"] + 1
    for epoch in range(options.epochs if options.evaluate else start, options.epochs):
        batches = shared.batches_of(dataset, epoch)
        for step, (images, classes) in enumerate(batches, epoch * len(batches)):
            loss = criterion(model.train()(images), classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            shared.tell_loss(step, loss)
        parts = {"model": model, "optimizer": optimizer, "lr_scheduler": schedule}
        shared.save_whole({name: part.state_dict() for name, part in parts.items()} | {"epoch": epoch}, checkpoint)
    with torch.no_grad():
        shared.tell_logits(model.eval()(test)["out"])


if __name__ == "__main__":
    main()
