"""Small models of which the edited method is called in some unusual way, for four passes."""

from __future__ import annotations

import textwrap

_IMPORTS = """
import collections, functools, types
from dataclasses import dataclass
import torch
import torch.nn.functional as F
from torch import nn
"""

LAYERS = {
    "dropout": """
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.pool, self.drop, self.fc = nn.AdaptiveAvgPool2d(1), nn.Dropout(0.5), nn.Linear(8, 4)
        """,
    "stochastic-pooling": """
        self.conv, self.bn, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)
        """,
    "group-count": """
        self.conv, self.fc = nn.Conv2d(3, 64, 3), nn.Linear(64, 4)
        """,
    "scale-equalizer": """
        self.conv, self.other, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(16, 4, 1)
        """,
}
WORK = {
    "dropout": """
        x = self.pool(self.bn(self.conv(x)).relu()).flatten(1)
        x = self.drop(x)
        return self.fc(x)
        """,
    "stochastic-pooling": """
        return self.fc(self.bn(self.conv(x)).relu().mean((2, 3)))
        """,
    "group-count": """
        return self.fc(F.relu(F.group_norm(self.conv(x), 32)).mean((2, 3)))
        """,
    "scale-equalizer": """
        x = self.conv(x)
        y = F.interpolate(self.other(F.avg_pool2d(x, 2)), scale_factor=2, mode="bilinear")
        return self.fc(torch.cat([x, y], 1))
        """,
}


def decorated(text: str) -> str:
    """A model whose method is decorated so."""
    model = """
        class Net(Layers):
            @decorated
            def forward(self, x):
                WORK
        """
    return textwrap.dedent(text) + textwrap.dedent(model)


def model_text(name: str, text: str) -> str:
    """A module of code with the model ``text`` that does the work of the pass ``name``."""
    header = "class Layers(nn.Module):\n    def __init__(self):\n        super().__init__()"
    lines = [_IMPORTS, header, _indented(LAYERS[name], 8)]
    for line in textwrap.dedent(text).splitlines():
        indent = len(line) - len(line.lstrip())
        lines.append(_indented(WORK[name], indent) if line.strip() == "WORK" else line)
    return "\n".join(lines) + "\n"


def _indented(text: str, spaces: int) -> str:
    return textwrap.indent(textwrap.dedent(text).strip("\n"), " " * spaces).rstrip()
