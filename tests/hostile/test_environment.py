"""What surrounds a merge is against it: files that are no files, that change, or may not be used.

Each case ends within three seconds with one error that names the file and the exit code of its
class, and leaves the folder as it was; or with a right result.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from privileges import modes_respected
from safetensors.torch import load_file, save_file

import alloykit
from alloykit.checkpoints.source_file import SourceFile
from alloykit.errors import AlloyError
from command_line import Finished, run

SECONDS = 3.0
SIZE = 1 << 18


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two models of 2 MB, and nothing else."""
    for name, value in (("a", 1.0), ("b", 3.0)):
        state = {"w": torch.full((SIZE,), value), "v": torch.full((SIZE,), -value)}
        save_file(state, tmp_path / f"{name}.safetensors")
        (tmp_path / f"{name}.safetensors").chmod(0o644)
    return tmp_path


def listed(folder: Path) -> dict[str, tuple[int, ...]]:
    """Everything in the folder and below it, and what would show that it was touched."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_ino, status.st_size)
    return found


def merged(capsys: pytest.CaptureFixture[str], *arguments: object) -> Finished:
    """``alloykit merge linear``, within the time."""
    began = time.monotonic()
    finished = run(capsys, ["merge", "linear", *arguments])
    assert time.monotonic() - began < SECONDS
    return finished


def refused(finished: Finished, code: int, *words: str) -> None:
    """One clear error, and no traceback."""
    assert finished.code == code, finished.err
    for word in words:
        assert word in finished.err
    assert "Traceback" not in finished.err
    assert "not foreseen" not in finished.err


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.symlink_to(path)


def nowhere(path: Path) -> None:
    path.symlink_to(path.parent / "gone")


def unreadable(path: Path) -> None:
    save_file({"w": torch.ones(1)}, path)
    path.chmod(0)


def empty(path: Path) -> None:
    path.touch()


def empty_folder(path: Path) -> None:
    path.mkdir()


def locked_folder(path: Path) -> None:
    path.mkdir()
    path.chmod(0)


def too_long(_path: Path) -> None:
    pass


BAD_INPUTS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "a pipe": (fifo, "x.safetensors", "is a pipe, socket or device"),
    "a pipe without a suffix": (fifo, "x", "is a pipe, socket or device"),
    "a device": (device, "x.pth", "is a pipe, socket or device"),
    "a loop of links": (loop, "x.safetensors", "link"),
    "a link to nothing": (nowhere, "x.safetensors", "is a link to a file that does not exist"),
    "unreadable": (unreadable, "x.safetensors", "cannot be opened: Permission denied"),
    "an empty file": (empty, "x.safetensors", "has 0 bytes"),
    "an empty folder": (empty_folder, "x", "holds no model.safetensors"),
    "a folder that may not be entered": (locked_folder, "x", "cannot be read"),
    "a name that is too long": (too_long, "x" * 300 + ".safetensors", "xxx"),
    "in a folder that is a file": (too_long, "a.safetensors/x.safetensors", "a.safetensors/x"),
}


@pytest.mark.parametrize(("make", "name", "says"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_inputs_that_are_no_files(
    make: Callable[[Path], None],
    name: str,
    says: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(folder / name)
    before = listed(folder)
    with modes_respected():
        finished = merged(
            capsys, folder / "a.safetensors", folder / name, "-o", folder / "out.safetensors"
        )
    refused(finished, 4, name[-30:], says)
    if os.path.isdir(folder / name):  # noqa: PTH112
        (folder / name).chmod(0o755)
        before[name] = (folder / name).lstat().st_mode, *before[name][1:]
    assert listed(folder) == before


def test_shards_that_are_no_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = folder / "sharded"
    home.mkdir()
    os.mkfifo(home / "model-1.safetensors")
    (home / "model.safetensors.index.json").write_text(
        '{"weight_map": {"w": "model-1.safetensors"}}'
    )
    finished = merged(capsys, folder / "a.safetensors", home, "-o", folder / "out.safetensors")
    refused(finished, 4, "model-1.safetensors is a pipe")


@contextmanager
def when_reading(change: Callable[[], None], after: int = 1) -> Iterator[None]:
    """Call ``change`` once, after so many reads of tensors."""
    read, counted, lock = SourceFile.read_into, [0], threading.Lock()

    def reading(file: SourceFile, view: memoryview, start: int) -> None:
        with lock:
            counted[0] += 1
            if counted[0] == after + 1:
                change()
        read(file, view, start)

    patch = pytest.MonkeyPatch()
    patch.setattr(SourceFile, "read_into", reading)
    try:
        yield
    finally:
        patch.undo()
    assert counted[0] > after, "nothing was read after the change"


def truncated(path: Path) -> None:
    os.truncate(path, 5000)


def grown(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def rewritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(3000)
        file.write(b"\1" * 4000)
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("change", [truncated, grown, rewritten])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_input_that_changes_while_it_is_read(
    change: Callable[[Path], None],
    after: int,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    victim = folder / "b.safetensors"
    with when_reading(lambda: change(victim), after):
        finished = merged(
            capsys, folder / "a.safetensors", victim, "-o", folder / "out.safetensors"
        )
    refused(finished, 4, "b.safetensors changed while it was open", "Start again")
    assert set(listed(folder)) == {"a.safetensors", "b.safetensors"}


def test_an_input_that_is_replaced_while_it_is_read(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Replaced by renaming, the file that was opened is read to its end, or the run fails."""
    victim, other = folder / "b.safetensors", folder / "new"
    save_file({name: torch.full((SIZE,), 99.0) for name in "wv"}, other)
    with when_reading(lambda: os.replace(other, victim)):  # noqa: PTH105
        finished = merged(
            capsys, folder / "a.safetensors", victim, "-o", folder / "out.safetensors"
        )
    if finished.code:
        refused(finished, 4, "b.safetensors")
        assert not (folder / "out.safetensors").exists()
    else:
        result = load_file(folder / "out.safetensors")
        assert result["w"].unique().tolist() == [2.0]
        assert result["v"].unique().tolist() == [-2.0]


def read_only_folder(folder: Path) -> Path:
    (folder / "locked").mkdir(mode=0o555)
    return folder / "locked" / "out.safetensors"


def no_folder(folder: Path) -> Path:
    return folder / "nowhere" / "out.safetensors"


def file_as_folder(folder: Path) -> Path:
    return folder / "a.safetensors" / "out.safetensors"


def a_folder(folder: Path) -> Path:
    (folder / "out.safetensors").mkdir()
    return folder / "out.safetensors"


def an_input(folder: Path) -> Path:
    return folder / "a.safetensors"


def link_to_an_input(folder: Path) -> Path:
    (folder / "out.safetensors").symlink_to(folder / "a.safetensors")
    return folder / "out.safetensors"


def hard_link_to_an_input(folder: Path) -> Path:
    (folder / "out.safetensors").hardlink_to(folder / "a.safetensors")
    return folder / "out.safetensors"


def other_spelling_of_an_input(folder: Path) -> Path:
    (folder / "sub").mkdir()
    return folder / "sub" / ".." / "a.safetensors"


def a_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "out.safetensors")
    return folder / "out.safetensors"


def a_device(folder: Path) -> Path:
    (folder / "out.safetensors").symlink_to("/dev/full")
    return folder / "out.safetensors"


def long_name(folder: Path) -> Path:
    return folder / f"{'x' * 300}.safetensors"


BAD_OUTPUTS = {
    "a read-only folder": (read_only_folder, "Permission denied"),
    "a missing folder": (no_folder, "there is no folder"),
    "a folder that is a file": (file_as_folder, "a.safetensors"),
    "a folder of that name": (a_folder, "is a folder"),
    "an input": (an_input, "is one of the inputs"),
    "a link to an input": (link_to_an_input, "is one of the inputs"),
    "a hard link to an input": (hard_link_to_an_input, "is one of the inputs"),
    "another spelling of an input": (other_spelling_of_an_input, "is one of the inputs"),
    "a pipe": (a_pipe, "not a regular file"),
    "a device": (a_device, "not a regular file"),
    "a name that is too long": (long_name, "too long"),
}


@pytest.mark.parametrize(("make", "says"), BAD_OUTPUTS.values(), ids=BAD_OUTPUTS)
def test_outputs_that_cannot_be(
    make: Callable[[Path], Path], says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = make(folder)
    before = listed(folder)
    with modes_respected():
        finished = merged(
            capsys,
            *(folder / "a.safetensors", folder / "b.safetensors", "-o", output, "--overwrite"),
        )
    refused(finished, 4, output.name[-30:], says)
    assert listed(folder) == before


def test_a_member_under_two_names_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = folder / "a.safetensors"
    finished = merged(capsys, a, a, "-o", folder / "out.safetensors")
    refused(finished, 2, "a.safetensors", "twice")
    assert not (folder / "out.safetensors").exists()


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
def test_the_output_has_the_mode_that_the_umask_asks_for(
    mask: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = os.umask(mask)
    try:
        finished = merged(
            capsys,
            *(folder / "a.safetensors", folder / "b.safetensors", "-o", folder / "out.safetensors"),
        )
    finally:
        os.umask(before)
    assert finished.code == 0, finished.err
    assert stat.S_IMODE((folder / "out.safetensors").stat().st_mode) == 0o666 & ~mask


class Failing:
    """Makes the N-th call of one function of ``os`` fail, and counts the calls."""

    def __init__(self, name: str, number: int, code: int) -> None:
        self.calls = 0
        self._real: Callable[..., object] = getattr(os, name)
        self._number = number
        self._code = code
        self._lock = threading.Lock()

    def __call__(self, *arguments: object, **named: object) -> object:
        with self._lock:
            self.calls += 1
            fail = self.calls == self._number
        if fail:
            raise OSError(self._code, os.strerror(self._code))
        return self._real(*arguments, **named)


@pytest.mark.parametrize(
    ("name", "code"),
    [("pread", errno.EIO), ("preadv", errno.EIO), ("fstat", errno.ESTALE), ("open", errno.EIO)],
)
def test_whichever_read_fails_it_is_one_error(name: str, code: int, folder: Path) -> None:
    """As SQLite is tested: the first call fails, then the second, until none is left to fail."""
    small = {"w": torch.ones(3), "v": torch.zeros(2)}
    for file in ("a.safetensors", "b.safetensors"):
        save_file(small, folder / file)
    torch.save(small, folder / "c.pth")
    models = [folder / file for file in ("a.safetensors", "b.safetensors", "c.pth")]
    before = listed(folder)
    for number in range(1, 200):
        patch = pytest.MonkeyPatch()
        failing = Failing(name, number, code)
        patch.setattr(os, name, failing)
        try:
            alloykit.merge(models, output=folder / "out.safetensors")
        except AlloyError as error:
            assert os.strerror(code) in str(error)  # noqa: PT017
            assert str(folder) in str(error)  # noqa: PT017
        else:
            assert load_file(folder / "out.safetensors")["w"].tolist() == [1.0] * 3
            (folder / "out.safetensors").unlink()
        finally:
            patch.undo()
        assert listed(folder) == before, f"call {number} of {name}"
        if failing.calls < number:
            break
    else:
        pytest.fail("there is no end of calls")
    assert number > 3, f"{name} is hardly called"
