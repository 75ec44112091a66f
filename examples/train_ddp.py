"""DistributedDataParallel: torchrun --nproc-per-node 2 examples/train_ddp.py RUN

Each process has a seed of its own, and may plan nothing: the first one plans, and hands its plan to the others.
"""

from __future__ import annotations

import os

import shared
import timm
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import rewriter


def main() -> None:
    options = shared.parsed_options(__doc__)
    distributed.init_process_group("gloo")
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    torch.manual_seed(options.seed + rank)
    dataset, test = shared.digits()
    checkpoint = options.run / "checkpoint.pth"

    model = timm.create_model("test_efficientnet_gn", num_classes=10, drop_rate=0.2)
    model = rewriter.rewrite(model, input_size=64, plan_file=options.run / "rewrite-plan.json")
    optimizer = torch.optim.AdamW(rewriter.param_groups(model, weight_decay=0.05), lr=1e-3)
    rewriter.check_optimizer(model, optimizer)

    start = 0
    if checkpoint.exists():
        kept = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        start = kept["epoch"] + 1
    wrapped = DistributedDataParallel(model)
    for epoch in range(options.epochs if options.evaluate else start, options.epochs):
        batches = shared.batches_of(dataset, epoch, batch_size=8, rank=rank, ranks=ranks)
        for step, (images, labels) in enumerate(batches, epoch * len(batches)):
            loss = torch.nn.functional.cross_entropy(wrapped.train()(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            distributed.all_reduce(told := loss.detach() / ranks)
            if rank == 0:
                shared.tell_loss(step, told)
        if rank == 0:
            parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
            shared.save_whole(parts, checkpoint)
        distributed.barrier()
    if rank == 0:
        with torch.no_grad():
            shared.tell_logits(model.eval()(test))
    distributed.destroy_process_group()


if __name__ == "__main__":
    assert "RANK" in os.environ, "start it with torchrun"
    main()
