"""The page: one file that asks nobody else, whose policy lets nothing run that a model writes."""

from __future__ import annotations

import base64
import hashlib
import re

from wired import Wired

from cutaway.server.route_page import read_page


def test_the_page_asks_nobody_else(wired: Wired) -> None:
    answer = wired.http().get("/")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    assert not re.findall(r"(?:src|href|action|url)\s*[=(]\s*[\"']?(?!data:)[\w/]", answer.text)
    assert not re.findall(r"https?://", answer.text)
    assert {*re.findall(r"fetch\(\"([^\"]+)\"", answer.text)} == {"/v1/models", "/v1/chat/completions", "/render"}


def test_its_policy_names_its_own_script_and_no_other(wired: Wired) -> None:
    answer = wired.http().get("/")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy and "connect-src 'self'" in policy
    for tag in ("script", "style"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        assert base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode() in policy
    assert not re.findall(r"\son\w+=|style=", answer.text)  # which such a policy would not let run


def test_what_a_model_writes_becomes_text() -> None:
    html, _ = read_page()
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("):
        assert sink not in html
    assert "textContent" in html
