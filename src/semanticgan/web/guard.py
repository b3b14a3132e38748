"""What every request must show before anything is done for it, and the headers that every answer gets."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

MAX_BODY = 64 * 2**20  # bytes
HERE = ("127.0.0.1", "localhost", "[::1]")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]


class Guard:
    """Refuses requests under another host name (DNS rebinding), of another site (request forgery), and huge ones unread."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        refused = refusal(scope["path"], [(k.lower(), v.decode("latin-1")) for k, v in scope["headers"]])
        if refused is None:
            await self.app(scope, receive, send_with_headers)
            return
        status, reason = refused
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send_with_headers({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps({"error": reason}).encode()})


def refusal(path: str, headers: list[tuple[bytes, str]]) -> tuple[int, str] | None:
    """Status and reason, or None for a request that may pass."""
    hosts = [value for name, value in headers if name == b"host"]
    host = hosts[0].lower() if len(hosts) == 1 else ""
    name, _, port = host.rpartition(":")
    if host not in HERE and not (name in HERE and port.isascii() and port.isdigit()):  # any port: it may be forwarded
        return 403, "expected a request to 127.0.0.1 or localhost"
    values = dict(headers)
    if b"origin" in values and values[b"origin"].lower() != f"http://{host}":
        return 403, "expected a request of this page, not of another site"
    if path.startswith("/api/") and values.get(b"sec-fetch-site", "none") not in ("none", "same-origin"):
        return 403, "expected a request of this page, not of another site"
    length = values.get(b"content-length", "0")
    if not length.isascii() or not length.isdigit():
        return 400, "content-length: expected a number"
    if len(length) > 12 or int(length) > MAX_BODY:
        return 413, f"got {length[:12]} bytes, expected at most {MAX_BODY // 2**20} MiB; make the file smaller"
    return None
