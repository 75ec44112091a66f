"""What a model, a loss or a training configuration has against the guidelines, under stable codes."""
