"""What each opcode of a pickle does to a stack of records; nothing is imported and nothing called.

Classes and functions are names. Calling one of the few that torch writes for tensors builds a
record of ours; calling any other gives a Placeholder. The work is bounded by the length of the
pickle: whatever a short one could use many times over is limited.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from alloykit.checkpoints.pickle_globals import (
    BUILDERS,
    Global,
    MalformedPickleError,
    Placeholder,
    StoredElements,
    is_known,
    new_mapping,
    storage_dtype,
)
from alloykit.checkpoints.wording import shown

LONGEST_NAME = 1000
"""Characters of the name of a class, its module, or a storage."""

MOST_IN_KEY = 64
"""Elements of a tuple that is the key of a dictionary."""


class Machine:
    """The stack, the marks in it, and the memo.

    Args:
        size: Bytes of the pickle.
    """

    def __init__(self, size: int) -> None:
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.unknown: dict[str, None] = {}
        self.storages: dict[str, StoredElements] = {}
        self._copies_left = size

    def pop_to_mark(self) -> list[Any]:
        """What was pushed since the last mark, which is taken away."""
        items = self.stack
        self.stack = self.outer.pop()
        return items

    def mention(self, module: Any, name: Any) -> None:
        """Push the name of a class or function, remembering those that are not known."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise MalformedPickleError("a global without a name")
        if len(module) > LONGEST_NAME or len(name) > LONGEST_NAME:
            raise MalformedPickleError(f"a global with a name of over {LONGEST_NAME} characters")
        full = f"{module.replace('__builtin__', 'builtins')}.{name}"
        if not is_known(full):
            self.unknown[full] = None
        self.stack.append(Global(full))

    def call(self, function: Any, arguments: Any) -> Any:
        """The record that a call would have built; nothing is called."""
        if isinstance(function, Placeholder):
            return Placeholder(function.name)
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise MalformedPickleError("a call of something that is not a function")
        builder = BUILDERS.get(function.name)
        if builder is None:
            return Placeholder(function.name)
        if builder is new_mapping and arguments and isinstance(arguments[0], list):
            # A short pickle could have one long list copied over and over.
            self._copies_left -= len(arguments[0])
            if self._copies_left < 0:
                raise MalformedPickleError("the same list is used over and over")
        return builder(*arguments)


Step: TypeAlias = Callable[[Machine, Any], None]
"""What an opcode does, given its argument."""


def _append(machine: Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Placeholder):
        raise MalformedPickleError(f"items added to a {type(target).__name__}")


def _set_items(machine: Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if len(items) % 2:
        raise MalformedPickleError("a key without a value")
    if isinstance(target, dict):
        target |= {_key(k): v for k, v in zip(items[::2], items[1::2], strict=True)}
    elif not isinstance(target, Placeholder):
        raise MalformedPickleError(f"entries set on a {type(target).__name__}")


def _key(value: Any) -> Any:
    """A dictionary key that is quick to hash: tuples of tuples can take exponential time."""
    if isinstance(value, str | Placeholder):
        return value
    flat = value if isinstance(value, tuple) else (value,)
    if len(flat) > MOST_IN_KEY:
        return Placeholder("key")
    plain = all(isinstance(v, str | int | float | bytes | Global | None) for v in flat)
    return value if plain else Placeholder("key")


def _build(machine: Machine, _argument: Any) -> None:
    state = machine.stack.pop()
    target = machine.stack[-1]
    if isinstance(target, Placeholder):
        target.state = state
    elif not isinstance(target, dict):  # a state dict's own attributes, such as _metadata
        raise MalformedPickleError(f"attributes set on a {type(target).__name__}")


def _reduce(machine: Machine, _argument: Any) -> None:
    arguments = machine.stack.pop()
    machine.stack.append(machine.call(machine.stack.pop(), arguments))


def _reduce_with_keywords(machine: Machine, _argument: Any) -> None:
    machine.stack.pop()
    _reduce(machine, None)


def _instance(machine: Machine, argument: str) -> None:
    arguments = tuple(machine.pop_to_mark())
    _mention_pair(machine, argument)
    machine.stack.append(machine.call(machine.stack.pop(), arguments))


def _object(machine: Machine, _argument: Any) -> None:
    function, *arguments = machine.pop_to_mark()
    machine.stack.append(machine.call(function, tuple(arguments)))


def _mention_pair(machine: Machine, argument: str) -> None:
    module, _, name = argument.partition(" ")
    machine.mention(module, name)


def _mention_popped(machine: Machine, _argument: Any) -> None:
    name = machine.stack.pop()
    machine.mention(machine.stack.pop(), name)


def _mention_extension(machine: Machine, argument: int) -> None:
    machine.mention("copyreg", f"extension_{argument}")


def _storage(machine: Machine, _argument: Any) -> None:
    """("storage", class, key, device, elements), and in old files a view of it."""
    pid = machine.stack.pop()
    fields = pid if isinstance(pid, tuple) else ()
    if len(fields) == 4 and fields[0] == "module" and isinstance(fields[1], Global):
        return machine.stack.append(fields[1])  # old files carry the source of classes along
    if len(fields) not in (5, 6) or fields[0] != "storage" or not isinstance(fields[1], Global):
        raise MalformedPickleError("a reference to something outside that is not a storage")
    _, kind, key, _device, numel, *view = fields
    dtype = storage_dtype(kind.name)
    key_ok = isinstance(key, str) and len(key) <= LONGEST_NAME
    if dtype is None or not key_ok or type(numel) is not int or not 0 <= numel < 1 << 63:
        raise MalformedPickleError(f"a storage of the class {shown(kind.name)} that cannot be")
    if view not in ([], [None]):
        raise MalformedPickleError(
            "a storage that is a view of another; save it with a newer torch"
        )
    storage = StoredElements(key, dtype, numel)
    known = machine.storages.get(key)
    if known is None:
        machine.storages[key] = storage
    elif known != storage:
        raise MalformedPickleError(f"the storage {shown(key)} is described in two ways")
    return machine.stack.append(storage)


def _pop(machine: Machine, _argument: Any) -> None:
    # As in pickle: on an empty stack POP takes the mark away.
    if machine.stack:
        machine.stack.pop()
    else:
        machine.pop_to_mark()


def _push(machine: Machine, argument: Any) -> None:
    machine.stack.append(argument)


def _memoize(machine: Machine, index: int) -> None:
    machine.memo[index] = machine.stack[-1]


def _recall(machine: Machine, index: int) -> None:
    machine.stack.append(machine.memo[index])


def _dict(machine: Machine, _argument: Any) -> None:
    items = machine.pop_to_mark()
    machine.stack.append({})
    _set_items(machine, items)


def _popped_pair(machine: Machine) -> tuple[Any, Any]:
    value = machine.stack.pop()
    return machine.stack.pop(), value


def _replace_items(machine: Machine, stand_in: Placeholder) -> None:
    machine.pop_to_mark()
    machine.stack.append(stand_in)


def _nothing(_machine: Machine, _argument: Any) -> None:
    """Framing carries no data."""


_LITERALS = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)

STEPS: dict[str, Step] = {
    **dict.fromkeys(_LITERALS, _push),
    **dict.fromkeys(("PROTO", "FRAME"), _nothing),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _memoize),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _recall),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), _mention_extension),
    "MEMOIZE": lambda m, _: _memoize(m, len(m.memo)),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "EMPTY_SET": lambda m, _: m.stack.append(Placeholder("builtins.set")),
    "POP": _pop,
    "POP_MARK": lambda m, _: m.pop_to_mark().clear(),
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "LIST": lambda m, _: _push(m, m.pop_to_mark()),
    "DICT": _dict,
    "APPEND": lambda m, _: _append(m, [m.stack.pop()]),
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
"""Name of an opcode -> what it does."""
