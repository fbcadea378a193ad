"""Stacks: jobs that differ in numbers alone, trained together as one vectorized computation."""
