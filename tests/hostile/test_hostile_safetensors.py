"""Headers that lie: each is refused with the file's name and the reason."""

import pytest
import torch
from bad_files import entry, one, safetensors

from alloykit.checkpoints.opening import open_checkpoint
from alloykit.errors import CheckpointError

FOUR = b"\0" * 4
DEEP = b"[" * 100_000

CASES = {
    "empty": (b"", "0 bytes"),
    "seven bytes": (b"\0" * 7, "7 bytes"),
    "header of length zero": (safetensors(b""), "does not begin"),
    "header past the end": (safetensors({}, length=500), "truncated"),
    "header of 2^64-1 bytes": (safetensors({}, length=2**64 - 1), "limit"),
    "header over the limit": (safetensors({}, length=100_000_001), "limit"),
    "not json": (safetensors(b"{nonsense}"), "not valid JSON"),
    "a list": (safetensors(b"[]"), "does not begin"),
    "leading space": (safetensors(b"  {}"), "does not begin"),
    "trailing text": (safetensors(b"{} x"), "not valid JSON"),
    "not utf-8": (safetensors(b'{"\xff": 1}'), "not UTF-8"),
    "nested": (safetensors(b'{"a":' + DEEP), "nested too deeply"),
    "not a number": (safetensors(b'{"a": NaN}'), "NaN"),
    "number of 5000 digits": (safetensors(b'{"a": ' + b"9" * 5000 + b"}"), "not valid JSON"),
    "lone surrogate": (safetensors({"\ud800": entry()}, FOUR), "surrogate"),
    "name too long": (safetensors({"n" * 5000: entry()}, FOUR), "5000 characters"),
    "twice the same": (
        safetensors(
            b'{"w":%s,"w":%s}' % ((b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}',) * 2)
        ),
        "the key w is there twice",
    ),
    "twice with another dtype": (
        safetensors(
            b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"w":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}',
            FOUR,
        ),
        "the key w is there twice",
    ),
    "twice a field": (
        safetensors(b'{"w":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}}', FOUR),
        "the key dtype is there twice",
    ),
    "metadata is a list": (safetensors({"__metadata__": [], "w": entry()}, FOUR), "__metadata__"),
    "metadata holds a number": (
        safetensors({"__metadata__": {"a": 1}, "w": entry()}, FOUR),
        "__metadata__",
    ),
    "record is a list": (safetensors({"w": []}), "w: the record is not an object"),
    "unknown field": (one(extra=1), "w: unknown field extra"),
    "missing field": (safetensors({"w": {"dtype": "F32", "shape": [1]}}), "missing field data_off"),
    "unknown dtype": (one(dtype="F31"), "dtype F31 is unknown"),
    "dtype is a number": (one(dtype=4), "dtype 4 is unknown"),
    "packed dtype": (one(dtype="F4"), "less than a byte"),
    "negative size": (one(shape=[-1]), r"shape \[-1\]"),
    "size is a float": (one(shape=[1.0]), r"shape \[1.0\]"),
    "size is text": (one(shape=["1"]), "shape"),
    "size is a boolean": (one(shape=[True]), "shape"),
    "shape is a number": (one(shape=1), "shape"),
    "sizes overflow": (one(shape=[2**62, 2**62]), "takes"),
    "size of 2^63": (one(shape=[2**63, 0]), "shape"),
    "seventy dimensions": (one(shape=[1] * 70), "64"),
    "shape does not fit the bytes": (one(shape=[2]), "takes 8 bytes"),
    "offset negative": (one(data_offsets=[-4, 0]), "data_offsets"),
    "offset is a float": (one(data_offsets=[0, 4.0]), "data_offsets"),
    "offset is huge": (one(data_offsets=[0, 10**30]), "data_offsets"),
    "three offsets": (one(data_offsets=[0, 2, 4]), "data_offsets"),
    "offsets reversed": (one(data_offsets=[4, 0]), "data_offsets"),
    "overlap": (
        safetensors({"v": entry(), "w": entry(2, 6)}, b"\0" * 6),
        "w: starts at byte 2, not 4: it overlaps",
    ),
    "alias": (safetensors({"v": entry(), "w": entry()}, FOUR), "overlaps"),
    "hole": (safetensors({"v": entry(), "w": entry(8, 12)}, b"\0" * 12), "leaves a hole"),
    "hole at the start": (safetensors({"w": entry(4, 8)}, b"\0" * 8), "leaves a hole"),
    "data past the end": (safetensors({"w": entry()}, b"\0\0"), r"w: ends at byte 4 of 2"),
    "bytes after the last": (safetensors({"w": entry()}, b"\0" * 9), "5 bytes follow"),
    "no tensors": (safetensors({}), "holds no tensors"),
    "only metadata": (safetensors({"__metadata__": {"a": "b"}}), "holds no tensors"),
}


@pytest.mark.parametrize(("content", "reason"), CASES.values(), ids=CASES)
def test_bad_headers(tmp_path, content, reason):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason) as caught:
        open_checkpoint(path)
    assert "a.safetensors" in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_everything_wrong_is_listed_at_once(tmp_path):
    header = {f"t{n}": entry(dtype="X") for n in range(12)} | {"u": entry(shape=[-1])}
    (tmp_path / "a.safetensors").write_bytes(safetensors(header, FOUR))
    with pytest.raises(CheckpointError, match=r"(?s)13 records.*t0: .*t9: .*and 3 more"):
        open_checkpoint(tmp_path / "a.safetensors")


def test_control_characters_never_reach_the_terminal(tmp_path):
    header = {"\x1b[2Jgone\n": entry(dtype="X")}
    (tmp_path / "a.safetensors").write_bytes(safetensors(header, FOUR))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "a.safetensors")
    assert "\x1b" not in str(caught.value)
    assert r"\x1b[2Jgone\n: its dtype" in str(caught.value)


def test_booleans_that_are_neither_are_refused_when_read(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(
        safetensors({"flag": entry(0, 2, (2,), "BOOL")}, b"\x01\x02")
    )
    with pytest.raises(CheckpointError, match="flag is boolean but holds bytes other than 0 and 1"):
        open_checkpoint(tmp_path / "a.safetensors").read("flag")


def test_unusual_but_legal_headers_load(tmp_path):
    header = {
        "w": entry(4, 8),
        "é\n": entry(0, 4),
        "none": entry(4, 4, (0, 2**40)),
        "s": entry(8, 12, ()),
    }
    text = safetensors(header, b"\0\0\x80\x3f" * 3)
    padded = json_padded(text)
    (tmp_path / "a.safetensors").write_bytes(padded)
    checkpoint = open_checkpoint(tmp_path / "a.safetensors")
    assert checkpoint.read("é\n").item() == checkpoint.read("s").item() == 1.0
    assert checkpoint.read("none").shape == (0, 2**40)
    assert checkpoint.read("none", start=0, stop=0).dtype == torch.float32


def json_padded(content):
    """The header padded with spaces to an odd length, as the format allows."""
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    return (length + 3).to_bytes(8, "little") + header + b"   " + data
