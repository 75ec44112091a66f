"""Constants of the data for layers of passes: measured, and folded into weights."""
