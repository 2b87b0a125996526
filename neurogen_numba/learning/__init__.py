"""How the model changes."""
