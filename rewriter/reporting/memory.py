"""Peak memory of this process, or its GPU, since a point in time."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class PeakMemory:
    """Measures from its creation: on a CUDA device what torch allocates there, otherwise what the process holds.

    On Linux free memory is returned and the kernel's high-water mark is reset first. Elsewhere the process's lifetime
    mark is used, which shows a model only if it needs more than all models before it.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device if device is not None and device.type == "cuda" else None
        if self._device is not None:
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before: int | None = torch.cuda.memory_allocated(self._device)
            return
        with contextlib.suppress(OSError, AttributeError):  # only glibc has it; otherwise free memory counts as held
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):
            _CLEAR.write_text("5")
        self._before = _kilobytes("VmRSS") or _lifetime_kilobytes()

    def megabytes(self) -> float | None:
        """Return the peak beyond the initial amount, in MB (10^6 bytes); None if the system does not report it."""
        if self._device is not None and self._before is not None:
            return round((torch.cuda.max_memory_allocated(self._device) - self._before) / 1e6, 1)
        peak = _kilobytes("VmHWM") or _lifetime_kilobytes()
        if peak is None or self._before is None:
            return None
        return round(max(0, peak - self._before) * 1024 / 1e6, 1)


def _kilobytes(field: str) -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), None)


def _lifetime_kilobytes() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak
