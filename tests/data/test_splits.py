import pytest
import torch

from alloykit.data.examples import as_examples, from_arrays
from alloykit.data.splits import check_splits
from alloykit.errors import DataError, DataLeak, InvalidParameter


def split(name, start, stop, targets=None):
    inputs = torch.arange(float(start), stop)[:, None]
    return as_examples(
        (inputs, torch.zeros(len(inputs)).long() if targets is None else targets), name
    )


def test_disjoint_splits_come_back_unchanged():
    splits = [split("validation", 0, 5), split("test", 5, 9)]
    assert check_splits(splits, task="classification", classes=2) == splits


def test_overlap_says_how_many_and_how_to_go_on():
    splits = [split("validation", 0, 6), split("test", 4, 9)]
    with pytest.raises(DataLeak) as caught:
        check_splits(splits, task="classification")
    assert str(caught.value) == (
        "validation and test share 2 of 5 examples, so the report would be too good. Give disjoint "
        "splits; drop the shared ones from validation with on_overlap='drop'; or accept it with "
        "on_overlap='allow' (the report will say so)."
    )


def test_drop_takes_the_shared_examples_from_the_earlier_split():
    splits = [split("train", 0, 4), split("validation", 2, 8), split("test", 6, 9)]
    train, validation, test = check_splits(splits, task="classification", on_overlap="drop")
    assert train.inputs_sample().flatten().tolist() == [0, 1]
    assert validation.inputs_sample().flatten().tolist() == [2, 3, 4, 5]
    assert len(test) == 3


def test_drop_that_leaves_nothing_is_an_error():
    splits = [split("validation", 0, 3), split("test", 0, 5)]
    with pytest.raises(DataLeak, match="All 3 examples of validation are also in test"):
        check_splits(splits, task="classification", on_overlap="drop")


def test_allow_keeps_everything():
    splits = [split("validation", 0, 6), split("test", 4, 9)]
    assert check_splits(splits, task="classification", on_overlap="allow") == splits
    with pytest.raises(InvalidParameter, match="Got 'ignore'"):
        check_splits(splits, task="classification", on_overlap="ignore")


def test_duplicates_inside_one_split_are_fine():
    twice = as_examples((torch.zeros(4, 1), torch.zeros(4).long()), "test")
    assert check_splits([split("validation", 1, 4), twice], task="classification")[1] is twice


def test_everything_wrong_is_listed_at_once():
    splits = [
        split("train", 0, 0),
        split("validation", 0, 3, torch.tensor([0, 5, -1])),
        split("test", 3, 6, torch.eye(3)),
    ]
    with pytest.raises(DataError) as caught:
        check_splits(splits, task="classification", classes=3)
    text = str(caught.value)
    assert "train: it has no examples" in text
    assert "validation: 2 of 3 targets lie outside 0 to 2 (smallest -1, largest 5)" in text
    assert "test: targets are one row of 3 numbers per example, as one-hot" in text
    assert "targets.argmax(1)" in text


@pytest.mark.parametrize(
    ("targets", "text"),
    [
        (torch.tensor([0.0, 1.0]), r"give targets.long\(\)"),
        (torch.tensor([[0], [1]]), r"the shape \[2, 1\], not \[example\]"),
        (torch.tensor([0, -100]), "1 of 2 targets lie outside"),
    ],
)
def test_targets_that_are_no_classes(targets, text):
    with pytest.raises(DataError, match=text):
        check_splits([split("test", 0, 2, targets)], task="classification")


def test_tokens_may_hold_ignored_targets():
    tokens = split("test", 0, 2, torch.tensor([[1, -100], [2, 0]]))
    assert check_splits([tokens], task="tokens", classes=3) == [tokens]
    with pytest.raises(DataError, match="1 of 3 targets lie outside 0 to 1"):
        check_splits([tokens], task="tokens", classes=2)
    with pytest.raises(DataError, match="all targets are -100"):
        check_splits([split("test", 0, 1, torch.tensor([[-100]]))], task="tokens")
    with pytest.raises(DataError, match=r"not \[example, position\]"):
        check_splits([split("test", 0, 2)], task="tokens")


def test_regression_targets_must_be_finite():
    good = split("validation", 0, 2, torch.tensor([1.5, 2.5]))
    bad = split("test", 2, 5, torch.tensor([1.0, float("nan"), float("inf")]))
    assert check_splits([good], task="regression") == [good]
    with pytest.raises(DataError, match="test: 2 targets are NaN or infinite"):
        check_splits([good, bad], task="regression")


def test_class_names_must_agree():
    def named(name, start, names):
        inputs = torch.arange(float(start), start + 2)[:, None]
        return from_arrays(inputs, torch.tensor([0, 1]), name, class_names=names)

    splits = [named("validation", 0, ("a", "b")), named("test", 5, ("a", "c"))]
    with pytest.raises(DataError, match="test has the classes a, c, and validation a, b"):
        check_splits(splits, task="classification")
