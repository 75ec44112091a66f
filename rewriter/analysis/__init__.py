"""Analyses of the graph that several passes share."""
