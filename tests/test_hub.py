"""What goes to the hub and comes from it, against a stand-in on this machine that speaks the hub's protocol."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from metalora.core.errors import UserError
from metalora.hub import is_hub_id, model_directory, push

SHA = "a" * 40
FILES = {
    "model_index.json": b'{"_class_name": "FluxPipeline", "transformer": ["diffusers", "F"], "vae": [null, null]}',
    "transformer/config.json": b"{}",
    "transformer/weights.safetensors": b"weights",
    "single-file.safetensors": b"twenty-four gigabytes",
    "README.md": b"a card",
}
TOKEN = "hf_of_the_test"


class Hub(BaseHTTPRequestHandler):
    """Enough of the hub: one open model, one gated, one repository to write to."""

    asked: list[str]
    created: list[dict[str, object]]
    committed: dict[str, bytes]

    def log_message(self, *_: object) -> None:
        pass

    def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), Content_Type="application/json")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        if "org/gated" in path and "resolve" in path:
            return self._send(403, X_Error_Code="GatedRepo", X_Error_Message="restricted")
        if path in (f"/api/models/org/{name}/revision/main" for name in ("model", "gated")):
            return self._json({"id": path.split("/")[4], "sha": SHA, "siblings": []})
        if path.endswith(f"/tree/{SHA}"):
            return self._json([{"type": "file", "path": p, "size": len(c), "oid": "0"} for p, c in FILES.items()])
        name = path.removeprefix(f"/org/model/resolve/{SHA}/")
        if name in FILES:
            return self._send(200, FILES[name], ETag=f'"{name.replace("/", "-")}"', X_Repo_Commit=SHA)
        return self._send(404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")

    def do_POST(self) -> None:
        self.asked.append(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else self._chunks()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, X_Error_Message="Invalid credentials")
        where = f"http://{self.headers['Host']}/org/me"
        if self.path == "/api/repos/create":
            self.created.append(json.loads(body))
            return self._json({"url": where})
        if self.path == "/api/validate-yaml":
            return self._json({"warnings": [], "errors": []})
        if "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        assert self.path.startswith("/api/models/org/me/commit/main"), self.path
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.committed[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        return self._json({"commitUrl": f"{where}/commit/{SHA}", "commitOid": SHA})

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        return body


@pytest.fixture
def hub() -> Iterator[tuple[str, type[Hub]]]:
    handler = type("OneHub", (Hub,), {"asked": [], "created": [], "committed": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()
    thread.join()


def call(code: str, home: Path, endpoint: str, **environment: str) -> str:
    """Run code in a process of its own: the client reads its settings once. Its output, or a UserError's one line."""
    script = f"from metalora.core.errors import UserError\nfrom metalora.hub import *\ntry:\n    print({code})\n"
    script += "except UserError as error:\n    print('error:', error)\n"
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE"))}
    done = subprocess.run(
        [sys.executable, "-c", script], env={**kept, **own, **environment}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_what_is_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("black-forest-labs/FLUX.1-dev", "org/model@v1.0"):
        assert is_hub_id(name)
    for path in ("/models/flux", "./flux", "flux", "a/b/c", str(tmp_path), "org/"):
        assert not is_hub_id(path)
        assert model_directory(path) == Path(path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id("org/model")  # a folder of that name is here


def test_a_model_is_downloaded_once_and_found_offline(hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    endpoint, seen = hub
    folder = Path(call("model_directory('org/model')", tmp_path, endpoint))
    got = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert got == {name: FILES[name] for name in list(FILES)[:3]}  # neither the single file nor the card
    count = len(seen.asked)
    assert call("model_directory('org/model')", tmp_path, endpoint) == str(folder)
    assert call("model_directory('org/model')", tmp_path, endpoint, HF_HUB_OFFLINE="1") == str(folder)
    assert len(seen.asked) == count


SHARDS = json.dumps({"weight_map": {"a": "one.safetensors", "b": "weights.safetensors"}})


@pytest.mark.parametrize(
    "files",
    [
        {"vae/config.json": "{}"},
        {"model_index.json": FILES["model_index.json"].decode()},
        {"model_index.json": FILES["model_index.json"].decode(), "transformer/config.json": "{}"},
        {
            "model_index.json": FILES["model_index.json"].decode(),
            "transformer/config.json": "{}",
            "transformer/m.safetensors.index.json": SHARDS,
            "transformer/one.safetensors": "first of two",
        },
    ],
    ids=["another program's", "the index alone", "no weights", "a shard"],
)
def test_a_few_cached_files_are_no_model(hub: tuple[str, type[Hub]], tmp_path: Path, files: dict[str, str]) -> None:
    """Another program asked for a part of the model, or a download broke off: the rest is downloaded."""
    cache = tmp_path / "hub" / "models--org--model"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(SHA)
    for name, text in files.items():
        path = cache / "snapshots" / SHA / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    folder = Path(call("model_directory('org/model')", tmp_path, hub[0]))
    assert (folder / "transformer" / "weights.safetensors").read_bytes() == FILES["transformer/weights.safetensors"]


@pytest.mark.parametrize(
    ("name", "environment", "message"),
    [
        ("org/gated", {}, "cannot download org/gated: access is gated; expected its licence accepted on its page"),
        ("org/nothing", {}, "cannot download org/nothing; expected a repository that exists"),
        ("org/my--model", {}, "cannot download org/my--model; expected a repository that exists"),
        ("org/model", {"HF_HUB_OFFLINE": "1"}, "cannot download org/model: the hub cannot be reached"),
        ("org/model", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot download org/model: the hub cannot be reached"),
    ],
)
def test_a_model_that_cannot_be_had(
    hub: tuple[str, type[Hub]], tmp_path: Path, name: str, environment: dict[str, str], message: str
) -> None:
    said = call(f"model_directory({name!r})", tmp_path, hub[0], **environment)
    assert said.startswith(f"error: {message}") and said.endswith("key: backbone.path") and "\n" not in said


def test_push_makes_one_commit(hub: tuple[str, type[Hub]], tmp_path: Path) -> None:
    endpoint, seen = hub
    (tmp_path / "lora.safetensors").write_bytes(b"a LoRA")
    files = f"{{'lora.safetensors': Path({str(tmp_path / 'lora.safetensors')!r}), 'README.md': b'a card'}}"
    code = f"push('org/me', {files}, private=True)"
    assert call(code, tmp_path, endpoint, HF_TOKEN=TOKEN) == f"{endpoint}/org/me"
    assert seen.committed == {"lora.safetensors": b"a LoRA", "README.md": b"a card"}
    (made,) = seen.created
    assert (made["organization"], made["name"]) == ("org", "me") and "private" in (
        made.get("visibility"),
        made.get("private") and "private",
    )


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "cannot upload org/me; expected .*hf auth login"),
        ({"HF_TOKEN": "wrong"}, "cannot upload org/me; expected .*hf auth login"),
        ({"HF_TOKEN": TOKEN, "HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot upload org/me: the hub cannot be reached"),
    ],
)
def test_a_push_that_is_refused(
    hub: tuple[str, type[Hub]], tmp_path: Path, environment: dict[str, str], message: str
) -> None:
    import re

    said = call("push('org/me', {'README.md': b'a card'}, private=True)", tmp_path, hub[0], **environment)
    assert re.match(f"error: {message}", said) and "\n" not in said, said
    assert not hub[1].committed


def test_a_name_that_is_none() -> None:
    for name in ("me", "org/me@v1", "a/b/c"):
        with pytest.raises(UserError, match="no name of a repository; expected ORG/NAME"):
            push(name, {}, private=True)
