"""Judges: what the programs see and do not see, and that a person is asked blind, in random order, and only once."""

import io
import warnings

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cutaway.errors import DataError, TrainingError
from cutaway.records import read_journal
from cutaway.train.judge import (
    STAND_IN,
    PersonJudge,
    ProgramJudge,
    Quit,
    Satisfaction,
    TextJudge,
    content_words,
    program_judge,
)
from cutaway.train.reward import Answer

ADD = "Write `def add_all(self, items, start)`: Add all items to the starting value."
GOOD = "def add_all(self, items, start=0):\n    return sum(items, start)"


def answer(text: str, finished: bool = True) -> Answer:
    return Answer(text, (), finished)


@pytest.mark.parametrize(("text", "failed"), [
    (GOOD, set()),
    ("async " + GOOD, set()),
    ("def add_all(self, *items, start):\n    return items + start", set()),
    ("def add_all(self, items, start):\n    return (", {"parses", "one_function"}),
    ("", {"one_function", "words"}),
    (f"{GOOD}\n{GOOD}", {"one_function"}),
    (f"import os\n{GOOD}", {"one_function"}),
    ("class Item:\n    pass", {"one_function"}),
    ("def other(self, *args):\n    return None", {"words"}),
    ("def other(self):\n    # add all items to start\n    return 'add items to start'", {"words"}),
    ("def other(self):\n    '''Add all items to the starting value.'''", {"words"}),
    ("def other(itemValue):\n    pass", set()),
])
def test_each_demand_fails_alone_and_for_its_own_reason(text, failed):
    verdict = ProgramJudge().verdict(ADD, answer(text))
    assert {name for name, met in verdict.checks.items() if not met} == failed
    assert verdict.satisfies is not failed or not failed
    assert ProgramJudge().verdict(ADD, answer(text, finished=False)).checks["ends"] is False


def test_content_words_are_stems_of_what_not_every_text_has():
    assert content_words("Please parse the HTTPHeader_line of self, and return messages") == {
        "pleas", "pars", "http", "header", "lin", "messag"}
    assert content_words("Write what it was for you: None") == set()


def test_scores_order_by_demands_met_first():
    texts = [GOOD, "def add_all(self):\n    pass", f"{GOOD}\n{GOOD}", f"{GOOD}\n    return ("]
    scores = ProgramJudge().rank(ADD, [answer(t) for t in texts])
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 4
    assert scores[0] > 0.95 and all(0 <= s <= 1 for s in scores)


def test_text_that_breaks_later_scores_higher():
    early, late = answer("def (\n    a = 1\n    b = 2"), answer("def f():\n    a = 1\n    b = (")
    low, high = ProgramJudge().rank("Do it.", [early, late])
    assert low < high


@given(st.text(max_size=200), st.text(max_size=60), st.booleans())
@example("\x00", "", True)
@example("(" * 3000, "x", True)
@example("'\\d'\n1 is 1", "x", True)
@example("\ud800", "`", True)
def test_no_text_makes_a_judge_raise_or_warn(text, request_, finished):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for judge in (ProgramJudge(), TextJudge()):
            verdict = judge.verdict(request_, answer(text, finished))
            assert 0 <= verdict.score <= 1 and tuple(verdict.checks) == judge.checks


def test_nothing_is_executed(tmp_path):
    target = tmp_path / "made"
    text = f"def f(a=open({str(target)!r}, 'w')):\n    return a"
    assert ProgramJudge().verdict("Write `def f(a)`: Open.", answer(text)).satisfies
    assert not target.exists()


FOX = "Continue: The fox ran to the river."


KNOWN = frozenset(["he", "drank", "slept", "at", "the", "river", "then", "and", "if", "ran", "fox", "on", "drink"])


@pytest.mark.parametrize(("text", "failed"), [
    ("He drank at the river. Then he slept.", set()),
    ("He drank at the river, and then", {"whole"}),
    ("He drankled.", {"spelt"}),
    ("The fox ran on. " * 6, {"fresh"}),
    ("", {"whole", "fresh"}),
    ("  if (river) {\n    drink();\n  }", set()),
])
def test_the_text_judge_s_demands(text, failed):
    verdict = TextJudge(KNOWN).verdict(FOX, answer(text))
    assert {name for name, met in verdict.checks.items() if not met} == failed


def test_without_known_words_spelling_is_not_asked():
    verdict = TextJudge().verdict(FOX, answer("He drankled."))
    assert "spelt" not in verdict.checks and verdict.satisfies and verdict.score == 1


def test_fewer_unknown_words_score_higher_and_equal_form_is_a_tie():
    judge = TextJudge(KNOWN)
    texts = ["He slept at the river.", "The fox drank.", "He slept. The foxel drank and he ran on at the river.",
             "The foxel drankled."]
    one, other, slip, two = judge.rank(FOX, [answer(t) for t in texts])
    assert one == other == 1.0 and one > slip > two


def test_programs_are_labelled_as_stand_ins_and_chosen_by_kind():
    texts = ["The fox ran.", "On the river"]
    for kind, judge in (("functions", ProgramJudge()),
                        ("continuations", TextJudge(frozenset(("the", "fox", "ran", "on", "river"))))):
        assert program_judge(kind, texts) == judge
        assert judge.stand_in and judge.label == STAND_IN
    with pytest.raises(DataError, match="functions or continuations"):
        program_judge("poems")


def test_satisfaction_is_a_reward():
    assert Satisfaction(ProgramJudge())([ADD, ADD], [answer(GOOD), answer(GOOD, False)]) == [1.0, 0.0]


def person(path, keys: str, seed: int = 0) -> tuple[PersonJudge, io.StringIO]:
    screen = io.StringIO()
    return PersonJudge(path, seed=seed, input=io.StringIO(keys), output=screen), screen


A, B, C = answer("alpha"), answer("beta"), answer("gamma", False)


def test_a_choice_belongs_to_the_answer_that_was_shown(tmp_path):
    seen = set()
    for seed in range(8):
        judge, screen = person(tmp_path / f"{seed}.jsonl", "1\n", seed)
        scores = judge.rank("Say a letter", [A, B])
        first = "alpha" if screen.getvalue().index("alpha") < screen.getvalue().index("beta") else "beta"
        assert scores == ([1.0, 0.0] if first == "alpha" else [0.0, 1.0])
        seen.add(first)
    assert seen == {"alpha", "beta"}


def test_the_order_does_not_depend_on_which_answer_came_first(tmp_path):
    one, screen_one = person(tmp_path / "1.jsonl", "1\n")
    two, screen_two = person(tmp_path / "2.jsonl", "1\n")
    assert one.rank("r", [A, B]) == two.rank("r", [B, A])[::-1]
    assert screen_one.getvalue() == screen_two.getvalue()


def test_each_choice_is_saved_at_once_with_its_version_and_never_asked_again(tmp_path):
    path = tmp_path / "p.jsonl"
    judge, screen = person(path, "what\n2\n")
    scores = judge.rank("r", [A, B])
    assert "'what' is none of 1, 2, t, s, q" in screen.getvalue()
    (row,) = read_journal(path)
    assert (row["version"], row["choice"], row["judge"]) == (1, "2", "a person")
    assert sorted(row["answers"]) == ["alpha", "beta"]
    again, screen = person(path, "")
    assert again.rank("r", [A, B]) == scores and screen.getvalue() == ""


def test_three_answers_are_three_questions_and_a_tie_counts_half(tmp_path):
    path = tmp_path / "p.jsonl"
    judge, _ = person(path, "t\nt\n=\n")
    assert judge.rank("r", [A, B, C]) == [0.5, 0.5, 0.5]
    assert len(read_journal(path)) == 3


def test_a_skip_is_no_opinion_and_equal_texts_are_not_asked(tmp_path):
    judge, screen = person(tmp_path / "p.jsonl", "s\n")
    assert judge.rank("r", [A, B]) == []
    assert judge.rank("r", [A, A]) == [0.5, 0.5]
    assert screen.getvalue().count("Which is better?") == 1


@pytest.mark.parametrize("keys", ["q\n", ""])
def test_quit_and_the_end_of_input_keep_what_was_answered(tmp_path, keys):
    path = tmp_path / "p.jsonl"
    judge, screen = person(path, "1\n" + keys)
    judge.rank("first", [A, B])
    with pytest.raises(Quit):
        judge.rank("second", [A, B])
    assert "1 judged so far, saved in" in screen.getvalue() and len(read_journal(path)) == 1


def test_control_characters_are_shown_not_obeyed(tmp_path):
    judge, screen = person(tmp_path / "p.jsonl", "1\n")
    judge.rank("r\x07", [answer("\x1b[2Jgone"), answer("a\rb\u202e")])
    assert "\x1b" not in screen.getvalue() and "\r" not in screen.getvalue() and "\\x1b[2Jgone" in screen.getvalue()


def test_another_version_s_file_and_a_missing_terminal_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "p.jsonl"
    path.write_text('{"version": 9}\n')
    with pytest.raises(DataError, match="version 9"):
        PersonJudge(path)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(TrainingError, match=r"judge\.kind=program"):
        PersonJudge(tmp_path / "new.jsonl", output=io.StringIO()).rank("r", [A, B])
