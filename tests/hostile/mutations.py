"""Changes that a fuzzer makes: to bytes, to text, and to the tree that JSON or YAML spells."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

NUMBERS = (0, 1, -1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, 1e308, 0.5, -0.0)
TOKENS = (
    *(b"{", b"}", b"[", b"]", b":", b",", b'"', b"'", b"\\", b"\\u0000", b"\\ud800", b"\n", b"\t"),
    *(b"NaN", b"Infinity", b"1e999", b"-", b"null", b"true", b"\x00", b"\xff", b"\xef\xbb\xbf"),
    *(b"&a ", b"*a", b"<<: ", b"!!python/object:os.system ", b"!!binary ", b"--- ", b"? ", b"| "),
)
WORDS = (
    *("", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "c:x", "x\0y", "\x1b[2J", "\ud800"),
    *("__metadata__", "w", "n" * 5000, "é", "F32", "BF16", "F4", "dtype", "shape", "data_offsets"),
    *("weight_map", "metadata", "model-1.safetensors", "~", "null", "NaN", "1e3", "on", "0o7"),
    *("merge_method", "models", "parameters", "weight", "density", "base_model", "*", "[", "a.b"),
)


def mutated(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    """One to four changes to bytes; now and then a piece of another input."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = rng.choice(_BYTE_CHANGES)(data, others, rng)
    return data[: 1 << 16]


def _span(data: bytes, rng: Random, most: int = 64) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.randrange(1, most))


def _flip(data: bytes, _others: Sequence[bytes], rng: Random) -> bytes:
    if not data:
        return data
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _cut(data: bytes, _others: Sequence[bytes], rng: Random) -> bytes:
    start, stop = _span(data, rng)
    return data[:start] + data[stop:]


def _truncate(data: bytes, _others: Sequence[bytes], rng: Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _repeat(data: bytes, _others: Sequence[bytes], rng: Random) -> bytes:
    start, stop = _span(data, rng)
    return data[:stop] + data[start:stop] * rng.choice((1, 2, 50, 1000)) + data[stop:]


def _insert(data: bytes, _others: Sequence[bytes], rng: Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(TOKENS) * rng.choice((1, 1, 1, 2, 2000)) + data[at:]


def _overwrite(data: bytes, _others: Sequence[bytes], rng: Random) -> bytes:
    start, stop = _span(data, rng, 9)
    number = int(rng.choice(NUMBERS)) & (1 << 64) - 1
    return (
        data[:start]
        + number.to_bytes(8, rng.choice(("little", "big")))[: stop - start]
        + data[stop:]
    )


def _digits(data: bytes, _others: Sequence[bytes], rng: Random) -> bytes:
    """A number in the text becomes another one."""
    places = [at for at, byte in enumerate(data) if 48 <= byte <= 57]
    if not places:
        return data
    at = rng.choice(places)
    return data[:at] + str(rng.choice(NUMBERS)).encode() + data[at + 1 :]


def _splice(data: bytes, others: Sequence[bytes], rng: Random) -> bytes:
    other = rng.choice(others)
    start, stop = _span(other, rng, 400)
    at, end = _span(data, rng, 400)
    return data[:at] + other[start:stop] + data[rng.choice((at, end)) :]


_BYTE_CHANGES: tuple[Callable[[bytes, Sequence[bytes], Random], bytes], ...] = (
    *(_flip, _cut, _truncate, _repeat, _insert, _overwrite, _digits, _splice),
)


def restructured(tree: Any, rng: Random, depth: int = 0) -> Any:
    """The tree with one to three nodes replaced, removed, doubled or moved."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        tree = _changed(tree, rng, depth)
    return tree


def _changed(node: Any, rng: Random, depth: int) -> Any:
    inner = isinstance(node, dict | list) and len(node) > 0
    if not inner or rng.random() < 0.15:
        return _anything(rng, depth)
    if isinstance(node, list):
        node = list(node)
        at = rng.randrange(len(node))
        change = rng.randrange(5)
        if change == 0:
            del node[at]
        elif change == 1:
            node.insert(at, rng.choice(node))
        elif change == 2:
            rng.shuffle(node)
        else:
            node[at] = _changed(node[at], rng, depth + 1)
        return node
    return _changed_mapping(dict(node), rng, depth)


def _changed_mapping(node: dict[Any, Any], rng: Random, depth: int) -> dict[Any, Any]:
    key = rng.choice(list(node))
    change = rng.randrange(6)
    if change == 0:
        del node[key]
    elif change == 1:
        node[rng.choice(WORDS)] = node[key]
    elif change == 2:
        node[rng.choice(WORDS)] = node.pop(key)
    elif change == 3:
        node[rng.choice(list(node))] = node[key]
    else:
        node[key] = _changed(node[key], rng, depth + 1)
    return node


def _anything(rng: Random, depth: int) -> Any:
    kind = rng.randrange(9)
    if kind < 3:
        return rng.choice(NUMBERS)
    if kind < 5:
        return rng.choice(WORDS)
    if kind == 5:
        return rng.choice((None, True, False))
    if kind == 6 and depth < 6:
        return [_anything(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 7 and depth < 6:
        return {rng.choice(WORDS): _anything(rng, depth + 1) for _ in range(rng.randrange(4))}
    return [rng.choice(NUMBERS) for _ in range(rng.choice((1, 2, 3, 70)))]


def spelt(tree: Any, rng: Random) -> bytes:
    """The tree as JSON, sometimes with a key twice or with what JSON does not know."""
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if rng.random() < 0.1 and b", " in text:
        parts = text.split(b", ")
        parts.insert(rng.randrange(len(parts)), rng.choice(parts))
        text = b", ".join(parts)
    return text
