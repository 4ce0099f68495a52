"""The page for others than this machine: a real process, of which nothing is shown without a token."""

import http.client
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from mezzotint.ui import connection, launch
from mezzotint.worker import tokens
from mezzotint.worker.client import Client
from mezzotint.worker.database import Database
from mezzotint.worker.migrate import migrate
from mezzotint.worker.settings import Settings

UPGRADE = {
    "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
START_S = 180


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Database:
    database = Database(Settings.load(data_dir=tmp_path_factory.mktemp("data")).database_url)
    migrate(database)
    return database


@pytest.fixture(scope="module")
def port(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a running page behind its gate."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free: int = probe.getsockname()[1]
    environment = os.environ | {
        "MEZZOTINT_DATABASE_URL": database.engine.url.render_as_string(), "MEZZOTINT_REQUIRE_TOKEN": "true",
        "HOME": str(tmp_path_factory.mktemp("home")),
    }
    command = launch.command("0.0.0.0", free, needs_token=True)
    process = subprocess.Popen(command, cwd=launch.APP.parent, env=environment)
    try:
        until = time.monotonic() + START_S
        while not is_up(free):
            assert process.poll() is None, "the page ended"
            assert time.monotonic() < until, f"the page did not answer within {START_S} s"
            time.sleep(0.2)
        yield free
    finally:
        process.terminate()
        process.wait(60)


def is_up(port: int) -> bool:
    try:
        return call(port, "GET", "/_stcore/health").status == 200
    except OSError:
        return False


def call(port: int, method: str, path: str, body: str | None = None, **headers: str) -> Any:
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        link.request(method, path, body, headers)
        answer = link.getresponse()
        if answer.status != 101:
            answer.text = answer.read().decode("utf-8", "replace")  # type: ignore[attr-defined]
        return answer
    finally:
        link.close()


@pytest.mark.parametrize(
    "path", ["/", "/history", "/media/x.png", "/_stcore/host-config", "/static/js/main.js", "/sign-in"]
)
def test_without_a_token_only_the_form_is_shown(port: int, path: str) -> None:
    for cookie in ("", f"{connection.COOKIE}=mzt_guess", f"{connection.COOKIE}=", "=;=", "\u00fc"):
        answer = call(port, "GET", path, Cookie=cookie)
        assert answer.status == 401
        assert 'type="password"' in answer.text
        assert "streamlit" not in answer.text.lower()
        assert answer.headers["cache-control"] == "no-store"


def test_without_a_token_no_socket_opens(port: int) -> None:
    assert call(port, "GET", "/_stcore/stream", **UPGRADE).status == 403
    assert call(port, "GET", "/_stcore/stream", Cookie=f"{connection.COOKIE}=mzt_guess", **UPGRADE).status == 403


@pytest.mark.parametrize("body", ["", "token=", "token=mzt_wrong", "token=<b>", "x" * 5000, "token=%ff%00"])
def test_a_wrong_token_is_told_and_not_repeated(port: int, body: str) -> None:
    answer = call(port, "POST", "/sign-in", body)
    assert answer.status == 401
    assert "This token is not known" in answer.text
    assert "<b>" not in answer.text
    assert "set-cookie" not in answer.headers


def test_a_token_opens_the_page_until_it_is_revoked(port: int, database: Database) -> None:
    token, secret = tokens.create(database, "mine")
    answer = call(port, "POST", "/sign-in", f"token={secret}", **{"Content-Type": "application/x-www-form-urlencoded"})
    assert (answer.status, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    mine = {"Cookie": cookie.partition(";")[0]}
    assert "streamlit" in call(port, "GET", "/", **mine).text.lower()
    assert call(port, "GET", "/_stcore/stream", **mine, **UPGRADE).status == 101
    tokens.revoke(database, token.id)
    assert call(port, "GET", "/", **mine).status == 401
    assert call(port, "GET", "/_stcore/stream", **mine, **UPGRADE).status == 403


@pytest.fixture
def signed_in(client: Client, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Look at the page with a token in the cookie: signed_in(token) -> AppTest."""
    monkeypatch.setenv("MEZZOTINT_REQUIRE_TOKEN", "true")
    connection.shared.clear()
    cookies: dict[str, str] = {}
    monkeypatch.setattr("mezzotint.ui.connection.cookies", lambda: cookies)

    def look(token: str) -> AppTest:
        cookies[connection.COOKIE] = token
        return AppTest.from_string("from mezzotint.ui import history\nhistory.show()", default_timeout=120).run()

    yield look
    connection.shared.clear()


def test_each_sees_their_own_jobs(client: Client, model: str, signed_in: Any) -> None:
    database = Database(client.settings.database_url)
    client.list()
    (ann, ann_secret), (_, bob_secret) = tokens.create(database, "ann"), tokens.create(database, "bob")
    client.submit({"prompt": "a red apple", "model": model}, owner=ann.owner)
    assert "Open a red apple" in [button.label for button in signed_in(ann_secret).button]
    assert any("Nothing has been drawn yet." in each.value for each in signed_in(bob_secret).get("html"))
    tokens.revoke(database, ann.id)
    page = signed_in(ann_secret)
    [told] = [each.value for each in page.error]
    assert told.startswith("Your token was revoked.")
    assert "Open a red apple" not in [button.label for button in page.button]


def test_a_picture_in_memory_is_not_there_for_another(client: Client, draw: Any, model: str) -> None:
    database = Database(client.settings.database_url)
    client.list()
    (_, ann), (_, bob) = tokens.create(database, "ann", owner="local"), tokens.create(database, "bob")
    done = draw(client.submit({"prompt": "a red apple", "model": model}))
    media_id = done.outputs[0].media_id
    ours, theirs = client.sign_in(ann), client.sign_in(bob)
    assert ours is not None
    assert theirs is not None
    assert connection._original(ours.owner, media_id, ours) == client.media(media_id)
    with pytest.raises(LookupError):
        connection._original(theirs.owner, media_id, theirs)


def test_a_tokens_limits_hold_on_the_page(client: Client, model: str) -> None:
    database = Database(client.settings.database_url)
    client.list()
    _, secret = tokens.create(database, "one", limits=tokens.Limits(max_active=1))
    mine = client.sign_in(secret)
    assert mine is not None
    mine.submit({"prompt": "a", "model": model})
    with pytest.raises(Exception, match="this token allows 1"):
        mine.submit({"prompt": "b", "model": model})


def test_the_app_is_found_beside_its_gate() -> None:
    assert launch.GUARDED.is_file()
    assert Path(launch.command("0.0.0.0", 1, needs_token=True)[5]) == launch.GUARDED
    assert Path(launch.command("127.0.0.1", 1)[5]) == launch.APP
