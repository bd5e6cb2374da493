import numpy as np
import pytest
import torch

from alloykit.data.batches import as_batch, as_inputs, as_targets, as_tensor, digests, placed
from alloykit.errors import DataError


@pytest.mark.parametrize(
    "values",
    [
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::1],
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]],
        [torch.tensor([0.0, 1.0, 2.0]), torch.tensor([3.0, 4.0, 5.0])],
    ],
)
def test_arrays_and_lists_become_the_same_tensor(values):
    found = as_tensor(values, "inputs")
    assert found.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


def test_a_read_only_array_is_copied():
    array = np.zeros(3)
    array.flags.writeable = False
    as_tensor(array, "inputs")[0] = 1
    assert array[0] == 0


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (["a", "b"], "hold <U1 values"),
        ([[1], [1, 2]], "not rows of equal length"),
        ([torch.zeros(2), torch.zeros(3)], r"differ in shape: \[\(2,\), \(3,\)\]"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(values, text):
    with pytest.raises(DataError, match=text):
        as_tensor(values, "inputs of test")


def test_targets_are_int64_or_stay_floating():
    assert as_targets(np.array([True, False]), "t").dtype == torch.int64
    assert as_targets(np.array([1, 2], dtype=np.uint8), "t").dtype == torch.int64
    assert as_targets(np.array([1.5]), "t").dtype == torch.float64
    with pytest.raises(DataError, match="complex"):
        as_targets(torch.zeros(2, dtype=torch.complex64), "t")


def test_a_mapping_gives_its_labels_as_targets():
    inputs, targets = as_batch({"input_ids": [[1, 2]], "labels": [[2, -100]]}, "Batch 1")
    assert list(inputs) == ["input_ids"]
    assert targets.tolist() == [[2, -100]]


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        ({"a": [1]}, "none of them is a target"),
        ((torch.zeros(2), torch.zeros(2), torch.zeros(2)), "3 parts"),
        (torch.zeros(2, 2), "it has Tensor"),
        ((torch.zeros(3, 2), torch.zeros(2)), "3 inputs but 2 targets"),
        ((torch.zeros(3), torch.tensor(1)), "one example and not a batch"),
        (((), torch.zeros(2)), "no inputs"),
        (({"a": [torch.zeros(2)] * 2}, torch.zeros(2)), "is a list of tensors"),
        ((torch.zeros(2), [torch.zeros(2)] * 2), "is a list of tensors"),
    ],
)
def test_a_batch_in_another_form_is_refused(batch, text):
    with pytest.raises(DataError, match=f"(?s)Batch 7.*{text}"):
        as_batch(batch, "Batch 7")


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.bfloat16, torch.float16, torch.bool, torch.int64, torch.complex64],
)
def test_digests_tell_examples_apart_for_every_dtype(dtype):
    inputs = torch.tensor([[0, 1], [1, 1], [0, 1]]).to(dtype)
    first, second, third = digests(inputs)
    assert first == third
    assert first != second


def test_digests_depend_on_dtype_and_shape_but_not_on_memory_layout():
    inputs = torch.arange(6.0).reshape(2, 3)
    assert digests(inputs) == digests(inputs.T.contiguous().T)
    assert digests(inputs) != digests(inputs.double())
    assert digests(inputs[:, None]) != digests(inputs)
    assert len(set(digests(torch.zeros(4)))) == 1
    assert len(digests(torch.zeros(2, 0))) == 2


def test_digests_cover_all_parts_of_the_inputs():
    one = as_inputs({"a": [[1]], "b": [[2]]}, "x")
    other = as_inputs({"a": [[1]], "b": [[3]]}, "x")
    swapped = as_inputs({"a": [[2]], "b": [[1]]}, "x")
    assert len({*digests(one), *digests(other), *digests(swapped)}) == 3


def test_inputs_are_cast_to_the_floating_dtype_of_the_model_and_indices_are_not():
    model = torch.nn.Linear(2, 2).bfloat16()
    real, index = placed((torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1).long()), model)
    assert (real.dtype, index.dtype) == (torch.bfloat16, torch.int64)
    assert placed(torch.zeros(1).double(), torch.nn.Identity()).dtype == torch.float64
