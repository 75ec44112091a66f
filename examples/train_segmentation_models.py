"""A model of segmentation_models_pytorch: rewrite, calibrate, train with the Dice loss, publish, fold for export."""

from __future__ import annotations

import segmentation_models_pytorch as smp
import shared
import torch

import rewriter


def main() -> None:
    options = shared.parsed_options(__doc__)
    dataset, test = shared.slices_of_a_head()
    checkpoint, published = options.run / "checkpoint.pth", options.run / "published"

    if options.evaluate:
        model = rewriter.from_pretrained(smp.DeepLabV3Plus, published)
        with torch.no_grad():
            shared.tell_logits(model(test))
        return
    model = smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=3)
    model = rewriter.rewrite(model, input_size=64, plan_file=options.run / "rewrite-plan.json")
    if not checkpoint.exists():
        rewriter.calibrate(model, shared.batches_of(dataset, epoch=0), progress=False)
    optimizer = torch.optim.Adam(rewriter.param_groups(model, weight_decay=1e-4), lr=2e-4)
    rewriter.check_optimizer(model, optimizer)
    criterion = smp.losses.DiceLoss(smp.losses.MULTICLASS_MODE)

    start = 0
    if checkpoint.exists():
        kept = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        start = kept["epoch"] + 1
    for epoch in range(start, options.epochs):
        batches = shared.batches_of(dataset, epoch, batch_size=8)
        for step, (images, classes) in enumerate(batches, epoch * len(batches)):
            loss = criterion(model.train()(images), classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            shared.tell_loss(step, loss)
        parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
        shared.save_whole(parts, checkpoint)

    rewriter.save_pretrained(model.eval(), published)
    folded = rewriter.fold(model)
    with torch.no_grad():
        logits = model(test)
        difference = (folded(test) - logits).abs().max() / logits.abs().max()
    print(f"folded: logits differ by {difference:.1e} of the largest")
    shared.tell_logits(logits)


if __name__ == "__main__":
    main()
