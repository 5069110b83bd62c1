"""Task files and their items: strict settings, columns, labels, solved items, rows that cannot be used."""

import json
from itertools import pairwise

import pytest

from cutaway.errors import DataError, SettingsError
from cutaway.evaluate.items import read_items
from cutaway.evaluate.task import Generation, MultipleChoice, Perplexity, load_task, packaged

CHOICE = 'name = "t"\nversion = 1\nkind = "multiple_choice"\nprompt = "Q: {q}"\nchoices = "{c}"\nlabel = "{a}"\n'


def rows(path, *given):
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return f'path="{path}"'


def made(tmp_path, text, *assignments):
    (tmp_path / "t.toml").write_text(text)
    return load_task(str(tmp_path / "t.toml"), assignments)


QUESTIONS = [{"q": f"q{i}", "c": [f"x{i}", f"y{i}", f"z{i}"], "a": i % 3} for i in range(9)]


@pytest.mark.parametrize("name", packaged())
def test_packaged_tasks_are_what_their_files_say(name):
    task = load_task(name)
    assert task.name == name and task.version >= 1 and task.about and task.path is None


def test_there_are_the_well_known_formats():
    assert {"arc_easy", "hellaswag", "piqa", "lambada", "gsm8k", "blimp", "text"} <= set(packaged())


@pytest.mark.parametrize(("text", "assignments", "why"), [
    ("", (), "kind is missing; one of perplexity"), ('kind = "multiple-choice"', (), "did you mean 'multiple_choice'"),
    (CHOICE, ("chioces=3",), "unknown setting chioces; did you mean choices"),
    (CHOICE, ("max_tokens=3",), "unknown setting max_tokens"), (CHOICE, ("version=0",), "version"),
    (CHOICE.replace("{q}", "{q"), (), "prompt: the template 'Q: .q' cannot be read"),
    (CHOICE.replace("version = 1", ""), (), "version is missing"), (CHOICE, ("context=1",), "context"),
    (CHOICE, ("fewshot.picks=x",), "did you mean fewshot.pick"), (CHOICE, ("limit=0",), "limit"),
    (CHOICE + '[[replace]]\npattern = "("\n', (), "is no regular expression")])
def test_a_task_file_is_strict(tmp_path, text, assignments, why):
    with pytest.raises(SettingsError, match=why):
        made(tmp_path, text, *assignments)


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(SettingsError, match="no task 'arc_esy'; did you mean 'arc_easy'"):
        load_task("arc_esy")
    with pytest.raises(SettingsError, match=r"there are arc_challenge, .*or give a \.toml file"):
        load_task("no/such/file.toml")


def test_a_file_may_extend_a_packaged_one(tmp_path):
    task = made(tmp_path, 'extends = "piqa"\nname = "mine"\nprompt = "{goal}?"\n')
    assert isinstance(task, MultipleChoice)
    assert (task.name, task.prompt, task.choices) == ("mine", "{goal}?", ("{sol1}", "{sol2}"))


def test_items_are_the_rows(tmp_path):
    found = read_items(made(tmp_path, CHOICE, rows(tmp_path / "d.jsonl", *QUESTIONS), "limit=2"))
    assert [(i.prompt, i.answers, i.gold) for i in found.items] == [
        ("Q: q0", ("x0", "y0", "z0"), 0), ("Q: q1", ("x1", "y1", "z1"), 1)]
    assert found.available == 9 and list(found.notes()) == [f"2 of 9 items of {tmp_path / 'd.jsonl'} were asked"]
    assert [i.name for i in found.items] == [f"{tmp_path / 'd.jsonl'}:{n}" for n in (1, 2)]


def test_csv_and_parquet_hold_the_same_items(tmp_path):
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "d.csv").write_text('q,one,two,a\n"why, then",x,y,1\n')
    text = CHOICE.replace('"{c}"', '["{one}", "{two}"]')
    found = read_items(made(tmp_path, text, f'path="{tmp_path / "d.csv"}"'))
    assert [(i.prompt, i.answers, i.gold) for i in found.items] == [("Q: why, then", ("x", "y"), 1)]
    table = {k: [q[k] for q in QUESTIONS] for k in QUESTIONS[0]}
    parquet.write_table(pyarrow.table(table), tmp_path / "d.parquet")
    one = read_items(made(tmp_path, CHOICE, f'path="{tmp_path / "d.parquet"}"')).items
    other = read_items(made(tmp_path, CHOICE, rows(tmp_path / "d.jsonl", *QUESTIONS))).items
    assert [(i.prompt, i.answers, i.gold) for i in one] == [(i.prompt, i.answers, i.gold) for i in other]


def test_a_missing_column_is_told_with_what_there_is(tmp_path):
    path = rows(tmp_path / "d.jsonl", {"question": "why", "c": ["x", "y"], "a": 0})
    with pytest.raises(DataError, match=r"no value in 'q'; it has question, c, a; set columns\.q"):
        read_items(made(tmp_path, CHOICE, path))
    found = read_items(made(tmp_path, CHOICE, path, "columns.q=question"))
    assert found.items[0].prompt == "Q: why"
    assert read_items(made(tmp_path, CHOICE, path, 'columns.q=["q", "question"]')).items == found.items
    with pytest.raises(DataError, match="no value in 'q or qu'; it has question"):
        read_items(made(tmp_path, CHOICE, path, 'columns.q=["q", "qu"]'))
    with pytest.raises(SettingsError, match=r"columns\.z is named by no template"):
        read_items(made(tmp_path, CHOICE, path, "columns.z=question"))


@pytest.mark.parametrize(("label", "extra", "gold"), [
    (2, "", 2), ("1", "", 1), (True, "", 1), (False, "", 0), ("z", "", 2), ("B", 'labels = ["A", "B", "C"]', 1),
    ("2", 'labels = ["1", "2", "3"]', 1)])
def test_a_label_says_which_choice_is_right(tmp_path, label, extra, gold):
    path = rows(tmp_path / "d.jsonl", {"q": "w", "c": ["x", "y", "z"], "a": label})
    assert read_items(made(tmp_path, CHOICE + extra, path)).items[0].gold == gold


@pytest.mark.parametrize(("row", "extra", "why"), [
    ({"a": 3}, "", "the label '3' is no number from 0 to 2"), ({"a": -1}, "", "'-1' is no number"),
    ({"a": "D"}, 'labels = ["0", "B", "C"]', "'D' is none of 0, B, C"), ({"c": ["x"]}, "", "1 choices"),
    ({"c": ["x", ""]}, "", "an answer is empty"), ({"c": "xy"}, "", "is no list"), ({"c": ["x", 1.5, {}]}, "", "dict")])
def test_a_row_that_cannot_be_used_is_an_error_or_counted(tmp_path, row, extra, why):
    path = rows(tmp_path / "d.jsonl", QUESTIONS[0], QUESTIONS[1] | row)
    with pytest.raises(DataError, match=rf"d\.jsonl:2: .*{why}.*or set bad_rows=skip"):
        read_items(made(tmp_path, CHOICE + extra, path))
    if not extra:
        found = read_items(made(tmp_path, CHOICE, path, "bad_rows=skip"))
        assert len(found.items) == 1 and found.skipped.counts.total() == 1
        assert any("left out of" in note for note in found.notes())


@pytest.mark.parametrize(("name", "content", "why"), [
    ("d.jsonl", "", "holds no item"), ("d.txt", "x", "holds no rows"), ("d.jsonl", "{bad\n", "cannot be used"),
    ("d.jsonl.gz", "no gzip", "cannot be read")])
def test_a_file_that_cannot_be_used(tmp_path, name, content, why):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=why):
        read_items(made(tmp_path, CHOICE, f'path="{tmp_path / name}"'))


def test_no_file_at_all(tmp_path):
    with pytest.raises(SettingsError, match="no data is named; add --data FILE"):
        read_items(made(tmp_path, CHOICE))
    with pytest.raises(DataError, match="no such file"):
        read_items(made(tmp_path, CHOICE, "path=nowhere.jsonl"))
    with pytest.raises(DataError, match="a folder"):
        read_items(made(tmp_path, CHOICE, f'path="{tmp_path}"'))


def test_solved_items_stand_before_each_and_are_never_the_item(tmp_path):
    task = made(tmp_path, CHOICE, rows(tmp_path / "d.jsonl", *QUESTIONS), "fewshot.count=2", 'description="D. "')
    found = read_items(task).items
    assert found[0].prompt == "D. Q: q1 y1\n\nQ: q2 z2\n\nQ: q0"
    assert found[1].prompt == "D. Q: q0 x0\n\nQ: q2 z2\n\nQ: q1"
    assert found[5].prompt == "D. Q: q0 x0\n\nQ: q1 y1\n\nQ: q5"


def test_solved_items_of_another_file_leave_out_an_equal_row(tmp_path):
    few = rows(tmp_path / "few.jsonl", *QUESTIONS[:3]).removeprefix("path=")
    task = made(tmp_path, CHOICE, rows(tmp_path / "d.jsonl", *QUESTIONS[1:3]), f"fewshot.path={few}", "fewshot.count=2",
                'fewshot.separator="|"')
    assert [i.prompt for i in read_items(task).items] == ["Q: q0 x0|Q: q2 z2|Q: q1", "Q: q0 x0|Q: q1 y1|Q: q2"]
    with pytest.raises(DataError, match="3 solved items are wanted and there are 2 beside it"):
        read_items(task.model_copy(update={"fewshot": task.fewshot.model_copy(update={"count": 3})}))


def test_random_solved_items_depend_on_the_item_and_the_seed_alone(tmp_path):
    path = rows(tmp_path / "d.jsonl", *QUESTIONS)
    drawn = ("fewshot.count=3", "fewshot.pick=random")
    all_of = [i.prompt for i in read_items(made(tmp_path, CHOICE, path, *drawn)).items]
    assert [i.prompt for i in read_items(made(tmp_path, CHOICE, path, *drawn, "limit=4")).items] == all_of[:4]
    assert [i.prompt for i in read_items(made(tmp_path, CHOICE, path, *drawn, "fewshot.seed=1")).items] != all_of
    for i, prompt in enumerate(all_of):
        shots = prompt.split("\n\n")
        assert len(set(shots)) == 4 and shots[-1] == f"Q: q{i}" and not any(f"q{i} " in s for s in shots[:-1])
    assert any(a.split("\n\n")[:-1] != b.split("\n\n")[:-1] for a, b in pairwise(all_of))


def test_a_sample_by_hash_is_spread_and_does_not_depend_on_the_order(tmp_path):
    one = read_items(made(tmp_path, CHOICE, rows(tmp_path / "d.jsonl", *QUESTIONS), "limit=4", "pick=hash")).items
    turned = rows(tmp_path / "e.jsonl", *QUESTIONS[::-1])
    other = read_items(made(tmp_path, CHOICE, turned, "limit=4", "pick=hash")).items
    assert {i.prompt for i in one} == {i.prompt for i in other} and len(one) == 4
    assert {i.prompt for i in one} != {f"Q: q{i}" for i in range(4)}


def test_the_packaged_prompts_of_one_row_each(tmp_path):
    def first(name, row, *more):
        item = read_items(load_task(name, (rows(tmp_path / "d.jsonl", row), *more))).items[0]
        return item.prompt, item.answers, item.gold

    assert first("arc_easy", {"question": "Q?", "choices": {"text": ["a", "b"], "label": ["A", "B"]},
                              "answerKey": "B"}) == ("Question: Q?\nAnswer:", ("a", "b"), 1)
    assert first("hellaswag", {"activity_label": "Baking", "ctx_a": " He [x] bakes.", "ctx_b": "the Cake",
                               "endings": ["is  done", "up [title] go"], "label": "1"}) == (
        "Baking: He bakes. The cake", ("is done", "up. go"), 1)
    assert first("piqa", {"goal": "g", "sol1": "s", "sol2": "t", "label": 0})[0] == "Question: g\nAnswer:"
    assert first("lambada", {"text": "all the way home"}) == ("all the way", ("home",), 0)
    assert first("blimp", {"good": "He is", "bad": "He are"}) == ("", ("He is", "He are"), 0)
    assert first("boolq", {"passage": "P", "question": "is it", "answer": True}) == (
        "P\nQuestion: is it?\nAnswer:", ("no", "yes"), 1)
    assert first("text", {"text": " t "}) == ("", (" t ",), 0)
    assert first("gsm8k", {"question": "1+1?", "answer": "2\n#### 2"}, "fewshot.count=0") == (
        "Question: 1+1?\nAnswer:", ("2\n#### 2",), 0)
    assert isinstance(load_task("gsm8k"), Generation) and isinstance(load_task("text"), Perplexity)
