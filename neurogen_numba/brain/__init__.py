"""What exists, and how a token flows through it."""
