"""Saved to disk: folders of runs (run_folder.py), checkpoints (checkpoint.py), saving beside training (saver.py)."""
