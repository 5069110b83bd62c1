"""``cutaway models``: what was fetched, and what can be by one word."""

from __future__ import annotations

from cutaway.cli.console import Json, note, row, stdout, table


def command(*, json: Json = False) -> None:
    """List the models that go by a name, with their size, licence and source."""
    from cutaway.models.pull import PACKAGED
    from cutaway.models.store import fetched, models_folder

    here = fetched()
    if json:
        for source, folder, size in here:
            row({"name": source.name, "bytes": size, "licence": source.licence, "origin": source.origin,
                 "revision": source.revision, "folder": str(folder)})
        return
    if here:
        rows = [(s.name, f"{size / 2**20:,.0f} MiB", s.licence or "not stated", s.origin, s.revision[:12])
                for s, _, size in here]
        stdout().print(table(("model", "size", "licence", "from", "revision"), rows))
    else:
        note(f"no model was fetched yet; they would lie in {models_folder()}")
    missing = [name for name in PACKAGED if name not in {s.name for s, _, _ in here}]
    if missing:
        note("to fetch: " + ", ".join(f"cutaway pull {name}" for name in missing))
