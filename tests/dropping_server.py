"""An HTTP server on this machine that breaks connections in the middle of what it sends, as networks do."""

import re

from local_server import Handler, LocalServer


class DroppingServer(LocalServer):
    """Serves `files` {path: bytes}: `with DroppingServer(files, sends) as server: ... server.url`.

    sends: function of the number of the request, from 1 -> bytes that it sends before the connection breaks; None: all that are left.
    ranges: whether it can send a file from the middle on.
    length: whether it says how much it is going to send; otherwise a break looks like the end.
    """

    def __init__(self, files, sends=lambda request: None, ranges=True, length=True):
        self.files, self.sends, self.ranges, self.length = files, sends, ranges, length
        self.requests = self.broken = 0

    def handler(self):
        outer = self

        class Answers(Handler):
            def do_GET(self):
                outer.requests += 1
                body = outer.files.get(self.path)
                if body is None:
                    self.send_error(404)
                    return
                asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if outer.ranges else None
                first = int(asked[1]) if asked else 0
                if asked and first >= len(body):
                    self.send_error(416)
                    return
                self.send_response(206 if asked else 200)
                if asked:
                    self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
                if outer.length:
                    self.send_header("Content-Length", str(len(body) - first))
                self.end_headers()
                most = outer.sends(outer.requests)
                part = body[first:] if most is None else body[first : first + most]
                outer.broken += first + len(part) < len(body)
                self.wfile.write(part)
                self.close_connection = True

        return Answers
