"""Integrations with training libraries; each module imports its library, or says how to install it."""
