"""What users hear of without asking, and what a notebook shows."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

import rewriter


def test_a_place_whose_code_cannot_be_edited_warns_and_is_reported() -> None:
    namespace: dict[str, type[nn.Module]] = {}
    source = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.drop_rate = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), 0.2
    def forward(self, x):
        return self.fc(F.dropout(self.conv(x).mean((2, 3)), self.drop_rate, self.training))
"""
    exec(source, {"nn": nn, "F": nn.functional, "__name__": "typed_at_a_prompt"}, namespace)
    model = namespace["Net"]()
    with pytest.warns(rewriter.PlaceLeftAlone, match="source is not available"):
        rewritten = rewriter.rewrite(model, input_size=32)
    assert "no-source" in str(rewriter.report(rewritten))


def test_nothing_warns_where_everything_was_done(recwarn: pytest.WarningsRecorder) -> None:
    rewriter.rewrite(timm.create_model("test_vit", drop_rate=0.1))
    assert not [warning for warning in recwarn if issubclass(warning.category, rewriter.PlaceLeftAlone)]


@pytest.mark.thorough
def test_a_bypassed_dropout_says_so_when_the_model_is_printed() -> None:
    rewritten = rewriter.rewrite(torchvision.models.mobilenet_v2(), input_size=64)
    assert "bypassed by rewriter" in repr(rewritten.classifier[0])
    assert "shared with the dropout it was moved from" in repr(rewritten.dropout)
    assert "bypassed" not in repr(rewriter.undo(rewritten))


def test_a_notebook_shows_plans_and_reports_as_text() -> None:
    class Printer:
        shown = ""

        def text(self, text: str) -> None:
            self.shown = text

    with torch.device("meta"):
        model = timm.create_model("resnet18", drop_rate=0.1)
    plan, printer = rewriter.plan(model), Printer()
    plan._repr_pretty_(printer, False)
    assert printer.shown == str(plan) != repr(plan)
