"""What timm's train.py does, with timm's own parts: two lines make it rewrite, checkpoint and resume."""

from __future__ import annotations

import argparse

import shared
import timm
import torch
from timm.models import load_checkpoint, resume_checkpoint
from timm.utils import CheckpointSaver, ModelEmaV3

from rewriter.integrations.timm import CheckpointHook, create_optimizer


def main() -> None:
    options = shared.parsed_options(__doc__)
    options.run.mkdir(parents=True, exist_ok=True)
    dataset, test = shared.digits()
    last = options.run / "last.pth.tar"
    args = argparse.Namespace(
        model="test_efficientnet_gn", resume=str(last) if last.exists() else "",
        opt="adamw", lr=1e-3, weight_decay=0.05, momentum=0.9, layer_decay=None,
    )  # fmt: skip

    pretrained = {"file": str(options.weights), "num_classes": -1} if options.weights else None  # -1: a new classifier
    model = timm.create_model(
        args.model, num_classes=10, drop_rate=0.2, pretrained=bool(pretrained), pretrained_cfg_overlay=pretrained
    )
    model = CheckpointHook(args).rewrite(model, input_size=64)  # for create_model's result
    optimizer = create_optimizer(model, args)  # for create_optimizer_v2(model, **optimizer_kwargs(cfg=args))

    start = resume_checkpoint(model, args.resume, optimizer) if args.resume else 0
    ema = ModelEmaV3(model, decay=0.9)
    if args.resume:
        load_checkpoint(ema.module, args.resume, use_ema=True)
    saver = CheckpointSaver(model, optimizer, args, model_ema=ema, checkpoint_dir=str(options.run))
    for epoch in range(options.epochs if options.evaluate else start, options.epochs):
        batches = shared.batches_of(dataset, epoch)
        for step, (images, labels) in enumerate(batches, epoch * len(batches)):
            loss = torch.nn.functional.cross_entropy(model.train()(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            ema.update(model, step)
            shared.tell_loss(step, loss)
        saver.save_checkpoint(epoch, metric=-loss.item())
    with torch.no_grad():
        shared.tell_logits(ema.module.eval()(test))


if __name__ == "__main__":
    main()
