"""A model and a rewrite as requested on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from rewriter.cli.options import Preserve, assignments, parsed_pass, parsed_size


class Asked:
    """The parsed request.

    Attributes:
        name: of the model.
        model_kwargs: options of its constructor.
        size: of its input.
        passes: as :func:`rewriter.plan` takes them; None for all.
        only, skip, preserve: as for :func:`rewriter.plan`.
        pretrained, checkpoint: which weights it gets.

    Raises:
        typer.BadParameter: invalid usage.
    """

    def __init__(
        self,
        name: str,
        model_kwargs: Sequence[str] | None,
        input_size: str | None,
        passes: Sequence[str] | None,
        only: Sequence[str] | None,
        skip: Sequence[str] | None,
        preserve: Preserve,
        pretrained: bool,
        checkpoint: Path | None,
    ) -> None:
        self.name = name
        self.model_kwargs = assignments(model_kwargs or (), "--model-kwargs")
        self.size = parsed_size(input_size)
        self.passes = [parsed_pass(text) for text in passes] if passes else None
        self.only, self.skip = only or None, skip or None
        self.preserve = preserve
        self.pretrained = pretrained
        self.checkpoint = checkpoint
        if "pretrained" in self.model_kwargs:
            raise typer.BadParameter("--model-kwargs: pretrained is no option of the model; give --pretrained")
        if pretrained and checkpoint is not None:
            raise typer.BadParameter("give --pretrained or --checkpoint, not both")
