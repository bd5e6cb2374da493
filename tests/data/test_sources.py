import gzip
import struct

import numpy as np
import pytest
import torch

from alloykit.data.importing import import_object
from alloykit.data.sources import load_split
from alloykit.data.split_spec import as_slice, as_spec
from alloykit.errors import DataError

IMAGES = np.arange(4 * 6 * 5, dtype=np.uint8).reshape(4, 6, 5)

MODULE = """
import torch
from torch.utils.data import DataLoader, TensorDataset
X, Y = torch.arange(6.0)[:, None], torch.arange(6)
pair = (X, Y)
dataset = TensorDataset(X, Y)
loader = DataLoader(dataset, batch_size=2, shuffle=True)
def make(scale=1.0):
    return X * scale, Y
class Sets:
    train = pair
"""


@pytest.fixture
def folder(tmp_path):
    def idx(array):
        return (
            bytes([0, 0, 8, array.ndim])
            + struct.pack(f">{array.ndim}I", *array.shape)
            + array.tobytes()
        )

    (tmp_path / "x.gz").write_bytes(gzip.compress(idx(IMAGES)))
    (tmp_path / "y").write_bytes(idx(np.array([3, 1, 2, 0], dtype=np.uint8)))
    np.savez(
        tmp_path / "a.npz",
        x=np.arange(12.0).reshape(4, 3),
        y=np.array([0, 1, 0, 1]),
        tokens=np.arange(8).reshape(4, 2),
        photos=np.arange(4 * 5 * 6 * 3, dtype=np.uint8).reshape(4, 5, 6, 3),
    )
    return tmp_path


def inputs(examples):
    return torch.cat([x for x, _ in examples.batches()])


def test_idx_images_become_floats_with_a_channel(folder):
    examples = load_split({"images": "x.gz", "labels": "y"}, "test", folder, batch_size=3)
    found = inputs(examples)
    assert found.shape == (4, 1, 6, 5)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[:, 0], torch.from_numpy(IMAGES) / 255)
    assert examples.targets.tolist() == [3, 1, 2, 0]


def test_scale_mean_std_shape_and_rows(folder):
    spec = {
        "images": "x.gz", "labels": "y", "rows": "1:3", "scale": 0.5, "mean": 3, "std": [2],
        "shape": [30], "dtype": "float64",
    }  # fmt: skip
    examples = load_split(spec, "test", folder)
    expected = (IMAGES[1:3].reshape(2, 30) * 0.5 - 3) / 2
    assert inputs(examples).dtype == torch.float64
    np.testing.assert_allclose(inputs(examples).numpy(), expected)
    assert examples.targets.tolist() == [1, 2]


def test_npz_photos_are_turned_to_channels_first(folder):
    spec = {"npz": "a.npz", "inputs": "photos", "mean": [0, 0.5, 1], "std": [1, 2, 4]}
    raw = np.load(folder / "a.npz")["photos"].transpose(0, 3, 1, 2) / 255
    expected = (raw - np.array([0, 0.5, 1])[:, None, None]) / np.array([1, 2, 4])[:, None, None]
    np.testing.assert_allclose(
        inputs(load_split(spec, "test", folder)).numpy(), expected, atol=1e-6
    )
    kept = load_split({**spec, "mean": None, "std": None, "shape": [5, 6, 3]}, "test", folder)
    np.testing.assert_allclose(inputs(kept).numpy()[0, :, :, 0] * 255, raw[0, 0] * 255, atol=1e-4)


def test_npz_columns_tokens_and_dtypes(folder):
    plain = load_split({"npz": "a.npz"}, "test", folder)
    assert inputs(plain).dtype == torch.float32
    tokens = load_split({"npz": "a.npz", "inputs": "tokens"}, "test", folder)
    assert inputs(tokens).dtype == torch.int64
    scaled = load_split({"npz": "a.npz", "mean": [0, 1, 2]}, "test", folder)
    assert inputs(scaled)[0].tolist() == [0, 0, 0]
    half = load_split({"npz": "a.npz", "dtype": "bfloat16"}, "test", folder)
    assert inputs(half).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"npz": "a.npz", "mean": [1, 2]}, "mean has 2 numbers, and the inputs .* 3 channels"),
        ({"npz": "a.npz", "shape": [2, 2]}, r"shape \[2, 2\] has 4 numbers, and one example \[3\]"),
        ({"npz": "a.npz", "rows": "9:12"}, "rows '9:12' selects none of the 4 examples"),
        ({"npz": "a.npz", "csv": "b.csv"}, "exactly one of .*; it has npz and csv"),
        ({}, "it has none"),
        ({"npz": "a.npz", "std": 0}, "std: must be above 0"),
        ({"npz": "a.npz", "scale": float("nan")}, "scale: must be finite"),
        ({"npz": "a.npz", "shap": [3]}, "shap: there is no such key. Did you mean 'shape'"),
        ({"npz": "a.npz", "rows": "5"}, "rows: must be a slice such as '0:5000'"),
        ({"npz": "a.npz", "rows": "::-1"}, "rows: must be a slice"),
        ({"npz": "a.npz", "shape": [0]}, "shape: must be whole numbers of at least 1"),
        ({"npz": "a.npz", "color": False}, "color cannot be used with npz"),
        ({"npz": "a.npz", "classes": ["a"]}, "classes cannot be used with npz"),
        ({"images": "x.gz"}, "images needs labels"),
        ({"object": "m:pair", "scale": 2}, "scale cannot be used with object"),
        ({"npz": "a.npz", "dtype": "float8"}, "dtype: Input should be"),
    ],
)
def test_mistakes_in_a_spec(folder, spec, text):
    with pytest.raises(DataError, match=text):
        load_split(spec, "test", folder)


def test_all_mistakes_of_a_spec_are_listed():
    with pytest.raises(DataError, match=r"validation cannot be used:\n  rows.*\n  stdd.*"):
        as_spec({"npz": "a", "rows": "x", "stdd": 1}, "validation")
    with pytest.raises(DataError, match="must be a mapping"):
        as_spec("a.npz", "test")


def test_csv_and_folder_specs(folder):
    (folder / "t.csv").write_text("a,b,kind\n1,2,x\n3,4,y\n")
    examples = load_split({"csv": "t.csv", "classes": ["w", "x", "y"]}, "test", folder)
    assert inputs(examples).tolist() == [[1, 2], [3, 4]]
    assert examples.targets.tolist() == [1, 2]
    assert examples.class_names == ("w", "x", "y")
    from PIL import Image

    (folder / "pictures" / "one").mkdir(parents=True)
    Image.new("L", (4, 3), 51).save(folder / "pictures" / "one" / "a.png")
    spec = {"folder": "pictures", "color": False}
    found = inputs(load_split(spec, "test", folder))
    torch.testing.assert_close(found, torch.full((1, 1, 3, 4), 0.2))


def test_yaml_classes_may_look_like_numbers(folder):
    (folder / "t.csv").write_text("1,0\n3,1\n")
    examples = load_split({"csv": "t.csv", "classes": [1, 0]}, "test", folder)
    assert examples.targets.tolist() == [1, 0]


@pytest.mark.parametrize("name", ["pair", "dataset", "loader", "make", "Sets.train"])
def test_objects_by_import_path(tmp_path, name):
    (tmp_path / f"mine_{name[:3]}.py").write_text(MODULE)
    path = f"mine_{name[:3]}:{name}"
    examples = load_split({"object": path, "rows": "1:4"}, "test", tmp_path)
    assert examples.targets.tolist() == [1, 2, 3]
    assert inputs(examples).flatten().tolist() == [1, 2, 3]


def test_object_arguments(tmp_path):
    (tmp_path / "mine_arguments.py").write_text(MODULE)
    spec = {"object": "mine_arguments:make", "arguments": {"scale": 2.0}}
    assert inputs(load_split(spec, "test", tmp_path)).flatten().tolist() == [0, 2, 4, 6, 8, 10]
    spec = {"object": "mine_arguments:pair", "arguments": {"scale": 2.0}}
    with pytest.raises(DataError, match="is a tuple, which takes no arguments"):
        load_split(spec, "test", tmp_path)


def test_import_mistakes(tmp_path):
    (tmp_path / "needs_more.py").write_text("import not_there_at_all")
    with pytest.raises(DataError, match=r"Write package.module:name"):
        import_object("math.pi")
    with pytest.raises(DataError, match=r"has no 'squrt'. Did you mean 'sqrt'"):
        import_object("math:squrt")
    with pytest.raises(DataError, match="there is no module 'not_there'"):
        import_object("not_there.deep:x", tmp_path)
    with pytest.raises(DataError, match="needs the module 'not_there_at_all'"):
        import_object("needs_more:x", tmp_path)


def test_slices():
    assert as_slice(":5") == slice(None, 5, None)
    assert as_slice("-10::2") == slice(-10, None, 2)
    for wrong in ("5", "a:b", "1:2:3:4", "::0", ""):
        with pytest.raises(ValueError, match="must be a slice"):
            as_slice(wrong)
