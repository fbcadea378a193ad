"""Fitting one run: what happens from its config to its record."""
