"""``cutaway compare`` as a person types it: four tasks on small data, the report, going on, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_corpus import cutaway, last_json, write_corpus

NETWORK = """
[systems.{name}]
kind = "neural"
rows = 8
{more}optimizer = {{ kind = "adamw", learning_rate = 3e-3 }}
architecture = {{ {architecture} }}
"""
SMALL = {
    "cnn": 'kind = "convolution", hidden_size = 24, num_layers = 2, context_length = 64{shape}',
    "gru": 'kind = "recurrent", cell = "gru", hidden_size = 24, num_layers = 1, context_length = 64{shape}',
    "transformer": 'kind = "transformer", hidden_size = 24, num_layers = 1, num_heads = 2, num_kv_heads = 2, '
                   'intermediate_size = 32, context_length = 64{shape}'}
KIM = 'kind = "convolution", shape = "encoder", hidden_size = 24, embedding_size = 16, tie_embeddings = false, ' \
      'context_length = 64'
HEAD = """
name = "{name}"
seeds = [0, 1]
dtype = "float32"
threads = 1
budget = {{ kind = "steps", steps = {steps} }}
tokenizer = {{ kind = "{tokens}"{more} }}
"""


def recipe(folder: Path, name: str, data: str, systems: str, *, steps: int = 6, task: str = "",
           tokens: str = "byte", more: str = "") -> Path:
    """A comparison in a file of its own."""
    path = folder / f"{name}.toml"
    path.write_text(HEAD.format(name=name, steps=steps, tokens=tokens, more=more) + f"\n[data]\n{data}\n\n[task]\n"
                    f'kind = "{name}"\n{task}\n' + systems)
    return path


def networks(shape: str = "", *, only: tuple[str, ...] = ("cnn", "gru", "transformer"), more: str = "") -> str:
    """Small networks of each kind, of a shape, with a line more."""
    of = f', shape = "{shape}"' if shape else ""
    return "".join(NETWORK.format(name=n, architecture=SMALL[n].format(shape=of), more=more) for n in only)


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison of language models on a hundred modules."""
    here = tmp_path_factory.mktemp("language")
    write_corpus(here / "corpus")
    file = recipe(here, "language", f'kind = "path"\npath = "{here / "corpus"}"\nvalid_share = 0.1\ntest_share = 0.1',
                  '[systems."3-gram"]\nkind = "ngram"\norder = 3\n' + networks(more="length = 32\n"),
                  task="bytes = 4000\nwritten = 4")
    done = cutaway("compare", str(file), "--json", cwd=here)
    assert done.returncode == 0, done.stderr
    (here / "out.json").write_text(done.stdout)
    return here


def test_every_system_has_quality_costs_and_a_place(language: Path) -> None:
    found = last_json((language / "out.json").read_text())
    verdict = found["verdict"]
    assert isinstance(verdict, dict)
    names = {s["name"] for s in verdict["standings"]}
    assert names == {"3-gram", "cnn", "gru", "transformer"} and verdict["best"] in names
    values = [s["quality"]["value"] for s in verdict["standings"]]
    assert values == sorted(values) and all(0.5 < v < 9 for v in values)
    for s in verdict["standings"]:
        assert s["quality"]["low"] <= s["quality"]["value"] <= s["quality"]["high"] and s["quality"]["n"] > 5
    for system in found["systems"]:  # type: ignore[attr-defined]
        assert system["disk_bytes"] > 1000 and system["throughput"] > 0 and system["parameters"] > 0
        assert len(system["train_seconds"]) == (1 if system["name"] == "3-gram" else 2)


def test_the_report_names_every_system_and_needs_no_network(language: Path) -> None:
    folder = language / "comparisons" / "language"
    html, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    for name in ("3-gram", "cnn", "gru", "transformer"):
        assert name in html and name in text
    assert "http://" not in html.replace("http://www.w3.org", "") and "https://" not in html
    assert "When this is wrong" in text and "frontier" in text


def test_its_models_write_and_are_measured_like_any_other(language: Path) -> None:
    systems = language / "comparisons" / "language" / "systems"
    for name in ("3-gram", "gru", "cnn"):
        folder = systems / name / "seed-0"
        done = cutaway("generate", str(folder), "def ", "--max-tokens", "8", cwd=language)
        assert done.returncode == 0, done.stderr
        done = cutaway("eval", str(folder), "bits", "--data", str(language / "corpus"), "--json", cwd=language)
        assert done.returncode == 0, done.stderr
        assert 0.1 < last_json(done.stdout)["models"][str(folder)]["bits_per_byte"]["value"] < 9  # type: ignore[index]


def test_a_lost_system_is_made_again_and_a_taken_name_refused(language: Path) -> None:
    folder = language / "comparisons" / "language"
    (folder / "systems" / "gru" / "outcome.json").unlink()
    before = (folder / "systems" / "cnn" / "outcome.json").stat().st_mtime_ns
    done = cutaway("resume", str(folder), "--json", cwd=language)
    assert done.returncode == 0, done.stderr
    assert (folder / "systems" / "gru" / "outcome.json").exists()
    assert (folder / "systems" / "cnn" / "outcome.json").stat().st_mtime_ns == before
    again = cutaway("compare", str(language / "language.toml"), cwd=language)
    assert again.returncode == 7 and "name=language-2" in again.stderr


def rows(path: Path, count: int = 120) -> Path:
    """Labelled texts and pairs that words decide, as json lines."""
    subjects, verbs = ("the cat", "a dog", "my bird", "his fish"), ("runs", "sleeps", "eats", "sings")
    lines = []
    for i in range(count):
        s, v = subjects[i % 4], verbs[(i // 4) % 4]
        lines.append({"text": f"{s} {v} number {i}", "label": s.split()[1], "source": f"{s} {v} {i}",
                      "target": f"{v}: {s} {i}"})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_classification_and_its_classifiers_on_the_command_line(tmp_path: Path) -> None:
    data = f'kind = "labelled"\npath = "{rows(tmp_path / "rows.jsonl")}"\nvalid_share = 0.2\ntest_share = 0.2'
    bag = '\n[systems.guess]\nkind = "constant"\n\n[systems.words]\nkind = "bag"\n'
    file = recipe(tmp_path, "classification", data, bag + NETWORK.format(name="kim", architecture=KIM, more="") +
                  networks("encoder", only=("gru", "transformer")), more=", masks = 1")
    done = cutaway("compare", str(file), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = {s["name"]: s["quality"]["value"] for s in last_json(done.stdout)["verdict"]["standings"]}  # type: ignore[index]
    assert found["words"] == 1.0 and found["guess"] < 0.6 and set(found) >= {"kim", "gru", "transformer"}
    systems = tmp_path / "comparisons" / "classification" / "systems"
    for name in ("words", "kim"):
        done = cutaway("classify", str(systems / name / "seed-0"), "the cat runs", "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        labels = last_json(done.stdout)["texts"][0]["labels"]  # type: ignore[index]
        assert len(labels) == 3 and labels[0]["share"] >= labels[1]["share"]
    why = cutaway("classify", str(systems / "words" / "seed-0"), "the cat runs", "--why", cwd=tmp_path)
    assert why.returncode == 0 and "cat" in why.stdout
    assert cutaway("classify", str(systems / "kim" / "seed-0"), "x", "--why", cwd=tmp_path).returncode == 8
    assert cutaway("generate", str(systems / "words" / "seed-0"), "x", cwd=tmp_path).returncode == 5


def test_transformation_and_retrieval(tmp_path: Path) -> None:
    data = f'kind = "pairs"\npath = "{rows(tmp_path / "rows.jsonl")}"\nvalid_share = 0.2\ntest_share = 0.2'
    nearest = '\n[systems.nearest]\nkind = "nearest"\n\n[systems."tf-idf"]\nkind = "nearest"\nby = "tfidf"\n'
    shapes = networks("encoder-decoder", only=("gru", "transformer")) + networks(only=("cnn",))
    file = recipe(tmp_path, "transformation", data, nearest + shapes, task="items = 8\nmax_tokens = 8\nbeam = 2")
    done = cutaway("compare", str(file), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = last_json(done.stdout)
    assert len(found["verdict"]["standings"]) == 5 and found["failed"] == {}  # type: ignore[index]
    file = recipe(tmp_path, "retrieval", data, nearest + networks("encoder", only=("gru", "transformer")))
    done = cutaway("compare", str(file), "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = {s["name"]: s["quality"]["value"] for s in last_json(done.stdout)["verdict"]["standings"]}  # type: ignore[index]
    assert found["tf-idf"] > 0.5 and set(found) == {"nearest", "tf-idf", "gru", "transformer"}


@pytest.mark.parametrize(("words", "said"), [
    (["data.path=nowhere.csv", "data.kind=labelled"], "no such file"),
    (["systems.words.bag.clasifier=svm"], "classifier"), (["data.kind=path", "data.path=."], "is nothing for"),
    (["systems.guess.kind=ngram"], "cannot do classification"), (["budget.kind=flops", "budget.flops=1e9"], "language"),
])
def test_what_cannot_be_is_refused_and_leaves_nothing(tmp_path: Path, words: list[str], said: str) -> None:
    done = cutaway("compare", "classification", *words, cwd=tmp_path)
    assert done.returncode in (2, 3) and said in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "comparisons" / "classification").exists()


def test_tables_that_no_classifier_can_learn_from(tmp_path: Path) -> None:
    write = (tmp_path / "t.csv").write_text
    alike = "text,label\n" + "".join(f"text {i},x\n" for i in range(40))
    for text, said in ((alike, "label 'x'"), ("text,lable\nabc,x\n", "lable"),
                       ("text,label\n,x\nb,y\n", "empty text")):
        write(text)
        done = cutaway("compare", "classification", "data.kind=labelled", "data.path=t.csv", cwd=tmp_path)
        assert done.returncode == 3 and said in done.stderr, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
