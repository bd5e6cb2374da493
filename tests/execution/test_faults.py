"""Whatever fails, there is one clear error, nothing under the final name, and no debris."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from faulty_system import READING, WRITING, System, faulty
from safetensors.torch import save_file

import alloykit
from alloykit.errors import AlloyError, CheckpointError, InvalidParameter, OutputExists
from alloykit.execution import limits, running
from alloykit.execution.output import PartialFiles

BLOCK = 1 << 16
SHAPES = {"layers.0.weight": (201, 317), "layers.1.weight": (90, 317), "norm": (317,)}

REASONS = {
    "open": (errno.EACCES, errno.EMFILE, errno.EROFS),
    "stat": (errno.EACCES, errno.EIO),
    "posix_fallocate": (errno.ENOSPC, errno.EIO, errno.EOPNOTSUPP, errno.EINVAL),
    "pwrite": (errno.ENOSPC, errno.EIO, errno.EINVAL),
    "write": (errno.ENOSPC,),
    "fsync": (errno.EIO, errno.ENOSPC),
    "link": (errno.EIO, errno.EPERM, errno.EEXIST),
    "rename": (errno.EIO, errno.EACCES),
    "unlink": (errno.EACCES,),
    "mkdir": (errno.ENOSPC,),
}
"""Why a call fails; an input or output error where nothing else is said."""

VARIANTS = {
    "file": {},
    "folder": {"max_shard_size": 100_000},
    "replaced file": {"overwrite": True},
    "replaced folder": {"overwrite": True, "max_shard_size": 100_000},
}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(limits, "BLOCK", BLOCK)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[str]:
    """A base and two models of three blocks."""
    return made(tmp_path_factory.mktemp("models"))


def made(folder: Path) -> list[str]:
    paths = []
    for seed, name in enumerate(("base", "a", "b")):
        generator = torch.Generator().manual_seed(seed)
        state = {n: torch.randn(s, generator=generator).bfloat16() for n, s in SHAPES.items()}
        paths.append(str(folder / f"{name}.safetensors"))
        save_file(state | {"ids": torch.arange(5)}, paths[-1])
    return paths


def merge(models, target: Path, method: str = "ties", **options) -> None:
    options = {"threads": 1} | options
    alloykit.merge(models[1:], method, base=models[0], output=target, **options)


def target_in(folder: Path, variant: str) -> Path:
    """Where to write; there is something already where that is to be replaced."""
    folder.mkdir()
    target = folder / ("o" if "folder" in variant else "o.safetensors")
    if variant == "replaced folder":
        target.mkdir()
        (target / "old.json").write_text("old")
    elif variant == "replaced file":
        target.write_text("old")
    return target


def content(target: Path) -> str | None:
    """A digest of what is there."""
    if not target.exists():
        return None
    files = sorted(target.iterdir()) if target.is_dir() else [target]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def debris(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir() if path != target)


def outcomes(models, folder: Path, variant: str, call: str, reason: int, *, onwards: bool = False):
    """Fail the first of these calls, the second, and so on, until a merge passes untouched."""
    whole = target_in(folder / "whole", variant)
    merge(models, whole, **VARIANTS[variant])
    for number in range(1, 200):
        target = target_in(folder / str(number), variant)
        before = content(target)
        error = None
        with faulty(System(call, number, reason, onwards=onwards)) as system:
            try:
                merge(models, target, **VARIANTS[variant])
            except AlloyError as raised:
                error = raised
        if not system.failed:
            assert error is None
            return
        # Long paths are cut in the middle, so that their last parts are what can be looked for.
        named = target.name in str(error) or ".safetensors" in str(error)
        assert error is None or named or call in ("stat", "fstat"), (number, error)
        after = content(target)
        assert after == (before if error else content(whole)), (number, error)
        yield number, error, debris(target)
    pytest.fail(f"{call} was called 200 times")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("variant", VARIANTS)
def test_each_call_of_the_system_may_fail_once(models, tmp_path, variant):
    failures = 0
    for call in WRITING if variant != "file" else READING + WRITING:
        reasons = REASONS.get(call, (errno.EIO,))
        for reason in reasons if variant == "file" else reasons[:1]:
            folder = tmp_path / f"{call} {reason}"
            folder.mkdir()
            for number, error, left in outcomes(models, folder, variant, call, reason):
                failures += error is not None
                assert error is not None or reason != errno.ENOSPC, (call, number)
                # What cannot be removed stays, though the result is there.
                assert left == [] or call == "unlink", (call, number, error)
    assert failures > 20


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("open", errno.EMFILE), ("fstat", errno.EIO), ("posix_fallocate", errno.ENOSPC),
        ("pwrite", errno.ENOSPC), ("write", errno.ENOSPC), ("fsync", errno.EIO),
        ("fdatasync", errno.EIO), ("ftruncate", errno.EIO), ("link", errno.EIO),
    ],
)  # fmt: skip
@pytest.mark.parametrize("variant", ["file", "folder"])
def test_calls_of_the_system_may_fail_from_then_on(models, tmp_path, variant, call, reason):
    for number, error, left in outcomes(models, tmp_path, variant, call, reason, onwards=True):
        assert error is not None
        assert left == [], (number, error)


@pytest.mark.parametrize(("call", "reason"), [("pwrite", errno.EINVAL), ("link", errno.EPERM), ("posix_fallocate", errno.EOPNOTSUPP)])  # fmt: skip
def test_what_a_file_system_does_not_offer_is_done_otherwise(models, tmp_path, call, reason):
    found = outcomes(models, tmp_path, "file", call, reason)
    assert any(error is None for _, error, _ in found)


def test_reading_and_writing_may_stop_short(models, tmp_path, monkeypatch):
    merge(models, tmp_path / "whole.safetensors")
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: pwrite(file, data[:5000], at))
    monkeypatch.setattr(os, "preadv", lambda file, views, at: preadv(file, [views[0][:7777]], at))
    merge(models, tmp_path / "short.safetensors")
    assert content(tmp_path / "short.safetensors") == content(tmp_path / "whole.safetensors")


def test_a_full_disk_is_known_before_any_work_is_done(models, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(disk)], check=False, capture_output=True)  # fmt: skip
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    told = []
    try:
        with pytest.raises(CheckpointError, match=r"o\.safetensors was not written: the disk has no room for 19\d.\d kB"):  # fmt: skip
            merge(models, disk / "o.safetensors", progress=lambda *at: told.append(at))
        assert list(disk.iterdir()) == []
        assert told == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_limit_on_the_size_of_files_is_an_error(models, tmp_path):
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, usual[1]))
    try:
        with pytest.raises(CheckpointError, match="was not written: File too large"):
            merge(models, tmp_path / "o.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert list(tmp_path.iterdir()) == []


def alive() -> set[threading.Thread]:
    return {each for each in threading.enumerate() if each.is_alive()}


def all_ended(before: set[threading.Thread]) -> bool:
    """Whether only these run; a thread that was interrupted while it began takes a moment to end."""
    deadline = time.monotonic() + 5
    while alive() - before and time.monotonic() < deadline:
        time.sleep(0.001)
    return not alive() - before


def during(action):
    """A progress callback that does something once."""
    called = []

    def progress(*_) -> None:
        if not called:
            called.append(True)
            action()

    return progress


def test_a_file_that_appears_meanwhile_stays(models, tmp_path):
    target = tmp_path / "o.safetensors"
    with pytest.raises(OutputExists, match=r"o\.safetensors exists"):
        merge(models, target, progress=during(lambda: target.write_text("theirs")))
    assert target.read_text() == "theirs"
    assert debris(target) == []


def test_a_folder_that_appears_meanwhile_stays(models, tmp_path):
    def appear() -> None:
        (tmp_path / "o").mkdir()
        (tmp_path / "o" / "theirs").touch()

    with pytest.raises(OutputExists, match="o appeared meanwhile"):
        merge(models, tmp_path / "o", max_shard_size=100_000, progress=during(appear))
    assert (tmp_path / "o" / "theirs").exists()
    assert debris(tmp_path / "o") == []


def _truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 60_000)


def _written_to(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("change", [_truncated, _written_to])
@pytest.mark.parametrize("threads", [1, 4])
def test_a_model_that_changes_while_it_is_read_is_named(tmp_path, change, threads):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    paths = made(tmp_path / "in")
    with pytest.raises(CheckpointError, match=r"a\.safetensors (changed while|was truncated)"):
        merge(
            paths, tmp_path / "out" / "o.safetensors", threads=threads, resume=True,
            progress=during(lambda: change(Path(paths[1]))),
        )  # fmt: skip
    assert list((tmp_path / "out").iterdir()) == []


def test_a_model_that_is_replaced_while_it_is_read_is_read_to_its_end(models, tmp_path):
    merge(models, tmp_path / "expected.safetensors")
    copy = tmp_path / "a.safetensors"
    copy.write_bytes(Path(models[1]).read_bytes())
    merge([models[0], copy, models[2]], tmp_path / "o.safetensors", progress=during(copy.unlink))
    expected, found = (
        alloykit.open_checkpoint(tmp_path / name)
        for name in ("expected.safetensors", "o.safetensors")
    )
    assert all(torch.equal(found.read(name), expected.read(name)) for name in found.specs())


@pytest.mark.parametrize("threads", [1, 4])
def test_an_error_in_one_thread_ends_the_others(models, tmp_path, monkeypatch, threads):
    before = alive()

    def broken(*_) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(PartialFiles, "write", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        merge(models, tmp_path / "o.safetensors", threads=threads)
    assert all_ended(before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("where", "error", "expected", "text"),
    [
        ("mmap", OSError(errno.ENOMEM, "Cannot allocate memory"), CheckpointError, "Cannot alloc"),
        ("mmap", MemoryError(), InvalidParameter, "not enough memory. Take fewer threads"),
        ("start", RuntimeError("can't start new thread"), RuntimeError, "can't start new thread"),
    ],
)
def test_a_thread_that_cannot_begin_ends_the_others(
    models, tmp_path, monkeypatch, where, error, expected, text
):
    before, seen = alive(), []
    owner = running.mmap if where == "mmap" else threading.Thread
    real = getattr(owner, where)

    def third(*args, **kwargs):
        seen.append(args)
        if len(seen) == 3:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, where, third)
    with pytest.raises(expected, match=text):
        merge(models, tmp_path / "o.safetensors", threads=4)
    assert all_ended(before)
    assert list(tmp_path.iterdir()) == []


def test_what_torch_cannot_allocate_is_said_in_words(models, tmp_path, monkeypatch):
    def greedy(*_) -> None:
        torch.empty(1 << 60, dtype=torch.uint8)

    monkeypatch.setattr(PartialFiles, "write", greedy)
    with pytest.raises(InvalidParameter, match=r"o\.safetensors was not written: there was not en"):
        merge(models, tmp_path / "o.safetensors")
    assert list(tmp_path.iterdir()) == []


# Python drops an interrupt that arrives while it runs a finaliser, and says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("threads", [1, 3])
def test_an_interrupt_at_any_moment_leaves_nothing(models, tmp_path, monkeypatch, threads):
    """A timer in the place of Ctrl-C, a little later each time."""
    before, write, writing = alive(), PartialFiles.write, []

    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    def slowly(*arguments) -> None:
        writing.append(True)
        time.sleep(0.002)
        write(*arguments)
        writing.pop()

    monkeypatch.setattr(PartialFiles, "write", slowly)

    started = time.perf_counter()
    merge(models, tmp_path / "o.safetensors", threads=threads)
    usual = time.perf_counter() - started
    (tmp_path / "o.safetensors").unlink()
    old, interrupted = signal.signal(signal.SIGALRM, interrupt), 0
    try:
        for step in range(20):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0005 + usual * step / 20)
                merge(models, tmp_path / "o.safetensors", threads=threads)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
            assert writing == []
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert all_ended(before)
            assert debris(tmp_path / "o.safetensors") == []
            (tmp_path / "o.safetensors").unlink(missing_ok=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert interrupted


SLOWLY = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
from alloykit.execution.output import PartialFiles
write = PartialFiles.write
PartialFiles.write = lambda *arguments: (time.sleep(0.2), write(*arguments))
from alloykit.cli import main
main()
"""


@pytest.mark.parametrize(
    ("command", "sent", "code"),
    [
        (["merge", "ties", "a", "b", "--base", "base"], signal.SIGTERM, 143),
        (["average", "a", "b"], signal.SIGINT, 130),
    ],
)
def test_signals_clean_up(models, tmp_path, command, sent, code):
    paths = {Path(path).stem: path for path in models}
    arguments = [paths.get(word, word) for word in command]
    child = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, *arguments, "-o", str(tmp_path / "o.safetensors")],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (tmp_path / ".o.safetensors.partial").exists():
        assert child.poll() is None, child.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(sent)
    told = child.communicate(timeout=60)[1]
    assert child.returncode == code, told
    assert "Traceback" not in told
    assert list(tmp_path.iterdir()) == []


ENDING = """
import sys, threading, time
import alloykit
from alloykit.execution import limits
from alloykit.execution.output import PartialFiles
limits.BLOCK = 1 << 16
base, a, b, output, threads = sys.argv[1:]
begun = threading.Event()
write = PartialFiles.write
def slowly(*arguments):
    begun.set()
    time.sleep(0.3)
    write(*arguments)
    print("written", flush=True)
PartialFiles.write = slowly
arguments = dict(method="ties", base=base, output=output, threads=int(threads))
threading.Thread(target=alloykit.merge, args=([a, b],), kwargs=arguments, daemon=True).start()
begun.wait()
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_a_program_that_ends_meanwhile_ends_quietly_and_soon(models, tmp_path, threads):
    done = subprocess.run(
        [sys.executable, "-c", ENDING, *models, str(tmp_path / "o.safetensors"), str(threads)],
        capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("written") <= threads
