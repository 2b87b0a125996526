"""What a run needs before it starts: memory on a GPU (budget.py), bytes and operations of each kernel (costs.py)."""
