"""What a killed or interrupted merge leaves behind is continued, and the bytes are the same."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import subprocess
import sys
import zlib
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import alloykit
from alloykit.api.planning import planned
from alloykit.errors import CheckpointError, OutputExists
from alloykit.execution.journal import Journal
from alloykit.execution.limits import Limits
from alloykit.execution.running import run_blocks
from alloykit.execution.to_files import Destination, merge_to_files

BLOCK = 1 << 16
KILLS = 20


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    """A base and three models of 20 blocks."""
    folder = tmp_path_factory.mktemp("models")
    paths = []
    for seed, name in enumerate(("base", *"abc")):
        generator = torch.Generator().manual_seed(seed)
        shapes = {f"layers.{i}.weight": (301, 517) for i in range(4)} | {"norm": (517,)}
        state = {n: torch.randn(s, generator=generator).bfloat16() for n, s in shapes.items()}
        paths.append(folder / f"{name}.safetensors")
        save_file(state, paths[-1])
    return paths


def merge(
    models, target: Path, method="karcher", *, stop: int | None = None, threads=1, **options
) -> list[int]:
    """Merge, up to so many blocks; the blocks that were computed."""
    job = planned(models[1:], method, base=models[0], weights=options.pop("weights", None))
    options = {"resume": True, "identity": job.identity()} | options
    computed: list[int] = []

    def counting(arithmetic, cutting, indices, files, *, threads, done):
        def note(block, sound):
            done(block, sound)
            computed.append(block.index)
            if len(computed) == stop:
                raise KeyboardInterrupt

        run_blocks(arithmetic, cutting, indices, files, threads=threads, done=note)

    limits = Limits(threads=threads, block=BLOCK, sync=2 * BLOCK)
    merge_to_files(job.arithmetic(), Destination(target, {}, **options), limits=limits, execute=counting)  # fmt: skip
    return computed


def interrupted(models, target: Path, stop: int = 7, **options) -> None:
    with pytest.raises(KeyboardInterrupt):
        merge(models, target, stop=stop, **options)
    assert not target.exists()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def expected(models, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("expected") / "o.safetensors"
    assert len(merge(models, path)) == 20
    return digest(path)


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "o.safetensors"


@pytest.fixture
def journal(target) -> Path:
    return target.with_name(".o.safetensors.journal")


@pytest.fixture
def partial(target) -> Path:
    return target.with_name(".o.safetensors.partial")


def test_a_merge_killed_at_random_moments_ends_with_the_same_bits(tmp_path):
    script = Path(__file__).with_name("killed_merges.py")
    command = [sys.executable, str(script), str(tmp_path), "ties", str(KILLS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    file, shards = json.loads(done.stdout)
    assert (file["killed"], shards["killed"]) == (KILLS, KILLS // 3)
    for told in (file, shards):
        assert told["same"], told
        assert told["useful"] >= told["killed"] // 3, told
        assert told["left"] == []
        assert told["computed"] < told["blocks"] or not told["noted"]


@pytest.mark.parametrize("threads", [1, 3])
def test_an_interrupted_merge_goes_on_where_it_was(models, target, expected, threads):
    interrupted(models, target, threads=threads)
    assert names(target.parent) == [".o.safetensors.journal", ".o.safetensors.partial"]
    computed = merge(models, target, threads=4 - threads)
    assert 20 - 7 - threads < len(computed) <= 20 - 7
    assert digest(target) == expected
    assert names(target.parent) == ["o.safetensors"]


def test_the_order_of_the_models_may_be_another(models, target, expected):
    interrupted(models, target)
    base, a, b, c = models
    assert len(merge([base, c, a, b], target)) == 13
    assert digest(target) == expected


def test_without_resume_nothing_is_kept_and_nothing_continued(models, target, expected):
    interrupted(models, target, resume=False)
    assert names(target.parent) == []
    interrupted(models, target)
    assert len(merge(models, target, resume=False)) == 20
    assert digest(target) == expected
    assert names(target.parent) == ["o.safetensors"]


@pytest.mark.parametrize(
    "changed", [{"method": "linear"}, {"weights": [1, 2, 3]}, {"identity": ["other"]}]
)
def test_what_was_begun_otherwise_is_refused_and_left_alone(
    models, target, journal, partial, expected, changed
):
    interrupted(models, target)
    before = digest(journal), digest(partial)
    with pytest.raises(CheckpointError, match="cannot be continued: the inputs, the settings"):
        merge(models, target, **changed)
    assert (digest(journal), digest(partial)) == before
    assert len(merge(models, target)) == 13
    assert digest(target) == expected


def test_a_model_written_anew_is_not_continued_with(models, target, tmp_path):
    base, a, b, c = models
    copy = tmp_path / "a.safetensors"
    copy.write_bytes(a.read_bytes())
    interrupted([base, copy, b, c], target)
    os.utime(copy, ns=(0, 0))
    with pytest.raises(CheckpointError, match="cannot be continued"):
        merge([base, copy, b, c], target)


def _line(record: object) -> bytes:
    text = json.dumps(record, sort_keys=True)
    return f"{text} {zlib.crc32(text.encode()):08x}\n".encode()


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        (lambda data: data[:-3], 14),
        (lambda data: data + b'{"blocks": [[8, 19', 13),
        (lambda data: data + b"\0" * 512, 13),
        (lambda data: data[:20], 20),
        (lambda data: b"", 20),
        (lambda data: b"somebody's notes\n", 20),
        (lambda data: os.urandom(2000), 20),
        (lambda data: _line({"blocks": [[0, 19]]}), 20),
        (lambda data: data.replace(b"[[0, 1]]", b"[[0, 9]]"), 20),
    ],
)
def test_only_whole_lines_of_a_journal_count(models, target, journal, expected, damage, left):
    interrupted(models, target)
    journal.write_bytes(damage(journal.read_bytes()))
    assert len(merge(models, target)) == left
    assert digest(target) == expected
    assert names(target.parent) == ["o.safetensors"]


def test_lines_after_one_that_was_cut_off_count(models, target, journal, expected):
    interrupted(models, target)
    with journal.open("ab") as file:
        file.write(b'{"blocks": [[8, 1')
    interrupted(models, target)
    assert len(merge(models, target)) == 6
    assert digest(target) == expected


def _cut(path: Path) -> None:
    os.truncate(path, 5000)


def _other(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"other")


@pytest.mark.parametrize("damage", [Path.unlink, _cut, _other])
def test_a_partial_file_that_is_gone_or_another_is_begun_anew(
    models, target, partial, expected, damage
):
    interrupted(models, target)
    damage(partial)
    assert len(merge(models, target)) == 20
    assert digest(target) == expected


def test_links_in_the_place_of_hidden_files_are_not_followed(
    models, target, journal, partial, tmp_path
):
    precious = tmp_path / "precious"
    precious.write_bytes(b"mine")
    for link in (journal, partial):
        link.symlink_to(precious)
        with suppress(CheckpointError):
            merge(models, target, resume=False)
        assert precious.read_bytes() == b"mine"
        link.unlink(missing_ok=True)


def test_a_tensor_with_nan_that_was_computed_as_a_whole_is_not_taken_as_done(
    models, target, tmp_path
):
    names = ["layers.0.weight", "layers.1.weight"]
    every = []
    for path in models[:3]:
        state = {name: alloykit.open_checkpoint(path).read(name) for name in names}
        if path == models[1]:
            state["layers.0.weight"][0, 0] = math.nan
        every.append(tmp_path / path.name)
        save_file(state, every[-1])
    interrupted(every, target, stop=6, method="iso_c")
    with pytest.raises(CheckpointError, match=r"layers\.0\.weight   a: 1 NaN"):
        merge(every, target, "iso_c")
    assert not target.exists()


def test_what_could_not_be_synced_is_not_noted(models, target, journal, monkeypatch):
    broken = []

    def failing(file: int) -> None:
        broken.append(file)
        raise OSError(errno.EIO, "Input/output error")

    interrupted(models, target, stop=4)
    before = journal.read_bytes()
    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(CheckpointError, match=r"o\.safetensors was not written: Input/output"):
        merge(models, target)
    monkeypatch.undo()
    assert broken
    assert journal.read_bytes() == before
    assert len(merge(models, target)) == 16


def test_two_writers_of_one_target_do_not_meet(models, target, expected):
    refused = []

    def meanwhile(*_) -> None:
        if not refused:
            refused.append("")
            with pytest.raises(OutputExists, match="Another process is writing"):
                merge(models, target)

    job = planned(models[1:], "karcher", base=models[0])
    limits = Limits(threads=1, block=BLOCK)
    merge_to_files(job.arithmetic(), Destination(target, {}), limits=limits, progress=meanwhile)
    assert refused
    assert digest(target) == expected


def test_a_lock_on_a_journal_that_was_removed_meanwhile_does_not_count(tmp_path, monkeypatch):
    path = tmp_path / "journal"
    flock = fcntl.flock

    def late(file: int, operation: int) -> None:
        monkeypatch.undo()
        path.unlink()
        path.touch()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    ours = Journal(path, "ours", 1)
    ours.lock()
    ours.begin()
    assert b"ours" in path.read_bytes()
    with pytest.raises(OutputExists):
        Journal(path, "third", 1).lock()
    ours.close()


@pytest.mark.parametrize("reason", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_will_do(models, target, expected, monkeypatch, reason):
    def without(*_) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(fcntl, "flock", without)
    merge(models, target)
    assert digest(target) == expected


def test_a_result_that_was_finished_but_not_published_is_published(models, target, expected, monkeypatch):  # fmt: skip
    from alloykit.execution import to_files

    def killed(*_, **__) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(to_files, "publish_target", killed)
    with pytest.raises(KeyboardInterrupt):
        merge(models, target)
    monkeypatch.undo()
    assert len(merge(models, target)) <= 2
    assert digest(target) == expected
    assert names(target.parent) == ["o.safetensors"]
