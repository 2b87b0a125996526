"""Files on disk: folders of runs (run_folder.py), checkpoints (checkpoint.py), saving in the background (saver.py)."""
