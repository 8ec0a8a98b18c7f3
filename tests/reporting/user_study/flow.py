"""Talking to a study's server as a browser would, without one."""

import http.client
import io
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def picture(self) -> Image.Image:
        return Image.open(io.BytesIO(self.body)).convert("RGB")


class Client:
    """One participant's browser."""

    def __init__(self, port: int, token: str) -> None:
        self.port, self.token = port, token

    def ask(
        self, path: str, body: Any = None, *, verb: str | None = None, headers: dict[str, str] | None = None
    ) -> Reply:
        """One request; `path` is below the participant's own address unless it starts with a slash."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            where = path if path.startswith("/") else f"/p/{self.token}/{path}"
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            sent = {"Content-Type": "application/json"} if data is not None else {}
            connection.request(verb or ("GET" if data is None else "POST"), where, data, sent | (headers or {}))
            response = connection.getresponse()
            return Reply(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def state(self) -> Any:
        return self.ask("state").json

    def agree(self) -> None:
        assert self.ask("consent", {"agree": True}).status == 200

    def answer(self, position: int, place: int, *, seconds: float = 1.5) -> Reply:
        return self.ask("answer", {"position": position, "place": place, "seconds": seconds})


class Served:
    """`metalora study serve` as a process."""

    def __init__(self, study: Path, *, port: int = 0) -> None:
        command = [
            sys.executable,
            "-m",
            "metalora",
            "study",
            "serve",
            f"study={study}",
            f"port={port}",
            "participants=3",
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.said = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if line.startswith("each link"):
                break
        links = re.findall(r"participant \d+: http://127.0.0.1:(\d+)/p/(\S+)/", "".join(self.said))
        assert links, self.process.communicate()
        self.port = int(links[0][0])
        self.tokens = [token for _, token in links]

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
