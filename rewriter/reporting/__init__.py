"""Utilities for long-running work: progress bar, result files written incrementally, peak memory."""
