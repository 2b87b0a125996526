"""The machine around a command: standard streams, helper processes, environment variables, progress before there is a view."""
