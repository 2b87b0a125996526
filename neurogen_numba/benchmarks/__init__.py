"""What `neurogen bench` measures: speed, tasks with a known answer, and a preset with one component changed at a time."""
