"""The input history of earlier chats, in a file per user."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from prompt_toolkit.history import History

from ..storage.run_folder import write_whole

MAX_ENTRIES = 1000  # entries; a chat that finds more than twice this number shortens the file
MAX_LENGTH = 100_000  # characters; a longer entry is not stored


def path() -> Path | None:
    """chat_history.jsonl in the user's folder for such state: $XDG_STATE_HOME/neurogen or ~/.local/state/neurogen; on Windows
    %LOCALAPPDATA%/neurogen. None for a user without a home."""
    named = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_STATE_HOME", "")
    try:
        base = Path(named) if os.path.isabs(named) else Path.home() / ".local" / "state"
    except RuntimeError:
        return None
    return base / "neurogen" / "chat_history.jsonl"


class ChatHistory(History):
    """Lines across sessions: a JSON string per line, each appended in one write, readable by its owner alone.

    A damaged line is skipped. If the file cannot be read or written, `tell` gets one sentence, and the history is that of this session.
    """

    def __init__(self, file: Path | None, tell: Callable[[str], None]):
        super().__init__()
        self._file, self._tell = file, tell

    def load_history_strings(self) -> Iterable[str]:
        """The entries, newest first."""
        if self._file is None:
            return []
        try:
            lines = self._file.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            self._give_up(error)
            return []
        if len(lines) > 2 * MAX_ENTRIES:
            lines = lines[-MAX_ENTRIES:]
            with contextlib.suppress(OSError):
                write_whole(self._file, b"".join(line + b"\n" for line in lines))
                os.chmod(self._file, 0o600)
        entries = []
        for line in lines:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(entry, str) and entry:
                entries.append(entry)
        return reversed(entries)

    def store_string(self, string: str) -> None:
        if self._file is None or len(string) > MAX_LENGTH:
            return
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(descriptor, (json.dumps(string) + "\n").encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error):
        self._tell(f"{self._file}: {error.strerror}; this session's input is not saved for later chats")
        self._file = None
