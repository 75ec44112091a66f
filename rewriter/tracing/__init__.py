"""One run of the model, recorded as a flat graph."""
