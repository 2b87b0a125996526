"""As much of the Hugging Face hub as `datasets` asks for to stream one data set, on this machine, with connections that break."""

import json
import re

from local_server import Handler, LocalServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(LocalServer):
    """Serves the data set `name` with `files` {path: bytes}: `with HubServer(...) as server: ... server.url`.

    breaks: function of the number of a request for a part of a file, from 1 -> whether its answer breaks half way.
    """

    def __init__(self, name, files, breaks=lambda request: False):
        self.name, self.files, self.breaks = name, files, breaks
        self.requests = self.broken = 0

    def handler(self):
        outer = self

        class Answers(Handler):
            def do_HEAD(self):
                self.answer()

            def do_GET(self):
                self.answer()

            def answer(self):
                path = self.path.partition("?")[0]
                api, _, tree = path.removeprefix(f"/api/datasets/{outer.name}").partition(f"/tree/{COMMIT}")
                resolved = re.fullmatch(rf"/datasets/{outer.name}/resolve/[^/]+/(.+)", path)
                if resolved and resolved[1] in outer.files:
                    self.file(outer.files[resolved[1]])
                elif path.startswith("/api/datasets/") and api in ("", f"/revision/{COMMIT}") and not tree:
                    listed = [{"rfilename": name} for name in outer.files]
                    known = {"id": outer.name, "sha": COMMIT, "siblings": listed, "tags": [], "private": False, "downloads": 0, "likes": 0}
                    self.json([self.entry(name) for name in outer.files] if "/tree/" in path else known)
                else:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()

            def entry(self, name):
                return {"type": "file", "oid": "0" * 40, "size": len(outer.files[name]), "path": name}

            def json(self, values):
                body = json.dumps(values).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def file(self, body):
                asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
                first = int(asked[1]) if asked else 0
                last = min(int(asked[2] or len(body)), len(body) - 1) if asked else len(body) - 1
                self.send_response(206 if asked else 200)
                for header, value in {
                    "ETag": '"0"',
                    "X-Repo-Commit": COMMIT,
                    "Accept-Ranges": "bytes",
                    "Content-Length": str(last + 1 - first),
                    "Content-Range": f"bytes {first}-{last}/{len(body)}",
                }.items():
                    self.send_header(header, value)
                self.end_headers()
                if self.command == "HEAD":
                    return
                outer.requests += 1
                part = body[first : last + 1]
                if outer.breaks(outer.requests):
                    outer.broken += 1
                    part = part[: len(part) // 2]
                self.wfile.write(part)
                self.close_connection = True

        return Answers
