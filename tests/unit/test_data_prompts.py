"""Prompt templates: fields, places in a column, filters; what is no template and what a row lacks."""

import pytest

from cutaway.data.prompts import Template
from cutaway.errors import DataError

ROW = {"q": "Why?", "n": 3, "yes": True, "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "none": None,
       "said": " one  two three"}


@pytest.mark.parametrize(("template", "text"), [
    ("Question: {q}\nAnswer:", "Question: Why?\nAnswer:"), ("{n}/{yes}", "3/True"), ("{{{q}}}", "{Why?}"), ("", ""),
    ("{choices.text.1}", "b"), ("{said|strip|capitalize}", "One  two three"), ("{said|last_word}", "three"),
    ("{said|but_last_word}|", " one  two|"), ("{q|but_last_word}{q|last_word}", "Why?")])
def test_a_template_is_filled(template, text):
    assert Template(template).fill(ROW, "f:1") == text


def test_a_list_is_taken_item_by_item():
    assert Template("{choices.text|upper}").each(ROW, "f:1") == ["A", "B"]
    for wrong in ("{q}", "{q} {q}", "x", ""):
        with pytest.raises(DataError, match="is no list"):
            Template(wrong).each(ROW, "f:1")


def test_columns_are_known_before_any_row():
    assert Template("{a.b} {c|strip} {a} {{d}}").columns == ("a", "c")


@pytest.mark.parametrize(("template", "why"), [
    ("{q", "expected '}'"), ("{}", "without a column"), ("{.text}", "without a column"), ("{a..b}", "without a column"),
    ("{q!r}", "a field is"), ("{n:03d}", "a field is"), ("{q|strp}", "did you mean 'strip'"),
    ("{q|zzz}", "there are strip")])
def test_what_is_no_template_is_refused(template, why):
    with pytest.raises(ValueError, match=why):
        Template(template)


@pytest.mark.parametrize(("template", "why"), [
    ("{choices.txt}", "'choices' holds no 'txt'"), ("{choices.text.2}", "'choices.text' holds no '2'"),
    ("{q.a}", "'q' holds no 'a'"), ("{none}", "'none' holds nothing"), ("{choices}", "holds a dict, no text"),
    ("{choices.text}", "holds a list, no text")])
def test_what_a_row_lacks_is_an_error_that_names_the_row(template, why):
    with pytest.raises(DataError, match=f"f:1: .*{why}"):
        Template(template).fill(ROW, "f:1")


def test_a_template_reaches_no_attribute():
    with pytest.raises(DataError, match="holds no '__class__'"):
        Template("{q.__class__}").fill(ROW, "f:1")
