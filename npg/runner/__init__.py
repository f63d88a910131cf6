"""Everything that a run needs besides the lecture: command line, run folder, evaluations, environments, workers."""
