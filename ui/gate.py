"""The page for others than this machine: nothing of it is shown, and no socket opens, without a token.

The token is typed in once and kept in a cookie that no script can read and no other site can send.
"""

from functools import lru_cache
from html import escape
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from mezzotint.ui.connection import COOKIE
from mezzotint.worker.client import Client

SIGN_IN, HEALTH = "/sign-in", "/_stcore/health"
KEEP_S = 30 * 86_400
MAX_FORM_BYTES = 1024

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Mezzotint</title>
<meta name="viewport" content="width=device-width">
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 24rem; margin: 20vh auto 0; padding: 0 1rem;
  background: #f6f6f4; color: #1b1c1e }}
h1 {{ font-family: Georgia, serif; font-weight: 600 }}
input, button {{ font: inherit; width: 100%; box-sizing: border-box; padding: .6rem; border-radius: 6px;
  border: 1px solid #8a8c88 }}
button {{ margin-top: .8rem; background: #1c4a6b; color: #fff; border: 0 }}
[role=alert] {{ color: #9b1c1c }}
</style>
<h1>Mezzotint</h1>
<form method="post" action="{action}">
<p role="alert">{complaint}</p>
<label for="token">Your token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button>Sign in</button>
</form>
<p>Whoever runs this page makes one: <code>mezzotint tokens create NAME</code>.</p>
</html>"""
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy":
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Gate:
    """ASGI middleware around the whole page."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request or a socket through whose cookie holds a good token."""
        if scope["type"] == "lifespan" or scope["path"] == HEALTH:
            await self._app(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] == SIGN_IN and scope["method"] == "POST":
            await (await _sign_in(Request(scope, receive)))(scope, receive, send)
        elif await _is_known(_cookie(scope)):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await _form("", 401)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})  # refused before it opens: 403


async def _sign_in(request: Request) -> Response:
    form = parse_qs((await _body(request)).decode("utf-8", "replace"))
    token = form.get("token", [""])[0].strip()
    if not await _is_known(token):
        return _form("This token is not known, or it was revoked.", 401)
    answer = RedirectResponse("/", 303, _HEADERS)
    answer.set_cookie(
        COOKIE, token, max_age=KEEP_S, httponly=True, samesite="strict", secure=request.url.scheme == "https"
    )
    return answer


async def _body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            return b""
    return body


async def _is_known(token: str) -> bool:
    return bool(token) and await run_in_threadpool(_client().sign_in, token) is not None


@lru_cache(maxsize=1)
def _client() -> Client:
    """One of its own: the page's belongs to Streamlit's sessions, and none is there yet."""
    return Client()


def _cookie(scope: Scope) -> str:
    header = next((value for name, value in scope["headers"] if name == b"cookie"), b"")
    try:
        cookies = SimpleCookie(header.decode("latin-1"))
    except CookieError:
        return ""
    return cookies[COOKIE].value if COOKIE in cookies else ""


def _form(complaint: str, status: int) -> Response:
    page = _PAGE.format(action=SIGN_IN, complaint=escape(complaint))
    return HTMLResponse(page, status, _HEADERS)
