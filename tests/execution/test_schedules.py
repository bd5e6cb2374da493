"""Values by name and over the layers: the numbers that mergekit's rules give, by hand."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from alloykit.errors import InvalidParameter
from alloykit.execution.schedules import (
    ByName,
    Gradient,
    Layers,
    from_json,
    resolved,
    to_json,
    unmatched,
    varies,
)

LLAMA = [
    "model.embed_tokens.weight",
    *(f"model.layers.{i}.{part}.weight" for i in range(5) for part in ("mlp.up", "self_attn.q")),
    "model.norm.weight",
    "lm_head.weight",
]


def at(value: Any, layer: int) -> Any:
    return resolved(value, f"model.layers.{layer}.mlp.up.weight", Layers.of(LLAMA))


def test_numbers_are_interpolated_over_the_layers() -> None:
    # Five layers stand at 0, 1/4, 2/4, 3/4, 1; three values at 0, 1/2, 1.
    gradient = Gradient([0.0, 1.0, 0.5])
    assert [at(gradient, layer) for layer in range(5)] == [0.0, 0.5, 1.0, 0.75, 0.5]


def test_one_value_is_the_same_everywhere() -> None:
    assert [at(Gradient([0.3]), layer) for layer in range(5)] == [0.3] * 5


def test_more_values_than_layers() -> None:
    # Nine values at 0, 1/8, ...: the layers meet every second one.
    assert [at(Gradient(range(9)), layer) for layer in range(5)] == [0, 2, 4, 6, 8]


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
)
def test_outside_the_layers_the_first_value_holds(name: str) -> None:
    assert resolved(Gradient([0.25, 1.0]), name, Layers.of(LLAMA)) == 0.25


def test_truth_values_and_words_hold_until_the_next_ones_place() -> None:
    assert [at(Gradient([True, False]), layer) for layer in range(5)] == [True] * 4 + [False]
    assert [at(Gradient(["a", "b", "c"]), layer) for layer in range(5)] == ["a", "a", "b", "b", "c"]


def test_the_first_layer_is_exactly_the_first_value_and_the_last_the_last() -> None:
    assert at(Gradient([0.1, 0.7]), 0) == 0.1
    assert at(Gradient([0.1, 0.7]), 4) == 0.7


@pytest.mark.parametrize(
    "values", [[], [0.1, float("nan")], [float("inf")], [1, True], [0.5, "a"], [None], [[1]]]
)
def test_gradients_of_anything_else_are_refused(values: list[Any]) -> None:
    with pytest.raises(InvalidParameter, match="A gradient is a list of finite numbers"):
        Gradient(values)


def test_layers_are_counted_by_the_first_number_of_a_name() -> None:
    layers = Layers.of([f"model.layers.{i}.experts.{e}.w" for i in range(3) for e in range(8)])
    assert layers.place("model.layers.1.experts.7.w") == 0.5


def test_stacks_run_on_their_own() -> None:
    names = [*(f"encoder.{i}.w" for i in range(3)), *(f"decoder.block.{i}.w" for i in range(5))]
    layers = Layers.of(names)
    assert [layers.place(f"encoder.{i}.w") for i in range(3)] == [0, 0.5, 1]
    assert [layers.place(f"decoder.block.{i}.w") for i in range(5)] == [0, 0.25, 0.5, 0.75, 1]


def test_layers_without_parameters_leave_no_gaps() -> None:
    layers = Layers.of(["0.weight", "0.bias", "2.weight", "7.weight"])
    assert [layers.place(n) for n in ("0.bias", "2.weight", "7.weight")] == [0, 0.5, 1]


def test_a_single_layer_is_the_last_and_a_lone_number_is_no_layer() -> None:
    assert Layers.of(["embed", "layers.0.w"]).place("layers.0.w") == 1.0
    names = ["blocks.0.w", "blocks.1.w", "classifier.1.w"]
    assert Layers.of(names).place("classifier.1.w") == 0.0


def test_names_without_numbers_have_no_layers() -> None:
    assert Layers.of(["a", "conv1.weight", "x.²", "y.123456789012"]).places == {}


def test_the_first_rule_that_matches_counts() -> None:
    rules = ByName({"*.mlp.*": 0.9, "model.layers.0.*": 0.1, "*": 0.5})
    assert at(rules, 0) == 0.9
    layers = Layers.of(LLAMA)
    assert resolved(rules, "model.layers.0.self_attn.q.weight", layers) == 0.1
    assert resolved(rules, "lm_head.weight", layers) == 0.5


def test_rules_hold_gradients_and_lists_hold_rules() -> None:
    rules = ByName([("*.mlp.*", Gradient([0.0, 1.0])), ("*", 0.5)])
    assert [at([rules, 0.3], layer) for layer in (0, 1, 4)] == [[0.0, 0.3], [0.25, 0.3], [1.0, 0.3]]


def test_a_mapping_is_as_good_as_rules() -> None:
    assert at({"*.mlp.*": 0.9, "*": 0.5}, 0) == 0.9
    assert varies({"*": 1})
    assert unmatched({"*.q": 1}, LLAMA) == ["*.q"]


def test_a_tensor_that_no_rule_matches_is_an_error() -> None:
    with pytest.raises(
        InvalidParameter, match=r"\(\*\.attn\.\*\) matches the tensor model.layers.0"
    ):
        at(ByName({"*.attn.*": 0.9}), 0)


@pytest.mark.parametrize("rules", [{}, {"": 1}, {3: 1}])
def test_rules_without_globs_are_refused(rules: Any) -> None:
    with pytest.raises(InvalidParameter, match="one or more globs"):
        ByName(rules)


def test_plain_values_stay_what_they_are() -> None:
    for value in (0.5, True, "model", None):
        assert at(value, 0) is value
        assert not varies(value)
    assert varies([0.5, Gradient([0.5])])


def test_globs_that_match_nothing_are_told() -> None:
    rules = [ByName({"*.mpl.*": ByName({"never": 1}), "*": 1}), ByName({"*.mpl.*": 2, "*": 1})]
    assert unmatched(rules, LLAMA) == ["*.mpl.*", "never"]


@pytest.mark.parametrize(
    "value",
    [0.5, "model", None, [0.1, 0.2], Gradient([0, 0.5]), Gradient([True, False]),
     ByName({"*.mlp.*": Gradient([0.1, 1]), "*": [0.5, Gradient([1])]})],
)  # fmt: skip
def test_values_survive_json_and_pickle(value: Any) -> None:
    assert from_json(json.loads(json.dumps(to_json(value)))) == value
    assert pickle.loads(pickle.dumps(value)) == value


def test_many_tensors_take_time_in_proportion() -> None:
    names = [f"layers.{i}.experts.{e}.w" for i in range(200) for e in range(100)]
    layers = Layers.of(names)
    rules = ByName({"*.experts.9?.*": 1.0, "*": Gradient([0, 1])})
    found = [resolved(rules, name, layers) for name in names]
    assert found.count(1.0) == 200 * 10 + 90
