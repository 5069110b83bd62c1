"""What ``generate`` and ``chat`` share: their options, and a model folder made ready to write."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:

    from cutaway.generate.writer import Options, Writer
    from cutaway.models.open import Asked

ModelName = Annotated[str, typer.Argument(help="A name, a model or adapter folder, or a run (its furthest stage).")]
MaxTokens = Annotated[int | None, typer.Option(help="Most tokens of an answer; without it, all that fit the context.")]
Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token.")]
TopK = Annotated[int | None, typer.Option(help="Draw from the k likeliest tokens.")]
TopP = Annotated[float, typer.Option(help="Draw from the fewest tokens that hold this share.")]
MinP = Annotated[float, typer.Option(help="Leave out what is below this share of the likeliest.")]
Repetition = Annotated[float, typer.Option("--repetition-penalty", help="Above 1: less of what was said or asked.")]
Presence = Annotated[float, typer.Option("--presence-penalty", help="Above 0: less of what the answer has said.")]
Frequency = Annotated[float, typer.Option("--frequency-penalty", help="Above 0: less of it each time it was said.")]
Seed = Annotated[int, typer.Option(help="Equal seeds give equal answers.")]
Stop = Annotated[list[str] | None, typer.Option(help="End before this text; may be given several times.")]
PrecisionName = Annotated[Literal["stored", "float32", "bfloat16", "int8", "int4"], typer.Option(
    "--precision", help="Of products; stored: int4 for GGUF of Q4_0 and Q4_1, bfloat16 where it is fast for a file of "
                        "fewer than 32 bits a number, else float32.")]
DeviceName = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]


@contextmanager
def unswept() -> Iterator[None]:
    """Modules are imported here: PyTorch leaves half a million objects, which are no garbage and need not be searched
    for it as they come, nor later."""
    first = "torch" not in sys.modules  # else what is frozen would be somebody's models
    if first:
        gc.disable()
    try:
        yield
    finally:
        if first:
            gc.freeze()
            gc.enable()


def options(*, max_tokens: int | None, temperature: float, top_k: int | None, top_p: float, min_p: float,
            repetition_penalty: float, presence_penalty: float, frequency_penalty: float, seed: int,
            stop: list[str] | None = None, logprobs: int | None = None) -> Options:
    """How to write; a value out of range is a one-line error that names it."""
    with unswept():
        from cutaway.generate.writer import Options
        from cutaway.settings import decode

    how = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
           "repetition_penalty": repetition_penalty, "presence_penalty": presence_penalty,
           "frequency_penalty": frequency_penalty}
    return decode(Options, {"max_tokens": "fit" if max_tokens is None else max_tokens, "sampling": how, "seed": seed,
                            "stop": stop or [], "logprobs": logprobs}, where="options")


def open_writer(name: str, device: str, precision: Asked = "stored") -> Writer:
    """The model of that name on the device. Raises ModelError for one that writes no text, and says what it does."""
    with unswept():
        from concurrent.futures import ThreadPoolExecutor

        from cutaway.device import pick, set_threads
        from cutaway.errors import SettingsError
        from cutaway.generate.engine import engine_for
        from cutaway.generate.writer import Writer
        from cutaway.models.adapted import open_tokenizer
        from cutaway.models.model import Model
        from cutaway.models.open import open_language_model
        from cutaway.run.place import model_folder

    folder = model_folder(name)
    set_threads()
    with ThreadPoolExecutor(1) as beside:  # weights are laid out without Python
        opening = beside.submit(open_tokenizer, folder)
        model = open_language_model(folder, precision=precision, place=pick(device).torch)
        tokenizer = opening.result()
    if not isinstance(model, Model) and device not in ("auto", "cpu"):
        raise SettingsError(f"an n-gram model is counted on the CPU, not on {device}", way_out="leave --device out")
    return Writer(engine_for(model), tokenizer)
