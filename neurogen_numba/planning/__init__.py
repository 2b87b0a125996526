"""Estimates before a run starts: GPU memory (budget.py), bytes and operations of each kernel (costs.py)."""
