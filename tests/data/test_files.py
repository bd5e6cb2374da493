import gzip
import struct

import numpy as np
import pytest
from PIL import Image

from alloykit.data.csv_file import read_csv
from alloykit.data.idx_file import read_idx, read_images_and_labels
from alloykit.data.image_folder import read_image_folder
from alloykit.data.npz_split import read_npz
from alloykit.errors import DataError

IMAGES = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)


def idx(array, code=0x08):
    head = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


PACKED = gzip.compress(idx(IMAGES), mtime=0)


@pytest.mark.parametrize(
    ("code", "dtype"),
    [(8, "u1"), (9, "i1"), (0x0B, "i2"), (0x0C, "i4"), (0x0D, "f4"), (0x0E, "f8")],
)
@pytest.mark.parametrize("packed", [False, True])
def test_idx_is_read_in_every_type(tmp_path, code, dtype, packed):
    array = IMAGES.astype(dtype)
    data = idx(array, code)
    (tmp_path / "a").write_bytes(gzip.compress(data) if packed else data)
    found = read_idx(tmp_path / "a")
    assert found.dtype == array.dtype
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (idx(IMAGES)[:-1], r"announces \[4, 3, 2\] uint8 values.*24 bytes, and it holds 23 bytes"),
        (idx(IMAGES) + b"x", "it holds more"),
        (idx(IMAGES)[:9], "ends within its header"),
        (b"\x89PNG\r\n", "is not an idx file: it begins with 89 50 4e 47"),
        (b"", "begins with nothing"),
        (bytes([0, 0, 7, 1, 0, 0, 0, 0]), "is not an idx file"),
        (PACKED[:-12], "not a whole gzip file"),
        (PACKED[:-8] + b"\0" + PACKED[-7:], "not a whole gzip file .CRC check failed"),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path, data, text):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(DataError, match=text):
        read_idx(tmp_path / "a")
    with pytest.raises(DataError, match="no such file"):
        read_idx(tmp_path / "b")


def test_images_and_labels_must_fit(tmp_path):
    (tmp_path / "x").write_bytes(idx(IMAGES))
    (tmp_path / "y").write_bytes(idx(np.arange(4, dtype=np.uint8)))
    (tmp_path / "z").write_bytes(idx(np.arange(3, dtype=np.uint8)))
    assert read_images_and_labels(tmp_path / "x", tmp_path / "y")[1].tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match=r"4 images and .*z 3 labels"):
        read_images_and_labels(tmp_path / "x", tmp_path / "z")
    with pytest.raises(DataError, match="exchanged"):
        read_images_and_labels(tmp_path / "y", tmp_path / "x")


def test_npz_is_read_by_key(tmp_path):
    np.savez(tmp_path / "a.npz", x=IMAGES, y=np.arange(4)[:, None], z=np.zeros((4, 1)))
    inputs, targets = read_npz(tmp_path / "a.npz")
    np.testing.assert_array_equal(inputs, IMAGES)
    assert targets.tolist() == [0, 1, 2, 3]
    assert read_npz(tmp_path / "a.npz", targets="z")[1].shape == (4, 1)
    with pytest.raises(DataError, match=r"has no array 'X'.*It has: x, y, z"):
        read_npz(tmp_path / "a.npz", inputs="X")


def test_npz_with_objects_or_damage_is_refused(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    np.savez(tmp_path / "a.npz", x=np.array([Trap()], dtype=object), y=np.zeros(1))
    np.save(tmp_path / "b.npz", np.zeros(3))
    (tmp_path / "b.npz.npy").rename(tmp_path / "one.npz")
    np.savez(tmp_path / "c.npz", x=np.random.default_rng(0).random(100), y=np.zeros(100))
    data = (tmp_path / "c.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(data[:300])
    (tmp_path / "flipped.npz").write_bytes(data[:500] + bytes([data[500] ^ 1]) + data[501:])
    (tmp_path / "text.npz").write_text("hello")
    for name, text in {
        "a": "loading them can run code",
        "one": "holds one array and no names",
        "cut": "is damaged",
        "flipped": "is damaged",
        "text": "was not loaded",
        "missing": "no such file",
    }.items():
        with pytest.raises(DataError, match=text):
            read_npz(tmp_path / f"{name}.npz")


def table(tmp_path, text, **options):
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    return read_csv(path, **options)


def test_csv_with_a_header_and_text_targets(tmp_path):
    found = table(tmp_path, "\ufefflength,width,kind\n1,2.5,rose\n3,4,iris\n\n5,6,rose\n")
    assert found.inputs.tolist() == [[1, 2.5], [3, 4], [5, 6]]
    assert found.targets.tolist() == [1, 0, 1]
    assert found.class_names == ("iris", "rose")


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("1,2,a\n3,4,b\n", 2),
        ("0,1,kind\n3,4,5\n", 1),
        ("x,y,kind\n3,4,a\n", 1),
        ("1,2,3\n3,4,5\n", 2),
    ],
)
def test_the_header_is_found_out(tmp_path, text, rows):
    assert len(table(tmp_path, text).inputs) == rows


def test_csv_targets_by_name_position_and_type(tmp_path):
    text = "y;a;b\n1;2;3.5\n0;5;6.5\n"
    by_name = table(tmp_path, text, target="y", delimiter=";")
    assert by_name.targets.tolist() == [1, 0]
    assert by_name.targets.dtype == np.int64
    assert by_name.inputs.tolist() == [[2, 3.5], [5, 6.5]]
    last = table(tmp_path, text, delimiter=";")
    assert last.targets.tolist() == [3.5, 6.5]
    assert table(tmp_path, "1,2\n3,4\n", header=False, target=0).targets.tolist() == [1, 3]


def test_given_classes_fix_the_numbers(tmp_path):
    found = table(tmp_path, "1,b\n2,c\n", header=False, classes=["a", "b", "c"])
    assert found.targets.tolist() == [1, 2]
    assert found.class_names == ("a", "b", "c")
    with pytest.raises(DataError, match="line 2: 'c'"):
        table(tmp_path, "1,b\n2,c\n", header=False, classes=["a", "b"])


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a,b\n1,2\nx,3\n,4\n", {}, "2 cells are not numbers:\n  line 3, column a: 'x'\n  line 4"),
        ("a,b\n1,2\n1,2,3\n", {}, "line 3: 3 cells"),
        ("a;b\n1;2\n", {}, "has one column"),
        ("", {}, "has no rows"),
        ("a,b\n", {}, "a header and no rows"),
        ("a,kind\n1,2\n", {"target": "kin"}, "no column 'kin'. Did you mean 'kind'"),
        ("1,2\n1,2\n", {"target": "kind"}, "has no header"),
        ("1,2\n1,2\n", {"target": 2}, "2 columns, so there is no column 2"),
        ("a,k\n1,r\n2,\n", {}, "line 3: ''"),
    ],
)
def test_csv_mistakes_are_told_with_their_lines(tmp_path, text, options, message):
    with pytest.raises(DataError, match=message):
        table(tmp_path, text, **options)


def test_csv_files_that_are_no_text(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"a,b\n\xff\xfe,2\n")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"1,2\n3,4\n" * 99)[:-9])
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(b"1,2\n3,4\n"))
    with pytest.raises(DataError, match="not UTF-8"):
        read_csv(tmp_path / "a.csv")
    with pytest.raises(DataError, match="cannot be read"):
        read_csv(tmp_path / "b.csv.gz")
    with pytest.raises(DataError, match="no such file"):
        read_csv(tmp_path / "d.csv")
    assert len(read_csv(tmp_path / "c.csv.gz").inputs) == 2


@pytest.fixture
def pictures(tmp_path):
    for name, shade in (("dog/a.png", 10), ("cat/b.png", 200), ("cat/deep/a.png", 100)):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2), (shade, 0, shade)).save(file)
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def test_image_folders_are_read_by_sorted_class(pictures):
    images, targets, names = read_image_folder(pictures)
    assert names == ("cat", "dog")
    assert targets.tolist() == [0, 0, 1]
    assert images.shape == (3, 3, 2, 3)
    assert images[:, :, 0, 0].tolist() == [[200, 0, 200], [100, 0, 100], [10, 0, 10]]
    resized, _, _ = read_image_folder(pictures, size=(4, 6), color=False)
    assert resized.shape == (3, 1, 4, 6)


def test_image_folder_classes_may_be_given(pictures):
    _, targets, names = read_image_folder(pictures, classes=["bird", "cat", "dog"])
    assert targets.tolist() == [1, 1, 2]
    assert names == ("bird", "cat", "dog")
    with pytest.raises(DataError, match="not among the classes:\n  dog"):
        read_image_folder(pictures, classes=["cat"])


def test_image_folder_mistakes(pictures, tmp_path_factory):
    Image.new("L", (9, 9)).save(pictures / "dog" / "z.png")
    with pytest.raises(DataError, match=r"1 of 4 images are not 2 x 3 like.*\n  dog/z.png: 9 x 9"):
        read_image_folder(pictures)
    data = (pictures / "dog" / "a.png").read_bytes()
    (pictures / "dog" / "cut.png").write_bytes(data[: len(data) // 2])
    (pictures / "dog" / "text.png").write_text("hello")
    with pytest.raises(DataError, match=r"2 of 6 images cannot be read:\n  dog/cut.png"):
        read_image_folder(pictures)
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(DataError, match="no sub-folders"):
        read_image_folder(empty)
    (empty / "a").mkdir()
    with pytest.raises(DataError, match="has no images"):
        read_image_folder(empty)
    with pytest.raises(DataError, match="no such folder"):
        read_image_folder(empty / "b")
