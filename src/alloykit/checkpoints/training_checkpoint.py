"""Where the weights lie in what torch.save was given: a state dict, or a training checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alloykit.checkpoints.pickle_globals import Placeholder, TensorView, Unsupported, is_known
from alloykit.checkpoints.strict_json import encodable
from alloykit.checkpoints.wording import shown
from alloykit.errors import CheckpointError, did_you_mean, listing

USUAL_KEYS = ("state_dict", "model_state_dict", "model")
ROOT = "."
LONGEST_NOTE = 8


@dataclass(frozen=True)
class Weights:
    """The state dict found in a file.

    Attributes:
        tensors: Name -> view of a storage.
        notes: Where it was found, and what beside it was left out.
    """

    tensors: Mapping[str, TensorView]
    notes: tuple[str, ...]


def find_weights(file: str, root: Any, key: str | None) -> Weights:
    """The one state dict in the root of a pickle.

    Args:
        file: Name of the file, for messages.
        root: What the pickle holds, as records.
        key: The entry that the user named ("." is the root itself), or None to look for it.

    Raises:
        CheckpointError: None or several could be meant, or entries are not dense tensors.
    """
    if is_module(root):
        raise CheckpointError(f"{file} holds {WHOLE_MODULE}")
    if not isinstance(root, dict):
        what = "a single tensor" if _is_tensor(root) else f"a {_kind(root)}"
        raise CheckpointError(f"{file} holds {what}, not a state dict. Save model.state_dict().")
    chosen = key if key is not None else _choose(file, root)
    if chosen == ROOT:
        return Weights(_tensors(file, root, at_root=True), _left_out(root, root))
    if chosen not in root:
        known = [k for k in root if isinstance(k, str)]
        raise CheckpointError(
            f"{file} has no entry {shown(chosen)!r}.{did_you_mean(chosen, known)} "
            f"It has: {', '.join(map(shown, known)) or 'none'}."
        )
    found = root[chosen]
    if is_module(found):
        raise CheckpointError(f"{file}#{shown(chosen)} holds {WHOLE_MODULE}")
    if not isinstance(found, dict):
        raise CheckpointError(f"{file}#{shown(chosen)} is a {_kind(found)}, not a state dict.")
    tensors = _tensors(f"{file}#{shown(chosen)}", found, at_root=False)
    return Weights(tensors, (f"read from the entry {shown(chosen)}", *_left_out(root, found)))


def holds_module(root: Any) -> bool:
    """Whether a pickled nn.Module is the root or one of the usual entries."""
    entries = map(root.get, USUAL_KEYS) if isinstance(root, dict) else ()
    return is_module(root) or any(map(is_module, entries))


def is_module(value: Any) -> bool:
    """Whether a placeholder stands for a pickled nn.Module."""
    state = value.state if isinstance(value, Placeholder) else None
    return isinstance(state, dict) and {"_parameters", "_modules"} <= state.keys()


WHOLE_MODULE = (
    "a whole pickled module, which needs its code to be loaded. "
    "Load it where that code is, and save its weights: torch.save(model.state_dict(), path)."
)


def _choose(file: str, root: Mapping[Any, Any]) -> str:
    """The key of the state dict: a usual one, or the root; an error where that is not clear."""
    usual = [key for key in USUAL_KEYS if _holds_tensors(root.get(key))]
    at_root = [name for name, value in root.items() if _is_tensor(value)]
    # A loss or a step counter beside the state dict is not a second set of weights.
    own = [n for n in at_root if not isinstance(root[n], TensorView) or len(root[n].shape) > 0]
    if len(usual) == 1 and not own:
        return usual[0]
    if not usual and at_root:
        return ROOT
    module = next((key for key in USUAL_KEYS if is_module(root.get(key))), None)
    if module:
        return module
    raise CheckpointError(_unclear(file, root, bool(own)))


def _unclear(file: str, root: Mapping[Any, Any], own: bool) -> str:
    found = [key for key, value in root.items() if isinstance(key, str) and _holds_tensors(value)]
    found += [ROOT] if own else []
    if not found:
        return f"{file} holds no tensors: neither at its root nor under {', '.join(USUAL_KEYS)}."
    lines = [f"{file}#{shown(key)}" for key in found]
    return f"{file} holds several things. Say which one are the weights:\n{listing(lines)}"


def _tensors(file: str, entries: Mapping[Any, Any], *, at_root: bool) -> dict[str, TensorView]:
    wrong = []
    tensors = {}
    for name, value in entries.items():
        if isinstance(value, TensorView) and isinstance(name, str) and encodable(name):
            tensors[name] = value
        elif complaint := _complaint(name, value, at_root):
            wrong.append(f"{shown(name)}: {complaint}")
    if wrong:
        raise CheckpointError(
            f"{file} holds entries that are not dense, named tensors:\n{listing(wrong)}\n"
            "Save a state dict with plain tensors."
        )
    if not tensors:
        raise CheckpointError(f"{file} holds no tensors.")
    return tensors


def _complaint(name: Any, value: Any, at_root: bool) -> str | None:
    """Why an entry cannot be left out in silence, or None where it may be."""
    if isinstance(value, Unsupported):
        return f"the tensor is {value.why}"
    if isinstance(value, TensorView):
        return "the name is not text"
    if isinstance(value, Placeholder):
        array = "numpy" in value.name and "_reconstruct" in value.name
        if array or not is_known(value.name):
            return f"a {'NumPy array' if array else shown(value.name)}, not a tensor"
    if _holds_tensors(value) and not at_root:
        return "a dictionary with tensors of its own"
    return None


def _left_out(root: Mapping[Any, Any], chosen: Mapping[Any, Any]) -> tuple[str, ...]:
    """One note on what is in the file besides the tensors."""
    beside = [] if root is chosen else [k for k, value in root.items() if value is not chosen]
    beside += [name for name, value in chosen.items() if not isinstance(value, TensorView)]
    if not beside:
        return ()
    more = f" and {len(beside) - LONGEST_NOTE} more" if len(beside) > LONGEST_NOTE else ""
    return (f"left out: {', '.join(map(shown, beside[:LONGEST_NOTE]))}{more}",)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, TensorView | Unsupported)


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(map(_is_tensor, value.values()))


def _kind(value: Any) -> str:
    return shown(value.name) if isinstance(value, Placeholder) else type(value).__name__
