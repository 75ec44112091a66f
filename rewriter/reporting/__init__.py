"""What long work needs: a progress bar, results kept as they come, peak memory."""
