"""Recipes with mistakes: every one is told at once, with its line, its key and how to go on."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from alloykit.errors import InvalidRecipe
from alloykit.recipes.reading import read_recipe

Said = Callable[[str], list[str]]


@pytest.fixture
def said(tmp_path: Path) -> Said:
    """The lines that reading a recipe raises, without the first and the last."""

    def lines(text: str) -> list[str]:
        path = tmp_path / "r.yaml"
        path.write_text(textwrap.dedent(text).lstrip("\n"))
        with pytest.raises(InvalidRecipe) as raised:
            read_recipe(path)
        first, *rest, last = str(raised.value).splitlines()
        assert first.startswith(f"{path} has {len(rest)} mistake")
        assert last == "All keys: alloykit merge --schema. All methods: alloykit methods."
        return [line.strip() for line in rest]

    return lines


def test_all_mistakes_are_told_at_once_in_the_order_of_their_lines(said: Said) -> None:
    text = """
        merge_method: ties
        base_modle: base
        models:
          - model: a
            parametrs:
              density: 20
          - model: b
            parameters:
              densty: 0.5
              weight: yes
              density: [0.5, -1]
        tokenizer_source: union
        dtype: float17
    """
    assert said(text) == [
        "line 2: base_modle: there is no such key. Did you mean 'base_model'?",
        "line 5: models[0].parametrs: there is no such key. Did you mean 'parameters'?",
        ("line 6: models[0].parametrs.density: The 'density' parameter of ties must be a number in "
        "[0, 1]. Got 20. (It is the fraction kept: 20 % is 0.2.)"),
        ("line 9: models[1].parameters.densty: ties has no parameter 'densty'. Did you mean 'density'? "
        "It takes: density, lambda, normalize, rescale, scope, weight."),
        ("line 10: models[1].parameters.weight: must be a number. Got 'yes'. That is a word or a truth "
        "value."),
        ("line 11: models[1].parameters.density[1]: The 'density' parameter of ties must be a number in "
        "[0, 1]. Got -1. (It is the fraction kept: 20 % is 0.2.)"),
        ("line 12: tokenizer_source: tokenizers are not merged yet. Leave it out, and copy the base's "
        "tokenizer files beside the result; the models must share one vocabulary."),
        ("line 13: dtype: must be float16 or bfloat16 or float32 or float64. Got float17. Did you mean "
        "'float16'?"),
    ]  # fmt: skip


TWO = "models: [{model: a}, {model: b}]"
ONE_EACH = [
    # What is missing, empty, or of the wrong type.
    ("", "is empty. A recipe begins with merge_method and models."),
    ("- 1", "is not a mapping of keys."),
    (f"{TWO}", "merge_method: is missing. Name one of alloykit methods"),
    ("merge_method: linear", "models: is missing. List the models to merge"),
    ("merge_method: linear\nmodels: a", "line 2: models: must be a list: - model: PATH, one line each. Got a."),
    ("merge_method: linear\nmodels: [a, b.pt]", "models[0]: must be a mapping. Got 'a'. Write model: a."),
    ("merge_method: linear\nmodels: [{weight: 1}]", "models[0].model: is missing. Name the checkpoint"),
    ("merge_method: linear\nmodels: []", "models: linear takes at least 1 model; 0 are listed."),
    ("merge_method: linear\nmodels: [{model: 3}]", "must be text. Got 3. Put it in quotes"),
    ("merge_method: linear\nmodels: [{model: ''}]", "models[0].model: is empty. Name a file."),
    ("merge_method: linear\nmodels: [{model: {model: {path: a}, lora: b}}]", "must be text, not a mapping."),
    ("merge_method: linear\nmodels:\n- model:\n", "models[0].model: is empty. Give a value"),
    (f"merge_method: 5\n{TWO}", "merge_method: must be text. Got 5."),
    (f"merge_method: linear\n{TWO}\nseed: -1", "line 3: seed: must be a whole number from 0 up. Got -1."),
    (f"merge_method: linear\n{TWO}\nseed: 1.5", "seed: must be a whole number from 0 up. Got 1.5."),
    (f"merge_method: linear\n{TWO}\nseed: true", "seed: must be a whole number from 0 up. Got True."),
    (f"merge_method: linear\n{TWO}\ndtype: int8", "dtype: must be float16 or"),
    (f"merge_method: linear\n{TWO}\ncompat: mergekitt", "compat: must be mergekit. Got mergekitt. Did you mean"),
    (f"merge_method: linear\n{TWO}\nparameters: 3", "parameters: must be a mapping of keys. Got 3."),
    (f"merge_method: linear\n{TWO}\nweights: [1, a]", "weights[1]: must be a number. Got 'a'."),
    # Methods and roles.
    (f"merge_method: dare-ties\n{TWO}", "there is no merge method 'dare-ties'. Did you mean 'dare_ties'?"),
    (f"merge_method: ties\n{TWO}", "ties needs a base. Name the checkpoint that the 2 models were fine-tuned"),
    (f"merge_method: linear\nbase_model: base\n{TWO}", "line 2: base_model: linear takes no base."),
    (f"merge_method: karcher\nbase_model: base\n{TWO}", "base_model: karcher takes no base."),
    ("merge_method: slerp\nmodels: [{model: a}]", "slerp takes exactly 2 models; 1 is listed."),
    (f"merge_method: slerp\nbase_model: c\n{TWO}", "slerp takes exactly 2 models; 3 are listed."),
    (f"merge_method: nearswap\nbase_model: c\n{TWO}", "nearswap takes exactly 1 model besides the base; 2 are"),
    ("merge_method: linear\nmodels: [{model: a}, {model: ./a}]", "models[1].model: ./a is there twice."),
    ("merge_method: linear\nmodels: [{model: a, name: x}, {model: b, name: x}]", "another model is named 'x' too"),
    ("merge_method: linear\nmodels: [{model: a, name: x}, {model: b}]", "some models have a name and others none"),
    # Weights.
    ("merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}, {model: b}]",
     "models[1]: has no weight, and other models have one."),
    ("merge_method: linear\nmodels: [{model: a, parameters: {weight: -1}}, {model: b, parameters: {weight: 2}}]",
     "models[0].parameters.weight: is negative: -1. linear mixes by shares"),
    ("merge_method: linear\nmodels: [{model: a, parameters: {weight: 0}}, {model: b, parameters: {weight: 0}}]",
     "all weights are zero."),
    (f"merge_method: linear\n{TWO}\nweights: [1, 2, 3]", "weights: 3 weights for 2 models. Give one per model."),
    (f"merge_method: ties\nbase_model: a\n{TWO}\nweights: [1, 2]", "2 weights for 1 models besides the base."),
    (f"merge_method: linear\n{TWO}\nweights: [1, 2]\nparameters: {{weight: 1}}", "weights: are given, and so is"),
    (f"merge_method: linear\n{TWO}\nweights: [0, 0]", "all weights are zero."),
    (f"merge_method: linear\n{TWO}\nweights: [.nan, 1]", "weights[0]: must be a finite number. Got nan."),
    (("merge_method: linear\nmodels: [{model: a, parameters: {weight: [{filter: mlp, value: 1}]}}, "
     "{model: b, parameters: {weight: 1}}]"), "says nothing for tensors that no filter matches."),
    (f"merge_method: linear\n{TWO}\nparameters: {{weight: {{filter: mlp, value: 1}}}}",
     "parameters.weight: says nothing for tensors that no filter matches."),
    # Parameters.
    (f"merge_method: slerp\n{TWO}\nparameters: {{t: null}}", "parameters.t: is empty."),
    (f"merge_method: slerp\n{TWO}\nparameters: {{t: []}}", "parameters.t: is an empty list."),
    (f"merge_method: slerp\n{TWO}\nparameters: {{t: [0.1, yes]}}", "parameters.t: mixes numbers, words and"),
    (f"merge_method: slerp\n{TWO}\nparameters: {{t: [0, [1]]}}", "parameters.t[1]: must be a single value."),
    (f"merge_method: slerp\n{TWO}\nparameters: {{t: true}}", "parameters.t: must be a number. Got true."),
    (f"merge_method: slerp\n{TWO}\nparameters: {{t: [0, 1.5]}}", "parameters.t[1]: The 't' parameter of slerp"),
    (f"merge_method: slerp\n{TWO}\nparameters: {{t: [0.5, {{value: 1}}]}}", "mixes values and filters."),
    (f"merge_method: slerp\n{TWO}\nparameters: {{t: {{filtr: mlp, value: 1}}}}", "t.filtr: there is no such key. Did you mean 'filter'?"),
    (f"merge_method: slerp\n{TWO}\nparameters: {{t: {{filter: mlp}}}}", "parameters.t: has no value."),
    (f"merge_method: slerp\n{TWO}\nparameters: {{t: {{filter: 3, value: 1}}}}", "t.filter: must be part of a tensor"),
    (f"merge_method: slerp\n{TWO}\nparameters: {{t: {{value: {{value: 1}}}}}}", "holds filters itself."),
    (f"merge_method: slerp\n{TWO}\nparameters: {{t: [{{value: 1}}, {{filter: mlp, value: 0}}]}}",
     "parameters.t[1]: is never reached"),
    (f"merge_method: slerp\n{TWO}\nparameters: {{T: 0.5}}", "slerp has no parameter 'T'."),
    (f"merge_method: slerp\n{TWO}\nparameters: {{compat: mergekit}}", "is a key of the recipe itself"),
    ("merge_method: slerp\nmodels: [{model: a, parameters: {t: 1}}, {model: b}]",
     "models[0].parameters.t: holds for the whole merge, not for one model."),
    (f"merge_method: slerp\n{TWO}\nparameters: {{normalize: true}}", "slerp has no parameter 'normalize'."),
    (f"merge_method: model_stock\nbase_model: c\n{TWO}\nparameters: {{filter_wise: 1}}", "must be true or false. Got 1."),
    (f"merge_method: karcher\n{TWO}\nparameters: {{max_iter: 1.5}}", "must be a whole number. Got 1.5."),
    (f"merge_method: ties\nbase_model: c\n{TWO}\nparameters: {{scope: layer}}", "must be one of tensor, model. Got 'layer'."),
    (f"merge_method: ties\nbase_model: c\n{TWO}\nparameters: {{scale: 1, lambda: 1}}", "scale and lambda are one parameter."),
    ("merge_method: ties\nbase_model: c\nmodels: [{model: a, parameters: {density: 1}}, {model: b}]",
     "models[1]: has no density, and other models have one."),
    (f"merge_method: fisher\n{TWO}", "models[0]: has no fisher statistics, which fisher needs."),
    ("merge_method: linear\nmodels: [{model: a, stats: {fisher: f}}]", "linear has no use for such statistics. It takes none."),
    # What is not done yet, by name.
    ("merge_method: slerp\nslices:\n- sources: []", "line 2: slices: merging layer by layer is not done yet."),
    ("merge_method: slerp\nmodules: {}", "modules: merging the parts of a model"),
    (f"merge_method: linear\n{TWO}\ntokenizer: {{source: union}}", "line 3: tokenizer: tokenizers are not merged yet."),
    (f"merge_method: linear\n{TWO}\nchat_template: auto", "chat_template: chat templates are not written yet."),
    (f"merge_method: linear\n{TWO}\nname: x", "name: names one of several merges in a file of mergekit-multi."),
    ("merge_method: linear\nmodels: [{model: a, layer_range: [0, 8]}]", "models[0].layer_range: taking some of"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), ONE_EACH, ids=[words[:40] for _, words in ONE_EACH])
def test_each_mistake(text: str, words: str, said: Said) -> None:
    lines = said(text)
    assert any(words in line for line in lines), lines


@pytest.mark.parametrize(
    ("word", "hint"),
    [("no", "a word or a truth value"), ("010", "leading zero"), ("1_000", "without underscores"),
     ("1:30", "base 60"), ("1,5", "a point in place of the comma"), ("50%", "50 % is 0.5"),
     ("0x1F", "decimal number"), ("nan", "must be finite"), ("'0.5'", "Take the quotes away"),
     ("true", "Got true"), (".inf", "finite number. Got inf"), ("half", "Got 'half'.")],
)  # fmt: skip
def test_numbers_that_are_none_get_a_hint(word: str, hint: str, said: Said) -> None:
    (line,) = said(
        f'merge_method: linear\n{TWO}\nparameters:\n  weight: "{word}"\n'.replace('"', "")
    )
    assert line.startswith("line 4: parameters.weight: must be a")
    assert hint in line


def test_a_wrong_value_in_an_alias_is_told_where_it_is_repeated(said: Said) -> None:
    text = """
        merge_method: ties
        base_model: base
        models:
          - {model: a, parameters: &p {density: 2}}
          - model: b
            parameters: *p
    """
    assert [line.partition(" The ")[0] for line in said(text)] == [
        "line 4: models[0].parameters.density:", "line 6: models[1].parameters.density:",
    ]  # fmt: skip


def test_weights_that_are_no_shares_may_be_negative(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        f"merge_method: linear\n{TWO}\nweights: [1.5, -0.5]\nparameters: {{normalize: false}}"
    )
    assert read_recipe(path).weights == [1.5, -0.5]


def test_della_is_judged_with_all_that_is_given(tmp_path: Path) -> None:
    """Values that only some of the other values forbid are left to the engine, tensor by tensor."""
    path = tmp_path / "r.yaml"
    path.write_text(
        "{merge_method: della, base_model: c, models: [{model: a}, {model: b}], "
        "parameters: {density: [0.5, 0.95], epsilon: [0.2, 0.01]}}"
    )
    assert read_recipe(path).merge_method == "della"
    path.write_text(path.read_text().replace("0.95", "1.5"))
    with pytest.raises(InvalidRecipe, match=r"parameters\.density\[1\]"):
        read_recipe(path)


def test_more_combinations_than_can_be_tried_are_left_to_the_engine(tmp_path: Path) -> None:
    high = [0.9 + i / 1000 for i in range(60)]
    path = tmp_path / "r.yaml"
    path.write_text(
        "{merge_method: della, base_model: c, models: [{model: a}, {model: b}], "
        f"parameters: {{density: {[*high, 0.5]}, epsilon: 0.2, lambda: [1, 0.5]}}}}"
    )
    with pytest.raises(InvalidRecipe) as raised:
        read_recipe(path)
    said = str(raised.value)
    assert "has 60 mistakes" in said, (
        "0.9 and more go with no epsilon of 0.2; epsilon is right for 0.5"
    )
    assert "parameters.density[9]: The parameters of della give probabilities" in said
    assert "and 50 more" in said
