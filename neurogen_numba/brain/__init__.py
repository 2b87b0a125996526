"""The brain: components, wiring, and the model around them."""
