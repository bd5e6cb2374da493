"""A teacher's outputs on disk: what is kept, resumed, and refused."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from alloykit.data.examples import as_examples
from alloykit.distillation.store import given_outputs, stored_outputs
from alloykit.distillation.stored_folder import META
from alloykit.distillation.teacher import Teacher
from alloykit.errors import CheckpointError, DataError, InvalidParameter, OutputExists

ROWS = torch.tensor([5, 0, 5, 11])


def examples(count=12, seed=0, batch=5):
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return as_examples((x, torch.arange(count) % 3), "train", batch_size=batch)


def teacher(seed=0, outputs=6, **options):
    torch.manual_seed(seed)
    return Teacher(nn.Linear(4, outputs), **options)


class Counting(Teacher):
    """Counts how many examples it was asked for."""

    seen = 0
    stop_after = None

    def __call__(self, inputs, targets=None, /):
        if self.stop_after is not None and self.seen >= self.stop_after:
            raise KeyboardInterrupt
        self.seen += len(inputs)
        return super().__call__(inputs, targets)


def counting(seed=0):
    torch.manual_seed(seed)
    return Counting(nn.Linear(4, 6))


def everything(split):
    return torch.cat([inputs for inputs, _ in split.batches()])


@pytest.mark.parametrize("folder", [False, True])
def test_full_outputs_are_the_teachers(folder, tmp_path):
    split, asked = examples(), teacher()
    stored = stored_outputs(asked, split, folder=tmp_path / "kept" if folder else None)
    assert len(stored) == 12
    assert_close(stored[ROWS], asked(everything(split))[ROWS])
    assert stored.columns().keys() == {"teacher"}


def test_half_keeps_logarithms():
    """Of float16 probabilities most of these would be zero."""
    split, asked = examples(), teacher(outputs=500)
    for parameter in asked._members[0].parameters():
        parameter.data *= 30
    logs = asked(everything(split))
    stored = stored_outputs(asked, split, keep="half")
    assert stored.outputs.dtype == torch.float16
    assert (logs.exp().half() == 0).float().mean() > 0.5
    assert_close(stored[ROWS], logs[ROWS], rtol=1e-3, atol=1e-3)


def test_top_k_keeps_the_mass_of_the_rest(tmp_path):
    split, asked = examples(), teacher()
    logs = asked(everything(split))
    stored = stored_outputs(asked, split, keep=2, folder=tmp_path)
    assert stored.classes.shape == (12, 2)
    columns = stored.columns()
    kept, classes = columns["teacher"][ROWS], columns["classes"][ROWS]
    assert_close(kept[:, :2], logs[ROWS].gather(1, classes), atol=2e-3, rtol=1e-3)
    assert_close(kept.exp().sum(1), torch.ones(4), atol=3e-3, rtol=0)


def test_a_finished_store_is_opened_and_nobody_is_asked(tmp_path):
    first = stored_outputs(counting(), examples(), folder=tmp_path / "a" / "b", keep=3)
    again = counting()
    second = stored_outputs(again, examples(), folder=tmp_path / "a" / "b", keep=3)
    assert again.seen == 0
    assert torch.equal(first[ROWS], second[ROWS])
    assert torch.equal(first.classes, second.classes)
    expected = first[ROWS].clone()
    # Nobody's change reaches the files.
    second.outputs.zero_()
    third = stored_outputs(again, examples(), folder=tmp_path / "a" / "b", keep=3)
    assert torch.equal(expected, third[ROWS])


@pytest.mark.parametrize("batch", [5, 4])
def test_an_interrupted_store_goes_on_where_it_stopped(tmp_path, batch):
    expected = stored_outputs(counting(), examples())
    broken = counting()
    broken.stop_after = 10
    with pytest.raises(KeyboardInterrupt):
        stored_outputs(broken, examples(), folder=tmp_path, every=0)
    rest = counting()
    stored = stored_outputs(rest, examples(batch=batch), folder=tmp_path, every=0)
    assert rest.seen == 2
    assert_close(stored.outputs, expected.outputs)


def test_what_does_not_match_is_refused_and_left_as_it_is(tmp_path):
    stored_outputs(teacher(), examples(), folder=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for asked, split, keep, text in (
        (teacher(seed=1), examples(), "full", "teacher members teacher: "),
        (teacher(), examples(seed=1), "full", "data: blake2b"),
        (teacher(), examples(count=11), "full", "examples: 12 there, 11 now"),
        (teacher(), examples(), "half", "keep: full there, half now"),
        (teacher(), examples(), 3, "keep: full there, 3 now"),
    ):
        with pytest.raises(OutputExists, match=text) as error:
            stored_outputs(asked, split, folder=tmp_path, keep=keep)
        assert "Give another folder, or remove this one." in str(error.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_every_difference_is_listed(tmp_path):
    stored_outputs(teacher(), examples(), folder=tmp_path)
    with pytest.raises(OutputExists) as error:
        stored_outputs(teacher(seed=1), examples(seed=1), folder=tmp_path, keep="half")
    assert [line.split(":")[0].strip() for line in str(error.value).splitlines()[1:-1]] == [
        "data", "teacher members teacher", "keep",
    ]  # fmt: skip


def test_damaged_files(tmp_path):
    stored_outputs(teacher(), examples(), folder=tmp_path)
    (tmp_path / "teacher_outputs.bin").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="has not the 288 bytes"):
        stored_outputs(teacher(), examples(), folder=tmp_path)
    for text in ("{", "[]", json.dumps({"format": 9})):
        (tmp_path / META).write_text(text)
        with pytest.raises(CheckpointError, match="cannot be read"):
            stored_outputs(teacher(), examples(), folder=tmp_path)


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="cannot be stored in"):
        stored_outputs(teacher(), examples(), folder=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("keep", "text"),
    [
        ("hlaf", "'keep' must be"),
        (0, "at least 1"),
        (True, "'keep' must be"),
        (6, "leaves out none"),
    ],
)
def test_bad_keep_writes_nothing(keep, text, tmp_path):
    with pytest.raises(InvalidParameter, match=text):
        stored_outputs(teacher(), examples(), keep=keep, folder=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_values_are_kept_full():
    asked = teacher(task="regression")
    assert stored_outputs(asked, examples()).outputs.shape == (12, 6)
    with pytest.raises(InvalidParameter, match="Values of a regression are kept 'full'"):
        stored_outputs(asked, examples(), keep="half")


def test_outputs_that_the_caller_has():
    logits = torch.randn(12, 6)
    for given in (logits, logits.log_softmax(1), logits.softmax(1)):
        assert_close(given_outputs(given, "classification").outputs, logits.log_softmax(1))
    assert_close(given_outputs(logits, "regression").outputs, logits)
    with pytest.raises(DataError, match="NaN"):
        given_outputs(logits * torch.nan, "classification")


def test_outputs_of_other_examples_do_not_fit():
    stored = stored_outputs(teacher(), examples())
    stored.check_fits(examples(batch=3))
    with pytest.raises(DataError, match="other examples, or another order"):
        stored.check_fits(examples(seed=1))
    with pytest.raises(DataError, match="12 examples; the data has 9"):
        stored.check_fits(examples(count=9))


def test_weights_by_confidence_are_told_the_labels():
    torch.manual_seed(0)
    asked = Teacher([nn.Linear(4, 3), nn.Linear(4, 3)], weights="confidence")
    told, untold = (stored_outputs(asked, examples(), labels=labels) for labels in (True, False))
    assert not torch.equal(told.outputs, untold.outputs)


def test_progress_counts_examples():
    calls = []
    stored_outputs(teacher(), examples(), progress=lambda *call: calls.append(call))
    assert calls == [("teacher", 5, 12), ("teacher", 10, 12), ("teacher", 12, 12)]
