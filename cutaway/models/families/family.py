"""What a public format has to say: names and configuration, both ways; data for ``models/folder.py``, no code paths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cutaway.errors import FOLDER_AGAIN, CutawayError, ModelError, SettingsError
from cutaway.models.heads import Classes, Head, HeadKind
from cutaway.models.model import Architecture
from cutaway.models.transformer import PLAIN, TransformerConfig
from cutaway.settings import decode


@dataclass(frozen=True, slots=True)
class Form:
    """How a public tensor says what ours does: ours turned, times ``scale``, less ``shift``, behind ``skip`` rows that
    nothing reads. Scales are powers of two, so that nothing is lost."""

    scale: float = 1.0
    shift: float = 0.0
    turned: bool = False
    skip: int = 0


class Family(Protocol):
    """One file of ``models/families``. ``REPEATS`` are tensors that may say the embedding once more; ``UNREAD`` are the
    ends of names: of tables, and of what our function leaves out."""

    REPEATS: tuple[str, ...]
    UNREAD: tuple[str, ...]

    def names(self, config: Any, head: Head) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Each parameter of ours and the public tensors that its rows are, in order; a tied head has none."""

    def rows(self, ours: str, config: Any) -> tuple[int, ...] | None:
        """How many rows of a joined matrix belong to each public tensor; None where there is only one."""

    def forms(self, ours: str, config: Any) -> tuple[Form, ...] | None:
        """How each public tensor says it; None where the numbers are ours."""

    def public_config(self, config: Any, head: Head, *, dtype: str, control: Mapping[str, int]) -> dict[str, Any]:
        """config.json; ``control`` holds the tokenizer's ``bos``, ``eos``, ``end`` and ``pad``, where there is one."""

    def our_config(self, public: Mapping[str, Any], *, where: object) -> tuple[Architecture, Head]:
        """The configuration and head of a config.json. Raises ModelError for what our model does not compute."""


def labels(head: Head) -> dict[str, Any]:
    """What config.json says of a head of classes, or of a scalar."""
    if head == "scalar":
        return {"num_labels": 1, "id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    if not isinstance(head, Classes):
        return {}
    kind = "multi_label_classification" if head.multi_label else "single_label_classification"
    return {"num_labels": len(head.labels), "id2label": {str(i): name for i, name in enumerate(head.labels)},
            "label2id": {name: i for i, name in enumerate(head.labels)}, "problem_type": kind}


def head_of(public: Mapping[str, Any], architectures: Mapping[HeadKind, str], where: object) -> Head:
    """The head that ``architectures`` in a config.json names."""
    from cutaway.models.heads import Vector

    named = public.get("architectures") or []
    kinds = [kind for kind, name in architectures.items() if name in named]
    if not kinds:
        raise ModelError(f"architectures {named} are unknown", where=where,
                         way_out=f"supported are {', '.join(dict.fromkeys(architectures.values()))}")
    if "tokens" in kinds:
        return "tokens"
    if "vector" in kinds:
        return Vector()
    names = public.get("id2label") or {str(i): str(i) for i in range(int(public.get("num_labels", 2)))}
    if "scalar" in kinds and len(names) == 1:
        return "scalar"
    try:
        return Classes(tuple(str(names[str(i)]) for i in range(len(names))),
                       public.get("problem_type") == "multi_label_classification")
    except (KeyError, AttributeError, ModelError) as error:
        raise ModelError(f"id2label does not name the classes ({error})", where=where, way_out=FOLDER_AGAIN) from None


def check_fixed(public: Mapping[str, Any], fixed: Mapping[str, Sequence[object]], where: object) -> None:
    """Raises ModelError for a setting that makes another function than ours of the model."""
    for name, allowed in fixed.items():
        value = public.get(name, allowed[0])
        if value not in allowed:
            raise ModelError(f"{name} is {value!r}", where=where, way_out=f"only {allowed[0]!r} is supported")


def decoded(tree: dict[str, Any], missing: Sequence[str], where: object) -> TransformerConfig:
    """The sizes as our configuration; ModelError for some that are missing or impossible."""
    if missing:
        raise ModelError(f"{missing[0]} is missing", where=where, way_out=FOLDER_AGAIN)
    try:
        return decode(TransformerConfig, tree, where="")
    except SettingsError as error:
        raise ModelError(f"does not describe a transformer: {error.what}", where=where, way_out=FOLDER_AGAIN) from None


def described(family: Family, public: Mapping[str, Any], where: object) -> tuple[Any, Head]:
    """``our_config``; what a damaged or hostile file holds in place of a number or a list is one ModelError too."""
    try:
        return family.our_config(public, where=where)
    except CutawayError:
        raise
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
        raise ModelError(f"does not describe a model ({type(error).__name__}: {str(error)[:80]})", where=where,
                         way_out=FOLDER_AGAIN) from None


def variant(shape: str, changes: Mapping[str, object]) -> dict[str, Any] | None:
    """The shape's plain variant with ``changes``; None where that is the plain one."""
    plain = PLAIN[shape].model_dump(mode="json")
    return None if plain | dict(changes) == plain else plain | dict(changes)


def head_dim(public: Mapping[str, Any]) -> int | None:
    """The width of a head where it does not follow from the others."""
    width, heads, given = (public.get(k) for k in ("hidden_size", "num_attention_heads", "head_dim"))
    follows = isinstance(width, int) and isinstance(heads, int) and heads > 0 and given == width / heads
    return None if follows else given
