"""Passes of a third party: each module is one pass, and imports nothing of rewriter but its front door."""
