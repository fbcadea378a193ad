"""Classifies the direction of stripes: an example of a package that uses linear_lab."""
