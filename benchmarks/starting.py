"""What starting costs: seconds of CPU of processes that only import, or print help, beside the import of torch.

python benchmarks/starting.py [--rounds 5]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys

from rewriter.reporting.tables import markdown_table

PROGRAMS = {
    "import torch": ["-c", "import torch"],
    "import rewriter": ["-c", "import rewriter"],
    "import rewriter; rewriter.plan": ["-c", "import rewriter; rewriter.plan"],
    "rewriter --help": ["-m", "rewriter", "--help"],
    "rewriter --version": ["-m", "rewriter", "--version"],
    "rewriter passes": ["-m", "rewriter", "passes"],
    "rewriter plan (wrong usage)": ["-m", "rewriter", "plan"],
}


def seconds(arguments: list[str]) -> float:
    """User and system time of one process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    found: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(rounds):
        for name, arguments in PROGRAMS.items():
            found[name].append(seconds(arguments))
    rows = [[f"`{name}`", f"{statistics.median(times):.2f}"] for name, times in found.items()]
    print(markdown_table(["process", f"CPU seconds, median of {rounds}"], rows, "lr"))


if __name__ == "__main__":
    main()
