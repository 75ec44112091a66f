"""Edits of a model, and how a place in the graph becomes an edit."""
