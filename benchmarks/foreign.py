"""What the passes find in models of libraries that nobody here chose: every one that is installed.

    python benchmarks/foreign.py plan FOLDER [--only LIBRARY] [--limit 40] [--jobs 2]
    python benchmarks/foreign.py table FOLDER                   # the tables of docs/coverage.md
    python benchmarks/foreign.py differences FOLDER OLDER       # decisions that two versions of this project differ in

Each model is built with random weights in a process of its own, and planned with all passes; one file of JSON a library
holds a line a model, with every decision. What is in the folder already is not run again.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.metadata
import json
import multiprocessing
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from foreign_libraries import Build, libraries
from torch import nn

import rewriter
from rewriter.libraries import versions
from rewriter.reporting.tables import markdown_table

PASSES: list[Any] = [
    "atrous-rates", {"dropout": {"p": 0.1, "head_p": 0}}, "group-count", {"scale-equalizer": {"additive": True}},
    "stochastic-pooling", "weight-decay",
]  # fmt: skip
SIZES = ((3, 64, 64), (3, 224, 224), (1, 64, 64), (3, 512, 512), (3, 32, 128), (1, 32, 32), (3, 299, 299), (3, 32, 32))
"""Images that are tried one after the other."""


def plan_all(folder: Path, only: str | None, pattern: str, limit: int | None, seconds: float, jobs: int) -> None:
    """Plan what is not in ``folder`` yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for library, models in libraries().items():
        if only is not None and library != only:
            continue
        names = [name for name in models if fnmatch.fnmatchcase(name, pattern)]
        names = names[:: max(1, -(-len(names) // limit))] if limit else names
        done = {row["model"] for row in rows_of(folder, library)}
        waiting = [name for name in names if name not in done]
        with (folder / f"{library}.jsonl").open("a") as file, ThreadPoolExecutor(jobs) as threads:
            for row in threads.map(partial(_apart, library, models, seconds), waiting):
                file.write(json.dumps(row) + "\n")
                file.flush()
                print(
                    f"{library} {row['model']}: {row['status']}, {row.get('seconds', 0):.1f} s {row.get('error', '')}"
                )


def _apart(library: str, models: Mapping[str, Build], seconds: float, name: str) -> dict[str, Any]:
    """The row of one model, planned in a process that is ended after ``seconds``."""
    row = {"library": library, "model": name}
    receiving, sending = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_plan, args=(models[name], sending), daemon=True)
    process.start()
    sending.close()
    try:
        found = receiving.recv() if receiving.poll(seconds) else {"status": "timed out"}
    except EOFError:
        found = {"status": "died"}
    process.kill()
    process.join()
    return row | found


def _plan(build: Build, answer: Connection) -> None:
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        answer.send(_planned(build))


def _planned(build: Build) -> dict[str, Any]:
    try:
        made = build()
    except Exception as error:
        return {"status": "not built", "error": _told(error)}
    model = made if isinstance(made, nn.Module) else made.model
    error: Exception | None = None
    for inputs in _candidates(made, model):
        started = time.perf_counter()
        try:
            backend = rewriter.trace(model, **inputs).backend
            traced = time.perf_counter()
            plan = rewriter.plan(model, PASSES, **inputs)
        except rewriter.RewriterError as refused:
            error = error or refused
            continue
        except Exception as crash:
            return {"status": "crashed", "error": _told(crash)}
        planned = time.perf_counter()
        return {
            "status": "planned",
            "backend": backend,
            "recording": traced - started,
            "seconds": planned - traced,
            "sites": [[s.pass_name, s.path, s.pattern, s.action] for s in plan.sites],
            "skipped": [[s.pass_name, s.path, s.pattern, str(s.reason), s.detail] for s in plan.skipped],
            "advice": [[a.path, a.pattern, a.advice] for a in plan.advice],
        }
    return {"status": "refused", "error": "" if error is None else _told(error)}


def _candidates(made: Any, model: nn.Module) -> Iterator[dict[str, Any]]:
    """Inputs that the model may run on: those that the zoo knows, the model's own size, then sizes that are usual."""
    if made is not model and made.example_inputs is not None:
        yield {"example_inputs": made.example_inputs}
    elif made is not model:
        yield {"input_size": made.input_size}
    else:
        own = getattr(model, "in_size", getattr(model, "image_size", None))
        if isinstance(own, tuple):
            yield {"input_size": (3, *own[-2:])}
        yield from ({"input_size": size} for size in SIZES)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".replace("\n", " ")[:400]


def rows_of(folder: Path, library: str) -> list[dict[str, Any]]:
    """What has been found in a library so far."""
    file = folder / f"{library}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def table(folder: Path) -> Iterator[str]:
    """Two tables in Markdown: what was found by library, and why places are left alone."""
    names = [asked if isinstance(asked, str) else next(iter(asked)) for asked in PASSES]
    head = [
        *("library", "models", "planned", "refused", "other", "not built"),
        "backends",
        "recording, plan (s)",
        *names,
    ]
    lines: list[list[Any]] = []
    reasons: Counter[tuple[str, str]] = Counter()
    for file in sorted(folder.glob("*.jsonl")):
        everything = rows_of(folder, file.stem)
        rows = [row for row in everything if row["status"] != "not built"]
        planned = [row for row in rows if row["status"] == "planned"]
        if not rows:
            continue
        reasons.update((skip[0], skip[3]) for row in planned for skip in row["skipped"])
        refused = sum(row["status"] == "refused" for row in rows)
        backends = ", ".join(f"{name} {count}" for name, count in Counter(r["backend"] for r in planned).items())
        times = ", ".join(
            f"{statistics.median(r[of] for r in planned or [{of: 0}]):.2f}" for of in ("recording", "seconds")
        )
        sites = [
            sum(
                len(row["advice"]) if name == "weight-decay" else sum(s[0] == name for s in row["sites"])
                for row in planned
            )
            for name in names
        ]
        cells = [
            _version(file.stem),
            len(rows),
            len(planned),
            refused,
            len(rows) - len(planned) - refused,
            len(everything) - len(rows),
            backends,
            times,
        ]
        lines.append([*cells, *sites])
    yield from (markdown_table(head, lines), "")
    yield markdown_table(["pass", "reason", "places"], ((*why, count) for why, count in sorted(reasons.items())))


def _version(library: str) -> str:
    (distribution,) = importlib.metadata.packages_distributions().get(library, [library])[:1]
    return " ".join((library, *versions([distribution]).values()))


def differences(folder: Path, older: Path) -> Iterator[str]:
    """The decisions of two versions of this project, where they differ."""
    for file in sorted(folder.glob("*.jsonl")):
        before = {row["model"]: row for row in rows_of(older, file.stem)}
        for row in rows_of(folder, file.stem):
            old = before.get(row["model"], {})
            lines = []
            for kind in ("status", "sites", "skipped", "advice"):
                now, then = _listed(row.get(kind)), _listed(old.get(kind))
                lines += [f"  - {line}" for line in then if line not in now]
                lines += [f"  + {line}" for line in now if line not in then]
            if lines:
                yield from (f"{file.stem} {row['model']}", *lines)


def _listed(value: Any) -> list[str]:
    return [" | ".join(item) for item in value] if isinstance(value, list) else [str(value)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["plan", "table", "differences"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("older", type=Path, nargs="?")
    parser.add_argument("--only", help="one library")
    parser.add_argument("--models", default="*", help="names that fit a pattern")
    parser.add_argument("--limit", type=int, help="at most so many models a library, evenly spaced")
    parser.add_argument("--seconds", type=float, default=120, help="the time that one model has")
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if given.command == "plan":
        plan_all(given.folder, given.only, given.models, given.limit, given.seconds, given.jobs)
    else:
        lines = table(given.folder) if given.command == "table" else differences(given.folder, given.older)
        print("\n".join(lines))


if __name__ == "__main__":
    main()
