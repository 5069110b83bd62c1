"""The command line as a person types it: help, typos, errors, JSON, pipes, Ctrl-C, the machine and tokens."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType

import pytest

from cutaway import device
from cutaway.cli import console
from cutaway.cli import main as door
from cutaway.cli.main import VERBS, main
from cutaway.errors import DataError, RunError
from cutaway.text import tokenizer
from cutaway.text.vocabulary import ByteSettings

CUTAWAY = [sys.executable, "-m", "cutaway"]
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> device.Machine:
    """A machine that measures itself in no time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = replace(device.describe(device.Device("cpu")), gemm_fp32_flops=1e11, gemm_bf16_flops=2e11,
                   read_bytes_per_s=3e10, copy_bytes_per_s=4e10, measured_at="2026-01-01T00:00:00+00:00")
    monkeypatch.setattr(device, "measure", lambda _: made)
    return made


def verb(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Put a verb of our own in place of ``doctor``."""
    module = ModuleType("cutaway.cli.verb_doctor")
    module.command = misbehaving(program)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cutaway.cli.verb_doctor", module)


def misbehaving(name: str) -> object:
    """One of the misbehaving verbs below, by name."""
    return {"full_disk": full_disk, "missing": missing, "ours": ours, "memory": memory, "fault": fault,
            "ctrl_c": ctrl_c, "warned": warned, "coded": coded}[name]


def full_disk(*, json: console.Json = False) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def missing(*, json: console.Json = False) -> None:
    Path("no/such/file").read_text()


def ours(*, json: console.Json = False) -> None:
    raise DataError("nothing to read", where="corpus", way_out="name a folder with text")


def memory(*, json: console.Json = False) -> None:
    raise MemoryError


def fault(*, json: console.Json = False) -> None:
    raise ZeroDivisionError("ours")


def ctrl_c(*, json: console.Json = False) -> None:
    raise KeyboardInterrupt


def warned(*, json: console.Json = False) -> None:
    import warnings

    warnings.warn("two\nlines", UserWarning, stacklevel=1)
    warnings.warn("for developers", DeprecationWarning, stacklevel=1)


def coded(*, json: console.Json = False) -> int:
    return 130


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_verb_and_the_first_command(words: list[str], capsys: Captured) -> None:
    assert main(words) == 0
    out = capsys.readouterr().out
    assert all(f"  {v}" in out for v in VERBS) and "cutaway run quickstart" in out


def test_the_version_is_the_packages(capsys: Captured) -> None:
    import cutaway

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"cutaway {cutaway.__version__}\n"


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_explains_itself(name: str, capsys: Captured) -> None:
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert VERBS[name].split()[0] in out and "--json" in out


def test_misspelt_verbs_and_options_get_their_nearest_match(capsys: Captured) -> None:
    assert main(["docter"]) == 2
    assert capsys.readouterr().err == "cutaway: error: no verb 'docter'; did you mean 'doctor'?\n"
    assert main(["qqq"]) == 2
    assert capsys.readouterr().err == "cutaway: error: no verb 'qqq'; see cutaway --help\n"
    assert main(["doctor", "--jsn"]) == 2
    assert "--jsn" in (err := capsys.readouterr().err) and "--json" in err and err.count("\n") == 1
    assert main(["doctor", "one", "two"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("name", "code", "message"), [
    ("full_disk", 9, "no space left on the disk; free some"),
    ("missing", 9, "no/such/file: No such file or directory; check that it exists and may be read or written"),
    ("ours", 3, "corpus: nothing to read; name a folder with text"),
    ("memory", 9, "out of memory: a request could not be met; use a smaller batch, context or model"),
    ("fault", 1, "unexpected ZeroDivisionError: ours; run again with --debug to see where"),
])
def test_every_failure_is_one_line_and_a_code(
        name: str, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    verb(monkeypatch, name)
    assert main(["doctor"]) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"cutaway: error: {message}\n")
    assert main(["doctor", "--json"]) == code
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"error": message, "exit_code": code} and captured.err == ""


def test_debug_shows_the_traceback_before_or_after_the_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    verb(monkeypatch, "fault")
    for words in (["--debug", "doctor"], ["doctor", "--debug"]):
        with pytest.raises(ZeroDivisionError):
            main(words)


def test_an_interrupt_is_code_130_and_no_error(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    verb(monkeypatch, "ctrl_c")
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "cutaway: interrupted\n"
    verb(monkeypatch, "coded")
    assert main(["doctor"]) == 130


@pytest.mark.filterwarnings("default")
def test_warnings_are_notes_of_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    verb(monkeypatch, "warned")
    assert main(["doctor"]) == 0
    assert capsys.readouterr().err == "cutaway: note: two lines\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    program = "import sys; from cutaway.cli import main as m; m._call = lambda *_: print('x' * 10**6) or 0; " \
              "sys.exit(m.main(['doctor']))"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", f'"{sys.executable}" -c "{program}" | head -c 1'],
                          capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (141, "x", "")


def test_doctor_shows_numbers_and_keeps_them(machine: device.Machine, capsys: Captured) -> None:
    assert main(["doctor"]) == 0
    captured = capsys.readouterr()
    for shown in ("100 GFLOP/s", "200 GFLOP/s", "30.0 GB/s", "40.0 GB/s", "2.0 × fp32", "bfloat16"):
        assert shown in captured.out
    assert "stored in" in captured.err
    assert device.stored(device.Device("cpu")) == machine
    assert main(["doctor", "--json", "--stored"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value | asdict(machine) == value and value["compute_dtype"] == "bfloat16"


def test_doctor_refuses_a_device_that_is_not_there(machine: device.Machine, capsys: Captured) -> None:
    assert main(["doctor", "--device", "tpu", "--json"]) == 9
    assert "tpu" in json.loads(capsys.readouterr().out)["error"]


def test_output_without_a_terminal_has_no_colours(tmp_path: Path) -> None:
    done = subprocess.run([*CUTAWAY, "tokens", "--help"], capture_output=True, text=True, check=True,
                          env={**os.environ, "NO_COLOR": "1"})
    assert "\x1b" not in done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a byte tokenizer."""
    tokenizer.train(ByteSettings(), ["any text"]).save(tmp_path)
    return tmp_path


def test_tokens_shows_ids_and_bytes_and_leaves_control_tokens_as_text(folder: Path, capsys: Captured) -> None:
    assert main(["tokens", str(folder), "hé <|end|>", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    data = bytes.fromhex("".join(t["bytes"] for t in value["tokens"]))
    assert data.decode() == "hé <|end|>" and value["count"] == value["bytes"] == len(data)
    assert main(["tokens", str(folder), "a\n"]) == 0
    captured = capsys.readouterr()
    assert "\\n" in captured.out and "2 tokens, 2 bytes (1.00 bytes a token)" in captured.err


def test_tokens_reads_standard_input(folder: Path) -> None:
    command = [*CUTAWAY, "tokens", str(folder), "--json"]
    done = subprocess.run(command, input="añb".encode(), capture_output=True, check=True)
    assert json.loads(done.stdout)["count"] == 4
    done = subprocess.run(command, input=b"a\xff", capture_output=True, check=False)
    assert done.returncode == 4 and "byte 1" in json.loads(done.stdout)["error"]


def test_a_model_that_is_nowhere_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["tokens", "nowhere", "text"]) == RunError.exit_code
    assert "nowhere" in capsys.readouterr().err


def test_tables_align_numbers_and_never_read_markup(capsys: Captured) -> None:
    console.result({}, console.table(("name", "speed", "text"), [("a", "1,000 tokens/s", "[red]"), ("b", "–", "x")]),
                   json=False)
    lines = capsys.readouterr().out.splitlines()
    assert any("[red]" in line for line in lines)


def test_progress_without_a_terminal_is_plain_lines(capsys: Captured) -> None:
    with console.progress("pretrain", total=10, unit="tokens") as bar:
        bar.advance(4)
        bar.advance(6, "loss 3.21")
    err = capsys.readouterr().err
    assert err.startswith("pretrain 100 %") and err.endswith("loss 3.21\n") and err.count("\n") == 1
    with console.progress("pretrain", total=10, unit="tokens", quiet=True) as bar:
        bar.advance(10)
    assert capsys.readouterr().err == ""


def test_progress_on_a_terminal_shows_rate(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with console.progress("pretrain", total=10, unit="tokens") as bar:
        bar.advance(10, "loss 3.21")
    err = capsys.readouterr().err
    assert "tokens/s" in err and "loss 3.21" in err


def test_the_door_knows_the_failures_of_accelerators() -> None:
    class OutOfMemoryError(RuntimeError):
        """torch's own class has this name on every accelerator."""

    known = door._known(OutOfMemoryError("CUDA out of memory.\nmore"))
    assert known is not None and known.exit_code == 9 and "CUDA out of memory." in str(known)


def test_a_file_is_no_folder_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").write_text("")
    assert main(["runs", str(tmp_path / "runs")]) == 7
    assert "a file, not a folder of runs" in capsys.readouterr().err
