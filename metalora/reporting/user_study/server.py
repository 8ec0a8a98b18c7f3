"""The study's web server: a page, a participant's own state, pictures and answers; every request checked.

A participant's address is `/p/TOKEN/`: who does not know the token reaches nothing, and pictures are named by the
place they are shown in, so that no address, header or order says which model made them.
"""

import json
import re
import socket
import sys
import traceback
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any

from metalora.reporting.user_study import answering
from metalora.reporting.user_study.pictures import MEDIA_TYPE
from metalora.reporting.user_study.store import Store

MAX_BODY = 1024
"""Bytes of a request's body; an answer has about fifty."""
MAX_SECONDS = 86_400.0
_ASSETS = {
    "style.css": "text/css; charset=utf-8",
    "script.js": "text/javascript; charset=utf-8",
    "page.html": "text/html; charset=utf-8",
    "door.html": "text/html; charset=utf-8",
}
_PERSONAL = re.compile(r"/p/(?P<token>[A-Za-z0-9_-]{32})/(?P<rest>[a-z0-9/]{0,40})")
_REFERENCE = re.compile(r"reference/(\d{1,4})/(\d{1,2})")
_OPTION = re.compile(r"option/(\d{1,4})/(\d{1,2})/(\d{1,2})")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class StudyServer(ThreadingHTTPServer):
    """Serves one study until `shutdown`.

    Args:
        store: the study.
        host: where to listen.
        port: 0 lets the system choose; `server_port` says which.
        consent: the text participants agree to.

    Raises:
        OSError: the address is taken.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, store: Store, *, host: str = "127.0.0.1", port: int = 0, consent: str) -> None:
        self.store, self.consent = store, consent
        page = resources.files("metalora.reporting.user_study") / "page"
        self.assets = {name: (page / name).read_bytes() for name in _ASSETS}
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            traceback.print_exc()


class _ProblemError(Exception):
    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class _Handler(BaseHTTPRequestHandler):
    server: StudyServer  # type: ignore[assignment]
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "study", ""
    timeout = 60

    def do_GET(self) -> None:
        self._guarded(self._get)

    def do_POST(self) -> None:
        self._guarded(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: addresses are secrets."""

    def _guarded(self, handle: Any) -> None:
        try:
            handle()
        except _ProblemError as problem:
            self.close_connection = True  # its body may not have been read
            self._json({"error": problem.text}, status=problem.status)
        except (ConnectionError, TimeoutError):
            raise
        except Exception:
            self.close_connection = True
            traceback.print_exc()
            self._json({"error": "the server failed"}, status=HTTPStatus.INTERNAL_SERVER_ERROR)

    def _get(self) -> None:
        if self.path == "/":
            return self._asset("door.html")
        if self.path == "/favicon.ico":
            return self._send(b"", "image/x-icon", status=HTTPStatus.NO_CONTENT)
        if self.path in ("/style.css", "/script.js"):
            return self._asset(self.path[1:])
        if re.fullmatch(r"/p/[A-Za-z0-9_-]{32}", self.path):  # the page's own addresses are relative to its folder
            return self._send(b"", "text/plain", status=HTTPStatus.PERMANENT_REDIRECT, place=f"{self.path[3:]}/")
        if re.fullmatch(r"/p/[^/]*/", self.path) and not self._knows_token():  # a person's mistyped link
            return self._asset("door.html", status=HTTPStatus.NOT_FOUND)
        participant, rest = self._participant()
        store = self.server.store
        if rest == "":
            return self._asset("page.html")
        if rest == "state":
            return self._json(answering.state(store, participant) | self._texts(participant))
        if found := _REFERENCE.fullmatch(rest):
            position, number = (int(x) for x in found.groups())
            return self._picture(answering.reference_picture(store, participant, position=position, number=number))
        if found := _OPTION.fullmatch(rest):
            position, place, number = (int(x) for x in found.groups())
            return self._picture(
                answering.option_picture(store, participant, position=position, place=place, number=number)
            )
        raise _ProblemError(HTTPStatus.NOT_FOUND, "there is nothing here")

    def _post(self) -> None:
        body = self._body()
        participant, rest = self._participant()
        store = self.server.store
        if rest == "consent":
            if body != {"agree": True}:
                raise _ProblemError(HTTPStatus.BAD_REQUEST, "expected agree: true")
            answering.consent(store, participant)
            return self._json({"saved": True})
        if rest == "answer":
            position, place, seconds = _answer(body)
            try:
                answering.answer(store, participant, position=position, place=place, seconds=seconds)
            except answering.RefusedError as refused:
                raise _ProblemError(HTTPStatus.CONFLICT, str(refused)) from None
            except ValueError as error:
                raise _ProblemError(HTTPStatus.BAD_REQUEST, str(error)) from None
            return self._json({"saved": True})
        raise _ProblemError(HTTPStatus.NOT_FOUND, "there is nothing here")

    def _participant(self) -> tuple[answering.Participant, str]:
        found = _PERSONAL.fullmatch(self.path)
        participant = answering.find(self.server.store, found["token"]) if found else None
        if found is None or participant is None:
            raise _ProblemError(HTTPStatus.NOT_FOUND, "there is nothing here")
        return participant, found["rest"]

    def _knows_token(self) -> bool:
        try:
            return bool(self._participant())
        except _ProblemError:
            return False

    def _body(self) -> Any:
        length = self.headers.get("Content-Length", "")
        if self.headers.get("Transfer-Encoding") or not re.fullmatch(r"\d{1,9}", length):
            raise _ProblemError(HTTPStatus.LENGTH_REQUIRED, "a body of known length is required")
        if int(length) > MAX_BODY:
            raise _ProblemError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {MAX_BODY} bytes")
        if self.headers.get_content_type() != "application/json":  # what a form of another site cannot send
            raise _ProblemError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "JSON is required")
        try:
            return json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise _ProblemError(HTTPStatus.BAD_REQUEST, "this is not JSON") from None

    def _texts(self, participant: answering.Participant) -> dict[str, str]:
        return {} if participant.consented else {"consent": self.server.consent}

    def _asset(self, name: str, *, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(self.server.assets[name], _ASSETS[name], status=status, cache="no-cache")

    def _picture(self, data: bytes | None) -> None:
        if data is None:
            raise _ProblemError(HTTPStatus.NOT_FOUND, "there is nothing here")
        self._send(data, MEDIA_TYPE, cache="private, max-age=3600")

    def _json(self, value: dict[str, Any], *, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(value).encode(), "application/json", status=status)

    def _send(
        self,
        data: bytes,
        media: str,
        *,
        status: HTTPStatus = HTTPStatus.OK,
        cache: str = "no-store",
        place: str | None = None,
    ) -> None:
        self.send_response(status)
        if place is not None:
            self.send_header("Location", place)
        for name, value in (_HEADERS | {"Content-Type": media, "Cache-Control": cache}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)


def _answer(body: Any) -> tuple[int, int, float]:
    """Position, place and seconds of an answer; each must be there, of its type and within bounds."""
    if not isinstance(body, dict) or set(body) != {"position", "place", "seconds"}:
        raise _ProblemError(HTTPStatus.BAD_REQUEST, "expected position, place and seconds")
    position, place, seconds = body["position"], body["place"], body["seconds"]
    if not all(type(x) is int and 0 <= x < 10_000 for x in (position, place)):
        raise _ProblemError(HTTPStatus.BAD_REQUEST, "position and place are whole numbers")
    if type(seconds) not in (int, float) or not 0 <= seconds <= MAX_SECONDS:  # also refuses NaN
        raise _ProblemError(HTTPStatus.BAD_REQUEST, f"seconds lie between 0 and {MAX_SECONDS:.0f}")
    return position, place, float(seconds)
