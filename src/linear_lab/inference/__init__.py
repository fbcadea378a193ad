"""Evaluation, prediction and export of trained runs."""
