"""What becomes of items, and the figures: ties and lengths by hand, texts in windows, what is written up to a stop,
items that are too long, and every architecture on the same task."""

import json
import math

import numpy as np
import pytest
import torch
from tiny import CONFIGS

from cutaway.batch import Batch
from cutaway.errors import DataError, SettingsError
from cutaway.evaluate.bits import score
from cutaway.evaluate.held import HeldOut
from cutaway.evaluate.items import Item, Items, read_items
from cutaway.evaluate.outcome import Outcome, outcomes
from cutaway.evaluate.task import Continuation, Extract, Generation, MultipleChoice, Perplexity, load_task
from cutaway.evaluate.task_scores import extracted, scored
from cutaway.generate.engine import Engine
from cutaway.generate.request import Request, Sampling
from cutaway.models.kneser_ney import fit
from cutaway.models.model import build
from cutaway.models.ngram import NGramConfig
from cutaway.models.transformer import TransformerConfig
from cutaway.records import wilson
from cutaway.text.chat import Message, render
from cutaway.text.tokenizer import train
from cutaway.text.vocabulary import ByteSettings

BYTES = train(ByteSettings(), [])
V = BYTES.vocab_size
CHOOSE = MultipleChoice(name="t", version=1, prompt="{q}", choices=("{a}", "{b}"), label="0")
LAST = Continuation(name="t", version=1, prompt="{q}", target="{a}")
TEXT = Perplexity(name="t", version=1)
WRITE = Generation(name="t", version=1, prompt="{q}", target="{a}", max_tokens=6)


def tiny(context: int = 64, seed: int = 1):
    return build(TransformerConfig(vocab_size=V, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1,
                                   intermediate_size=32, context_length=context), seed=seed).eval()


def of(*items: Item) -> Items:
    return Items(items, len(items), "d.jsonl", "0" * 64)


def item(prompt: str, *answers: str, gold: int = 0) -> Item:
    return Item(prompt, answers, gold, f"d.jsonl:{prompt}")


def figures(task, items, found):
    return scored(task, of(*items), found, context=64, tokenizer_sha256="0" * 64).figures


def answered(model, task, *items, tokenizer=BYTES):
    found = [o for part in outcomes(model, tokenizer, task, items) for o in part]
    assert sorted(o.item for o in found) == list(range(len(items)))
    return sorted(found, key=lambda o: o.item)


def test_accuracy_is_raw_and_by_length_in_characters_and_in_bytes():
    items = [item("q", "aaaa", "bb"), item("q", "éé", "aaa", gold=1), item("q", "ab", "cd"),
             item("q", "ab", "cd", gold=1)]
    found = [Outcome(0, (-4.0, -3.0)), Outcome(1, (-3.0, -4.2)), Outcome(2, (-1.0, -1.0)), Outcome(3, (-1.0, -1.0))]
    got = figures(CHOOSE, items, found)
    # raw: b, a, and of equals the first; by characters -1 over -1.5, -1.5 under -1.4; by bytes -.75 over -1.4
    assert {name: m.value for name, m in got.items()} == {"acc": 0.25, "acc_norm": 0.75, "acc_bytes": 0.5}
    assert (got["acc"].low, got["acc"].high) == wilson(1, 4) and got["acc"].n == 4


def test_a_continuation_has_an_accuracy_and_a_perplexity_of_whole_continuations():
    got = figures(LAST, [item("q", "a")] * 2, [Outcome(0, (-1.0,), (1,), True), Outcome(1, (-3.0,), (2,), False)])
    assert got["acc"].value == 0.5 and got["perplexity"].value == pytest.approx(math.exp(2))
    assert got["perplexity"].low < math.exp(2) < got["perplexity"].high


def test_perplexities_are_ratios_of_sums_over_words_and_bytes():
    items = [item("", "two words"), item("", " é ")]
    got = figures(TEXT, items, [Outcome(0, (-9.0,), (9,)), Outcome(1, (-3.0,), (4,))])
    # " é " splits into three at white space, as the harness counts words
    assert got["word_perplexity"].value == pytest.approx(math.exp(12 / 5))
    assert got["byte_perplexity"].value == pytest.approx(math.exp(12 / 13))
    assert got["bits_per_byte"].value == pytest.approx(12 / 13 / math.log(2))
    alone = figures(TEXT, items[:1], [Outcome(0, (-9.0,), (9,))])["bits_per_byte"]
    assert (alone.n, alone.low, alone.high) == (1, None, None)


NUMBER = Extract(name="n", pattern=r"(-?[$0-9.,]{2,})|(-?[0-9]+)", match=-1)


@pytest.mark.parametrize(("rule", "text", "part"), [
    (NUMBER, "from 12 to 7", "7"), (NUMBER, "it is $1,200.", "$1,200."), (NUMBER, "none", "[invalid]"),
    (Extract(name="n", pattern=r"#### (\-?[0-9\.\,]+)"), "a #### 5 #### 6", "5"),
    (Extract(name="n", pattern="x.y", fallback="-"), "xay xby", "xay"),
    (Extract(name="n", pattern="x", match=1), "x", "[invalid]"),
    (Extract(name="n", pattern="(a)?(b)?"), "c", "[invalid]"), (Extract(name="n", pattern=" ?a ?"), " a ", "a")])
def test_the_part_of_an_answer_that_is_compared(rule, text, part):
    assert extracted(rule, text) == part


def test_what_is_ignored_is_taken_out_of_both():
    task = load_task("gsm8k")
    items = [item("q", "so 1,200 it is\n#### 1,200"), item("q", "#### 7"), item("q", "#### 8.")]
    found = [Outcome(0, text=" 1200 is it #### 1200."), Outcome(1, text="#### 7 or 8"), Outcome(2, text="8. is it")]
    got = [(name, m.value) for name, m in figures(task, items, found).items()]
    assert got == [("exact_match,strict-match", 2 / 3), ("exact_match,flexible-extract", 2 / 3)]
    plain = WRITE.model_copy(update={"ignore_case": True})
    assert figures(plain, [item("q", "Yes")], [Outcome(0, text="yEs")])["exact_match"].value == 1
    assert figures(WRITE, [item("q", "Yes")], [Outcome(0, text=" Yes")])["exact_match"].value == 0


def test_choices_are_scored_as_the_model_has_them():
    model = tiny()
    first, second = answered(model, CHOOSE, item("why", "yes", "no it is"), item("", "a", "b"))
    for given, prompt, answers in ((first, "why", (" yes", " no it is")), (second, "", (" a", " b"))):
        for log, answer in zip(given.logprobs, answers, strict=True):
            context = [BYTES.bos_id, *BYTES.encode(prompt)]
            ids = [*context, *BYTES.encode(answer)]
            logits = model(Batch(torch.tensor([ids[:-1]])))[0, len(context) - 1:].double().log_softmax(-1)
            wanted = logits.gather(-1, torch.tensor(ids[len(context):])[:, None]).sum().item()
            assert log == pytest.approx(wanted, rel=1e-5)
    assert first.tokens == (4, 9) and first.greedy is None


def test_texts_are_read_in_windows_whose_bits_are_ours_but_for_the_end():
    model, texts = tiny(16), ("short", "a rather longer one, for several windows of a small context é", "x")
    found = answered(model, TEXT, *(item("", t) for t in texts))
    for outcome, text in zip(found, texts, strict=True):
        ids, total = [BYTES.bos_id, *BYTES.encode(text)], 0.0
        for done in range(0, len(ids) - 1, 16):
            end = min(done + 16, len(ids) - 1)
            start = max(0, end - 16)
            logits = model(Batch(torch.tensor([ids[start:end]])))[0].double().log_softmax(-1)
            total += sum(logits[t - 1 - start, ids[t]].item() for t in range(done + 1, end + 1))
        assert outcome.logprobs[0] == pytest.approx(total, rel=1e-5) and outcome.tokens == (len(ids) - 1,)
    whole = answered(tiny(64), TEXT, item("", "short"))[0]
    ours = score(tiny(64), BYTES, HeldOut(("short",), 1, 5)).nats[0]
    logits = tiny(64)(Batch(torch.tensor([[BYTES.bos_id, *BYTES.encode("short")]])))[0, -1].double().log_softmax(-1)
    assert -whole.logprobs[0] == pytest.approx(ours + logits[BYTES.eos_id].item(), rel=1e-5)


def test_a_smaller_context_is_asked_for_by_name_and_a_larger_one_refused():
    small = TEXT.model_copy(update={"context": 16})
    long = item("", "a rather longer one, for several windows")
    assert answered(tiny(64), small, long) == answered(tiny(64), small, long) != answered(tiny(64), TEXT, long)
    with pytest.raises(SettingsError, match="context = 65 is more than the model's 64"):
        answered(tiny(64), TEXT.model_copy(update={"context": 65}), long)


def test_what_is_written_ends_before_a_stop_string():
    model = tiny()
    ids = (BYTES.bos_id, *BYTES.encode("def "))
    done, = Engine(model).generate([Request(ids, 6, Sampling(temperature=0), stop_ids=BYTES.stop_ids)])
    text = BYTES.decode(done.tokens)
    found = answered(model, WRITE, item("def ", "x"), item("other", "x"))
    assert found[0].text == text and found[0].tokens == (6,)
    stop = BYTES.decode(done.tokens[3:5])
    assert len(stop) == 2
    stopped = answered(model, WRITE.model_copy(update={"stop": ("never there", stop)}), item("def ", "x"))[0]
    assert stopped.text == text[: text.index(stop)]
    assert answered(model, WRITE, item("def ", "x"))[0] == found[0]


def test_a_chat_task_asks_in_the_models_own_template():
    model, task = tiny(), WRITE.model_copy(update={"chat": True})
    ids = render([Message("user", "hi")], BYTES, add_generation_prompt=True).ids
    done, = Engine(model).generate([Request(tuple(ids), 6, Sampling(temperature=0), stop_ids=BYTES.stop_ids)])
    assert answered(model, task, item("hi", "x"))[0].text == BYTES.decode(done.tokens)


@pytest.mark.parametrize(("task", "needs"), [(CHOOSE, 1 + 20 + 2 - 1), (LAST, 1 + 20 + 2 - 1), (WRITE, 1 + 20 + 6)])
def test_an_item_that_is_too_long_is_cut_left_out_or_an_error(task, needs):
    model, answers = tiny(16), "ab" if task is CHOOSE else "a"
    long, short = item("12345678901234567890", *answers), item("1", *answers)
    found = answered(model, task, short, long)
    assert [o.cut for o in found] == [0, needs - 16]
    alone = answered(model, task, item(long.prompt, *long.answers))[0]
    assert (alone.text, alone.cut) == (found[1].text, needs - 16)
    assert alone.logprobs == pytest.approx(found[1].logprobs, rel=1e-5)
    told = list(scored(task, of(short, long), found, context=16, tokenizer_sha256="").notes())
    assert told == [f"the prompts of 1 of 2 items lost their beginning to fit the context, up to {needs - 16} tokens"]
    left = answered(model, task.model_copy(update={"too_long": "leave_out"}), short, long)
    assert left[1].left_out == f"{needs} tokens, the context is 16" and left[0].left_out is None
    result = scored(task, of(short, long), left, context=16, tokenizer_sha256="")
    assert {m.n for m in result.figures.values()} == {1} and "1 of 2 items are left out" in next(result.notes())
    assert all(m.conditions["left_out"] == 1 and m.conditions["cut"] == 0 for m in result.figures.values())
    with pytest.raises(DataError, match=f"1234567890: {needs} tokens, and the context is 16"):
        answered(model, task.model_copy(update={"too_long": "error"}), short, long)
    with pytest.raises(DataError, match="none of the 1 items fits"):
        scored(task, of(long), [Outcome(0, left_out="x")], context=16, tokenizer_sha256="")


def test_what_can_never_fit():
    with pytest.raises(DataError, match="an answer of 18 tokens does not fit a context of 16"):
        answered(tiny(16), LAST, item("q", "x" * 17))
    with pytest.raises(SettingsError, match="max_tokens = 16 leaves no room"):
        answered(tiny(16), WRITE.model_copy(update={"max_tokens": 16}), item("q", "x"))


@pytest.mark.filterwarnings("ignore:the discounts of")
@pytest.mark.parametrize("name", ["tied", "lstm", "gru", "convolution", "ngram"])
def test_every_architecture_answers_every_kind(name):
    texts = ("why not", "because it is so")
    if name == "ngram":
        rows = [[BYTES.bos_id, *BYTES.encode(t), BYTES.eos_id] for t in texts]
        model = fit(np.concatenate(rows), np.cumsum([0, *map(len, rows)]),
                    NGramConfig(vocab_size=V, order=3, bos_id=BYTES.bos_id, context_length=64))
    else:
        model = build(CONFIGS[name].model_copy(update={"vocab_size": V, "context_length": 64}), seed=1).eval()
    items = [item("why", "not", "now"), item("because", "it is so", "a")]
    for task in (CHOOSE, LAST, TEXT, WRITE):
        mine = items if task is CHOOSE else [item(i.prompt, i.answers[0]) for i in items]
        together, alone = answered(model, task, *mine), [answered(model, task, i)[0] for i in mine]
        for one, other in zip(together, alone, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, rel=1e-5)
            assert (one.text, one.tokens, one.greedy) == (other.text, other.tokens, other.greedy)
        assert all(m.n == 2 for m in figures(task, mine, together).values())
    if name == "ngram":
        assert figures(CHOOSE, items, answered(model, CHOOSE, *items))["acc"].value == 1


def test_solved_items_and_every_outcome_as_rows(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"q": f"q{i}", "a": "x", "b": "yy"}) + "\n" for i in range(5)))
    task = CHOOSE.model_copy(update={"path": str(path), "fewshot": CHOOSE.fewshot.model_copy(update={"count": 2})})
    items, model = read_items(task), tiny()
    found = [o for part in outcomes(model, BYTES, task, items.items) for o in part]
    result = scored(task, items, found, context=64, tokenizer_sha256=BYTES.digest)
    rows = [json.loads(json.dumps(row)) for row in result.rows(items)]
    assert [row["prompt"].splitlines()[-1] for row in rows] == [f"q{i}" for i in range(5)]
    assert all(set(row["marks"]) == {"acc", "acc_norm", "acc_bytes"} and len(row["logprobs"]) == 2 for row in rows)
    conditions = result.figures["acc"].conditions
    assert (conditions["fewshot"], conditions["items"], conditions["available"]) == (2, 5, 5)
    assert "fewshot_sha256" not in conditions
    moved = task.fewshot.model_copy(update={"path": "elsewhere"})
    for change, same in (({"path": "elsewhere", "limit": 3, "fewshot": moved}, True), ({"delimiter": ""}, False)):
        other = scored(task.model_copy(update=change), items, found, context=64, tokenizer_sha256="")
        assert (other.figures["acc"].conditions["task_sha256"] == conditions["task_sha256"]) == same


def test_what_a_file_of_solved_items_does_not_give_is_counted_and_told(tmp_path):
    path, few = tmp_path / "d.jsonl", tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps({"q": f"q{i}", "a": "x", "b": "yy"}) + "\n" for i in range(2)))
    few.write_text('{bad\n' + "".join(json.dumps({"q": f"s{i}", "a": "x", "b": "yy"}) + "\n" for i in range(3)))
    task = CHOOSE.model_copy(update={"path": str(path), "bad_rows": "skip", "fewshot": CHOOSE.fewshot.model_copy(
        update={"count": 2, "path": str(few)})})
    items, model = read_items(task), tiny()
    assert not items.skipped.counts and items.shots_skipped.counts.total() == 1
    assert [n for n in items.notes() if "few.jsonl, whose rows are the solved items: 1 undecodable" in n]
    conditions = figures_of(model, task, items)
    assert conditions["fewshot_skipped"] == 1 and conditions["skipped"] == 0
    few.write_text(few.read_text() + json.dumps({"q": "s4", "a": "x", "b": "yy"}) + "\n")
    assert figures_of(model, task, read_items(task))["fewshot_sha256"] != conditions["fewshot_sha256"]


def figures_of(model, task, items):
    found = [o for part in outcomes(model, BYTES, task, items.items) for o in part]
    return scored(task, items, found, context=64, tokenizer_sha256=BYTES.digest).figures["acc"].conditions
