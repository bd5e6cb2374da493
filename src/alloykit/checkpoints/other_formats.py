"""Files that people take for checkpoints, or that hold models in forms that cannot be merged."""

from __future__ import annotations

from alloykit.checkpoints.source_file import SourceFile

_HEAD = 64

_GGUF = (
    "a GGUF file, whose numbers are packed for llama.cpp. Merge the safetensors files that it was "
    "made from, and convert the result."
)
_POINTER = "a pointer of Git LFS, not the file itself. Fetch it with git lfs pull."
_PAGE = "a web page: the download did not work. Download the file again."
_KERAS = "a Keras file. Save the weights with numpy.savez, under the names of the tensors."

_BY_START = (
    (b"GGUF", _GGUF),
    (b"version https://git-lfs", _POINTER),
    (b"<!doctype html", _PAGE),
    (b"<html", _PAGE),
    (b"\x89HDF\r\n\x1a\n", _KERAS),
    (b"\x93NUMPY", "a NumPy array without a name. Save named arrays with numpy.savez."),
    (b"\x1f\x8b", "packed with gzip. Unpack it first."),
    (b"BZh", "packed with bzip2. Unpack it first."),
    (b"\xfd7zXZ", "packed with xz. Unpack it first."),
    (b"\x28\xb5\x2f\xfd", "packed with zstd. Unpack it first."),
    (b"7z\xbc\xaf", "a 7z archive. Unpack it first."),
)

_BY_SUFFIX = {
    ".onnx": "an ONNX graph, a program rather than named tensors. Merge the PyTorch models.",
    ".pb": "a TensorFlow graph. Save the weights with numpy.savez.",
    ".tflite": "a TensorFlow Lite model. Save the weights of the original with numpy.savez.",
    ".h5": _KERAS,
    ".keras": _KERAS,
    ".msgpack": "a Flax file. Save the weights as safetensors (safetensors.flax.save_file).",
    ".distcp": "a part of a torch distributed checkpoint. Give the folder that it lies in.",
    ".pt2": "an exported program. Save the state dict of the module instead.",
}


def other_format(file: SourceFile) -> str:
    """What a file is, and what to do instead, where it holds a model in no form that can be read.

    Files that might be checkpoints, damaged ones included, give "".

    Args:
        file: The open file; its first 64 bytes are read.
    """
    head = file.read(0, min(_HEAD, file.size))
    for start, words in _BY_START:
        if head[: len(start)].lower() == start.lower():
            return words
    return _BY_SUFFIX.get(file.path.suffix.lower(), "")


def refuse_other_formats(file: SourceFile) -> None:
    """Raise CheckpointError where ``other_format`` knows what the file is."""
    if words := other_format(file):
        file.fail(f"is {words}")
