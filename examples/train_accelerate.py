"""A loop with accelerate: prepare after the rewrite, and the plan in what save_state writes."""

from __future__ import annotations

import shared
import timm
import torch
from accelerate import Accelerator

import rewriter
from rewriter.integrations.accelerate import register


class Progress:
    """How many epochs are finished, as accelerate keeps it."""

    finished = 0

    def state_dict(self) -> dict[str, int]:
        return {"finished": self.finished}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.finished = state["finished"]


def main() -> None:
    options = shared.parsed_options(__doc__)
    dataset, test = shared.digits()
    states = sorted(options.run.glob("state-?"))

    model = timm.create_model("test_efficientnet_gn", num_classes=10, drop_rate=0.2)
    model = rewriter.rewrite(model, input_size=64, plan_file=options.run / "rewrite-plan.json")
    optimizer = torch.optim.AdamW(rewriter.param_groups(model, weight_decay=0.05), lr=1e-3)
    rewriter.check_optimizer(model, optimizer)

    accelerator, progress = Accelerator(cpu=True), Progress()
    model, optimizer = accelerator.prepare(model, optimizer)
    register(accelerator, model)
    accelerator.register_for_checkpointing(progress)
    if states:
        accelerator.load_state(str(states[-1]))
    for epoch in range(options.epochs if options.evaluate else progress.finished, options.epochs):
        batches = accelerator.prepare(shared.batches_of(dataset, epoch))
        for step, (images, labels) in enumerate(batches, epoch * len(batches)):
            loss = torch.nn.functional.cross_entropy(model.train()(images), labels)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            shared.tell_loss(step, loss)
        progress.finished = epoch + 1
        accelerator.save_state(str(options.run / "partial"))
        (options.run / "partial").rename(options.run / f"state-{epoch}")
    with torch.no_grad():
        shared.tell_logits(model.eval()(test))


if __name__ == "__main__":
    main()
