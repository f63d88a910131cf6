"""What a run needs besides the lecture: command line, run folder, evaluation, environments, worker processes."""
