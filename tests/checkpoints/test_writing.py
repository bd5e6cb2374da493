import errno
import os
import stat
import threading

import pytest
import torch
from safetensors.torch import load_file, save_model

from alloykit.checkpoints.opening import open_checkpoint
from alloykit.checkpoints.writing import atomic_write, write_safetensors
from alloykit.errors import CheckpointError, OutputExists
from alloykit.types import TensorSpec

STATE = {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3), "flag": torch.tensor([True])}
CALLS = ["posix_fallocate", "pwrite", "fsync", "link", "replace", "open"]


def write(path, state=STATE, *, metadata=None, **options):
    source = open_checkpoint(state)
    write_safetensors(path, source.specs(), state.items(), metadata=metadata or {}, **options)
    return path


def test_the_same_input_gives_the_same_bytes(tmp_path):
    metadata = {f"k{n}": f"é{n}" for n in range(9)}
    first = write(tmp_path / "a.safetensors", metadata=metadata)
    backwards = dict(reversed(STATE.items()))
    second = write(tmp_path / "b.safetensors", backwards, metadata=dict(reversed(metadata.items())))
    assert first.read_bytes() == second.read_bytes()
    assert int.from_bytes(first.read_bytes()[:8], "little") % 8 == 0


def test_the_mode_follows_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        mode = stat.S_IMODE(write(tmp_path / "a.safetensors").stat().st_mode)
    finally:
        os.umask(old)
    assert mode == 0o640


@pytest.mark.parametrize("names", [("embed", "head"), ("model.embed.weight", "head.weight")])
def test_tied_tensors_are_stored_once_and_restored(tmp_path, names):
    shared = torch.ones(3)
    state = {names[0]: shared, names[1]: shared, "other": torch.zeros(2)}
    path = write(tmp_path / "a.safetensors", state)
    assert set(load_file(path)) == {names[0], "other"}
    specs = open_checkpoint(path).specs()
    assert set(specs) == set(state)
    assert specs[names[0]].place == specs[names[1]].place != specs["other"].place


def test_ties_as_the_safetensors_library_writes_them_are_restored(tmp_path):
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    save_model(model, str(tmp_path / "a.safetensors"))
    specs = open_checkpoint(tmp_path / "a.safetensors").specs()
    assert set(specs) == set(model.state_dict())
    assert specs["a.weight"].place == specs["b.weight"].place


def test_remarks_in_the_metadata_are_not_ties(tmp_path):
    path = write(tmp_path / "a.safetensors", metadata={"author": "w"})
    assert set(open_checkpoint(path).specs()) == set(STATE)


def test_existing_files_stay_unless_told(tmp_path):
    path = write(tmp_path / "a.safetensors")
    before = path.read_bytes()
    with pytest.raises(OutputExists, match=r"exists.*--overwrite \(overwrite=True\)"):
        write(path, {"v": torch.ones(1)})
    assert path.read_bytes() == before
    write(path, {"v": torch.ones(1)}, overwrite=True)
    assert set(open_checkpoint(path).specs()) == {"v"}
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputExists):
        write(tmp_path / "dangling")


@pytest.mark.parametrize("alias", ["same", "symlink", "hard link", "folder"])
def test_inputs_are_never_replaced(tmp_path, alias):
    source = write(tmp_path / "in.safetensors")
    before = source.read_bytes()
    target = tmp_path / "out.safetensors"
    inputs = [source]
    if alias == "same":
        target = tmp_path / "." / "in.safetensors"
    elif alias == "symlink":
        target.symlink_to(source)
    elif alias == "hard link":
        target.hardlink_to(source)
    else:
        target, inputs = source, [tmp_path]
    with pytest.raises(OutputExists, match="is one of the inputs"):
        write(target, {"v": torch.ones(1)}, overwrite=True, inputs=inputs)
    assert source.read_bytes() == before


def test_targets_that_cannot_be(tmp_path):
    with pytest.raises(CheckpointError, match="there is no folder"):
        write(tmp_path / "missing" / "a.safetensors")
    with pytest.raises(CheckpointError, match="it is a folder"):
        write(tmp_path, overwrite=True)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not a regular file"):
        write(tmp_path / "pipe", overwrite=True)


SPEC = {"w": TensorSpec((2,), torch.float32, "w"), "v": TensorSpec((), torch.int64, "v")}
W, V = ("w", torch.ones(2)), ("v", torch.tensor(1))


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ([W], r"1 of 2 tensors never came:\n  v"),
        ([W, V, W], "w came twice"),
        ([W, ("x", torch.ones(1))], "x was not announced"),
        ([("w", torch.ones(3)), V], r"w should be torch.float32 \[2\], and is torch.float32 \[3\]"),
        ([("w", torch.ones(2).double()), V], "torch.float64"),
    ],
    ids=["missing", "twice", "unannounced", "shape", "dtype"],
)
def test_tensors_that_do_not_match_their_specs(tmp_path, tensors, text):
    with pytest.raises(CheckpointError, match=text):
        write_safetensors(tmp_path / "a.safetensors", SPEC, tensors, metadata={})
    assert list(tmp_path.iterdir()) == []


def test_dtypes_and_names_that_the_format_lacks(tmp_path):
    state = {"fine": torch.ones(1), "wide": torch.ones(1, dtype=torch.complex128)}
    with pytest.raises(CheckpointError, match=r"wide: torch.complex128\n.*complex64"):
        write(tmp_path / "a.safetensors", state)
    with pytest.raises(CheckpointError, match="__metadata__: not a usable name"):
        write(tmp_path / "a.safetensors", {"__metadata__": torch.ones(1)})
    with pytest.raises(CheckpointError, match="no tensors"):
        write_safetensors(tmp_path / "a.safetensors", {}, [], metadata={})


def test_an_error_inside_leaves_nothing(tmp_path):
    for error in (ZeroDivisionError, KeyboardInterrupt, CheckpointError, FileExistsError):
        with pytest.raises((error, CheckpointError)):
            half_write(tmp_path / "a", error)
        assert list(tmp_path.iterdir()) == []


def half_write(path, error):
    with atomic_write(path) as file:
        file.write(b"half")
        raise error


def fail_at(monkeypatch, number, error, calls):
    """Make the N-th of these system calls fail, counted over all of them."""
    seen = []

    def wrap(name, real):
        def call(*args, **kwargs):
            seen.append(name)
            if len(seen) == number:
                raise OSError(error, os.strerror(error))
            return real(*args, **kwargs)

        return call

    for name in calls:
        monkeypatch.setattr(os, name, wrap(name, getattr(os, name)))
    return seen


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=["full", "broken"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_whichever_call_fails_nothing_half_done_is_left(tmp_path, monkeypatch, error, overwrite):
    monkeypatch.setattr("alloykit.checkpoints.writing.BLOCK", 512)
    folder = tmp_path / "out"
    folder.mkdir()
    target = folder / "a.safetensors"
    if overwrite:
        target.write_bytes(b"the old one")
    complete = write(tmp_path / "complete.safetensors").read_bytes()
    for number in range(1, 100):
        with monkeypatch.context() as patch:
            seen = fail_at(patch, number, error, CALLS)
            try:
                write(target, overwrite=overwrite)
            except CheckpointError:
                pass
            else:
                break
        assert [entry.name for entry in folder.iterdir()] == [target.name] * overwrite
        if overwrite:
            renamed = "replace" in seen[:-1]
            assert target.read_bytes() == (complete if renamed else b"the old one")
    assert number > 15, "the loop must have failed every call before it passed"
    assert {"posix_fallocate", "pwrite", "fsync", "open"} <= set(seen)
    assert target.read_bytes() == complete


def test_file_systems_without_reservation_or_links(tmp_path, monkeypatch):
    def lacking(*_args, **_kwargs):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", lacking)
    monkeypatch.setattr(os, "link", lacking)
    path = write(tmp_path / "a.safetensors")
    assert torch.equal(open_checkpoint(path).read("w"), STATE["w"])
    assert list(tmp_path.iterdir()) == [path]


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:3], at))
    path = write(tmp_path / "a.safetensors")
    monkeypatch.undo()
    assert path.read_bytes() == write(tmp_path / "b.safetensors").read_bytes()


def test_of_two_writers_one_wins_whole(tmp_path):
    target = tmp_path / "a.safetensors"
    outcomes = []
    together = threading.Barrier(2)

    def tensors(value):
        together.wait()
        yield "w", torch.full((1000,), value)

    def run(value):
        specs = {"w": TensorSpec((1000,), torch.float32, "w")}
        try:
            write_safetensors(target, specs, tensors(value), metadata={})
            outcomes.append(value)
        except OutputExists:
            outcomes.append(None)

    threads = [threading.Thread(target=run, args=(value,)) for value in (1.0, 2.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner = next(value for value in outcomes if value is not None)
    assert outcomes.count(None) == 1
    assert torch.equal(load_file(target)["w"], torch.full((1000,), winner))
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("overwrite", [False, True])
def test_bytes_are_safe_before_the_name_and_the_name_before_the_return(
    tmp_path, monkeypatch, overwrite
):
    calls = fail_at(monkeypatch, -1, 0, ["pwrite", "fsync", "link", "replace"])
    write(tmp_path / "a.safetensors", overwrite=overwrite)
    naming = "replace" if overwrite else "link"
    assert calls[-3:] == ["fsync", naming, "fsync"]
    assert set(calls[:-3]) == {"pwrite"}
