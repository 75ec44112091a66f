"""What a model holds and what running it changes: its state, copies, and wrappers."""
