"""Draws the pictures of three pages of docs/explain/: who sees whom, asked of real models, one token changed at a time.

With ``--check`` nothing is written; the exit code says whether the pictures are what the models say.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from html import escape
from pathlib import Path

import torch
from torch import Tensor

from cutaway.batch import Batch
from cutaway.models.model import Model, build
from cutaway.models.transformer import Shape, TransformerConfig

FOLDER = Path(__file__).parent / "explain"
SOURCE, TARGET = ("the", "cat", "sat", "down"), ("<bos>", "le", "chat", "s'assit")
CELL, LEFT, TOP = 34, 78, 66
STYLE = """svg { --ink: #1f1e1b; --soft: #66635b; --line: #e2dfd6; --paper: #fbfaf6; --accent: #b0431b; background: var(--paper); }
@media (prefers-color-scheme: dark) { svg { --ink: #eceae3; --soft: #a5a197; --line: #35332d; --paper: #171613; --accent: #f08c5f; } }
text { font: 13px system-ui, sans-serif; fill: var(--ink); } .soft { fill: var(--soft); font-size: 12px; }
rect { stroke: var(--paper); stroke-width: 3; fill: var(--line); } .sees { fill: var(--accent); }
line { stroke: var(--soft); stroke-width: 1.5; }"""  # noqa: E501


def model_of(shape: Shape) -> Model:
    """A small one, its weights as they were drawn: who sees whom does not depend on them."""
    return build(TransformerConfig(shape=shape, vocab_size=32, hidden_size=16, num_layers=1, num_heads=2,
                                   num_kv_heads=2, intermediate_size=32, context_length=16)).eval()


@torch.no_grad()
def seen(answer: Callable[[Tensor], Tensor], length: int) -> list[list[bool]]:
    """``[query][key]``: whether the answer at ``query`` is another when the token at ``key`` is; tokens ``(1, T)``."""
    tokens = torch.arange(length)[None]
    before, others = answer(tokens)[0], tokens + 9 * torch.eye(length, dtype=torch.long)
    columns = [(answer(other[None])[0] != before).any(1).tolist() for other in others]
    return [list(row) for row in zip(*columns, strict=True)]


def one_stack(shape: Shape) -> list[list[bool]]:
    """Of a row of words read by an encoder or a decoder."""
    model = model_of(shape)
    return seen(lambda tokens: model(Batch(tokens)), len(SOURCE))


def two_stacks() -> list[list[bool]]:
    """Of a source and, below and behind it, a target."""
    model = model_of("encoder-decoder")
    source, target = torch.arange(len(SOURCE))[None], torch.arange(len(TARGET))[None] + 20
    reads = seen(lambda tokens: model.backbone.encoder(Batch(tokens), dtype=torch.float32), len(SOURCE))
    looks = seen(lambda tokens: model(Batch(target, source=tokens)), len(SOURCE))
    writes = seen(lambda tokens: model(Batch(tokens, source=source)), len(TARGET))
    return [[*row, *[False] * len(TARGET)] for row in reads] + [a + b for a, b in zip(looks, writes, strict=True)]


def picture(cells: list[list[bool]], words: tuple[str, ...], *, says: str, parted: int = 0) -> str:
    """An SVG that is readable in light and dark; ``parted``: how many words come before the line between two texts."""
    end = CELL * len(words)
    parts = [f'<text class="soft" x="{LEFT - 8}" y="{TOP - 6}" text-anchor="end">who looks</text>',
             f'<text class="soft" x="{LEFT}" y="14">at whom</text>']
    for i, word in enumerate(words):
        middle = CELL * i + CELL / 2
        parts.append(f'<text x="{LEFT - 8}" y="{TOP + middle + 4:g}" text-anchor="end">{escape(word)}</text>')
        parts.append(f'<text transform="translate({LEFT + middle + 4:g} {TOP - 6}) rotate(-40)">{escape(word)}</text>')
    for i, row in enumerate(cells):
        parts += [f'<rect class="{"sees" if sees else "blind"}" x="{LEFT + CELL * j}" '
                  f'y="{TOP + CELL * i}" width="{CELL}" height="{CELL}"/>' for j, sees in enumerate(row)]
    if parted:
        at = CELL * parted
        parts += [f'<line x1="{LEFT + at}" x2="{LEFT + at}" y1="{TOP}" y2="{TOP + end}"/>',
                  f'<line x1="{LEFT}" x2="{LEFT + end}" y1="{TOP + at}" y2="{TOP + at}"/>']
    wide, high = LEFT + end + 56, TOP + end + 10
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" '
            f'height="{high}" role="img" aria-label="{escape(says)}"><style>{STYLE}</style>\n'
            + "\n".join(parts) + "\n</svg>\n")


def pictures() -> dict[str, str]:
    """Each file's name and its text."""
    return {
        "encoder.svg": picture(one_stack("encoder"), SOURCE, says="Every word looks at every word"),
        "decoder.svg": picture(one_stack("decoder"), SOURCE, says="Every word looks at itself and those before it"),
        "encoder-decoder.svg": picture(two_stacks(), SOURCE + TARGET, parted=len(SOURCE),
                                       says="Source words look at the source; target words at the source and at the "
                                            "target so far"),
    }


def draw(*, check: bool) -> list[str]:
    """Write the pictures, or name those that are stale."""
    stale = [name for name, text in pictures().items()
             if not (FOLDER / name).is_file() or (FOLDER / name).read_text("utf-8") != text]
    if not check:
        for name in stale:
            (FOLDER / name).write_text(pictures()[name], "utf-8")
    return stale


if __name__ == "__main__":
    checking = "--check" in sys.argv[1:]
    old = draw(check=checking)
    print(f"{'stale' if checking else 'written'}: {', '.join(old) or 'none'}")
    sys.exit(1 if checking and old else 0)
