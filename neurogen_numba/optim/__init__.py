"""The learned arrays (parameters.py) and their updates: AdamW (optimizer.py), and optimizers with little state (low_memory.py)."""
