"""Edits of a model, and from a place in the graph to an edit."""
