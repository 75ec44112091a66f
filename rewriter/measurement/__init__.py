"""Measurements: what a model does with images, as figures and a picture; the model is left as it is."""
