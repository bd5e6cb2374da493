"""How broken and malicious files are made."""

import io
import json
import os
import pickle
import struct
import zipfile

import torch


def safetensors(header, data=b"", *, length=None):
    """A .safetensors file from a header (bytes, or anything JSON can say) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start=0, stop=4, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def one(**changes):
    """A header with one tensor of four bytes, changed."""
    return safetensors({"w": entry() | changes}, b"\0" * 4)


def saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def repacked(data, *, change=None, leave=(), add=(), compress=False):
    """A zip archive again, with entries changed, left out, added or compressed."""
    out = io.BytesIO()
    packing = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", packing) as new:
        for info in old.infolist():
            short = info.filename.partition("/")[2] or info.filename
            if short not in leave:
                content = old.read(info)
                new.writestr(info.filename, (change or {}).get(short, content))
        for name, content in add:
            new.writestr(name, content)
    return out.getvalue()


def with_pickle(pickled, storages=None):
    """A file of torch.save around a pickle made by hand."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/byteorder", "little")
        for key, content in (storages or {"0": b"\0" * 16}).items():
            archive.writestr(f"a/data/{key}", content)
        archive.writestr("a/version", "3\n")
    return out.getvalue()


def tensor_pickle(
    *, offset=0, shape=(4,), strides=(1,), numel=4, kind="FloatStorage", name="w", build=None
):
    """The pickle of {"w": a tensor} with fields of one's choosing."""
    build = build or "torch._utils\n_rebuild_tensor_v2"

    def literal(value):
        return pickle.dumps(value, 2)[2:-1]  # without protocol and stop

    storage = b"(" + literal("storage") + f"ctorch\n{kind}\n".encode()
    storage += literal("0") + literal("cpu") + literal(numel) + b"tQ"
    fields = storage + b"".join(map(literal, (offset, shape, strides, False))) + b"}"
    return b"\x80\x02}" + literal(name) + f"c{build}\n(".encode() + fields + b"tRs."


class Payload:
    """Runs a command where a pickle is really loaded."""

    def __init__(self, marker, function=os.system):
        self.function = function
        self.marker = marker

    def __reduce__(self):
        if self.function is os.system:
            return os.system, (f"touch {self.marker}",)
        return self.function, (f"open({str(self.marker)!r}, 'w').close()",)


def flipped(data, where):
    """One bit of one byte inverted."""
    changed = bytearray(data)
    changed[where] ^= 1
    return bytes(changed)
