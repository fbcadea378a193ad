"""What a run leaves on disk: the run folder, its record, its checkpoints."""
