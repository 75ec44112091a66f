"""Data-dependent constants of layers added by passes: measured, and folded into weights."""
