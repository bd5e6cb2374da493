"""Pickles that would run code, and archives that lie: refused, named, and nothing ever runs."""

import argparse
import io
import os
import pickle
import zipfile

import pytest
import torch
from bad_files import Payload, flipped, repacked, saved, tensor_pickle, with_pickle

from alloykit.checkpoints.opening import open_checkpoint
from alloykit.errors import CheckpointError, UnsafeCheckpoint

W = torch.arange(4.0)
GOOD = saved({"w": W})
LEGACY = saved({"w": W}, _use_new_zipfile_serialization=False)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)


class Thing:
    pass


def local(name):
    return f"{__name__}.{name}"


UNSAFE = {
    "system in a zip": (lambda m: saved({"w": W, "x": Payload(m)}), "posix.system"),
    "eval in a zip": (lambda m: saved({"w": W, "x": Payload(m, eval)}), "builtins.eval"),
    "exec as the root": (lambda m: saved(Payload(m, exec)), "builtins.exec"),
    "system in the old form": (
        lambda m: saved({"w": W, "x": Payload(m)}, _use_new_zipfile_serialization=False),
        "posix.system",
    ),
    "bare pickle": (lambda m: pickle.dumps(Payload(m)), "posix.system"),
    "bare pickle, protocol 4": (lambda m: pickle.dumps(Payload(m), 4), "posix.system"),
    "inst opcode": (
        lambda m: with_pickle(b"(S'touch " + os.fsencode(m) + b"'\nios\nsystem\n."),
        "os.system",
    ),
    "obj opcode": (
        lambda m: with_pickle(b"(cos\nsystem\nS'touch " + os.fsencode(m) + b"'\no."),
        "os.system",
    ),
    "build with a state": (
        lambda _: with_pickle(b"\x80\x02c__main__\nX\n)\x81}S'__setstate__'\ncos\nsystem\nsb."),
        r"__main__.X, os.system",
    ),
    "attribute of an allowed module": (
        lambda _: with_pickle(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2.__globals__\n)R."),
        "_rebuild_tensor_v2.__globals__",
    ),
    "getattr": (lambda _: with_pickle(b"\x80\x02cbuiltins\ngetattr\n)R."), "builtins.getattr"),
    "torch.load again": (
        lambda _: with_pickle(b"\x80\x02ctorch.storage\n_load_from_bytes\n(C\x01xtR."),
        "_load_from_bytes",
    ),
    "python 2 names": (lambda _: with_pickle(b"c__builtin__\neval\n(S'1'\ntR."), "builtins.eval"),
    "extension registry": (lambda _: with_pickle(b"\x80\x02\x82\x07)R."), "copyreg.extension_7"),
    "code, then damage": (lambda m: with_pickle(pickle.dumps(Payload(m))[:-3]), "posix.system"),
    "under an allowed class": (
        lambda m: saved({"w": W, "a": argparse.Namespace(x=Payload(m))}),
        "posix.system",
    ),
    "as a key": (lambda _: saved({"w": W, Thing: 1}), local("Thing")),
    "an object of some class": (lambda _: saved({"w": W, "t": Thing()}), local("Thing")),
}


@pytest.mark.parametrize(("make", "name"), UNSAFE.values(), ids=UNSAFE)
@pytest.mark.parametrize("suffix", [".pth", ".bin", ".unknown"])
def test_code_is_refused_and_never_runs(tmp_path, make, name, suffix):
    marker = tmp_path / "marker"
    path = tmp_path / f"model{suffix}"
    path.write_bytes(make(marker))
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")) as caught:
        open_checkpoint(path)
    if suffix == ".pth" or path.read_bytes()[:1] in b"P\x80":
        assert isinstance(caught.value, UnsafeCheckpoint)
        assert isinstance(caught.value, PermissionError)
        assert f"model{suffix} was not loaded: it holds " in str(caught.value)
    trusted(path)
    assert not marker.exists()


def trusted(path):
    """Even a trusted pickle runs nothing; whether it holds weights is another matter."""
    try:
        open_checkpoint(path, trust_pickle=True)
    except UnsafeCheckpoint:
        pytest.fail("a trusted pickle was refused as unsafe")
    except CheckpointError:
        pass


def test_the_text_names_all_and_says_how_to_go_on(tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(saved({"w": W, "a": Payload("x", eval), "b": Payload("x", exec)}))
    with pytest.raises(UnsafeCheckpoint) as caught:
        open_checkpoint(path)
    assert str(caught.value) == (
        f"{path} was not loaded: it holds Python objects (builtins.eval, builtins.exec), and "
        "loading them can run code.\nAsk for a .safetensors file; or, if you trust whoever wrote "
        "it, pass --trust-pickle."
    )


def test_safetensors_in_name_is_never_unpickled(tmp_path):
    for content in (pickle.dumps(Payload(tmp_path / "marker")), saved({"x": Payload("m")})):
        (tmp_path / "a.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match="not a valid safetensors file"):
            open_checkpoint(tmp_path / "a.safetensors", trust_pickle=True)
    assert not (tmp_path / "marker").exists()


def test_trusted_files_give_tensors_and_ignore_the_rest(tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "a.pth"
    path.write_bytes(saved({"state_dict": {"w": W}, "config": Thing(), "evil": Payload(marker)}))
    checkpoint = open_checkpoint(path, trust_pickle=True)
    assert torch.equal(checkpoint.read("w"), W)
    assert "left out: config, evil" in checkpoint.notes[1]
    assert not marker.exists()


def test_a_placeholder_among_the_weights_is_an_error_even_when_trusted(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(saved({"state_dict": {"w": W, "layer.odd": Thing()}}))
    with pytest.raises(CheckpointError, match=rf"layer\.odd: a {local('Thing')}, not a tensor"):
        open_checkpoint(path, trust_pickle=True)


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("form", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "wrap", [lambda n: n, lambda n: {"model": n, "epoch": 1}], ids=["root", "entry"]
)
def test_a_whole_module_gets_its_own_sentence(tmp_path, trust, form, wrap):
    path = tmp_path / "net.pth"
    path.write_bytes(saved(wrap(Net()), _use_new_zipfile_serialization=form))
    error = CheckpointError if trust else UnsafeCheckpoint
    with pytest.raises(error, match=r"(?s)net\.pth.* holds a whole pickled module.*state_dict"):
        open_checkpoint(path, trust_pickle=trust)


def quantised():
    return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


def nested():
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.strided)


ODD_TENSORS = {
    "sparse": (lambda: torch.eye(2).to_sparse(), "sparse"),
    "sparse csr": (lambda: torch.eye(2).to_sparse_csr(), "sparse"),
    "quantised": (quantised, "quantised"),
    "nested": (nested, "nested"),
    "meta": (lambda: torch.empty(2, device="meta"), "without values"),
    "conjugated": (lambda: torch.ones(2, dtype=torch.complex64).conj(), "conjugated"),
    "half complex": (lambda: torch.ones(2).to(torch.complex32), "complex32"),
    "numpy": (lambda: W.numpy(), "NumPy array"),
    "expanded": (lambda: torch.ones(1).expand(1000), "spreads 1 elements over 1000"),
}


@pytest.mark.parametrize(("make", "word"), ODD_TENSORS.values(), ids=ODD_TENSORS)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_cannot_be_combined_are_named(tmp_path, make, word):
    path = tmp_path / "a.pth"
    path.write_bytes(saved({"fine": W, "odd.weight": make()}))
    with pytest.raises(CheckpointError, match=rf"(?s)a\.pth.*odd\.weight: .*{word}"):
        open_checkpoint(path)


def data_at(archive, name):
    """Where the bytes of an entry begin."""
    info = zipfile.ZipFile(io.BytesIO(archive)).getinfo(name)
    head = archive[info.header_offset :]
    lengths = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
    return info.header_offset + 30 + lengths


@pytest.mark.filterwarnings("ignore:Duplicate name")
def doubled():
    return repacked(GOOD, add=[("archive/data.pkl", b"")])


def two_indexes():
    return repacked(GOOD, add=[("other/data.pkl", b"N.")])


def overlapping():
    """A directory in which two entries claim the same bytes."""
    data = bytearray(with_pickle(tensor_pickle(), {"0": b"\0" * 16, "1": b"\0" * 16}))
    infos = {i.filename: i for i in zipfile.ZipFile(io.BytesIO(bytes(data))).infolist()}
    at = data.rindex(b"a/data/1") - 46  # its record in the central directory
    data[at + 42 : at + 46] = infos["a/data/0"].header_offset.to_bytes(4, "little")
    return bytes(data)


def encrypted():
    data = bytearray(GOOD)
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    return bytes(data)


def script():
    return repacked(GOOD, add=[("archive/constants.pkl", b"")])


BROKEN = {
    "truncated zip": (lambda: GOOD[:-30], "not a usable zip archive"),
    "half a zip": (lambda: GOOD[: len(GOOD) // 2], "not a usable zip archive"),
    "only the magic": (lambda: b"PK\x03\x04", "not a usable zip archive"),
    "compressed": (lambda: repacked(GOOD, compress=True), "compressed, which torch.save never"),
    "two indexes": (two_indexes, "2 data.pkl"),
    "no index": (lambda: repacked(GOOD, leave=("data.pkl",)), "0 data.pkl"),
    "overlapping entries": (overlapping, "(?s)overlaps|two names"),
    "encrypted": (encrypted, "encrypted"),
    "torchscript": (script, "TorchScript"),
    "big-endian": (lambda: repacked(GOOD, change={"byteorder": b"big"}), "byte order"),
    "storage missing": (lambda: repacked(GOOD, leave=("data/0",)), "w: its storage 0 is missing"),
    "storage too short": (lambda: repacked(GOOD, change={"data/0": b"\0" * 8}), "8 bytes, and 16"),
    "index flipped": (lambda: flipped(GOOD, data_at(GOOD, "archive/data.pkl") + 60), "damaged"),
    "forged numel": (lambda: with_pickle(tensor_pickle(numel=200, shape=(200,))), "800 are"),
    "view past the end": (lambda: with_pickle(tensor_pickle(offset=1)), "reaches element 4"),
    "stride past the end": (lambda: with_pickle(tensor_pickle(strides=(2,))), "reaches element 6"),
    "stride-0 bomb": (
        lambda: with_pickle(tensor_pickle(shape=(1 << 40,), strides=(0,))),
        "spreads 4 elements",
    ),
    "negative stride": (lambda: with_pickle(tensor_pickle(strides=(-1,), offset=3)), "natural"),
    "negative offset": (lambda: with_pickle(tensor_pickle(offset=-1)), "natural"),
    "negative size": (lambda: with_pickle(tensor_pickle(shape=(-4,))), "natural"),
    "boolean size": (lambda: with_pickle(tensor_pickle(shape=(True,))), "natural"),
    "huge size": (lambda: with_pickle(tensor_pickle(shape=(1 << 70,))), "natural"),
    "shape without strides": (lambda: with_pickle(tensor_pickle(strides=())), "do not fit"),
    "negative numel": (lambda: with_pickle(tensor_pickle(numel=-1)), "FloatStorage that cannot"),
    "unknown storage": (lambda: with_pickle(tensor_pickle(kind="Size")), "torch.Size"),
    "no storage": (
        lambda: with_pickle(b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n(NNNNtRs."),
        "without a storage",
    ),
    "setitem on a tensor": (
        lambda: with_pickle(tensor_pickle()[:-2] + b"NNss."),
        "TensorView",
    ),
    "build on a tensor": (lambda: with_pickle(tensor_pickle()[:-2] + b"}bs."), "TensorView"),
    "memo out of range": (lambda: with_pickle(b"\x80\x02h\x07."), "stack does not work out"),
    "stack underflow": (lambda: with_pickle(b"\x80\x02R."), "stack does not work out"),
    "no stop": (lambda: with_pickle(b"\x80\x02}"), "pickle cannot be read"),
    "unknown opcode": (lambda: with_pickle(b"\x80\x02\xff."), "pickle cannot be read"),
    "text persistent id": (lambda: with_pickle(b"Pstorage\n."), "PERSID is not allowed"),
    "persistent id of another sort": (lambda: with_pickle(b"\x80\x02K\x01Q."), "not a storage"),
    "out-of-band buffer": (lambda: with_pickle(b"\x80\x05\x97."), "NEXT_BUFFER"),
    "claims 4 GB of text": (lambda: with_pickle(b"\x80\x02X\xff\xff\xff\xff."), "cannot be read"),
    "claims 2^63 bytes": (
        lambda: with_pickle(b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f."),
        "cannot be read",
    ),
    "keyword bomb": (lambda: with_pickle(b"\x80\x02" + b"(" * 100_000 + b"."), "stack"),
    "a call of a number": (lambda: with_pickle(b"\x80\x02K\x01)R."), "not a function"),
    "storage in two ways": (
        lambda: with_pickle(
            tensor_pickle()[:-1] + tensor_pickle(name="v", kind="IntStorage")[2:-1] + b"0."
        ),
        "in two ways",
    ),
    "a list": (lambda: saved([W]), "holds a list, not a state dict"),
    "one tensor": (lambda: saved(W), "a single tensor"),
    "a number": (lambda: saved(3), "holds a int"),
    "empty dictionary": (lambda: saved({}), "no tensors"),
    "no tensors": (lambda: saved({"epoch": 3}), "no tensors"),
    "name is a number": (lambda: saved({3: W, "w": W}), "3: the name is not text"),
    "name is a surrogate": (lambda: saved({"\ud800": W}), "name is not text"),
    "nested weights": (
        lambda: saved({"state_dict": {"w": W, "ema": {"w": W}}}),
        "ema: a dictionary with tensors",
    ),
    "legacy truncated": (lambda: LEGACY[:-4], "truncated"),
    "legacy without data": (lambda: LEGACY[:-40], "(?s)storage|pickle"),
    "legacy index cut": (lambda: LEGACY[:150], "pickle cannot be read"),
    "legacy numel": (lambda: flipped(LEGACY, -24), "5 elements, 4 are claimed"),
    "legacy big-endian": (
        lambda: LEGACY.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"),
        "byte order",
    ),
    "a plain pickle": (lambda: pickle.dumps({"w": [1.0]}), "not one of torch.save"),
    "not a pickle": (lambda: b"\x80\x02 garbage garbage", "pickle cannot be read"),
    "text": (lambda: b"hello", "pickle cannot be read"),
    "empty": (lambda: b"", "pickle cannot be read"),
}


@pytest.mark.parametrize(("make", "reason"), BROKEN.values(), ids=BROKEN)
def test_broken_files(tmp_path, make, reason):
    path = tmp_path / "a.pth"
    path.write_bytes(make())
    with pytest.raises(CheckpointError, match=reason) as caught:
        open_checkpoint(path)
    assert "a.pth" in str(caught.value)
    assert not isinstance(caught.value, UnsafeCheckpoint)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_of_one_name(tmp_path):
    (tmp_path / "a.pth").write_bytes(doubled())
    with pytest.raises(CheckpointError, match=r"a\.pth.*\n  archive/data.pkl: is there 2 times"):
        open_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("window", [(0, None), (0, 1)])
def test_a_flipped_bit_is_noticed_when_read(tmp_path, window):
    path = tmp_path / "a.pth"
    path.write_bytes(flipped(GOOD, data_at(GOOD, "archive/data/0") + 9))
    checkpoint = open_checkpoint(path)
    with pytest.raises(CheckpointError, match="archive/data/0 do not match their CRC-32"):
        checkpoint.read("w", start=window[0], stop=window[1])


def test_keys_that_take_exponential_time_to_hash(tmp_path):
    layers = b"\x80\x02}K\x01" + b"2\x86" * 60 + b"Ns."
    (tmp_path / "a.pth").write_bytes(with_pickle(layers))
    with pytest.raises(CheckpointError, match="no tensors"):
        open_checkpoint(tmp_path / "a.pth")


def test_nothing_here_can_import_or_load():
    """No module of the reader mentions what could run a pickle."""
    import alloykit.checkpoints as package

    for file in os.scandir(package.__path__[0]):
        if file.name.endswith(".py"):
            with open(file.path) as source:  # noqa: PTH123
                text = source.read()
            for word in (
                "pickle.load",
                "torch.load(",
                "find_class",
                "import_module",
                "__import__(",
            ):
                assert word not in text, f"{file.name} mentions {word}"
            assert "\nimport pickle\n" not in text
            assert " eval(" not in text
            assert " exec(" not in text
