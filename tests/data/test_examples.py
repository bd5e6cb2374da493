import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from alloykit.data.examples import Examples, as_examples
from alloykit.errors import DataError, InvalidParameter

X = torch.arange(20.0).reshape(10, 2)
Y = torch.arange(10) % 3


def read(examples):
    pairs = list(examples.batches())
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def double(batch):
    x, y = torch.utils.data.default_collate(batch)
    return 2 * x, y


class Stream(IterableDataset):
    def __init__(self, draw):
        self.draw = draw

    def __iter__(self):
        return iter([(self.draw(i), i % 3) for i in range(10)])


class Augmented(Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, index):
        return X[index] + torch.rand(2), int(Y[index])


class HubStyle:
    """Indexed and sized without being a torch Dataset, as those of the datasets package."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return {"x": X[index], "label": int(Y[index])}


@pytest.mark.parametrize(
    "source",
    [
        (X, Y),
        (X.numpy(), Y.numpy()),
        (X.tolist(), Y.tolist()),
        [X, Y],
        TensorDataset(X, Y),
        DataLoader(TensorDataset(X, Y), batch_size=3),
        DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True),
        DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True, drop_last=True),
        DataLoader(TensorDataset(X, Y), batch_size=3, drop_last=True),
        [(X[:4], Y[:4]), (X[4:], Y[4:])],
        [(X[i], int(Y[i])) for i in range(10)],
        DataLoader([(X[:4], Y[:4]), (X[4:], Y[4:])], batch_size=None, shuffle=True),
        Stream(lambda i: X[i]),
        DataLoader(Stream(lambda i: X[i]), batch_size=4),
    ],
)
def test_every_source_is_read_in_the_same_order_again_and_again(source):
    examples = as_examples(source, "test", batch_size=4)
    for _ in range(2):
        inputs, targets = read(examples)
        assert torch.equal(inputs, X)
        assert torch.equal(targets, Y)
    assert len(examples) == 10
    assert torch.equal(examples.targets, Y)


def test_a_shuffling_loader_keeps_its_collate_function_and_batch_size():
    loader = DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True, collate_fn=double)
    examples = as_examples(loader, "test")
    assert torch.equal(read(examples)[0], 2 * X)
    assert [len(y) for _, y in examples.batches()] == [4, 4, 2]


def test_a_random_subset_stays_that_subset():
    loader = DataLoader(TensorDataset(X, Y), batch_size=2, sampler=SubsetRandomSampler([7, 1, 4]))
    assert torch.equal(read(as_examples(loader, "validation"))[0], X[[1, 4, 7]])


def test_a_list_of_two_batches_is_not_taken_for_inputs_and_targets():
    batches = [(X[:5], Y[:5]), (X[5:], Y[5:])]
    assert len(as_examples(batches, "test")) == 10


def test_a_hub_style_dataset_gives_dict_inputs():
    examples = as_examples(HubStyle(), "test")
    assert torch.equal(examples.inputs_sample()["x"], X)
    assert torch.equal(examples.targets, Y)


def test_lists_that_the_default_collation_turns_around_are_refused():
    class Lists(HubStyle):
        def __getitem__(self, index):
            return {"x": X[index].tolist(), "label": int(Y[index])}

    with pytest.raises(DataError, match="'x' of Batch 1 of test is a list of tensors"):
        len(as_examples(Lists(), "test", batch_size=2))


def test_inputs_may_be_tuples_and_dicts():
    pair = as_examples(((X, X[:, :1]), Y), "test", batch_size=4)
    assert [part.shape for part in pair.inputs_sample()] == [(4, 2), (4, 1)]
    named = as_examples(({"a": X.numpy()}, Y.numpy()), "test").take(3)
    assert torch.equal(named.inputs_sample()["a"], X[:3])


@pytest.mark.parametrize(
    "source",
    [
        DataLoader(Augmented(), batch_size=5),
        DataLoader(Augmented(), batch_size=5, shuffle=True),
        DataLoader(Stream(lambda i: torch.rand(2)), batch_size=5),
        DataLoader(
            TensorDataset(torch.rand(500, 2), torch.zeros(500)),
            sampler=WeightedRandomSampler([1.0] * 500, 500),
        ),
    ],
)
def test_a_source_that_changes_between_readings_is_an_error(source):
    examples = as_examples(source, "validation")
    assert len(examples)
    with pytest.raises(DataError, match=r"changed between two readings \(first at example"):
        list(examples.batches())


def test_a_source_that_becomes_shorter_is_an_error():
    batches = [(X[:5], Y[:5]), (X[5:], Y[5:])]
    examples = as_examples(batches, "validation")
    assert len(examples) == 10
    del batches[1]
    with pytest.raises(DataError, match="first at example 6"):
        list(examples.batches())


def test_what_can_be_read_only_once_is_refused():
    with pytest.raises(DataError, match="is a generator, which can be read only once"):
        as_examples(((X, Y) for _ in range(2)), "test")


@pytest.mark.parametrize("source", [5, "file.npz", {"x": X}, None])
def test_what_is_no_source_is_refused(source):
    with pytest.raises(DataError, match="cannot be read from a"):
        as_examples(source, "test")


def test_unequal_lengths_and_batch_sizes_are_refused():
    with pytest.raises(DataError, match="The test split has 10 inputs but 9 targets"):
        as_examples((X, Y[:9]), "test")
    with pytest.raises(InvalidParameter, match="at least 1"):
        as_examples((X, Y), "test", batch_size=0)


def test_targets_of_unequal_width_are_refused():
    batches = [(X[:2], torch.zeros(2, 3).long()), (X[2:4], torch.zeros(2, 4).long())]
    with pytest.raises(DataError, match=r"differ in shape between batches: \[3\], \[4\]"):
        len(as_examples(batches, "test"))


def test_take_and_keep_select_and_compose():
    for source in ((X, Y), DataLoader(TensorDataset(X, Y), batch_size=3)):
        examples = as_examples(source, "test", batch_size=3)
        part = examples.keep([0, 2, 3, 8, 9])
        assert torch.equal(read(part)[0], X[[0, 2, 3, 8, 9]])
        assert torch.equal(read(part.take(3))[1], Y[[0, 2, 3]])
        assert len(part.keep([1, 4])) == 2
        assert torch.equal(read(part.keep([1, 4]))[0], X[[2, 9]])
        assert len(examples.take(99)) == 10
        assert len(examples.take(4).digests()) == 4
    with pytest.raises(InvalidParameter, match="at least 1"):
        examples.take(0)


def test_take_reads_no_more_than_it_needs():
    seen = []

    class Counting(Dataset):
        def __len__(self):
            return 1000

        def __getitem__(self, index):
            seen.append(index)
            return X[0], 0

    assert len(as_examples(Counting(), "test", batch_size=4).take(6)) == 6
    assert len(seen) == 8


def test_examples_keep_their_rows_under_another_name():
    named = as_examples(as_examples((X, Y), "train").take(2), "test")
    assert isinstance(named, Examples)
    assert (named.name, len(named)) == ("test", 2)


def test_the_digest_covers_inputs_targets_and_order():
    digest = as_examples((X, Y), "test").digest
    assert digest == as_examples(DataLoader(TensorDataset(X, Y)), "validation").digest
    assert digest != as_examples((X, Y.flip(0)), "test").digest
    assert digest != as_examples((X.flip(0), Y.flip(0)), "test").digest
    assert digest.startswith("blake2b:")


def test_no_examples():
    examples = as_examples((np.zeros((0, 2)), np.zeros(0, dtype=int)), "test")
    assert len(examples) == 0
    with pytest.raises(DataError, match="test split has no examples"):
        examples.inputs_sample()


def test_a_subset_dataset_is_read_as_it_is():
    assert torch.equal(read(as_examples(Subset(TensorDataset(X, Y), [3, 1]), "test"))[0], X[[3, 1]])
