"""The measurements of `neurogen bench`: speed, tasks with a known answer, ablation studies."""
