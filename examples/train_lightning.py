"""A LightningModule and a Trainer: the callback rewrites, calibrates and keeps the plan in the checkpoints."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import lightning
import shared
import timm
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

import rewriter
from rewriter.integrations.lightning import RewriterCallback, RewriterMixin

warnings.filterwarnings("ignore", module="lightning")  # of few workers, no validation
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


class Classifier(RewriterMixin, lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = timm.create_model("test_efficientnet_gn", num_classes=10, drop_rate=0.2)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        images, labels = batch
        loss = torch.nn.functional.cross_entropy(self.model(images), labels)
        shared.tell_loss(self.global_step, loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(rewriter.param_groups(self.model, weight_decay=0.05), lr=1e-3)


class SeedOfStep(lightning.Callback):
    """The same dropout in a step, whether the run was broken off before or not: Lightning keeps no random state."""

    def on_train_batch_start(self, trainer: lightning.Trainer, *given: Any) -> None:
        torch.manual_seed(trainer.global_step)


def main() -> None:
    options = shared.parsed_options(__doc__)
    dataset, test = shared.digits()
    last = options.run / "last.ckpt"
    if not options.evaluate:
        sampler = shared.ShuffledByEpoch(dataset)
        sampler.set_epoch = lambda epoch: setattr(sampler, "epoch", epoch)  # which Lightning calls
        trainer = lightning.Trainer(
            max_epochs=options.epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[
                RewriterCallback(input_size=64),
                ModelCheckpoint(options.run, filename="{epoch}", save_last=True),
                SeedOfStep(),
            ],
        )  # fmt: skip
        loader = DataLoader(dataset, 16, sampler=sampler)
        trainer.fit(Classifier(), loader, ckpt_path=last if last.exists() else None)
    found = Classifier.load_from_checkpoint(last)
    with torch.no_grad():
        shared.tell_logits(found.model.eval()(test))


if __name__ == "__main__":
    main()
