"""Scripts that run in several processes of ``torch.distributed``."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path


def run_ranks(script: str, folder: Path, ranks: int = 2) -> list[list[str]]:
    """What each rank printed. All start at once with gloo, the seed ``rank`` and ``FOLDER``."""
    head = """
        import datetime, os, sys, warnings
        from pathlib import Path
        import timm, torch
        from torch import nn
        import torch.distributed as dist
        import rewriter, rewriter.planning.ranks
        from rewriter.passes import GroupCount
        from rewriter.errors import RewriterError

        rank, FOLDER = int(sys.argv[1]), Path(sys.argv[2])
        rewriter.planning.ranks.PATIENCE = datetime.timedelta(seconds=6)
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{FOLDER}/store", rank=rank, world_size=int(sys.argv[3]))
        torch.manual_seed(rank)
        model = timm.create_model("test_efficientnet_gn", num_classes=4)
        numbers = lambda found: [m.num_groups for m in found.modules() if isinstance(m, nn.GroupNorm)]
        MEASURED, SIZE = GroupCount(rule="measured-isometry"), dict(input_size=64)
    """
    file = folder / "script.py"
    file.write_text(
        textwrap.dedent(head) + textwrap.dedent(script) + "\nos._exit(0)  # gloo may wait for who is gone\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(file)]
    running = [
        subprocess.Popen(
            [*command, str(rank), str(folder), str(ranks)],
            env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    done = [process.communicate(timeout=150) for process in running]
    assert all(process.returncode == 0 for process in running), "\n".join(errors for _, errors in done)
    return [out.splitlines() for out, _ in done]
