"""Sweeps, which train many runs by one command: the plan, the launches, the jobs, the leaderboard, the page."""

PLAN, SETTINGS = "plan.parquet", "sweep.json"  # in the sweep's folder: its jobs; its metric and mode
NO_METRIC = "no metric"  # stands in sweep.json for metric=null
STOP = ".stop"  # in the sweep's folder after a failure with fail_fast=true: no further job starts
