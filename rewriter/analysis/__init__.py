"""What several passes look for on the graph."""
