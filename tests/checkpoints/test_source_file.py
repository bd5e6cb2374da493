import os
import zlib

import pytest

from alloykit.checkpoints import source_file
from alloykit.checkpoints.source_file import SourceFile
from alloykit.errors import CheckpointError

CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def path(tmp_path):
    (tmp_path / "a.bin").write_bytes(CONTENT)
    return tmp_path / "a.bin"


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (0, 256_000), (5, 9), (100, 200_000)])
def test_bytes_tensors_and_checksums_are_those_of_the_file(path, start, stop):
    file = SourceFile(path)
    assert file.read(start, stop) == CONTENT[start:stop]
    assert file.read_tensor(start, stop).numpy().tobytes() == CONTENT[start:stop]
    assert file.crc32(start, stop) == zlib.crc32(CONTENT[start:stop])
    room = bytearray(stop - start)
    file.read_into(memoryview(room), start)
    assert room == CONTENT[start:stop]


def test_a_window_is_a_file_of_its_own(path):
    part = SourceFile(path).window(1000, 101_000)
    inner = part.window(10, 20)
    assert part.size == 100_000
    assert part.read(0, 5) == CONTENT[1000:1005]
    assert part.read_tensor(90_000, 100_000).numpy().tobytes() == CONTENT[91_000:101_000]
    assert inner.read(0, 10) == CONTENT[1010:1020]
    with part.stream() as stream:
        stream.seek(-7, os.SEEK_END)
        assert stream.read() == CONTENT[100_993:101_000]
    with pytest.raises(CheckpointError, match=r"a\.bin \(bytes 1000 to 101000\) has 100000 bytes"):
        part.read(0, 100_001)


@pytest.mark.parametrize(("start", "stop"), [(0, 256_001), (-1, 5), (9, 5)])
def test_what_lies_outside_is_refused(path, start, stop):
    file = SourceFile(path)
    for read in (file.read, file.read_tensor, file.window):
        with pytest.raises(CheckpointError, match=r"a\.bin has 256000 bytes"):
            read(start, stop)


def test_a_window_outlives_the_file_it_came_from(path):
    part = SourceFile(path).window(0, 4)
    assert part.read(0, 4) == CONTENT[:4]


@pytest.mark.parametrize("read", ["read", "read_tensor"])
def test_a_change_is_noticed_by_the_next_read_of_a_window_too(path, read):
    file = SourceFile(path)
    part = file.window(10, 70_000)
    os.utime(path, ns=(1, 1))
    for each in (file, part):
        for size in (4, 69_000):
            with pytest.raises(CheckpointError, match="changed while it was open"):
                getattr(each, read)(0, size)


@pytest.mark.parametrize("most", [1, 7, 1 << 30])
def test_the_system_may_read_less_than_it_was_asked_for(path, monkeypatch, most):
    monkeypatch.setattr(source_file, "MOST_AT_ONCE", most)
    assert SourceFile(path).read_tensor(3, 200).numpy().tobytes() == CONTENT[3:200]


def test_what_is_no_file_is_said_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError) as caught:
        SourceFile(tmp_path / "pipe")
    expected = "is a pipe, socket or device, and a regular file was expected."
    assert str(caught.value) == f"{tmp_path / 'pipe'} {expected}"
    with pytest.raises(CheckpointError, match=r"gone cannot be opened: No such file"):
        SourceFile(tmp_path / "gone")


def test_files_are_closed_when_nobody_needs_them(path):
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    parts = [SourceFile(path).window(0, 4) for _ in range(20)]
    assert len(os.listdir("/proc/self/fd")) == before + 20  # noqa: PTH208
    del parts
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
