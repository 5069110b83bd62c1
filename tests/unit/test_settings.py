"""Settings: strict, frozen, and every mistake answered with its place and the nearest match."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from cutaway.errors import SettingsError
from cutaway.settings import Settings, decode, merge, nearest, override, paths, read_toml, schema, to_toml


class Stdlib(Settings):
    kind: Literal["python-stdlib"] = "python-stdlib"
    tests: bool = False
    limit: int | None = None


class Files(Settings):
    kind: Literal["path"] = "path"
    path: str
    limit: int | None = None


class Rows(Settings):
    kind: Literal["rows"] = "rows"
    path: str
    longest: int = 9


class Pairs(Settings):
    kind: Literal["pairs"] = "pairs"
    path: str
    longest: int = 9


class Steps(Settings):
    kind: Literal["steps"] = "steps"
    steps: int


class Seconds(Settings):
    kind: Literal["seconds"] = "seconds"
    seconds: float = Field(gt=0)


class Train(Settings):
    steps: int = Field(default=10, gt=0)
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"


class Root(Settings):
    name: str = "debug"
    data: Annotated[Stdlib | Files, Field(discriminator="kind")] = Stdlib()
    train: Train = Train()


class Wide(Settings):
    """Kinds that share settings, and tables named like kinds and like settings."""

    data: Annotated[Stdlib | Files | Rows | Pairs, Field(discriminator="kind")] = Stdlib()
    budget: Annotated[Steps | Seconds, Field(discriminator="kind")] = Steps(steps=1)
    systems: dict[str, Annotated[Steps | Seconds, Field(discriminator="kind")]] = Field(default={})
    shares: tuple[float, ...] = ()


def test_an_empty_tree_is_every_default() -> None:
    assert decode(Root, {}, where="x") == Root()


def test_ints_stand_for_floats_and_arrays_for_tuples_and_nothing_else() -> None:
    root = decode(Root, {"train": {"learning_rate": 1, "betas": [0, 1]}}, where="x")
    assert root.train.learning_rate == 1.0 and root.train.betas == (0.0, 1.0)
    for tree in ({"steps": 1.5}, {"steps": "1"}, {"steps": True}, {"learning_rate": "1e-3"}, {"betas": [1, 2, 3]}):
        with pytest.raises(SettingsError, match=rf"^x: train\.{next(iter(tree))}"):
            decode(Root, {"train": tree}, where="x")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Root().name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(("tree", "message"), [
    ({"train": {"stepz": 3}}, "x: unknown setting train.stepz; did you mean train.steps?"),
    ({"learning_rate": 1.0}, "x: unknown setting learning_rate; did you mean train.learning_rate?"),
    ({"zzz": 1}, "x: unknown setting zzz; the settings here are data, name, train"),
    ({"data": {"kind": "pth"}}, "x: data.kind 'pth' is unknown; did you mean 'path'?"),
    ({"data": {"kind": "qqqqq"}}, "x: data.kind 'qqqqq' is unknown; one of python-stdlib, path"),
    ({"data": {"limit": 3}}, "x: data.kind is missing; one of python-stdlib, path"),
    ({"data": {"kind": "path"}}, "x: data.path is missing; write data.path = …"),
    ({"data": {"kind": "path", "paht": "a"}}, "x: unknown setting data.paht; did you mean data.path?"),
    ({"train": {"dtype": "flaot32"}}, "x: train.dtype should be 'auto', 'float32' or 'bfloat16', got \"flaot32\"; "
                                      "did you mean 'float32'?"),
    ({"train": {"steps": 0}}, "x: train.steps should be greater than 0, got 0"),
    ({"train": 3}, "x: train should be an object, got 3"),
])
def test_every_mistake_is_one_line_with_its_place(tree: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        decode(Root, tree, where="x")
    assert str(caught.value) == message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("tree", "message"), [
    ({"budget": {"kind": "steps", "steps": 9, "step": 3}}, "unknown setting budget.step; did you mean budget.steps?"),
    ({"budget": {"kind": "seconds", "seconds": 9, "second": 3}},
     "unknown setting budget.second; did you mean budget.seconds?"),
    ({"budget": {"kind": "steps", "steps": 0.5}}, "budget.steps should be a valid integer, got 0.5"),
    ({"systems": {"seconds": {"kind": "steps", "steps": 9, "stepz": 3}}},
     "unknown setting systems.seconds.stepz; did you mean systems.seconds.steps?"),
    ({"systems": {"steps": {"kind": "steps", "steps": "x"}}},
     'systems.steps.steps should be a valid integer, got "x"'),
    ({"shares": [0.5, "x"]}, 'shares.1 should be a valid number, got "x"'),
    ({"budget": {"kind": "seconds", "seconds": float("inf")}}, "budget.seconds should be a finite number, got inf"),
])
def test_a_kind_is_never_taken_for_a_key(tree: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        decode(Wide, tree, where="x")
    assert str(caught.value) == f"x: {message}"


@pytest.mark.parametrize(("tree", "message"), [
    ({"data": {"kind": "python-stdlib", "path": "a"}},
     "unknown setting data.path; data.path belongs to data.kind = path, rows or pairs: choose one with data.kind=…"),
    ({"budget": {"kind": "steps", "steps": 1, "seconds": 3}},
     "unknown setting budget.seconds; budget.seconds belongs to budget.kind = seconds: add budget.kind=seconds"),
])
def test_a_setting_of_other_kinds_says_which(tree: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        decode(Wide, tree, where="x")
    assert str(caught.value) == f"x: {message}"


def test_of_several_kinds_with_a_setting_the_one_of_its_name_is_chosen() -> None:
    def data(*assignments: str) -> object:
        tree = {"data": {"kind": "python-stdlib", "limit": 5}}
        return decode(Wide, override(tree, assignments, of=Wide), where="x").data

    assert data("data.path=/x") == Files(path="/x", limit=5)
    assert data("data.path=/x", "data.kind=rows") == data("data.kind=rows", "data.path=/x") == Rows(path="/x")
    with pytest.raises(SettingsError, match=r"data\.longest belongs to data\.kind = rows or pairs"):
        data("data.longest=3")


def test_the_path_that_a_report_advises_is_taken(tmp_path: Path) -> None:
    from cutaway.run.compare_recipe import load

    data = load("language", [f"data.path={tmp_path}"]).data
    assert (data.kind, getattr(data, "path", None)) == ("path", str(tmp_path))


@pytest.mark.parametrize("never", [float("inf"), float("-inf"), float("nan")])
def test_every_number_is_finite(never: float) -> None:
    with pytest.raises(SettingsError, match=r"train\.learning_rate should be a finite number"):
        decode(Root, {"train": {"learning_rate": never}}, where="x")
    with pytest.raises(ValidationError, match="finite"):
        Train(betas=(0.9, never))


def test_overrides_are_toml_and_bare_words_are_strings() -> None:
    tree = override({}, ["train.steps=20", "train.betas=[0.5, 0.6]", "name=hello world", 'train.dtype="float32"'])
    assert tree == {"train": {"steps": 20, "betas": [0.5, 0.6], "dtype": "float32"}, "name": "hello world"}
    assert override({}, ["name=2024-01-01"]) == {"name": "2024-01-01"}  # a date has no setting: it is a word
    assert override({}, ["name="]) == {"name": ""}
    assert override({}, ["name=a=b"]) == {"name": "a=b"}


@pytest.mark.parametrize("bad", ["steps", "=1", "a..b=1", "train.betas=[1", 'name="x', "name.first=x"])
def test_malformed_overrides_are_refused(bad: str) -> None:
    with pytest.raises(SettingsError):
        override({"name": "debug"}, [bad])


def test_an_override_never_changes_the_tree_it_was_given() -> None:
    tree = {"train": {"steps": 1}}
    override(tree, ["train.steps=2"])
    assert tree == {"train": {"steps": 1}}


def test_a_setting_of_one_kind_only_chooses_that_kind() -> None:
    tree = {"data": {"kind": "python-stdlib", "tests": True, "limit": 5}}
    switched = override(tree, ["data.path=/x"], of=Root)
    assert decode(Root, switched, where="x").data == Files(path="/x", limit=5)
    by_kind = override(tree, ["data.kind=path", "data.path=/x"], of=Root)
    assert by_kind == switched
    assert override(tree, ["data.limit=7"], of=Root)["data"]["kind"] == "python-stdlib"
    with pytest.raises(SettingsError, match=r"unknown setting data\.pfad"):
        decode(Root, override(tree, ["data.pfad=/x"], of=Root), where="x")


def test_extends_lays_one_file_over_another(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text('name = "base"\n[train]\nsteps = 5\nlearning_rate = 0.1\n'
                                        '[data]\nkind = "python-stdlib"\ntests = true\n')
    (tmp_path / "mine.toml").write_text('extends = "base"\n[train]\nsteps = 7\n[data]\nkind = "path"\npath = "p"\n')
    root = decode(Root, read_toml(tmp_path / "mine.toml"), where="mine")
    assert (root.name, root.train.steps, root.train.learning_rate, root.data) == ("base", 7, 0.1, Files(path="p"))
    elsewhere = tmp_path / "sub"
    elsewhere.mkdir()
    (elsewhere / "far.toml").write_text('extends = "base"\n')
    assert read_toml(elsewhere / "far.toml", search=[tmp_path])["name"] == "base"


def test_files_that_cannot_be_read_say_so(tmp_path: Path) -> None:
    (tmp_path / "loop.toml").write_text('extends = "loop"\n')
    (tmp_path / "lost.toml").write_text('extends = "nowhere"\n')
    (tmp_path / "bad.toml").write_text("a = [\n")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    expected = {"loop": "extends itself", "lost": "does not exist", "bad": "not TOML", "binary": "cannot be read",
                "absent": "no such file"}
    for name, words in expected.items():
        with pytest.raises(SettingsError, match=words):
            read_toml(tmp_path / f"{name}.toml")


def test_toml_holds_every_default_and_names_what_is_unset() -> None:
    text = to_toml(Root())
    assert text.startswith("# unset: data.limit\n")
    for name in ("steps", "learning_rate", "betas", "dtype", "tests", "kind", "name"):
        assert f"\n{name} = " in text or text.startswith(f"{name} = ")


@given(st.integers(1, 10**6), st.floats(0, 1), st.text(max_size=20), st.sampled_from(["auto", "float32"]))
def test_settings_survive_a_round_trip_through_toml(steps: int, rate: float, name: str, dtype: str) -> None:
    import tomllib

    root = decode(Root, {"name": name, "train": {"steps": steps, "learning_rate": rate, "dtype": dtype}}, where="x")
    assert decode(Root, tomllib.loads(to_toml(root)), where="x") == root


def test_merge_keeps_what_is_not_mentioned() -> None:
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}


def test_paths_schema_and_nearest() -> None:
    assert {"data.path", "data.tests", "train.steps"} <= set(paths(Root))
    assert schema(Root)["additionalProperties"] is False
    assert nearest("learnig_rate", ["learning_rate", "steps"]) == "learning_rate"
    assert nearest("xyz", ["learning_rate"]) is None
