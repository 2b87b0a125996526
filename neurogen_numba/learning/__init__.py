"""Training: the loop, evaluation, reports, and rules for ending a run."""
