"""A worker process: reads the request and then one name at a time, answers each with one line of JSON.

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
"""The line that a worker writes when it can be asked."""


def serve(check: Callable[[str, SweepRequest], Row]) -> None:
    """Answer on what was stdout until stdin ends.

    File descriptor 1 leads to stderr from here on, so that nothing a library prints gets between the answers.

    Args:
        check: from a name and the request to a row.
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
    """Serve the real check."""
    from rewriter import zoo
    from rewriter.sweep.check import check_model_by_name

    def check_after_imports(name: str, request: SweepRequest) -> Row:
        """The library is imported first, so that no model's memory and time count it."""
        zoo.names(name if ":" in name else f"timm:{name}", check=False)
        return check_model_by_name(name, request)

    serve(check_after_imports)


if __name__ == "__main__":
    main()
