"""YAML as recipes need it: numbers as in YAML 1.2, lines of every value, nothing clever."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from alloykit.errors import InvalidRecipe
from alloykit.recipes import strict_yaml
from alloykit.recipes.strict_yaml import plain_value, read_yaml


@pytest.fixture(params=["C", "Python"], autouse=True)
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of PyYAML's parsers: not every installation has the one in C."""
    loader = yaml.SafeLoader if request.param == "Python" else getattr(yaml, "CSafeLoader", None)
    if loader is None:
        pytest.skip("PyYAML was built without libyaml")
    monkeypatch.setattr(strict_yaml, "_Loader", loader)


def read(tmp_path: Path, text: str | bytes) -> strict_yaml.Document:
    path = tmp_path / "r.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_yaml(path)


@pytest.mark.parametrize(
    ("word", "value"),
    [("1", 1), ("-3", -3), ("+3", 3), ("1e-5", 1e-5), ("1.0e-5", 1e-5), (".5", 0.5), ("2.", 2.0),
     ("-0.25", -0.25), ("1E3", 1000.0), ("true", True), ("FALSE", False), ("null", None), ("~", None),
     ("", None), (".inf", float("inf")), ("-.Inf", float("-inf"))],
)  # fmt: skip
def test_words_that_are_values(word: str, value: Any) -> None:
    assert plain_value(word) == value
    assert type(plain_value(word)) is type(value)


@pytest.mark.parametrize(
    "word",
    ["yes", "no", "on", "off", "010", "0o17", "0x1F", "1_000", "1:30", "190:20:30", "2024-01-01", "nan",
     "inf", "1,5", "50%", "1e", "--1", "TRUe", "9" * 50, "=", "."],
)  # fmt: skip
def test_words_that_readers_of_yaml_differ_on_stay_text(word: str) -> None:
    assert plain_value(word) == word


def test_values_have_lines(tmp_path: Path) -> None:
    text = (
        "# why\nmodels:\n  - model: a\n    weight: 1\n  - {model: b, weight: 2}\nlist:\n- 1\n- 2\n"
    )
    document = read(tmp_path, text)
    assert document.content == {
        "models": [{"model": "a", "weight": 1}, {"model": "b", "weight": 2}], "list": [1, 2],
    }  # fmt: skip
    lines = document.lines
    assert lines[("models", 0, "weight")] == 4
    assert lines[("models", 1)] == lines[("models", 1, "weight")] == 5
    assert [lines[("list", i)] for i in (0, 1)] == [7, 8]


def test_quoted_words_are_text(tmp_path: Path) -> None:
    assert read(tmp_path, "a: '1'\nb: \"true\"\nc: ! 5").content == {
        "a": "1",
        "b": "true",
        "c": "5",
    }


def test_keys_are_text(tmp_path: Path) -> None:
    assert read(tmp_path, "1: a\ntrue: b\n'<<': c").content == {"1": "a", "true": "b", "<<": "c"}


def test_anchors_and_aliases_repeat_what_they_mark(tmp_path: Path) -> None:
    text = "a: &p {weight: 1, density: &d [1, 2]}\nb: *p\nc: *d"
    whole = {"weight": 1, "density": [1, 2]}
    assert read(tmp_path, text).content == {"a": whole, "b": whole, "c": [1, 2]}


def test_an_empty_file_holds_nothing(tmp_path: Path) -> None:
    for text in ("", "# only a comment\n", "---\n", "---\n...\n"):
        assert read(tmp_path, text).content is None


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    assert read(tmp_path, b"\xef\xbb\xbfa: 1").content == {"a": 1}


REFUSED = [
    ("a: 1\na: 2", "line 2: the key 'a' is there twice, first in line 1"),
    ("a: {b: 1, b: 1}", "the key 'b' is there twice"),
    ("x: &x {a: 1}\ny:\n  <<: *x\n", "line 3: merge keys"),
    ("a: !!python/object/apply:os.system [ls]", "python/object/apply:os.system asks for an object"),
    ("a: !!float 1", "the tag"),
    ("!thing\na: 1", "the tag !thing"),
    ("? [1, 2]\n: 3", "a key must be plain text"),
    ("? {a: 1}\n: 3", "a key must be plain text"),
    ("!!str a: 1", "a key must be plain text"),
    ("&k a: 1\n*k : 2", "a key must be plain text"),
    ("a: 1\n---\nb: 2", "line 2: a second document begins"),
    ("a: &x [*x]", r"the alias \*x holds itself"),
    ("a: *x", r"the alias \*x"),
    ("a: [1, 2", "this is not YAML"),
    ("a:\n\tb: 1", "line 2, column 1: this is not YAML.*Indent with spaces"),
    ("a: b: c", "line 1, column 5"),
    ("a: \x01", "not YAML"),
    ("[" * 100_000, "nested more than 20 deep"),
    ("- " * 400, "nested more than 20 deep"),
    ("a: [" + "0," * 60_000 + "]", "unfolds to over 50,000 values"),
]


@pytest.mark.parametrize(("text", "words"), REFUSED, ids=[text[:20] for text, _ in REFUSED])
def test_what_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InvalidRecipe, match=words) as raised:
        read(tmp_path, text)
    assert "r.yaml" in str(raised.value)


def test_billion_laughs_end_early(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    started = time.perf_counter()
    with pytest.raises(InvalidRecipe, match="unfolds to over 50,000 values"):
        read(tmp_path, "\n".join(lines))
    assert time.perf_counter() - started < 2


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(InvalidRecipe, match=r"not UTF-8 text: byte 4, in line 2"):
        read(tmp_path, b"a:\n \xff")


def test_files_that_are_too_large_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidRecipe, match=r"has 10\.0 MB; a recipe has at most 1\.0 MB"):
        read(tmp_path, b"#" * 10_000_000)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidRecipe, match="is a folder"):
        read_yaml(tmp_path)
    with pytest.raises(InvalidRecipe, match=r"There is no recipe .*none\.yaml"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(InvalidRecipe, match="not a regular file"):
        read_yaml(Path("/dev/null"))
    with pytest.raises(InvalidRecipe, match=r"There is no recipe a\\x00b"):
        read_yaml(Path("a\x00b"))
