"""Which parameters should decay, and whether an optimizer holds those of this model."""
