"""GET /: a page to chat with, one file that asks nobody but this server.

The policy names its script by hash, so nothing that a model writes could run even if it reached the page as markup.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from cutaway.server.service import Service


async def page(request: Request, service: Service) -> Response:
    """The page."""
    html, policy = read_page()
    return HTMLResponse(html, headers={"content-security-policy": policy})


@cache
def read_page() -> tuple[str, str]:
    """The page and the policy that lets its own script and style run and nothing else."""
    html = files("cutaway.server").joinpath("page.html").read_text("utf-8")

    def hashes(tag: str) -> str:
        inside = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in inside)

    return html, (f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; "
                  "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
