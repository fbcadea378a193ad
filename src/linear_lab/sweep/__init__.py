"""Many runs from one command: what is planned, what each job does, what they found."""

PLAN, SETTINGS = "plan.parquet", "sweep.json"  # in the sweep's folder: its jobs; the metric and the mode
NO_METRIC = "no metric"  # of a sweep with metric=null
STOP = ".stop"  # in the sweep's folder after a failure under fail_fast: jobs that find it do not start
