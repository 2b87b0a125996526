"""A trained brain in use: text token by token (generation.py), the turns of a chat (conversation.py) and its commands."""
