"""Reports as one HTML page each: no network, light and dark, readable by keyboard; every text is escaped by jinja2."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from cutaway.run.report_forms import NONE

# The button only flips an attribute; without a script the page follows the system's choice.
SCRIPT = """(() => {
  const root = document.documentElement, button = document.getElementById('theme');
  const system = matchMedia('(prefers-color-scheme: dark)');
  const dark = () => root.dataset.theme ? root.dataset.theme === 'dark' : system.matches;
  const show = () => { button.textContent = dark() ? 'Light' : 'Dark'; };
  button.hidden = false; show();
  button.addEventListener('click', () => { root.dataset.theme = dark() ? 'light' : 'dark'; show(); });
  system.addEventListener('change', show);
})();"""


def render(template: str, facts: Mapping[str, Any], *, sections: Sequence[tuple[str, str]]) -> str:
    """The page ``template`` (a file beside this one) of ``facts``, which hold at least ``name`` and ``summary``."""
    here = files("cutaway.run")
    pages = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                        loader=FunctionLoader(lambda name: (here / name).read_text("utf-8")))
    script_hash = "sha256-" + base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return pages.get_template(template).render(
        **facts, none=NONE, sections=sections, script=Markup(SCRIPT), script_hash=Markup(script_hash),
        style=Markup((here / "report.css").read_text("utf-8")))
