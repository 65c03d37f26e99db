"""The HTTP face: reads requests as a proxy and as a server, lets the fault plan spoil them, and writes the answers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import socketserver
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.kaggle_emulator.calls import ANYONE, Actor, Answer, Attachment, Call, Redirect
from tests.kaggle_emulator.clock import http_date
from tests.kaggle_emulator.errors import ApiError, error_body
from tests.kaggle_emulator.faults import BEFORE, PLAUSIBLE, TWISTS, Fault
from tests.kaggle_emulator.journal import Entry, redact
from tests.kaggle_emulator.storage import Piece

if TYPE_CHECKING:
    from tests.kaggle_emulator.emulator import KaggleEmulator

_RPC = re.compile(r"/(?:api/)?v1/(?P<service>[\w.]+)/(?P<method>\w+)")
_LOG_STREAM = re.compile(r"/(?:api/)?v1/kernels/logs/stream/(?P<owner>[^/]+)/(?P<slug>[^/]+)")
_UPLOAD = re.compile(r"/upload/(?P<token>[\w-]+)")
_STORAGE = re.compile(r"/storage/(?P<key>[\w-]+)/.+")
_ATTACH = "/kaggle-jwt-handler/AttachDatasourceUsingJwtRequest"
_USER_SECRET = "/requests/GetUserSecretByLabelRequest"
_ADMIN = "/__emulator__/"

_OWN_HOSTS = frozenset({"localhost", "127.0.0.1", ""})
_FOREVER_REAL_S = 24 * 3600.0
_LARGEST_JSON_BYTES = 64 * 1024**2
_CHUNK_BYTES = 1024**2
_LOG_POLL_REAL_S = 0.02
_LOG_WAIT_S = 60.0
_NOT_FOR_ANYONE = frozenset({"IntrospectToken", "GenerateAccessToken"})
"""Calls that need no credentials in their headers; they carry them in their body."""


class Server(ThreadingHTTPServer):
    """One thread a connection; a deep backlog, because the official client opens a connection for every call."""

    daemon_threads = True
    request_queue_size = 512
    allow_reuse_address = True

    def __init__(self, port: int, emulator: KaggleEmulator) -> None:
        self.emulator = emulator
        super().__init__(("127.0.0.1", port), Handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # without the look-up of a name that HTTPServer does
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def serve(self) -> None:
        """Answer connections until the listening socket is closed; unlike `serve_forever`, without polling for that."""
        while True:
            try:
                request, address = self.get_request()
            except OSError:
                return
            self.process_request(request, address)

    def stop(self) -> None:
        """Wake the thread that serves, and end it."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Note a bug of the emulator's; a client that hangs up is none."""
        self.emulator.note_error()


class CutError(Exception):
    """The connection ends here, without (the rest of) an answer."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Server
    entry: Entry
    struck: list[tuple[Fault, threading.Event]]
    _incoming: _Incoming | None
    """The upload that has not been read yet."""

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing: the journal knows."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        """Give the Date header in the emulator's time, which is Kaggle's time here."""
        return http_date(self.server.emulator.clock.now() if timestamp is None else timestamp)

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def do_CONNECT(self) -> None:
        self._begin("Escape")
        self._reply(501, {}, b"This is not a way out of the emulator.", "text/plain")
        self._end()

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_HEAD = do_DELETE = do_GET  # noqa: N815

    # One request.

    def _serve(self) -> None:
        url = urlsplit(self.path)
        try:
            if url.hostname not in {*_OWN_HOSTS, None}:
                self._begin("Escape")
                self._reply(502, {}, b"The emulator is not a way to other hosts.", "text/plain")
            elif self.command == "PUT" and (match := _UPLOAD.fullmatch(url.path)):
                self._upload(match["token"])
            elif self.command in {"GET", "HEAD"} and (match := _STORAGE.fullmatch(url.path)):
                self._download(match["key"])
            elif self.command == "GET" and (match := _LOG_STREAM.fullmatch(url.path)):
                self._log_stream(unquote(match["owner"]), unquote(match["slug"]), parse_qs(url.query))
            elif self.command == "POST" and url.path in {_ATTACH, _USER_SECRET}:
                self._rpc(url.path.rsplit("/", 1)[1])
            elif url.path.startswith(_ADMIN):
                self._admin(url.path.removeprefix(_ADMIN))
            elif self.command == "POST" and (match := _RPC.fullmatch(url.path)):
                self._rpc(match["method"])
            else:
                self._begin("Unknown")
                self._body()
                self._refuse(ApiError(404, f"No such route: {self.command} {url.path}"))
        except CutError as cut:
            if not isinstance(cut, _AnsweredError):
                self._cut()
        finally:
            self._end()

    def _rpc(self, route: str) -> None:
        emulator = self.server.emulator
        self._begin(route)
        raw = self._body()
        try:
            body = json.loads(raw or b"{}")
        except ValueError:
            return self._refuse(ApiError(400, "The body is not JSON"))
        self.entry.body = body
        unknown: ApiError | None = None
        try:
            actor = emulator.accounts.identify(dict(self.headers))
        except ApiError as error:
            actor, unknown = None, error
        else:
            unknown = ApiError(401, "Unauthenticated") if actor is None and route not in _NOT_FOR_ANYONE else None
        self._note_actor(actor or ANYONE)
        call = Call(route, actor or ANYONE, body, emulator.clock.now())
        self._strike(call)
        if unknown is not None and route not in _NOT_FOR_ANYONE:
            return self._refuse(unknown)
        handler = emulator.routes.get(route)
        if handler is None:
            return self._refuse(ApiError(404, f"No such method: {route}"))
        try:
            with emulator.lock:
                answer = handler(call)
        except ApiError as error:
            return self._refuse(error)
        finally:
            self.entry.effect = call.effect
        return self._answer(answer)

    def _answer(self, answer: Answer) -> None:
        if isinstance(answer, Redirect):
            location = self.server.emulator.storage.sign(answer)
            return self._reply(302, {"Location": location}, b"", "text/html")
        if isinstance(answer, Attachment):
            found = Redirect(answer.path, answer.path.name, answer.modified_at)
            return self._send_piece(self.server.emulator.storage.piece(found, None, None))
        for fault, _ in self.struck:
            if fault.kind == "rewrite":
                answer = {**answer, **fault.body}
        return self._reply(200, {}, json.dumps(answer).encode())

    def _upload(self, token: str) -> None:
        emulator = self.server.emulator
        self._begin("BlobPut")
        self.entry.leaked_authorization = "Authorization" in self.headers
        blob = emulator.blobs.find(token)
        told = {
            "token": token,
            "name": blob.name if blob is not None else "",
            "contentRange": self.headers.get("Content-Range", ""),
        }
        self.entry.body = told
        self.entry.user = blob.user if blob is not None else ""
        incoming = self._incoming = _Incoming(self)
        self._strike(Call("BlobPut", Actor(self.entry.user), told, emulator.clock.now()))
        dropped = next((fault for fault, _ in self.struck if fault.kind == "drop_body"), None)
        if dropped is not None:
            incoming.limit = dropped.after_bytes
        length = None if incoming.chunked else incoming.length
        answer = emulator.blobs.put(token, self.headers.get("Content-Range"), length, incoming)
        self.entry.body_size = incoming.taken
        if dropped is not None:
            raise CutError
        incoming.drain()  # a client that still sends would not hear the answer
        headers = {"Range": answer.range} if answer.range is not None else {}
        self.entry.effect = "upload complete" if answer.status in {200, 201} else ""
        self._reply(answer.status, headers, answer.message.encode(), "text/plain")

    def _download(self, key: str) -> None:
        emulator = self.server.emulator
        self._begin("Download")
        self.entry.leaked_authorization = "Authorization" in self.headers
        found = emulator.storage.find(key)
        self.entry.body = {"name": found.name if found is not None else "", "range": self.headers.get("Range", "")}
        self._strike(Call("Download", ANYONE, self.entry.body, emulator.clock.now()))
        if found is None:
            return self._reply(404, {}, b"<Error><Code>NoSuchKey</Code></Error>", "application/xml")
        return self._send_piece(emulator.storage.piece(found, self.headers.get("Range"), self.headers.get("If-Range")))

    def _log_stream(self, owner: str, slug: str, query: Mapping[str, list[str]]) -> None:
        emulator = self.server.emulator
        self._begin("LogStream")
        label = query.get("versionLabel", [""])[0]
        self.entry.body = {"userName": owner, "kernelSlug": slug, "versionLabel": label}
        try:
            actor = emulator.accounts.identify(dict(self.headers))
            if actor is None:
                return self._refuse(ApiError(401, "Unauthenticated"))
            self._note_actor(actor)
            call = Call("LogStream", actor, self.entry.body, emulator.clock.now())
            self._strike(call)
            session = emulator.kernels.session_for_log(owner, slug, label, actor, call.now)
        except ApiError as error:
            return self._refuse(error)
        emulator.clock.wait_until(min(session.started_at, emulator.clock.now() + _LOG_WAIT_S), session.done)
        now = emulator.clock.now()
        if session.has_ended(now):
            return self._reply(200, {}, json.dumps(session.log).encode(), "application/octet-stream")
        if session.status(now) == "QUEUED":
            return self._refuse(ApiError(404, "The session has no log yet"))
        self._head(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"})
        sent = 0
        while not session.done.is_set() or sent < len(session.log):
            for line in session.log[sent:]:
                self._chunk(f"data: {json.dumps(line)}\n\n".encode())
                sent += 1
                if any(fault.kind == "truncate" for fault, _ in self.struck):
                    raise CutError
            session.done.wait(_LOG_POLL_REAL_S)
        self._chunk(b"data: END_OF_LOG\n\n")
        return self._chunk(b"")

    def _admin(self, what: str) -> None:
        self._begin("Admin")
        raw = self._body()
        try:
            answer = self.server.emulator.admin(self.command, what, json.loads(raw or b"{}"))
        except (ApiError, ValueError, TypeError) as error:
            status = error.status if isinstance(error, ApiError) else 400
            return self._reply(status, {}, json.dumps({"error": str(error)}).encode())
        return self._reply(200, {}, json.dumps(answer, indent=1, default=str).encode())

    # Faults.

    def _strike(self, call: Call) -> None:
        """Let the faults that meet this call do what comes before its effect.

        Raises:
            CutError: The connection is to end.
        """
        self.struck = self.server.emulator.faults.strike(call)
        self.entry.faults = tuple(fault.kind for fault, _ in self.struck)
        for fault, gone in self.struck:
            if fault.kind == "delay":
                gone.wait(fault.seconds)
            elif fault.kind == "lag" and call.route.startswith(("Get", "List", "Download")):
                call.now -= fault.seconds
            elif fault.kind in TWISTS:
                call.twists.append(fault)
            elif fault.kind in BEFORE:
                self._spoil(fault, gone)

    def _spoil(self, fault: Fault, gone: threading.Event) -> None:
        if fault.kind.startswith("hang"):
            gone.wait(fault.seconds or _FOREVER_REAL_S)
            raise CutError
        if fault.kind.startswith("drop"):
            raise CutError
        if self._incoming is not None:
            self._incoming.drain()
        if fault.kind == "lie":
            self._write(200, {}, json.dumps({**PLAUSIBLE.get(self.entry.route, {}), **fault.body}).encode(), "application/json")
        else:
            retry = {"Retry-After": fault.retry_after} if fault.retry_after is not None else {}
            self._write(fault.status, retry, *self._error_page(fault.status, fault.message, html=fault.html))
        raise _AnsweredError

    def _error_page(self, status: int, message: str, *, html: bool) -> tuple[bytes, str]:
        if html:
            page = f"<!doctype html><html><head><title>{status}</title></head><body><h1>{message}</h1></body></html>"
            return page.encode(), "text/html; charset=utf-8"
        return json.dumps(error_body(status, message, self.server.emulator.settings.error_format)).encode(), "application/json"

    # Writing.

    def _refuse(self, error: ApiError) -> None:
        self._reply(error.status, {}, *self._error_page(error.status, error.message, html=False))

    def _reply(self, status: int, headers: Mapping[str, str], body: bytes, kind: str = "application/json") -> None:
        """Write the answer, unless a fault wants it spoiled."""
        for fault, gone in self.struck:
            if fault.kind in {"drop_after", "hang_after", "status_after"}:
                self._spoil(fault, gone)
            if fault.kind == "truncate":
                self._head(status, {**headers, "Content-Type": kind, "Content-Length": str(len(body))})
                self.wfile.write(body[: int(len(body) * fault.fraction)])
                raise CutError
            if fault.kind == "short_body":
                body = body[: int(len(body) * fault.fraction)]
        self._write(status, headers, body, kind)

    def _write(self, status: int, headers: Mapping[str, str], body: bytes, kind: str) -> None:
        self._head(status, {**headers, "Content-Type": kind, "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.entry.status = status
        self.send_response(status)
        if self.server.emulator.settings.api_version:
            self.send_header("X-Kaggle-APIVersion", self.server.emulator.settings.api_version)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def _send_piece(self, piece: Piece) -> None:
        length, short = piece.length, False
        for fault, gone in self.struck:
            if fault.kind in {"drop_after", "hang_after", "status_after"}:
                self._spoil(fault, gone)
            if fault.kind in {"truncate", "short_body"}:
                length, short = int(length * fault.fraction), True
        honest = {"Content-Length": str(length)} if any(fault.kind == "short_body" for fault, _ in self.struck) else {}
        self._head(piece.status, {**piece.headers, **honest})
        if piece.path is not None and length and self.command != "HEAD":
            self.wfile.flush()
            with piece.path.open("rb") as file:
                offset, end = piece.start, piece.start + length
                while offset < end:
                    sent = os.sendfile(self.connection.fileno(), file.fileno(), offset, end - offset)
                    if sent == 0:
                        break
                    offset += sent
        self.entry.body_size = length
        if short and not honest:
            raise CutError

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    # Reading.

    def _body(self) -> bytes:
        """Read a small body whole."""
        incoming = _Incoming(self)
        pieces, buffer = [], memoryview(bytearray(_CHUNK_BYTES))
        while count := incoming.readinto(buffer):
            pieces.append(bytes(buffer[:count]))
            if incoming.taken > _LARGEST_JSON_BYTES:
                raise CutError
        self.entry.body_size = incoming.taken
        return b"".join(pieces)

    # Around each request.

    def _begin(self, route: str) -> None:
        self.struck = []
        self._incoming = None
        self._began = time.monotonic()
        self.entry = Entry(self.server.emulator.clock.now(), self.command, self.path, route, redact(self.headers.items()))
        self.server.emulator.journal.open(self.entry)

    def _note_actor(self, actor: Actor) -> None:
        self.entry.user, self.entry.session = actor.user, actor.session

    def _end(self) -> None:
        self.entry.real_s = round(time.monotonic() - self._began, 6)
        self.server.emulator.journal.close(self.entry)

    def _cut(self) -> None:
        """End the connection; at once and with a reset, so that the client is not left to wonder."""
        self.close_connection = True
        try:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return


class _AnsweredError(CutError):
    """A fault has answered already; the connection lives on."""


class _Incoming:
    """A request's body, by length or in chunks."""

    def __init__(self, handler: Handler) -> None:
        self._file = handler.rfile
        if hasattr(socket, "TCP_QUICKACK"):
            # Through a proxy the clients keep Nagle's algorithm on: without this they wait 40 ms between head and body.
            handler.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        self.chunked = "chunked" in handler.headers.get("Transfer-Encoding", "").lower()
        self.length = int(handler.headers.get("Content-Length") or 0)
        self.limit: int | None = None
        """Bytes after which the connection is taken for broken."""
        self.taken = 0
        self._left = 0 if self.chunked else self.length
        self.ended = not self.chunked and self.length == 0

    def readinto(self, buffer: memoryview) -> int:
        if self.chunked and self._left == 0 and not self.ended:
            self._next_chunk()
        most = min(len(buffer), self._left)
        if self.limit is not None:
            most = min(most, self.limit - self.taken)
        if most <= 0:
            return 0
        try:
            count: int = self._file.readinto(buffer[:most])
        except ConnectionError:
            return 0
        self.taken += count
        self._left -= count
        if self.chunked and count and self._left == 0:
            self._file.readline()
        elif self._left == 0:
            self.ended = True
        return count

    def drain(self) -> None:
        """Read what is left, and forget it."""
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        while self.readinto(buffer):
            pass

    def _next_chunk(self) -> None:
        self._left = int(self._file.readline().split(b";")[0].strip() or b"0", 16)
        if self._left == 0:
            self.ended = True
            while self._file.readline() not in {b"\r\n", b"\n", b""}:
                pass
