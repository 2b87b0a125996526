"""What comes in: sources -> documents -> token ids -> [T, B] segments."""
