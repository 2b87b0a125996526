"""The environment of a command: standard streams, helper processes, environment variables, progress of preparations."""
