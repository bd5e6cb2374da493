"""Short pickles that would keep a careless reader busy for minutes, or fill the memory."""

import pickle
import time

import pytest
from bad_files import with_pickle

from alloykit.checkpoints.opening import open_checkpoint
from alloykit.errors import CheckpointError


def number(value):
    return b"J" + value.to_bytes(4, "little")


def pairs(count):
    """A list of so many pairs, remembered as 1."""
    return b"](" + b"".join(number(i) + b"N\x86" for i in range(count)) + b"eq\x01"


def long_text(size):
    return b"X" + size.to_bytes(4, "little") + b"n" * size


ORDERED = b"ccollections\nOrderedDict\nq\x02"
NESTED = b"]" * 200_000 + b"a" * 199_999  # a list in a list in a list ...
DOUBLED = b"]" + b"q\x00]h\x00ah\x00a" * 60  # a list of twice a list of twice a list ...

TIRING = {
    "one list made into many dictionaries": pairs(20_000) + ORDERED + b"0" + b"h\x02h\x01\x85R0" * 20_000,
    "keys that are long": b"(" + b"K\x01" * 30_000 + b"tq\x01}" + b"h\x01Ns" * 30_000,
    "names that are long": long_text(60_000) + b"q\x01" + b"h\x01h\x01\x93" * 30_000,
    "storages whose keys are long": long_text(60_000) + b"q\x01" + b"0h\x01" * 30_000,
    "an integer of a megabyte": b"\x8b" + (1 << 20).to_bytes(4, "little") + b"\x7f" * (1 << 20),
    "an integer of a million digits": b"I" + b"9" * 1_000_000 + b"\n",
    "nested deeply": NESTED,
    "nested deeply, as a key": b"}" + NESTED + b"Ns",
    "nested twice over": DOUBLED,
    "marks and nothing else": b"(" * 500_000,
    "sizes that are long": b"ctorch\nSize\nq\x01(" + b"K\x01" * 30_000 + b"tq\x02"
    + b"0h\x01h\x02\x85R" * 30_000,
}  # fmt: skip


@pytest.mark.parametrize("content", TIRING.values(), ids=TIRING)
@pytest.mark.parametrize("form", ["zip", "legacy", "protocol"])
def test_short_files_that_mean_much_work(tmp_path, content, form):
    """A file of a megabyte must not keep a reader busy for minutes, nor fill the memory."""
    pickled = b"\x80\x02" + content + b"."
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    if form == "zip":
        pickled = with_pickle(pickled)
    else:
        between = pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
        pickled = head + (between if form == "legacy" else b"") + pickled
    (tmp_path / "a.pth").write_bytes(pickled)
    began = time.process_time()
    with pytest.raises(CheckpointError, match=r"a\.pth") as caught:
        open_checkpoint(tmp_path / "a.pth", trust_pickle=True)
    assert time.process_time() - began < 3
    assert len(str(caught.value)) < 2000
