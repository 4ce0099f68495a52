"""Callers who mean no good, or do not know better: each gets one sentence in the one shape, and the gateway lives."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

JSON = b"Content-Type: application/json\r\n"


@pytest.fixture(autouse=True)
def _lives_on(lasting_gateway: Any) -> Iterator[None]:
    """Whatever a test sent, nothing failed unexpectedly and nothing was queued."""
    before = len(lasting_gateway.service.client.list(limit=200).jobs)
    yield
    assert lasting_gateway.call("GET", "/healthz").status == 200
    assert "Traceback" not in lasting_gateway.service.log()
    assert len(lasting_gateway.service.client.list(limit=200).jobs) == before


def raw(gateway: Any, head: bytes, body: bytes = b"") -> tuple[int, dict[str, Any]]:
    """Send a request as it is written here; the status and the error of the answer."""
    received = gateway.raw(head.replace(b"\n", b"\r\n") + b"\r\n" + body)
    top, _, rest = received.partition(b"\r\n\r\n")
    error = json.loads(rest)["error"]
    assert error.keys() == {"code", "message", "hint"}
    return int(top.split()[1]), error


HOST = b"Host: 127.0.0.1\nConnection: close\n"

BODIES: list[tuple[str, bytes, int, str, str]] = [
    ("nothing", b"", 400, "invalid_json", "the body is not JSON"),
    ("no JSON", b"prompt=a+red+apple", 400, "invalid_json", "the body is not JSON"),
    ("half of it", b'{"prompt": "a', 400, "invalid_json", "the body is not JSON"),
    ("an array", b"[1]", 400, "invalid_json", "the body is an array"),
    ("null", b"null", 400, "invalid_json", "the body is null"),
    ("not UTF-8", b'{"prompt": "\xff\xfe"}', 400, "invalid_json", "not UTF-8"),
    ("NaN", b'{"prompt": "x", "guidance_scale": NaN}', 400, "invalid_json", "NaN is no JSON number"),
    ("a bomb of brackets", b"[" * 100_000, 400, "invalid_json", "nested too deeply"),
    ("a bomb of objects", b'{"a":' * 20_000, 400, "invalid_json", "nested too deeply"),
    ("a deep field", b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b"}", 400, "invalid_request", "prompt is "),
    ("a number without end", b'{"prompt": "x", "seed": ' + b"9" * 100_000 + b"}", 400, "invalid_json", "not JSON"),
    ("a huge exponent", b'{"prompt": "x", "guidance_scale": 1e999}', 400, "invalid_request", "guidance_scale is "),
    ("a control character", b'{"prompt": "a\\u0000b"}', 400, "invalid_request", "control character"),
    ("half a character", b'{"prompt": "a\\ud800b"}', 400, "invalid_request", "prompt is "),
    ("half a character elsewhere", b'{"prompt": "x", "model": "\\ud800"}', 400, "invalid_request", "model is "),
    ("a long prompt", json.dumps({"prompt": "x" * 2001}).encode(), 400, "invalid_request", "2,001 characters"),
    ("a very long prompt", json.dumps({"prompt": "x" * 10**6}).encode(), 413, "too_large", "larger than 131,072 bytes"),
    ("a long unknown field", json.dumps({"prompt": "x", "x\n" * 30_000: 1}).encode(), 400, "invalid_request", "x x x"),
    ("a path for a model", b'{"prompt": "x", "model": "/etc"}', 400, "invalid_request", "the models here are"),
    ("a way up for a model", b'{"prompt": "x", "model": "../../etc"}', 400, "invalid_request", "the models here are"),
    ("many steps", b'{"prompt": "x", "num_inference_steps": 1000000000}', 400, "invalid_request", "from 1 to 250"),
    ("many pixels", b'{"prompt": "x", "width": 100000}', 400, "invalid_request", "from 1 to 1024"),
    ("a number as text", b'{"prompt": "x", "width": "64"}', 400, "invalid_request", "a whole number"),
    ("truth as text", b'{"prompt": "x", "include_prompt_in_metadata": "yes"}', 400, "invalid_request", "true or false"),
]


@pytest.mark.parametrize("route", ["/v1/jobs", "/v1/images/generations"])
@pytest.mark.parametrize(
    ("body", "status", "code", "says"), [row[1:] for row in BODIES], ids=[row[0] for row in BODIES]
)
def test_a_bad_body_is_refused(
    lasting_gateway: Any, route: str, body: bytes, status: int, code: str, says: str
) -> None:
    if b'"width"' in body and "images" in route:
        says = "width is not a field"
    answer = lasting_gateway.call("POST", route, body, Content_Type="application/json")
    assert (answer.status, answer.error["code"]) == (status, code), answer
    assert says in answer.error["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {}, {"Content_Type": "text/plain"}, {"Content_Type": "application/x-www-form-urlencoded"},
        {"Content_Type": "multipart/form-data; boundary=x"}, {"Content_Type": "application/jsonp"},
        {"Content_Type": "application/json", "Content_Encoding": "gzip"},
    ],
)
def test_another_kind_of_body_is_refused(lasting_gateway: Any, headers: dict[str, str]) -> None:
    answer = lasting_gateway.call("POST", "/v1/jobs", b'{"prompt": "x"}', **headers)
    assert (answer.status, answer.error["code"]) == (415, "unsupported_media_type")


def test_a_body_without_a_length_is_cut_off_at_the_limit(lasting_gateway: Any) -> None:
    chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
    head = b"POST /v1/jobs HTTP/1.1\n" + HOST + JSON.replace(b"\r", b"") + b"Transfer-Encoding: chunked\n"
    assert raw(lasting_gateway, head, chunk * 5)[0] == 413


def test_an_upload_beyond_the_limit_is_refused_before_it_is_sent(lasting_gateway: Any) -> None:
    head = b"POST /v1/images/edits HTTP/1.1\n" + HOST + b"Content-Length: 99999999999\n"
    status, error = raw(lasting_gateway, head)
    assert (status, error["code"]) == (413, "too_large")


@pytest.mark.parametrize(
    "path",
    [
        "/media/../../etc/passwd", "/media/..%2f..%2fetc%2fpasswd", "/media/%2e%2e/%2e%2e/etc/passwd", "/media/",
        "/media//etc/passwd", "/media/..", "/media/" + "0" * 31, "/media/" + "0" * 32, "/media/" + "G" * 32,
        "/media/" + "0" * 32 + "%00", "/media/" + "0" * 32 + "/../..", "/media/%ff%fe", "/media/" + "0" * 32 + ".png",
        "/v1/jobs/../../media", "/v1/jobs/' OR 1=1", "/v1/jobs/" + "0" * 32, "/nowhere", "//", "/v1/jobs/", "/docs",
    ],
)
def test_a_path_that_leads_nowhere_is_not_found(lasting_gateway: Any, path: str) -> None:
    head = f"GET {path.replace(' ', '%20')} HTTP/1.1\n".encode() + HOST
    status, error = raw(lasting_gateway, head)
    assert (status, error["code"]) == (404, "not_found")


def test_a_file_of_the_storage_is_not_reached_by_its_own_name(lasting_gateway: Any) -> None:
    secret = Path(lasting_gateway.service.settings.data_dir) / "media" / "00" / ("0" * 64 + ".png")
    secret.parent.mkdir(parents=True, exist_ok=True)
    secret.write_bytes(b"secret")
    for path in (secret.stem, f"00/{secret.name}", f"../media/00/{secret.name}"):
        answer = lasting_gateway.call("GET", f"/media/{path}")
        assert (answer.status, b"secret" in answer.body) == (404, False)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "OPTIONS", "BREW"])
@pytest.mark.parametrize("path", ["/v1/jobs", "/media/" + "0" * 32, "/healthz", "/v1/images/generations"])
def test_a_wrong_method_is_told_which_is_right(lasting_gateway: Any, method: str, path: str) -> None:
    answer = lasting_gateway.call(method, path)
    assert (answer.status, answer.error["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"]
    assert answer.error["message"].startswith(f"{method} is not for this address; use ")


@pytest.mark.parametrize(
    "key", [b"a b", b"\xc3\xbc", b"x" * 201, b"a\x0bb", b""], ids=["space", "letter", "long", "control", "empty"]
)
def test_a_bad_idempotency_key_is_refused(lasting_gateway: Any, key: bytes) -> None:
    body = json.dumps(lasting_gateway.job()).encode()
    head = b"POST /v1/jobs HTTP/1.1\n" + HOST + JSON.replace(b"\r", b"") + b"Idempotency-Key: " + key
    status, _ = raw(lasting_gateway, head + b"\nContent-Length: %d\n" % len(body), body)
    assert status == 400


@pytest.mark.parametrize(
    "line",
    [
        b"Last-Event-ID: 1-1\r\nX: y\n z", b"X-Bad Name: 1", b"X: a\rb", b"X: a\x00b", b"no colon",
        b"Content-Length: 1\nContent-Length: 2", b"Content-Length: -1", b"X: " + b"a" * 40_000,
        b"Transfer-Encoding: gzip, chunked", b"Content-Length: 5\nTransfer-Encoding: chunked",
    ],
)
def test_headers_that_are_none_never_reach_an_answer(lasting_gateway: Any, line: bytes) -> None:
    received = lasting_gateway.raw(b"GET /v1/jobs/x/events HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
                                   + line.replace(b"\n", b"\r\n") + b"\r\n\r\n", 60)
    head, _, body = received.partition(b"\r\n\r\n")
    assert int(head.split()[1]) in (400, 404, 501), received
    assert b"X: y" not in head
    assert json.loads(body)["error"].keys() == {"code", "message", "hint"}


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"GET / HTTP/x\r\n\r\n", b"\r\n" * 9]
)
def test_what_is_not_http_is_answered_or_closed(lasting_gateway: Any, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", lasting_gateway.port), 60) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    assert not received or received.startswith(b"HTTP/1.1 400 Bad Request\r\n")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "[::2]", "0"])
def test_another_hosts_name_is_refused(lasting_gateway: Any, host: str) -> None:
    answer = lasting_gateway.call("GET", "/v1/jobs", Host=host)
    assert (answer.status, answer.error["code"]) == (403, "forbidden")


def test_this_machines_names_are_taken(lasting_gateway: Any) -> None:
    for host in ("localhost", "127.0.0.1:99", "LOCALHOST:1", "[::1]:8502"):
        assert lasting_gateway.call("GET", "/v1/jobs?limit=1", Host=host).status == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example", "file://"])
def test_a_foreign_web_site_is_refused(lasting_gateway: Any, origin: str) -> None:
    answer = lasting_gateway.call("POST", "/v1/jobs", lasting_gateway.job(), Origin=origin)
    assert (answer.status, answer.error["code"]) == (403, "forbidden")


def test_no_answer_allows_another_site_to_read_it(lasting_gateway: Any) -> None:
    answer = lasting_gateway.call("GET", "/v1/jobs", Origin="http://localhost:8501")
    assert answer.status == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert answer.headers["cache-control"] == "no-store"
    assert "server" not in answer.headers


@pytest.mark.slow
def test_slow_callers_are_sent_away_while_others_are_served(
    make_service: Callable[..., Any], lasting_gateway: Any
) -> None:
    """All at once, since each takes its whole time: one silent, one that stops in its headers, one in its body."""
    begun = {
        "silent": b"",
        "headers": b"GET /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ",
        "body": b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\n" + JSON + b"Content-Length: 50\r\n\r\n{",
    }
    with ThreadPoolExecutor(len(begun)) as pool:
        waiting = {name: pool.submit(lasting_gateway.raw, data, 180) for name, data in begun.items()}
        began = time.monotonic()
        while not all(each.done() for each in waiting.values()):
            assert lasting_gateway.call("GET", "/healthz").status == 200
            assert time.monotonic() - began < 170
            time.sleep(0.5)
    for name, each in waiting.items():
        received = each.result()
        assert received.startswith(b"HTTP/1.1 408 Request Timeout\r\n"), (name, received)
        error = json.loads(received.partition(b"\r\n\r\n")[2])["error"]
        assert error["code"] == "timeout"


@pytest.mark.slow
def test_one_who_does_not_read_is_cut_off(lasting_gateway: Any, until: Callable[..., None]) -> None:
    """Many answers are asked for on one connection and none is read, so that they fill every buffer."""
    ask = b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect(("127.0.0.1", lasting_gateway.port))
        lazy.settimeout(1)

        def is_cut_off() -> bool:
            try:
                lazy.sendall(ask * 200)
            except TimeoutError:
                return False
            except (ConnectionResetError, BrokenPipeError):
                return True
            return False

        until(is_cut_off, 150, lasting_gateway.service.log)
