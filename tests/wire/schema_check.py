"""A check for schemathesis: what is refused though the schema allows it is refused for what no schema can say. What was
answered is noted in the file that CUTAWAY_SCHEMA_SEEN names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import schemathesis

from cutaway.server.problem import UNSAYABLE


@schemathesis.check
def refused_for_what_no_schema_says(ctx: Any, response: Any, case: Any) -> None:
    """Stands in for 400 among what ``positive_data_acceptance`` takes: only with one of the codes the schema lists."""
    if case.meta is None:
        return
    allowed = case.meta.generation.mode.is_positive
    with Path(os.environ["CUTAWAY_SCHEMA_SEEN"]).open("a", encoding="utf-8") as seen:
        seen.write(f"{case.operation.label}\t{allowed}\t{response.status_code}\n")
    if allowed and response.status_code == 400:
        error = response.json()["error"]
        assert error["code"] in UNSAYABLE, f"the schema allows this, and the server says: {error['message']}"
