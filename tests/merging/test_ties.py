from __future__ import annotations

import numpy as np
import pytest
import torch

from alloykit.checkpoints.memory import MemoryCheckpoint
from alloykit.errors import InvalidParameter, MissingInput
from alloykit.execution.plan import plan_merge
from alloykit.execution.run import merge_in_memory
from alloykit.execution.scanning import merge_whole
from alloykit.merging.ties import ties
from alloykit.types import TensorGroup


def merged(members, base=None, weights=None, **parameters):
    tensors = tuple(torch.as_tensor(member) for member in members)
    base = torch.zeros_like(tensors[0]) if base is None else base
    names = tuple(f"m{i}" for i in range(len(tensors)))
    weights = tuple(weights or (1.0,) * len(tensors))
    return merge_whole(ties(**parameters), TensorGroup("w", names, tensors, weights, base=base))


def by_definition(base, members, weights, density, scale, *, normalize):
    """In NumPy and float64, from the paper's equations."""
    deltas = np.stack([m - base for m in members]).reshape(len(members), -1)
    kept = max(1, round(density * deltas.shape[1]))
    for delta in deltas:
        smallest = np.sort(np.abs(delta))[-kept]
        delta[np.abs(delta) < smallest] = 0.0
    votes = deltas * np.asarray(weights)[:, None]
    agree = (np.sign(votes) == np.sign(votes.sum(0))) & (votes != 0)
    total = (votes * agree).sum(0)
    if normalize:
        heads = (np.abs(weights)[:, None] * agree).sum(0)
        total = np.divide(total, heads, out=np.zeros_like(total), where=heads > 0)
    return base + scale * total.reshape(base.shape)


@pytest.mark.parametrize("shape", [(), (1,), (33,), (6, 5), (2, 3, 4), (300, 250)])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("density", [0.05, 0.2, 0.9, 1.0])
def test_it_is_what_the_paper_says(shape, density, normalize):
    generator = np.random.default_rng(1)
    base, *members = generator.normal(size=(4, *shape))
    weights = [1.0, 0.5, -0.7]
    result = merged(
        members, torch.as_tensor(base), weights, density=density, scale=0.6, normalize=normalize
    )
    expected = by_definition(base, members, weights, density, 0.6, normalize=normalize)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_a_hand_made_case():
    members = [[4.0, -3.0, 0.2, 1.0, 0.1], [-1.0, -5.0, 0.1, 2.0, 0.0]]
    assert merged(members, density=0.6).tolist() == [4.0, -4.0, 0.0, 1.5, 0.0]


def test_the_default_is_the_authors_fifth_and_mergekits_whole():
    values = torch.arange(1.0, 11.0)
    assert merged([values]).count_nonzero() == 2
    assert merged([values], compat="mergekit").count_nonzero() == 10


def test_each_member_may_have_its_density():
    values = torch.arange(1.0, 11.0)
    result = merged([values, -100 * values], density=[0.3, 0.1])
    assert result.tolist() == [0.0] * 7 + [8.0, 9.0, -1000.0]


def test_density_zero_keeps_nothing_and_one_element_is_kept_otherwise():
    values = torch.arange(1.0, 11.0)
    assert merged([values], density=0.0).count_nonzero() == 0
    assert merged([values], density=1e-9).tolist() == [0.0] * 9 + [10.0]


def test_equal_magnitudes_at_the_threshold_are_all_kept():
    assert merged([[1.0, -2.0, 2.0, 2.0, 0.5]], density=0.4).tolist() == [0.0, -2.0, 2.0, 2.0, 0.0]


def test_mergekit_rounds_the_number_of_elements_down():
    values = torch.arange(1.0, 11.0)
    assert merged([values], density=0.29).count_nonzero() == 3
    assert merged([values], density=0.29, compat="mergekit").count_nonzero() == 2


def test_rescaling_gives_back_the_norm():
    values = torch.arange(1.0, 11.0)
    result = merged([values], density=0.2, rescale=True)
    assert result[8:].tolist() == pytest.approx([9 * 55 / 19, 10 * 55 / 19])


def test_in_the_scope_of_the_model_small_tensors_may_be_left_out():
    small, large = 0.01 * torch.ones(50), torch.arange(1.0, 51.0)
    model = MemoryCheckpoint({"small": small, "large": large}, id="a")
    base = MemoryCheckpoint({"small": torch.zeros(50), "large": torch.zeros(50)}, id="base")

    def run(scope):
        parameters = {"density": 0.2, "scope": scope}
        return merge_in_memory(plan_merge([model], "ties", parameters, base=base), [model], base)

    assert {name: int(t.count_nonzero()) for name, t in run("model").items()} == {
        "small": 0,
        "large": 20,
    }
    assert {name: int(t.count_nonzero()) for name, t in run("tensor").items()} == {
        "small": 50,
        "large": 10,
    }


def test_a_model_of_two_precisions_has_one_threshold():
    wide = torch.linspace(1.0, 2.0, 40, dtype=torch.float64)
    model = MemoryCheckpoint({"narrow": wide.float(), "wide": wide}, id="a")
    base = MemoryCheckpoint({"narrow": torch.zeros(40), "wide": torch.zeros(40).double()}, id="b")
    plan = plan_merge([model], "ties", {"density": 0.5, "scope": "model"}, base=base)
    counts = {n: int(t.count_nonzero()) for n, t in merge_in_memory(plan, [model], base).items()}
    assert counts == {"narrow": 20, "wide": 20}


def test_everything_kept_needs_no_survey():
    assert ties(density=1.0).survey is None
    assert ties(density=[1.0, 0.5]).survey is not None
    assert ties(scope="model").scope == "model"


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"density": 20}, r"'density' parameter of ties must be a number in \[0, 1\]\. Got 20"),
        ({"scale": float("nan")}, "'scale' parameter of ties must be a finite number"),
        ({"scope": "modell"}, "Did you mean 'model'"),
        ({"compat": "peft"}, "'compat' parameter of ties must be 'mergekit' or None"),
    ],
)
def test_parameters_out_of_range(parameters, text):
    with pytest.raises(InvalidParameter, match=text):
        ties(**parameters)


def test_without_a_base_it_says_what_to_pass():
    group = TensorGroup("w", ("a",), (torch.ones(1),), (1.0,))
    with pytest.raises(MissingInput, match=r"no base was given\. Pass base="):
        ties(density=1.0).merge(group, None)


def test_its_contract():
    method = ties()
    assert method.needs == {"base"}
    assert method.weights == "factors"
    assert method.per_member == {"density"}
    assert not method.ordered
