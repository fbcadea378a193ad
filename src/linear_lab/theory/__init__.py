"""Least squares and the largest stable rate: what follows from the data without training."""
