"""Models answer by plain PyTorch while kernels are compiled, and change over: what a shelf decides, does and says."""

from __future__ import annotations

import asyncio
import logging
import time
import warnings
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bag_texts import labelled
from wired import BYTES, Wired, serving, write_model

from cutaway.errors import MachineError
from cutaway.models.bag import BagConfig, fit_bag
from cutaway.models.bag_folder import save_bag
from cutaway.models.kneser_ney import fit
from cutaway.models.ngram import NGramConfig
from cutaway.models.ngram_folder import save_ngram
from cutaway.nn import kernels
from cutaway.nn.kernels import Built
from cutaway.server import shelf
from cutaway.server.limits import Limits
from cutaway.server.opened import Reader

needs_kernels = pytest.mark.skipif(kernels.built().library is None, reason=kernels.status())


@dataclass
class Compiling:
    """A compilation that ends when a test says so; of each model that was opened whether so, and as what."""

    told: Future[Built] = field(default_factory=Future)
    begun: int = 0
    plain: list[bool] = field(default_factory=list)
    asked: list[str | None] = field(default_factory=list)
    fails: Exception | None = None

    def begin(self) -> Future[Built]:
        self.begun += 1
        return self.told


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> Compiling:
    made = Compiling()
    made.told.set_running_or_notify_cancel()
    monkeypatch.setattr(shelf, "ready", made.told.done)
    monkeypatch.setattr(shelf, "begin", made.begin)
    for name in ("open_language_model", "open_embedder", "open_classifier"):
        monkeypatch.setattr(shelf, name, _noted(getattr(shelf, name), made))
    return made


def _noted(opened: Any, compiling: Compiling) -> Any:
    def open_it(*given: Any, **how: Any) -> Any:
        if compiling.fails is not None and compiling.plain:
            raise compiling.fails
        compiling.plain.append(kernels._here.instead == (None,))
        compiling.asked.append(how.get("precision"))
        return opened(*given, **how)

    return open_it


def completed(wired: Wired, model: str = "tiny") -> str:
    answer = wired.http().post("/v1/completions", json={"model": model, "prompt": "x", "max_tokens": 3})
    assert answer.status_code == 200, answer.text
    fingerprint: str = answer.json()["system_fingerprint"]
    return fingerprint


def plain_of(wired: Wired, model: str) -> bool:
    return wired.service.shelf.opened[model].plain


@needs_kernels
def test_the_first_answer_is_plain_and_later_ones_are_not(places: dict[str, Path], compiling: Compiling,
                                                         caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with serving(places) as wired:
        fast = wired.service.fingerprint
        assert completed(wired) == completed(wired) == f"{fast}-plain"
        assert compiling.plain == [True] and wired.fake.made == 1
        assert 'cutaway_engine_plain{model_name="tiny"} 1.0' in wired.http().get("/metrics").text
        compiling.told.set_result(kernels.built())
        assert wired.settled(lambda: not plain_of(wired, "tiny"))
        assert completed(wired) == fast and compiling.plain == [True, False] and wired.fake.made == 2
        assert 'cutaway_engine_plain{model_name="tiny"} 0.0' in wired.http().get("/metrics").text
        assert wired.http().get("/ready").json()["models"] == {"tiny": "ready"}
    assert [m for m in caplog.messages if m.startswith("tiny ")] == [
        "tiny answers by plain PyTorch while kernels are compiled", "tiny answers with kernels from now on"]


@needs_kernels
def test_every_form_of_an_answer_says_how_it_was_written(places: dict[str, Path], compiling: Compiling) -> None:
    with serving(places) as wired:
        client = wired.openai()
        for expected in (f"{wired.service.fingerprint}-plain", wired.service.fingerprint):
            chat: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
            assert client.chat.completions.create(**chat).system_fingerprint == expected
            assert {c.system_fingerprint for c in client.chat.completions.create(**chat, stream=True)} == {expected}
            parts = client.completions.create(model="tiny", prompt="x", max_tokens=3, stream=True)
            assert {part.system_fingerprint for part in parts} == {expected}
            if not compiling.told.done():
                compiling.told.set_result(kernels.built())
                assert wired.settled(lambda: not plain_of(wired, "tiny"))


@needs_kernels
def test_an_answer_that_is_being_written_keeps_its_path(places: dict[str, Path], compiling: Compiling) -> None:
    with serving(places) as wired:
        how: dict[str, Any] = {"model": "tiny", "prompt": "x", "max_tokens": 150, "seed": 4}
        whole = wired.openai().completions.create(**how)
        wired.fake.pause = 0.01
        parts = wired.openai().completions.create(**how, stream=True)
        first = next(iter(parts))
        compiling.told.set_result(kernels.built())
        assert wired.settled(lambda: not plain_of(wired, "tiny"))
        assert completed(wired) == wired.service.fingerprint  # meanwhile
        rest = [*parts]
        assert "".join(p.choices[0].text for p in (first, *rest)) == whole.choices[0].text
        assert {p.system_fingerprint for p in (first, *rest)} == {whole.system_fingerprint}
        assert whole.system_fingerprint == f"{wired.service.fingerprint}-plain"


def test_a_compiler_that_fails_leaves_it_plain_and_is_said_once(places: dict[str, Path], compiling: Compiling,
                                                                caplog: pytest.LogCaptureFixture) -> None:
    with serving(places) as wired:
        plain = completed(wired)
        compiling.told.set_result(Built(None, "cc failed: error: not today"))
        assert wired.settled(lambda: "tiny stays on plain PyTorch: cc failed: error: not today" in caplog.messages)
        assert completed(wired) == plain and compiling.plain == [True]
        assert sum("stays on" in message for message in caplog.messages) == 1


@needs_kernels
@pytest.mark.parametrize("error", [MachineError("no room"), RuntimeError("who knows")])
def test_a_model_that_cannot_be_opened_again_goes_on_plainly(places: dict[str, Path], compiling: Compiling,
                                                             caplog: pytest.LogCaptureFixture,
                                                             error: Exception) -> None:
    with serving(places) as wired:
        plain, compiling.fails = completed(wired), error
        compiling.told.set_result(kernels.built())
        assert wired.settled(lambda: any("tiny stays on plain PyTorch" in message for message in caplog.messages))
        assert completed(wired) == plain and str(error) in caplog.text


@needs_kernels
def test_those_that_read_change_over_between_two_requests(places: dict[str, Path], compiling: Compiling) -> None:
    with serving(places) as wired:
        client = wired.http()

        def asked() -> tuple[Any, Any]:
            vector = client.post("/v1/embeddings", json={"model": "owner/vectors", "input": "a text"}).json()
            labels = client.post("/v1/classify", json={"model": "labels", "input": "a text"}).json()
            return vector["data"][0]["embedding"], labels["data"][0]["probs"]

        before = asked()
        assert plain_of(wired, "owner/vectors") and plain_of(wired, "labels") and compiling.plain == [True, True]
        compiling.told.set_result(kernels.built())
        assert wired.settled(lambda: not (plain_of(wired, "owner/vectors") or plain_of(wired, "labels")))
        for mine, theirs in zip(before, asked(), strict=True):
            assert mine == pytest.approx(theirs, abs=1e-4)
        assert compiling.plain == [True, True, False, False]


def test_a_reader_reads_each_request_on_one_path() -> None:
    async def story() -> None:
        reader = Reader("x", "old", Limits(), plain=True)

        async def present() -> Any:
            await asyncio.sleep(60)

        def work(what: str) -> tuple[str, bool]:
            time.sleep(0.05)
            return what, kernels._here.instead == (None,)

        first = asyncio.create_task(reader.run(present, work))
        second = asyncio.create_task(reader.run(present, work))
        await asyncio.sleep(0.01)  # both have their turn now
        reader.change("new")
        third = asyncio.create_task(reader.run(present, work))
        found = [(await task)[0] for task in (first, second, third)]
        assert found == [("old", True), ("old", True), ("new", False)] and not reader.plain
        await reader.close()

    asyncio.run(story())


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_what_has_no_plain_path_waits(places: dict[str, Path], compiling: Compiling, precision: Any) -> None:
    made = shelf.Shelf(places, Limits(), lambda model: None, precision)  # type: ignore[arg-type, return-value]
    assert not made._meanwhile(places["tiny"], "text") and not made._meanwhile(places["owner/vectors"], "vectors")
    assert made._meanwhile(places["labels"], "labels")  # a classifier knows no precision


def test_what_would_not_fit_twice_waits(places: dict[str, Path], compiling: Compiling, tmp_path: Path,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    made = shelf.Shelf(places, Limits(), lambda model: None)  # type: ignore[arg-type, return-value]
    folder = write_model(tmp_path / "m", hidden_size=32, tie_embeddings=True)
    numbers = shelf.count_stored(folder)
    assert made._meanwhile(folder, "text")
    monkeypatch.setattr(shelf, "memory_bytes", lambda: 16 * numbers)  # float32 twice, in half of it
    assert made._meanwhile(folder, "text")
    monkeypatch.setattr(shelf, "memory_bytes", lambda: 16 * numbers - 1)
    assert not made._meanwhile(folder, "text")
    assert not made._meanwhile(tmp_path / "nowhere", "text")  # opening it will tell


def test_nothing_is_measured_before_the_first_answer(places: dict[str, Path], compiling: Compiling) -> None:
    """What is stored in few bits is read in what this machine is faster in, which takes seconds to find out."""
    made = shelf.Shelf(places, Limits(), lambda model: SimpleNamespace(exact=True), "stored")  # type: ignore[arg-type, return-value]
    for plain in (True, False):
        made._writer(made.lines["tiny"], plain=plain)
        made._embedder(places["owner/vectors"], plain=plain)
    assert compiling.asked == ["float32", "float32", "stored", "stored"]
    made.precision = "bfloat16"
    made._writer(made.lines["tiny"], plain=True)
    assert compiling.asked[-1] == "bfloat16"


def test_what_knows_no_kernels_is_never_opened_again(compiling: Compiling, tmp_path: Path,
                                                     caplog: pytest.LogCaptureFixture) -> None:
    """A model that counts, and a bag of words."""
    rows = np.array([BYTES.bos_id, *BYTES.encode("a cat sat on a mat"), BYTES.eos_id] * 3)
    config = NGramConfig(vocab_size=BYTES.vocab_size, order=2, bos_id=BYTES.bos_id)
    with warnings.catch_warnings(action="ignore"):
        save_ngram(tmp_path / "counts", fit(rows, np.arange(4) * (len(rows) // 3), config), BYTES)
    save_bag(tmp_path / "bag", fit_bag(*labelled(60), BagConfig()))
    with serving({"counts": tmp_path / "counts", "bag": tmp_path / "bag"}) as wired:
        assert completed(wired, "counts") == wired.service.fingerprint
        assert wired.http().post("/v1/classify", json={"model": "bag", "input": "rain"}).status_code == 200
        assert not plain_of(wired, "counts") and not plain_of(wired, "bag")
    assert compiling.begun == 0 and "plain" not in caplog.text


def test_kernels_that_are_there_are_used_at_once(places: dict[str, Path], compiling: Compiling) -> None:
    compiling.told.set_result(kernels.built())
    with serving(places) as wired:
        completed(wired)
        assert compiling.plain == [False] and compiling.begun == 0


def test_an_application_that_ends_ends_the_compiler(places: dict[str, Path], compiling: Compiling,
                                                    monkeypatch: pytest.MonkeyPatch,
                                                    caplog: pytest.LogCaptureFixture) -> None:
    """Whatever serves it, by its lifespan alone; who waited for the compiler says nothing then."""
    def stop() -> None:
        compiling.told.set_exception(MachineError("kernels were not compiled to the end"))

    monkeypatch.setattr(shelf, "stop", stop)
    with serving(places) as wired:
        completed(wired)
    assert compiling.told.done() and "stays on" not in caplog.text


@needs_kernels
def test_a_model_that_was_closed_meanwhile_is_not_opened_again(places: dict[str, Path], compiling: Compiling) -> None:
    with serving(places, limits=Limits(idle_seconds=0.1)) as wired:
        completed(wired)
        assert wired.settled(lambda: not wired.service.shelf.opened)
        compiling.told.set_result(kernels.built())
        assert wired.settled(lambda: not wired.service.shelf._changes)
        assert compiling.plain == [True]
        assert completed(wired) == wired.service.fingerprint and compiling.plain == [True, False]
