"""A worker process: reads the request, then one name at a time, and answers each with one line of JSON.

``python -m rewriter.sweep.worker`` runs :func:`rewriter.sweep.check.check_model_by_name` on every name.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable

from rewriter.sweep.request import SweepRequest
from rewriter.sweep.row import Row

READY = "ready"
"""The line that a worker writes when it is ready."""


def serve(check: Callable[[str, SweepRequest], Row]) -> None:
    """Write answers to the original stdout until stdin ends.

    File descriptor 1 is redirected to stderr, so that nothing a library prints gets between the answers.

    Args:
        check: maps a name and the request to a row.
    """
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent ends its workers
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(2, 1)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    sys.stdout = sys.stderr
    request = SweepRequest.from_text(requests.readline())
    print(READY, file=answers, flush=True)
    for line in requests:
        print(check(line.rstrip("\n"), request).to_json(), file=answers, flush=True)


def main() -> None:
    """Serve :func:`rewriter.sweep.check.check_model_by_name`."""
    from rewriter import zoo
    from rewriter.sweep.check import check_model_by_name

    def check_after_imports(name: str, request: SweepRequest) -> Row:
        """Import the library first, so that its memory and time are not attributed to a model."""
        zoo.names(name if ":" in name else f"timm:{name}", check=False)
        return check_model_by_name(name, request)

    serve(check_after_imports)


if __name__ == "__main__":
    main()
