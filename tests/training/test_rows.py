from __future__ import annotations

import pytest
import torch

from alloykit.data.examples import Examples, as_examples, from_arrays
from alloykit.errors import DataError
from alloykit.training.rows import Rows, hold, hold_all

X = torch.arange(12.0).reshape(6, 2)
Y = torch.tensor([0, 1, 2, 0, 1, 2])


class Store:
    """A column that is not a tensor, as a teacher's outputs on disk are."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:
        return self.values[rows]


def test_a_part_has_the_rows_asked_for():
    rows = Rows((X, X * 2), Y, {"teacher": Store(X + 1)})
    part = rows.part(torch.tensor([4, 0]))
    assert torch.equal(part.inputs[0], X[[4, 0]])
    assert torch.equal(part.inputs[1], 2 * X[[4, 0]])
    assert part.targets.tolist() == [1, 0]
    assert torch.equal(part.extra["teacher"], X[[4, 0]] + 1)
    assert part.rows.tolist() == [4, 0]
    assert len(rows) == 6


def test_a_part_without_targets_goes_where_the_model_is():
    model = torch.nn.Linear(2, 2).double()
    part = Rows({"x": X, "ids": Y}, None, {"t": Y}).part(torch.tensor([1])).placed(model)
    assert (part.inputs["x"].dtype, part.inputs["ids"].dtype) == (torch.float64, torch.int64)
    assert part.targets is None
    assert part.extra["t"].tolist() == [1]


def test_augmentation_changes_the_inputs_alone():
    rows = Rows(X, Y, augment=lambda inputs: -inputs)
    assert torch.equal(rows.part(torch.tensor([2])).inputs, -X[[2]])
    assert torch.equal(rows.inputs, X)


@pytest.mark.parametrize(
    ("columns", "lines"),
    [
        ((X, Y[:4]), ["inputs: 6", "targets: 4"]),
        (((X, X[:2]), Y, {"teacher": X[:5]}), ["inputs 1: 2", "targets: 6", "extra 'teacher': 5"]),
        ((X[:0], Y[:0]), ["inputs: 0", "targets: 0"]),
        ((X[0, 0], None), ["inputs: 0"]),
        (({}, None), ["no inputs"]),
    ],
)
def test_columns_of_other_lengths_are_all_listed(columns, lines):
    with pytest.raises(DataError, match="one row of every column per example") as caught:
        Rows(*columns)
    assert all(line in str(caught.value) for line in lines)


def test_what_counts_in_a_mean_loss():
    tokens = torch.tensor([[1, -100, 2], [-100, -100, 4], [1, 2, 3]])
    rows = Rows(tokens, tokens)
    assert rows.scored(torch.tensor([0, 1])) == 3
    assert rows.scored(torch.tensor([2])) == 3
    assert rows.scored(torch.tensor([], dtype=torch.long)) == 0
    assert Rows(X, X).scored(torch.tensor([0, 1])) == 2
    assert Rows(X).scored(torch.tensor([0])) == 1


def test_tensors_in_memory_are_held_as_they_are():
    rows = hold(as_examples((X, Y), "train"))
    assert rows.inputs.data_ptr() == X.data_ptr()
    assert rows.targets.data_ptr() == Y.data_ptr()
    again = hold(as_examples(as_examples((X, Y), "validation"), "train"))
    assert again.inputs.data_ptr() == X.data_ptr()


def test_a_preparation_and_a_selection_are_respected():
    prepared = hold(from_arrays(X, Y, "train", prepare=lambda t: t / 2, batch_size=4))
    assert torch.equal(prepared.inputs, X / 2)
    kept = hold(as_examples((X, Y), "train").keep([1, 4]))
    assert torch.equal(kept.inputs, X[[1, 4]])
    assert kept.targets.tolist() == [1, 1]


def counted(batches: list) -> tuple[Examples, list[int]]:
    readings: list[int] = []

    def read():
        readings.append(1)
        return iter(batches)

    return Examples("train", read), readings


def test_a_loader_is_read_twice_and_once_when_its_length_is_known():
    examples, readings = counted([({"a": X[:4]}, Y[:4]), ({"a": X[4:]}, Y[4:])])
    rows = hold(examples)
    assert torch.equal(rows.inputs["a"], X)
    assert torch.equal(rows.targets, Y)
    assert len(readings) == 2
    hold(examples)
    assert len(readings) == 3


def test_large_inputs_are_memory_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    examples, _ = counted([((X.bfloat16(), Y), Y)])
    rows = hold(examples, memory_limit=32)
    assert len(list(tmp_path.iterdir())) == 2
    assert torch.equal(rows.part(torch.tensor([3, 1])).inputs[0], X[[3, 1]].bfloat16())
    assert torch.equal(rows.inputs[1], Y)
    assert rows.inputs[1].dtype == torch.int64


@pytest.mark.parametrize(
    "other", [X[:2, :1], X[:2].double(), {"x": X[:2]}, (X[:2], X[:2])], ids=str
)
def test_batches_of_another_kind_are_refused(other):
    examples, _ = counted([(X[:2], Y[:2]), (other, Y[:2])])
    with pytest.raises(DataError, match=r"(?s)inputs of train differ .*float32 \[2\].*example 3"):
        hold(examples)


def test_no_examples():
    with pytest.raises(DataError, match="The train split has no examples"):
        hold(counted([])[0])


def test_prepared_arrays_are_read_once():
    reads = []
    examples = from_arrays(X, Y, "train", prepare=lambda t: reads.append(len(t)) or t)
    hold(examples)
    assert reads == [6]


def test_splits_with_other_targets_are_refused():
    whole, real = as_examples((X, Y), "train"), as_examples((X, X[:, 0]), "train")
    with pytest.raises(DataError, match=r"float32 \[\] and torch.int64 \[\] per example"):
        hold_all([whole, real])


def test_several_splits_follow_each_other():
    first, second = as_examples((X, Y), "train"), as_examples((X + 100, Y), "train")
    rows = hold_all([first, second.take(2)])
    assert torch.equal(rows.inputs, torch.cat([X, X[:2] + 100]))
    assert rows.targets.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
