"""An HTTP server on this machine, for as long as a `with` lasts."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Answers requests, and keeps quiet about them."""

    def log_message(self, *_):
        pass


class LocalServer:
    """`with` an heir of this one: `handler()` gives the class that answers requests, `url` is where."""

    def __enter__(self):
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
