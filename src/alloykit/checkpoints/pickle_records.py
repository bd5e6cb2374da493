"""An interpreter for pickles that cannot run anything: it knows no imports and makes no calls.

``pickletools`` splits the bytes into opcodes; the forty that data needs are handled here. Classes
and functions are names. Calling one of the few that torch writes for tensors builds a record of
ours; calling any other gives a Placeholder.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, TypeAlias

from alloykit.checkpoints.pickle_globals import (
    BUILDERS,
    Global,
    MalformedPickleError,
    Placeholder,
    StoredElements,
    is_known,
    storage_dtype,
)
from alloykit.checkpoints.wording import shown


@dataclass(frozen=True)
class Unpickled:
    """What a pickle holds, as records.

    Attributes:
        root: Dictionaries, lists, tuples, numbers, text, tensors' records and placeholders.
        unknown: Names it mentions that are not known to be harmless, in order.
        storages: Every storage that it refers to, by key.
        failure: Why it could not be read to its end; "" where it could.
    """

    root: Any
    unknown: tuple[str, ...]
    storages: Mapping[str, StoredElements]
    failure: str = ""


def unpickle(stream: IO[bytes]) -> Unpickled:
    """Read one pickle from ``stream`` without running anything that it asks for.

    Args:
        stream: Positioned at the pickle; left right behind it.
    """
    machine = _Machine()
    root: Any = None
    failure = ""
    try:
        for opcode, argument, _position in pickletools.genops(stream):
            if opcode.name == "STOP":
                root = machine.pop()
                break
            step = _STEPS.get(opcode.name)
            if step is None:
                raise MalformedPickleError(f"the opcode {opcode.name} is not allowed")
            step(machine, argument)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        known = isinstance(error, ValueError)
        failure = shown(str(error)) if known else "its stack does not work out"
    return Unpickled(root, tuple(machine.unknown), machine.storages, failure)


class _Machine:
    """The stack, the marks in it, and the memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.unknown: dict[str, None] = {}
        self.storages: dict[str, StoredElements] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        return self.stack.pop()

    def mark(self) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def pop_to_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.outer.pop()
        return items

    def mention(self, module: Any, name: Any) -> None:
        """Push the name of a class or function, remembering those that are not known."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise MalformedPickleError("a global without a name")
        full = f"{module.replace('__builtin__', 'builtins')}.{name}"
        if not is_known(full):
            self.unknown[full] = None
        self.push(Global(full))

    def call(self, function: Any, arguments: Any) -> Any:
        """The record that a call would have built; nothing is called."""
        if isinstance(function, Placeholder):
            return Placeholder(function.name)
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise MalformedPickleError("a call of something that is not a function")
        builder = BUILDERS.get(function.name)
        return builder(*arguments) if builder else Placeholder(function.name)


Step: TypeAlias = Callable[[_Machine, Any], None]


def _append(machine: _Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Placeholder):
        raise MalformedPickleError(f"items added to a {type(target).__name__}")


def _set_items(machine: _Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if len(items) % 2:
        raise MalformedPickleError("a key without a value")
    if isinstance(target, dict):
        target |= {_key(k): v for k, v in zip(items[::2], items[1::2], strict=True)}
    elif not isinstance(target, Placeholder):
        raise MalformedPickleError(f"entries set on a {type(target).__name__}")


def _key(value: Any) -> Any:
    """A dictionary key that is quick to hash: tuples of tuples can take exponential time."""
    flat = value if isinstance(value, tuple) else (value,)
    plain = all(isinstance(v, str | int | float | bytes | Global | None) for v in flat)
    return value if plain else Placeholder("key")


def _build(machine: _Machine, _argument: Any) -> None:
    state = machine.pop()
    target = machine.stack[-1]
    if isinstance(target, Placeholder):
        target.state = state
    elif not isinstance(target, dict):  # a state dict's own attributes, such as _metadata
        raise MalformedPickleError(f"attributes set on a {type(target).__name__}")


def _reduce(machine: _Machine, _argument: Any) -> None:
    arguments = machine.pop()
    machine.push(machine.call(machine.pop(), arguments))


def _reduce_with_keywords(machine: _Machine, _argument: Any) -> None:
    machine.pop()
    _reduce(machine, None)


def _instance(machine: _Machine, argument: str) -> None:
    arguments = tuple(machine.pop_to_mark())
    _mention_pair(machine, argument)
    machine.push(machine.call(machine.pop(), arguments))


def _object(machine: _Machine, _argument: Any) -> None:
    function, *arguments = machine.pop_to_mark()
    machine.push(machine.call(function, tuple(arguments)))


def _mention_pair(machine: _Machine, argument: str) -> None:
    module, _, name = argument.partition(" ")
    machine.mention(module, name)


def _mention_popped(machine: _Machine, _argument: Any) -> None:
    name = machine.pop()
    machine.mention(machine.pop(), name)


def _mention_extension(machine: _Machine, argument: int) -> None:
    machine.mention("copyreg", f"extension_{argument}")


def _storage(machine: _Machine, _argument: Any) -> None:
    """("storage", class, key, device, elements), and in old files a view of it."""
    pid = machine.pop()
    fields = pid if isinstance(pid, tuple) else ()
    if len(fields) == 4 and fields[0] == "module" and isinstance(fields[1], Global):
        return machine.push(fields[1])  # old files carry the source of classes along
    if len(fields) not in (5, 6) or fields[0] != "storage" or not isinstance(fields[1], Global):
        raise MalformedPickleError("a reference to something outside that is not a storage")
    _, kind, key, _device, numel, *view = fields
    dtype = storage_dtype(kind.name)
    if dtype is None or not isinstance(key, str) or type(numel) is not int or numel < 0:
        raise MalformedPickleError(f"a storage of the class {shown(kind.name)} that cannot be")
    if view not in ([], [None]):
        raise MalformedPickleError(
            "a storage that is a view of another; save it with a newer torch"
        )
    storage = StoredElements(key, dtype, numel)
    if machine.storages.setdefault(key, storage) != storage:
        raise MalformedPickleError(f"the storage {shown(key)} is described in two ways")
    return machine.push(storage)


def _text(machine: _Machine, argument: str) -> None:
    """A Python 2 string: pickletools gives Latin-1, torch writes UTF-8."""
    try:
        machine.push(argument.encode("latin-1").decode("utf-8"))
    except UnicodeError:
        machine.push(argument)


def _memoize(machine: _Machine, index: int) -> None:
    machine.memo[index] = machine.stack[-1]


def _take(count: int) -> Step:
    def step(machine: _Machine, _argument: Any) -> None:
        items = [machine.pop() for _ in range(count)]
        machine.push(tuple(reversed(items)))

    return step


def _pushing(make: Callable[[], Any]) -> Step:
    return lambda machine, _: machine.push(make())


def _dict(machine: _Machine, _argument: Any) -> None:
    items = machine.pop_to_mark()
    machine.push({})
    _set_items(machine, items)


def _pop(machine: _Machine, _argument: Any) -> None:
    # As in pickle: on an empty stack POP takes the mark away.
    if machine.stack:
        machine.pop()
    else:
        machine.pop_to_mark()


def _popped_pair(machine: _Machine) -> tuple[Any, Any]:
    value = machine.pop()
    return machine.pop(), value


def _replace_items(machine: _Machine, stand_in: Placeholder) -> None:
    machine.pop_to_mark()
    machine.push(stand_in)


def _nothing(_machine: _Machine, _argument: Any) -> None:
    """Framing carries no data."""


_LITERALS = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)

_STEPS: dict[str, Step] = {
    **dict.fromkeys(_LITERALS, _Machine.push),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _text),
    **dict.fromkeys(("PROTO", "FRAME"), _nothing),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _memoize),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, index: m.push(m.memo[index])),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), _mention_extension),
    "MEMOIZE": lambda m, _: _memoize(m, len(m.memo)),
    "NONE": _pushing(lambda: None),
    "NEWTRUE": _pushing(lambda: True),
    "NEWFALSE": _pushing(lambda: False),
    "EMPTY_TUPLE": _pushing(tuple),
    "EMPTY_LIST": _pushing(list),
    "EMPTY_DICT": _pushing(dict),
    "EMPTY_SET": _pushing(lambda: Placeholder("builtins.set")),
    "MARK": lambda m, _: m.mark(),
    "POP": _pop,
    "POP_MARK": lambda m, _: m.pop_to_mark().clear(),
    "DUP": lambda m, _: m.push(m.stack[-1]),
    "TUPLE": lambda m, _: m.push(tuple(m.pop_to_mark())),
    "TUPLE1": _take(1),
    "TUPLE2": _take(2),
    "TUPLE3": _take(3),
    "LIST": lambda m, _: m.push(m.pop_to_mark()),
    "DICT": _dict,
    "APPEND": lambda m, _: _append(m, [m.pop()]),
    "APPENDS": lambda m, _: _append(m, m.pop_to_mark()),
    "SETITEM": lambda m, _: _set_items(m, list(_popped_pair(m))),
    "SETITEMS": lambda m, _: _set_items(m, m.pop_to_mark()),
    "ADDITEMS": lambda m, _: _append(m, m.pop_to_mark()),
    "FROZENSET": lambda m, _: _replace_items(m, Placeholder("builtins.frozenset")),
    "GLOBAL": _mention_pair,
    "STACK_GLOBAL": _mention_popped,
    "INST": _instance,
    "OBJ": _object,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _reduce_with_keywords,
    "BUILD": _build,
    "BINPERSID": _storage,
}
