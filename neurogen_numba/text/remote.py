"""Files on a server. If a connection breaks, reading resumes at the next byte."""

from __future__ import annotations

import errno
import http.client
import io
import logging
import re
import socket
import ssl
import time
import urllib.error
import urllib.request

from ..errors import DataError, NeuroGenError

WAITS = (1, 2, 4, 8, 16, 32)  # seconds before a connection is tried again, for the first time, the second ...
LOCAL = {
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
}
LOG = logging.getLogger(__name__)  # without a logging configuration, its warnings go to standard error
SILENCE = 60  # seconds without a byte after which a connection counts as broken


def pause(name: str, failures: int, error: Exception, begun: bool = True) -> int:
    """Wait before the next try, longer after each consecutive failure. Returns the number of failures.

    begun: whether any data has arrived. Before that, an unknown host is a wrong name; later, it is a network that is down.
    Raises DataError after len(WAITS) + 1 failures, and at once for an error that would recur.
    """
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    status = getattr(error, "code", None) or getattr(getattr(error, "response", None), "status_code", None)
    causes = list(_causes(error))
    if unwritable := next((cause for cause in causes if isinstance(cause, OSError) and cause.errno in LOCAL and cause.filename), None):
        why = f"{unwritable.filename}: {unwritable.strerror}"
        raise DataError(f"{name}: cannot be read ({why}); make room, or allow it; HF_HOME names the folder for files of the hub") from None
    if any(type(cause).__name__ == "OfflineModeIsEnabled" for cause in causes):
        raise DataError(f"{name}: not read, since HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set; unset it, or give a local copy") from None
    if isinstance(error, ImportError):
        raise DataError(f"{name}: cannot be read without the package {error.name or 'datasets'} ({reason}); install it again") from None
    if isinstance(error, FileNotFoundError) or status == 404:
        raise DataError(f"{name}: there is no such file or data set ({reason}); check the name") from None
    unknown = not begun and any(isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME for cause in causes)
    if unknown or any(isinstance(cause, http.client.InvalidURL) for cause in causes) or "no host given" in reason:
        raise DataError(f"{name}: there is no such server ({reason}); check the name, and the network") from None
    causes_to_check = (error, getattr(error, "reason", None))
    refused = isinstance(status, int) and (300 <= status < 500 or status == 501) and status not in (408, 429)  # too slow, too many: again
    bugs = (ValueError, TypeError, AttributeError, LookupError, NotImplementedError, ssl.SSLCertVerificationError, PermissionError)
    if refused or any(isinstance(cause, bugs) for cause in causes_to_check):
        raise DataError(f"{name}: cannot be read ({reason}); check the name, and whether access is granted") from None
    if failures == len(WAITS):
        raise DataError(
            f"{name}: the connection failed {failures + 1} times in a row, the last time with {reason}; "
            "try again when the network is back, or give a local copy"
        ) from None
    LOG.warning("%s: %s; the next try is in %d s, try %d of %d", name, reason, WAITS[failures], failures + 2, len(WAITS) + 1)
    time.sleep(WAITS[failures])
    return failures + 1


def _causes(error):
    """The error and its causes."""
    seen = []
    while isinstance(error, BaseException) and error not in seen:
        seen.append(error)
        yield error
        reason = getattr(error, "reason", None)  # of a URLError
        error = reason if isinstance(reason, BaseException) else error.__cause__ or error.__context__


class RemoteFile(io.RawIOBase):
    """A seekable file behind an http or https URL.

    If a connection breaks or ends early, a new one starts at the byte after the last one received. (The file of `fsspec` assumes complete
    blocks, and returns wrong data after an incomplete one.)
    Reading raises DataError as `pause`, and if the file has changed meanwhile.
    """

    def __init__(self, url: str):
        self._url = url
        self._offset = 0
        self._size: int | None = None  # None until the server has reported it
        self._answer = None
        self._failures = 0  # in a row

    def readable(self):
        return True

    def seekable(self):
        return True

    def tell(self):
        return self._offset

    def seek(self, offset, whence=io.SEEK_SET):
        if whence == io.SEEK_END:
            self._retrying(self._connected)
            if self._size is None:
                raise DataError(f"{self._url}: the server does not say how large it is, which reading parquet needs; give a local copy")
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._offset, io.SEEK_END: self._size}[whence]
        if position != self._offset:
            self._hang_up()
            self._offset = position
        return position

    def readinto(self, buffer):
        return self._retrying(lambda: self._read(buffer)) if len(buffer) else 0

    def close(self):
        self._hang_up()
        super().close()

    def _read(self, buffer):
        if self._size is not None and self._offset >= self._size:
            return 0
        count = self._connected().readinto(buffer)
        if not count and self._size is not None and self._offset < self._size:
            raise ConnectionError(f"it ended after {self._offset:,} of {self._size:,} bytes")
        self._offset += count
        return count

    def _connected(self):
        """The server's response, positioned at the next byte."""
        if self._answer is None:
            headers = {"Range": f"bytes={self._offset}-", "Accept-Encoding": "identity", "User-Agent": "neurogen"}
            try:
                answer = urllib.request.urlopen(urllib.request.Request(self._url, headers=headers), timeout=SILENCE)
            except urllib.error.HTTPError as error:
                if error.code != 416:
                    raise
                answer = io.BytesIO()  # the file is empty
                answer.status, answer.headers = 206, {"Content-Range": f"bytes */{self._offset}"}
            self._answer = answer
            if answer.status == 206:
                total = re.search(r"/(\d+)$", answer.headers.get("Content-Range", ""))
                size = int(total[1]) if total else None
            else:  # a server without range requests sends the whole file
                size = int(answer.headers["Content-Length"]) if answer.headers.get("Content-Length") else None
                self._skip(answer)
            if size != (self._size or size):
                raise DataError(f"{self._url}: it has changed on the server, {size} bytes where there were {self._size}; start again")
            self._size = size
        return self._answer

    def _skip(self, answer):
        left = self._offset
        while left:
            count = len(answer.read(min(left, 2**20)))
            if not count:
                raise ConnectionError(f"it ended before byte {self._offset:,}")
            left -= count

    def _retrying(self, step):
        while True:
            try:
                result = step()
                self._failures = 0
                return result
            except NeuroGenError:
                raise
            except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: not a URL
                self._hang_up()
                self._failures = pause(self._url, self._failures, error, self._size is not None)

    def _hang_up(self):
        if self._answer is not None:
            self._answer.close()
            self._answer = None
