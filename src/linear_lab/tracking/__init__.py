"""Logging of runs: curves, HPARAMS rows, graphs and pictures."""
