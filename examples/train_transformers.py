"""A SegFormer and the Trainer of transformers: our groups in its optimizer, the plan in every checkpoint."""

from __future__ import annotations

import shared
import torch
import transformers
from torch.utils.data import Dataset

import rewriter
from rewriter.integrations.transformers import RewriterTrainer


class Slices(Dataset[dict[str, torch.Tensor]]):
    def __init__(self, pairs: Dataset[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image, classes = self._pairs[index]
        return {"pixel_values": image, "labels": classes}


class TellLoss(transformers.TrainerCallback):
    def on_log(self, args, state, control, logs, **given) -> None:  # type: ignore[no-untyped-def]
        if "loss" in logs:
            shared.tell_loss(state.global_step - 1, logs["loss"])


def main() -> None:
    options = shared.parsed_options(__doc__)
    dataset, test = shared.slices_of_a_head()
    checkpoint = transformers.trainer_utils.get_last_checkpoint(options.run) if options.run.is_dir() else None
    if not options.evaluate:
        config = transformers.SegformerConfig(
            hidden_sizes=[16, 24, 32, 48], depths=[1] * 4, num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=32,
            num_labels=3,
        )  # fmt: skip
        model = transformers.SegformerForSemanticSegmentation(config)

        model = rewriter.rewrite(model, input_size=64, plan_file=options.run / "rewrite-plan.json")
        if checkpoint is None:
            rewriter.calibrate(model, [dataset.tensors[0]], progress=False)

        arguments = transformers.TrainingArguments(
            str(options.run), num_train_epochs=options.epochs, per_device_train_batch_size=8, learning_rate=1e-3,
            weight_decay=0.05, save_strategy="epoch", logging_steps=1, logging_strategy="steps", report_to=[],
            use_cpu=True, seed=3, disable_tqdm=True,
        )  # fmt: skip
        trainer = RewriterTrainer(model, arguments, train_dataset=Slices(dataset), callbacks=[TellLoss()])
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train(resume_from_checkpoint=checkpoint)
        checkpoint = transformers.trainer_utils.get_last_checkpoint(options.run)
    found = rewriter.from_pretrained(transformers.SegformerForSemanticSegmentation, checkpoint)
    with torch.no_grad():
        shared.tell_logits(found(test).logits)


if __name__ == "__main__":
    main()
