import io
import itertools
import json
import pickle
import resource
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from bad_files import Payload
from dcp_samples import cut, dcp_folder, grid
from torch.distributed.checkpoint.metadata import MetadataIndex

import alloykit
from alloykit.checkpoints import chunked_region
from alloykit.checkpoints.digests import content_digest, file_digest
from alloykit.checkpoints.opening import open_checkpoint
from alloykit.checkpoints.source_file import SourceFile
from alloykit.errors import CheckpointError, UnsafeCheckpoint

W = torch.arange(12.0).reshape(3, 4)


def saved(folder, content):
    """Written by torch itself, in one process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(content, checkpoint_id=folder, no_dist=True)
    return folder


def trained():
    """A model of two parameter groups with an optimizer's state, as people save them."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)).bfloat16()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 4, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    return model.state_dict(), optimizer.state_dict()


def test_what_torch_writes(tmp_path):
    state, optimizer = trained()
    folder = saved(tmp_path / "run", {"model": state, "optimizer": optimizer, "step": 3})
    checkpoint = open_checkpoint(folder)
    assert checkpoint.id == "run"
    assert checkpoint.notes == ("read from the entry model", "left out: optimizer, step")
    specs = checkpoint.specs()
    assert {n: (s.shape, s.dtype) for n, s in specs.items()} == {
        name: (tuple(t.shape), t.dtype) for name, t in state.items()
    }
    assert specs["1.num_batches_tracked"].shape == ()
    for name, tensor in state.items():
        assert torch.equal(checkpoint.read(name), tensor)
    assert torch.equal(
        checkpoint.read("0.weight", start=5, stop=9), state["0.weight"].view(-1)[5:9]
    )
    assert content_digest(checkpoint) == content_digest(open_checkpoint(state))
    assert file_digest(folder) != file_digest(saved(tmp_path / "other", {"model": {"w": W}}))


def test_a_state_dict_at_the_root(tmp_path):
    checkpoint = open_checkpoint(saved(tmp_path / "a", {"model.layers.0.w": W, "b": W[0]}))
    assert set(checkpoint.specs()) == {"model.layers.0.w", "b"}
    assert torch.equal(checkpoint.read("model.layers.0.w"), W)


def test_nested_dictionaries_are_flattened(tmp_path):
    content = {"model": {"encoder": {"w": W, "heads": [W[0], W[1]]}, "b": W[2]}}
    checkpoint = open_checkpoint(saved(tmp_path / "a", content))
    assert set(checkpoint.specs()) == {"encoder.w", "encoder.heads.0", "encoder.heads.1", "b"}
    assert torch.equal(checkpoint.read("encoder.heads.1"), W[1])


def test_an_entry_can_be_named(tmp_path):
    folder = saved(tmp_path / "a", {"model": {"w": W}, "ema": {"w": W + 1, "deep": {"v": W}}})
    assert torch.equal(open_checkpoint(f"{folder}#ema").read("w"), W + 1)
    assert set(open_checkpoint(f"{folder}#ema").specs()) == {"w", "deep.v"}
    assert set(open_checkpoint(f"{folder}#ema.deep").specs()) == {"v"}
    with pytest.raises(CheckpointError, match="no entry 'emma'"):
        open_checkpoint(f"{folder}#emma")


def test_the_model_inside_an_application_is_found(tmp_path):
    content = {"app": {"model": {"w": W}, "optim": {"state": {"w": {"exp_avg": W}}}}}
    checkpoint = open_checkpoint(saved(tmp_path / "a", content))
    assert list(checkpoint.specs()) == ["w"]
    assert checkpoint.notes[0] == "read from the entry app.model"


def test_several_candidates_must_be_named(tmp_path):
    folder = saved(tmp_path / "a", {"model": {"w": W}, "state_dict": {"w": W}})
    with pytest.raises(CheckpointError, match=rf"(?s){folder}#model.*{folder}#state_dict"):
        open_checkpoint(folder)


SHAPES = [
    ((12,), (5,)),
    ((7, 6), (3, 1)),
    ((7, 6), (1, 4)),
    ((7, 6), (3, 2)),
    ((5, 4, 6), (2, 1, 1)),
    ((5, 4, 6), (1, 3, 1)),
    ((5, 4, 6), (1, 1, 2)),
    ((5, 4, 6), (2, 2, 3)),
    ((2, 3, 4, 5), (1, 3, 1, 2)),
    ((2, 3, 4, 5), (2, 1, 2, 1)),
    ((3, 4), (5, 1)),  # more ranks than rows: empty chunks
    ((1, 9), (1, 3)),
    ((), ()),
    ((0, 4), (2, 1)),
]


@pytest.mark.parametrize(("shape", "parts"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_chunks_read_as_one_tensor(tmp_path, shape, parts, dtype):
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randint(-9, 9, shape, generator=generator).to(dtype)
    folder = dcp_folder(tmp_path / "a", {"w": tensor}, parts={"w": parts}, ranks=3)
    checkpoint = open_checkpoint(folder)
    assert torch.equal(checkpoint.read("w"), tensor)
    flat = tensor.reshape(-1)
    for start, stop in itertools.combinations_with_replacement(range(tensor.numel() + 1), 2):
        if (start * 7 + stop) % 11 == 0:
            found = checkpoint.read("w", start=start, stop=stop)
            assert torch.equal(found, flat[start:stop]), (start, stop)


def test_the_samples_are_what_torch_reads(tmp_path):
    """The hand-made folders are genuine: torch's own reader gives the same tensors."""
    tensors = {"w": torch.randn(7, 6), "b": torch.randn(5).bfloat16()}
    folder = dcp_folder(tmp_path / "a", tensors, parts={"w": (3, 2), "b": (2,)})
    loaded = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(loaded, checkpoint_id=folder, no_dist=True)
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor)


def test_only_the_chunks_that_are_asked_for_are_read(tmp_path, monkeypatch):
    tensor = torch.arange(1 << 16, dtype=torch.float32).reshape(1 << 8, 1 << 8)
    folder = dcp_folder(tmp_path / "a", {"w": tensor}, parts={"w": (8, 1)})
    opened = []
    monkeypatch.setattr(
        chunked_region.Chunk,
        "record",
        property(lambda chunk: opened.append(chunk.offsets) or chunk.open()),
    )
    checkpoint = open_checkpoint(folder)
    assert opened == []
    found = checkpoint.read("w", start=33 * 256, stop=33 * 256 + 3)
    assert found.tolist() == [8448.0, 8449.0, 8450.0]
    assert opened == [(32, 0)]


def test_a_block_costs_what_it_holds_even_where_rows_are_long(tmp_path, monkeypatch):
    """[experts, rows, columns] cut over the experts: a small range does not fetch a whole expert."""
    tensor = torch.arange(1 << 18, dtype=torch.float32).reshape(2, 512, 256)
    options = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        folder = dcp_folder(tmp_path / "a", {"w": tensor}, parts={"w": (2, 1, 1)})
    finally:
        torch.serialization.set_crc32_options(options)
    checkpoint = open_checkpoint(folder)
    checkpoint.read("w", start=0, stop=1)
    read, spans = SourceFile.read_tensor, []
    monkeypatch.setattr(
        SourceFile, "read_tensor", lambda f, a, b: spans.append(b - a) or read(f, a, b)
    )
    assert checkpoint.read("w", start=1000, stop=1003).tolist() == [1000.0, 1001.0, 1002.0]
    assert spans == [12]


def test_replicas_count_once(tmp_path):
    def doubled(metadata):
        entry = metadata.state_dict_metadata["w"]
        entry.chunks.extend(list(entry.chunks))

    folder = dcp_folder(tmp_path / "a", {"w": W}, parts={"w": (3, 1)}, change=doubled)
    assert torch.equal(open_checkpoint(folder).read("w"), W)


def test_chunks_may_be_stored_column_first(tmp_path):
    folder = dcp_folder(tmp_path / "a", {"w": W.t().contiguous()}, parts={"w": (2, 1)})
    # A parameter that is a transposed view is saved with the strides that it has.
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    out = io.BytesIO()
    for index, info in metadata.storage_data.items():
        part = torch.empty(3, 2).t()
        part.copy_(cut(W.t(), index.offset, (2, 3)))
        info.relative_path, info.offset = "__0_0.distcp", out.tell()
        torch.save(part, out)
        info.length = out.tell() - info.offset
    (folder / "__0_0.distcp").write_bytes(out.getvalue())
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    assert torch.equal(open_checkpoint(folder).read("w"), W.t())


def test_wrappers_and_prefixes_are_taken_off_as_elsewhere(tmp_path):
    folder = dcp_folder(tmp_path / "a", {"module.w": W, "module.b": W[0]})
    assert list(open_checkpoint(folder).specs()) == ["w", "b"]


def lost_chunk(metadata):
    metadata.state_dict_metadata["w"].chunks.pop()


def no_chunks(metadata):
    metadata.state_dict_metadata["w"].chunks.clear()


def overlapping(metadata):
    metadata.state_dict_metadata["w"].chunks[0].sizes = torch.Size([3, 4])


def out_of_bounds(metadata):
    metadata.state_dict_metadata["w"].chunks[1].sizes = torch.Size([2, 4])


def other_dimensions(metadata):
    metadata.state_dict_metadata["w"].chunks[0].offsets = torch.Size([0])


def not_stored(metadata):
    metadata.storage_data.pop(MetadataIndex("w", torch.Size([2, 0])))


def transformed(metadata):
    for info in metadata.storage_data.values():
        info.transform_descriptors = ["stream.zstd/1"]


def elsewhere(metadata):
    for info in metadata.storage_data.values():
        info.relative_path = f"../{info.relative_path}"


def gone(metadata):
    for info in metadata.storage_data.values():
        info.relative_path = "__9_0.distcp"


def too_long(metadata):
    for info in metadata.storage_data.values():
        info.length = 10**9


def huge(metadata):
    metadata.state_dict_metadata["w"].size = torch.Size([2**62, 2**62])


def text_shape(metadata):
    metadata.state_dict_metadata["w"].size = ("3", "4")


def odd_dtype(metadata):
    metadata.state_dict_metadata["w"].properties.dtype = torch.complex32


def no_dtype(metadata):
    metadata.state_dict_metadata["w"].properties = None


def only_bytes(metadata):
    metadata.state_dict_metadata.pop("w")


BROKEN = {
    "a chunk is lost": (lost_chunk, "w: 1 of its 2 chunks|no place there"),
    "no chunks": (no_chunks, "w: none of its chunks is there"),
    "chunks overlap": (overlapping, r"w: a chunk of \[3, 4\] at \[0, 0\] has no place there"),
    "a chunk out of bounds": (out_of_bounds, r"w: a chunk of \[2, 4\] at \[2, 0\] has no place"),
    "other dimensions": (other_dimensions, "w: .*(dimensions|not stored)"),
    "a chunk is not stored": (not_stored, r"w: its chunk at \[2, 0\] is not stored"),
    "stored transformed": (transformed, "w: .*stored transformed"),
    "in another folder": (elsewhere, "w: its file ../__0_0.distcp leaves the folder"),
    "file missing": (gone, "w: .*__9_0.distcp cannot be opened"),
    "past the end of the file": (too_long, "w: .*__0_0.distcp has .* bytes; a part of it"),
    "shape overflows": (huge, "w: a chunk"),
    "shape of text": (text_shape, "w: its shape.* not described by natural numbers"),
    "unusual dtype": (odd_dtype, "w: its dtype torch.complex32 is not supported"),
    "no dtype": (no_dtype, "w: its dtype nothing"),
    "no tensors": (only_bytes, "holds no tensors"),
}


@pytest.mark.parametrize(("change", "reason"), BROKEN.values(), ids=BROKEN)
def test_indexes_that_lie_are_refused(tmp_path, change, reason):
    folder = dcp_folder(
        tmp_path / "a", {"w": W}, parts={"w": (2, 1)}, others=["step"], change=change
    )
    with pytest.raises(CheckpointError, match=rf"(?s)a.*{reason}"):
        open_checkpoint(folder)


def test_a_hole_in_the_grid_is_refused(tmp_path):
    folder = dcp_folder(tmp_path / "a", {"w": W}, parts={"w": (2, 2)}, change=lost_chunk)
    with pytest.raises(CheckpointError, match="w: 3 of its 4 chunks are there"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "paths",
    [
        {"w": ("model", "x"), "v": ("model", "x")},
        {"w": ("model", "x.y"), "v": ("model", "x", "y")},
        {"w": ("model",), "v": ("model", "x")},
    ],
)
def test_two_tensors_of_one_name_are_refused(tmp_path, paths):
    folder = dcp_folder(tmp_path / "a", {"w": W, "v": W}, paths=paths)
    with pytest.raises(CheckpointError, match="a: v has the name of another entry"):
        open_checkpoint(folder)


def test_what_is_no_index(tmp_path):
    (tmp_path / "a").mkdir()
    for content, reason in (
        (b"", "pickle cannot be read"),
        (pickle.dumps({"w": 1}), "not what torch.distributed.checkpoint writes"),
        (pickle.dumps([1]), "not what torch.distributed.checkpoint writes"),
    ):
        (tmp_path / "a" / ".metadata").write_bytes(content)
        with pytest.raises(CheckpointError, match=reason):
            open_checkpoint(tmp_path / "a")


@pytest.mark.parametrize("trust", [False, True])
def test_code_in_the_index_never_runs(tmp_path, trust):
    marker = tmp_path / "marker"

    def infected(metadata):
        metadata.planner_data = {"w": ("w",), "x": Payload(marker)}

    folder = dcp_folder(tmp_path / "a", {"w": W}, change=infected)
    if trust:
        assert torch.equal(open_checkpoint(folder, trust_pickle=True).read("w"), W)
    else:
        with pytest.raises(UnsafeCheckpoint, match=r"\.metadata was not loaded.*posix\.system"):
            open_checkpoint(folder)
    assert not marker.exists()


def test_code_in_a_chunk_never_runs(tmp_path):
    marker = tmp_path / "marker"
    folder = dcp_folder(tmp_path / "a", {"w": W})
    data = io.BytesIO()
    torch.save(Payload(marker), data)
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    next(iter(metadata.storage_data.values())).length = len(data.getvalue())
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    (folder / "__0_0.distcp").write_bytes(data.getvalue())
    with pytest.raises(UnsafeCheckpoint, match=r"__0_0\.distcp \(bytes 0 to \d+\) was not loaded"):
        open_checkpoint(folder).read("w")
    assert not marker.exists()


def test_a_chunk_that_is_not_what_the_index_says(tmp_path):
    folder = dcp_folder(tmp_path / "a", {"w": W, "v": W.double()})
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    v, w = (metadata.storage_data[MetadataIndex(n, torch.Size([0, 0]))] for n in "vw")
    v.offset, v.length = w.offset, w.length
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(
        CheckpointError, match=r"float32 \[3, 4\], and .metadata says torch.float64"
    ):
        open_checkpoint(folder).read("v")


def test_a_flipped_bit_is_noticed_when_read(tmp_path):
    folder = dcp_folder(tmp_path / "a", {"w": torch.zeros(1000)})
    data = bytearray((folder / "__0_0.distcp").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "__0_0.distcp").write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp.*do not match their CRC-32"):
        open_checkpoint(folder).read("w", start=3, stop=5)


def test_more_files_than_a_process_may_open_at_first(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    folder = dcp_folder(tmp_path / "a", {"w": torch.arange(100.0)}, parts={"w": (100,)}, ranks=100)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len([*Path("/proc/self/fd").iterdir()]) + 20, hard))
    try:
        assert open_checkpoint(folder).read("w").tolist() == list(range(100))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_grid_of_the_samples():
    assert grid((5,), (2,)) == [((0,), (3,)), ((3,), (2,))]
    assert len(grid((3, 4), (2, 2))) == 4


def test_it_merges_with_checkpoints_of_other_kinds(tmp_path):
    tensors = {"w": torch.arange(60_000.0).reshape(300, 200), "b": torch.ones(7).bfloat16()}
    folder = dcp_folder(tmp_path / "a", tensors, parts={"w": (3, 2)})
    torch.save({name: tensor * 3 for name, tensor in tensors.items()}, tmp_path / "b.pth")
    output = tmp_path / "out.safetensors"
    alloykit.merge([folder, tmp_path / "b.pth"], output=output)
    merged = open_checkpoint(output)
    assert torch.equal(merged.read("w"), tensors["w"] * 2)
    assert torch.equal(merged.read("b"), tensors["b"] * 2)
    assert set(json.loads(merged.metadata["inputs"])) == {"a", "b"}
