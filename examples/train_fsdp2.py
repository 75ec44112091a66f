"""Fully sharded data parallel: torchrun --nproc-per-node 2 examples/train_fsdp2.py RUN

fully_shard replaces parameters, so it comes after the rewrite and before the optimizer.
"""

from __future__ import annotations

import os

import shared
import timm
import torch
from torch import distributed
from torch.distributed import checkpoint as distributed_checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

import rewriter


def main() -> None:
    options = shared.parsed_options(__doc__)
    distributed.init_process_group("gloo")
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    torch.manual_seed(options.seed + rank)
    dataset, test = shared.digits()
    states = sorted(options.run.glob("state-?"))

    model = timm.create_model("test_vit", img_size=64, num_classes=10, drop_rate=0.2, proj_drop_rate=0.1)
    model = rewriter.rewrite(model, plan_file=options.run / "rewrite-plan.json")
    for tensor in (*model.parameters(), *model.buffers()):
        distributed.broadcast(tensor.data, 0)  # as DistributedDataParallel does; fully_shard does not
    mesh = distributed.init_device_mesh("cpu", (ranks,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(rewriter.param_groups(model, weight_decay=0.05), lr=1e-3)
    rewriter.check_optimizer(model, optimizer)

    start = 0
    if states:
        weights, moments = get_state_dict(model, optimizer)
        distributed_checkpoint.load({"model": weights, "optimizer": moments}, checkpoint_id=states[-1])
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)
        start = int(states[-1].name.removeprefix("state-")) + 1
    for epoch in range(options.epochs if options.evaluate else start, options.epochs):
        batches = shared.batches_of(dataset, epoch, batch_size=8, rank=rank, ranks=ranks)
        for step, (images, labels) in enumerate(batches, epoch * len(batches)):
            loss = torch.nn.functional.cross_entropy(model.train()(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            distributed.all_reduce(told := loss.detach() / ranks)
            if rank == 0:
                shared.tell_loss(step, told)
        weights, moments = get_state_dict(model, optimizer)
        distributed_checkpoint.save({"model": weights, "optimizer": moments}, checkpoint_id=options.run / "partial")
        if rank == 0:
            (options.run / "partial").rename(options.run / f"state-{epoch}")
        distributed.barrier()
    with torch.no_grad():
        logits = model.eval()(test)
    if rank == 0:
        shared.tell_logits(logits)
    distributed.destroy_process_group()


if __name__ == "__main__":
    assert "RANK" in os.environ, "start it with torchrun"
    main()
