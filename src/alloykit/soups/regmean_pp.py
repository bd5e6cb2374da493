"""RegMean++: Gram matrices of what layers see once the layers before them are merged."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from alloykit.checkpoints.loading import load_state
from alloykit.checkpoints.memory import MemoryCheckpoint, from_module
from alloykit.data.examples import Examples
from alloykit.errors import MissingInput
from alloykit.evaluation.gram import calls_of_layers, gram_matrices
from alloykit.evaluation.predicting import unwrapped
from alloykit.execution.plan import plan_merge
from alloykit.execution.run import merge_in_memory

Progress = Callable[[str, int, int], None]


def merged_gram_matrices(
    models: Sequence[nn.Module],
    data: Sequence[Examples],
    *,
    weights: Sequence[float] | None = None,
    reduce_non_diagonal: float = 0.9,
    ridge: float = 1e-6,
    progress: Progress | None = None,
) -> list[dict[str, Tensor]]:
    """The Gram matrices that make ``regmean`` RegMean++: collected through the merged layers.

    All models are averaged first. Then, layer after layer in the order in which they are called,
    every model's examples are run through the merged model up to that layer, and its weight is
    merged by ``regmean`` with what it sees there. Merging the models by ``regmean`` with what
    this returns, and with the same parameters, gives that merged model.

    Use it in place of ``gram_matrices`` where the models differ so much that a merged layer sees
    something else than each model's own; it runs every example once per layer.

    Args:
        models: Modules of one architecture.
        data: Some hundred examples of what each model is for, in the models' order.
        weights: As in the merge; uniform by default.
        reduce_non_diagonal: As in ``regmean``.
        ridge: As in ``regmean``.
        progress: Called before every layer with (its name, layers done, layers in all).

    Returns:
        One mapping per model: name of each weight -> Gram matrix [in, in].

    Raises:
        MissingInput: Not as many data sets as models, or no linear layers.

    References:
        Nguyen, Dang, Suzuki, Nguyen: RegMean++: Enhancing Effectiveness and Generalization of
        Regression Mean for Model Merging, 2025, arXiv:2508.03121. Differs from the authors' code,
        which advances block by block of known architectures: here every layer of any architecture
        is a step, so that the layers of a block see the ones before them merged, too.
    """
    if len(models) != len(data) or not models:
        raise MissingInput(
            f"RegMean++ runs every model's own data: {len(models)} models and {len(data)} data "
            "sets were given. Give one per model, in the same order."
        )
    members = [from_module(unwrapped(m), f"{i}") for i, m in enumerate(models, start=1)]
    merged = copy.deepcopy(unwrapped(models[0])).eval()
    load_state(merged, merge_in_memory(plan_merge(members, weights=weights), members))
    calls = Counter(calls_of_layers(merged, data[0]))
    found: list[dict[str, Tensor]] = [{} for _ in models]
    for done, (layer, count) in enumerate(calls.items()):
        if progress is not None:
            progress(layer, done, len(calls))
        name = f"{layer}.weight"
        for own, examples in zip(found, data, strict=True):
            own |= gram_matrices(merged, examples, layers=[layer], stop_after=count)
        parts = [MemoryCheckpoint({name: m.read(name)}, m.id) for m in members]
        stats = {"gram": [MemoryCheckpoint({name: own[name]}, "gram") for own in found]}
        plan = plan_merge(
            parts,
            "regmean",
            {"reduce_non_diagonal": reduce_non_diagonal, "ridge": ridge},
            weights=weights,
            stats=stats,
        )
        tensor = merge_in_memory(plan, parts, stats=stats)[name]
        merged.get_parameter(name).data.copy_(tensor)
    return found
