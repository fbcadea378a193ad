"""The files of a run: the run folder, its record, its checkpoints, its log."""
