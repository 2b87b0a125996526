"""The input pipeline: sources -> documents -> token ids -> [T, B] segments."""
