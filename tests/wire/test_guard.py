"""Who may ask: keys on every route that is not public, hosts, origins, headers."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from fastapi.routing import APIRoute
from wired import Wired, serving

from cutaway.errors import SettingsError
from cutaway.server.guard import PUBLIC, Guard, host_name
from cutaway.server.keys import Key, chosen, hashed, holder, new_key, read_keys
from cutaway.server.limits import Limits
from cutaway.server.serve import listening

SECRET = "a-secret-of-some-length"
HI = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def keyed(places: dict[str, Path]) -> Iterator[Wired]:
    with serving(places, keys=[Key("one", hashed(SECRET)), Key("two", hashed("another-secret-of-length"))],
                 hosts=frozenset({"models.example"}), origins=frozenset({"https://app.example"}),
                 limits=Limits(header_bytes=2000)) as server:
        yield server


def test_every_route_is_denied_unless_it_is_public(keyed: Wired) -> None:
    app = keyed.app.app
    routes = [(m, r.path) for r in app.routes for m in sorted(r.methods or ())]  # type: ignore[attr-defined]
    assert len([r for r in app.routes if isinstance(r, APIRoute)]) >= 15  # type: ignore[attr-defined]
    assert ("GET", "/openapi.json") in routes
    with keyed.http() as client:
        for method, path in routes:
            answer = client.request(method, path.replace("{name:path}", "tiny"))
            if (method, path) in PUBLIC:
                assert answer.status_code == 200, path
            else:
                assert answer.status_code == 401, path
                assert answer.headers["www-authenticate"] == "Bearer"
        assert client.get("/nothing/here").status_code == 401
        assert client.get("/health/").status_code == 401


def test_public_routes_are_few() -> None:
    assert {("GET", "/"), ("GET", "/health"), ("GET", "/ready")} == PUBLIC


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer wrong", f"Basic {SECRET}", SECRET, "Bearer \xff"])
def test_a_wrong_key_is_no_key(keyed: Wired, header: str) -> None:
    with keyed.http() as client:
        answer = client.get("/v1/models", headers=[(b"authorization", header.encode("latin-1"))])
    assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"


def test_the_client_has_its_exception(keyed: Wired) -> None:
    with pytest.raises(openai.AuthenticationError) as error:
        keyed.openai("wrong").models.list()
    assert error.value.code == "invalid_api_key"
    assert keyed.openai(SECRET).models.list().data


def test_a_keys_prompts_are_its_own(keyed: Wired) -> None:
    for key in (SECRET, "another-secret-of-length"):
        keyed.openai(key).chat.completions.create(**HI)  # type: ignore[call-overload]
    assert keyed.fake.salts[-2:] == ["one", "two"]


def test_the_page_of_readiness_names_no_models_to_strangers(keyed: Wired) -> None:
    with keyed.http() as client:
        assert client.get("/ready").json() == {"status": "ready"}


@pytest.mark.parametrize(("host", "status"), [
    ("localhost", 401), ("127.0.0.1:1", 401), ("[::1]:80", 401), ("192.168.1.7", 401), ("models.example", 401),
    ("models.example:99", 401), ("MODELS.example", 401), ("evil.example", 403), ("localhost.evil.example", 403),
    ("", 403), ("127.0.0.1.evil.example:80", 403), ("models.example.evil", 403)])
def test_a_strangers_name_is_no_host(keyed: Wired, host: str, status: int) -> None:
    with keyed.http() as client:
        answer = client.get("/v1/models", headers={"host": host})
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == ("host_not_allowed" if status == 403 else "invalid_api_key")


def test_hosts_are_taken_apart() -> None:
    assert [host_name(h) for h in ("a:1", "[::1]:5", "::1", "A")] == ["a", "::1", "::1", "a"]


def test_only_pages_of_this_server_may_ask(keyed: Wired) -> None:
    with keyed.http() as client:
        own = client.get("/health", headers={"origin": keyed.address})
        other = client.get("/health", headers={"origin": "https://evil.example"})
        null = client.get("/health", headers={"origin": "null"})
        let = client.get("/health", headers={"origin": "https://app.example"})
    assert own.status_code == 200 and "access-control-allow-origin" not in own.headers
    assert other.status_code == null.status_code == 403
    assert other.json()["error"]["code"] == "origin_not_allowed"
    assert "access-control-allow-origin" not in other.headers
    assert let.status_code == 200 and let.headers["access-control-allow-origin"] == "https://app.example"


def test_preflights_are_for_those_that_may(keyed: Wired) -> None:
    ask = {"access-control-request-method": "POST"}
    with keyed.http() as client:
        good = client.options("/v1/chat/completions", headers=ask | {"origin": "https://app.example"})
        bad = client.options("/v1/chat/completions", headers=ask | {"origin": "https://evil.example"})
        own = client.options("/v1/chat/completions", headers=ask | {
            "origin": "https://app.example", "access-control-request-headers": "authorization,x-stainless-os"})
    assert good.status_code == 204 and "POST" in good.headers["access-control-allow-methods"]
    assert "x-stainless-os" in own.headers["access-control-allow-headers"]  # of the official client of browsers
    assert bad.status_code == 403


def test_large_headers_are_refused_before_anything_else(keyed: Wired) -> None:
    with keyed.http() as client:
        answer = client.get("/health", headers={"x-much": "a" * 3000})
        assert answer.status_code == 431 and answer.json()["error"]["code"] == "headers_too_large"
        assert client.get("/health", headers={"x-much": "a" * 40_000}).status_code in (400, 431)  # the parser's


def test_two_hosts_are_none(keyed: Wired) -> None:
    host, port = keyed.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nOrigin: a\r\nOrigin: b\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: raw.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 400")


def test_every_answer_has_its_id_and_its_guards(keyed: Wired) -> None:
    with keyed.http() as client:
        answers = [client.get(p) for p in ("/health", "/v1/models", "/")]
    for answer in answers:
        assert answer.headers["x-request-id"].startswith("req_")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
    assert len({a.headers["x-request-id"] for a in answers}) == 3


def test_logs_have_no_prompts_and_no_keys(keyed: Wired, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "cutaway"):
        keyed.openai(SECRET).completions.create(model="tiny", prompt="a most private thought", max_tokens=3)
        keyed.http().get("/v1/models?private=1", headers={"authorization": f"Bearer {SECRET}"})
    mine = [r.getMessage() for r in caplog.records if r.name.startswith("cutaway")]
    assert any("/v1/completions 200" in line for line in mine)
    assert not [line for line in mine if "private" in line or SECRET in line]


def test_a_websocket_is_turned_away(keyed: Wired) -> None:
    with keyed.http() as client:
        answer = client.get("/v1/models", headers={"upgrade": "websocket", "connection": "upgrade"})
    assert answer.status_code == 401


def test_keys_are_kept_as_hashes(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    secret = new_key("me", file)
    file.write_text(file.read_text().rstrip("\n"))  # as some editors leave it
    other = new_key("you", file)
    assert secret not in file.read_text() and file.stat().st_mode & 0o077 == 0
    keys = read_keys(file)
    assert [k.name for k in keys] == ["me", "you"]
    found = holder(f"Bearer {other}", keys)
    assert found is not None and found.name == "you" and holder("Bearer x", keys) is None
    with pytest.raises(SettingsError, match="already"):
        new_key("me", file)
    with pytest.raises(SettingsError, match="can be guessed"):
        chosen("short")
    file.write_text("me nothash\n")
    with pytest.raises(SettingsError, match=":1"):
        read_keys(file)
    file.write_text("# none\n")
    with pytest.raises(SettingsError, match="holds no key"):
        read_keys(file)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_public_address_needs_a_key(host: str) -> None:
    with pytest.raises(SettingsError, match="there is no key"):
        listening(host, 0, keyed=False)
    try:
        listening(host, 0, keyed=True).close()
    except SettingsError as error:  # a machine without IPv6
        assert host == "::" and "cannot listen" in str(error)


def test_a_port_that_is_taken_is_said() -> None:
    with listening("127.0.0.1", 0, keyed=False) as first, pytest.raises(SettingsError, match="cannot listen"):
        listening("127.0.0.1", first.getsockname()[1], keyed=False)
    with pytest.raises(SettingsError, match="no address"):
        listening("no.such.host.invalid", 1, keyed=False)


def test_no_key_means_no_key_is_asked_for(wired: Wired) -> None:
    assert isinstance(wired.app, Guard)
    with wired.http() as client:
        assert client.get("/v1/models").status_code == 200
        assert client.get("/v1/models", headers={"authorization": "Bearer x"}).status_code == 200
        assert client.get("/nothing").json()["error"]["code"] == "unknown_url"
        wrong = client.delete("/v1/models")
        assert wrong.status_code == 405 and wrong.headers["allow"] == "GET"
        assert json.loads(wrong.text)["error"]["code"] == "method_not_allowed"
