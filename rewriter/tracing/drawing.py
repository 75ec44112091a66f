"""Draw a recording with Graphviz."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from torch import fx

from rewriter.errors import StorageError
from rewriter.tracing.facts import facts


def draw(graph: fx.Graph, path: str | Path) -> Path:
    """Draw ``graph`` to ``path``: ``.dot`` writes the description, other endings (``.svg``, ``.png``) call ``dot``.

    Raises:
        StorageError: Graphviz is not installed, or cannot write this kind of file.
    """
    target = Path(path)
    text = to_dot(graph)
    if target.suffix == ".dot":
        target.write_text(text, encoding="utf-8")
        return target
    program = shutil.which("dot")
    if program is None:
        raise StorageError(f"drawing {target.suffix} needs Graphviz; install it (apt install graphviz) or draw to .dot")
    result = subprocess.run(
        [program, f"-T{target.suffix.removeprefix('.')}", "-o", str(target)], input=text, text=True, capture_output=True
    )
    if result.returncode != 0:
        raise StorageError(f"Graphviz could not draw {target}: {result.stderr.strip()}")
    return target


def to_dot(graph: fx.Graph) -> str:
    """The graph in Graphviz' language: one box per operation, with its module path, kind and shape."""
    lines = ["digraph {", '  node [shape=box, fontname="Helvetica", fontsize=10];']
    for node in graph.nodes:
        if node.op == "get_attr":
            continue
        name = str(node.target) if node.op in ("call_module", "placeholder") else node.name
        shape = "×".join(map(str, facts(node)["shape"])) if facts(node)["shape"] else ""
        lines.append(f'  "{node.name}" [label="{name}\\n{facts(node)["kind"]} {shape}"];')
        lines += [f'  "{source.name}" -> "{node.name}";' for source in node.all_input_nodes if source.op != "get_attr"]
    return "\n".join([*lines, "}"]) + "\n"
