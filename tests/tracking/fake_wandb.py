"""A loopback server in wandb's place: it hangs, refuses, answers 500, or opens a run and then goes away."""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "0" * 40
"""Of the right length, and nobody's."""
RUN = {
    "id": "UnVuOjE=",
    "name": "run",
    "displayName": "run",
    "sweepName": None,
    "historyLineCount": 0,
    "config": "{}",
    "summaryMetrics": "{}",
    "tags": [],
    "notes": None,
    "historyTail": "[]",
    "eventsTail": "[]",
    "logLineCount": 0,
    "eventsLineCount": 0,
    "wandbConfig": "{}",
    "project": {"id": "UHJvamVjdDox", "name": "p", "entity": {"id": "RW50aXR5OjE=", "name": "nobody"}},
}


@dataclass
class Server:
    """Where it listens, and what was asked of it."""

    url: str
    asked: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    way: str = "hang"


@contextlib.contextmanager
def fake_wandb(way: str) -> Iterator[Server]:
    """A server for `WANDB_BASE_URL`.

    Args:
        way: `refuse` (nobody listens), `hang` (takes the connection and says nothing), `500`, `healthy` (says so, and
            then nothing), or `opens` (a run can be opened; set `server.way` to another one to have it go away).
    """
    if way == "refuse":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        yield Server(f"http://127.0.0.1:{port}")
        return
    stopped = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        do_PUT = do_PATCH = do_POST

        def log_message(self, *_: object) -> None:
            """Quiet."""

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            server.asked.append(self.path)
            server.bodies.append(body)
            if server.way == "hang" or (server.way == "healthy" and self.path != "/healthz"):
                stopped.wait()
                return
            self._reply(500, {}) if server.way == "500" else self._reply(200, _answer(self.path, body))

        def _reply(self, status: int, value: object) -> None:
            data = json.dumps(value).encode()
            with contextlib.suppress(OSError):
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    server = Server(f"http://127.0.0.1:{listener.server_address[1]}", way=way)
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        stopped.set()
        listener.shutdown()
        listener.server_close()


def _answer(path: str, body: bytes) -> object:
    if not path.endswith("/graphql"):
        return {"exitcode": None, "limits": {}}
    query = json.loads(body).get("query", "")
    data: dict[str, object] = {
        "viewer": {"id": "VXNlcjox", "entity": "nobody", "username": "nobody", "flags": "{}", "teams": {"edges": []}},
        "serverInfo": {"features": [], "cliVersionInfo": {}, "latestLocalVersionInfo": None},
        "upsertBucket": {"bucket": RUN, "inserted": True},
        "model": {"bucket": None},
        "project": None,
    }
    return {"data": {name: value for name, value in data.items() if name in query} or data}
