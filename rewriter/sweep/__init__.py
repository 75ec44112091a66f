"""Rewrite many models, one after another in worker processes, and record one row of results for each.

    from rewriter import sweep

    done = sweep.run(sweep.select(["resnet*"]), [{"dropout": {"p": 0.1}}], output="resnets.jsonl")
    done.ok, done.summary()

``import rewriter`` does not import this package.
"""

from rewriter.sweep.request import SweepRequest
from rewriter.sweep.row import Row, Status
from rewriter.sweep.runner import Sweep, run, select

__all__ = ["Row", "Status", "Sweep", "SweepRequest", "run", "select"]
