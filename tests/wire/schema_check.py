"""A check for schemathesis: what is refused though the schema allows it is refused for what no schema can say."""

from __future__ import annotations

from typing import Any

import schemathesis

from cutaway.server.problem import UNSAYABLE


@schemathesis.check
def refused_for_what_no_schema_says(ctx: Any, response: Any, case: Any) -> None:
    """Stands in for 400 among what ``positive_data_acceptance`` takes: only with one of the codes the schema lists."""
    if case.meta is not None and case.meta.generation.mode.is_positive and response.status_code == 400:
        error = response.json()["error"]
        assert error["code"] in UNSAYABLE, f"the schema allows this, and the server says: {error['message']}"
