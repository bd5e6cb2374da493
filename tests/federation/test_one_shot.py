"""Models trained apart, once: averaged, aligned, asked together, taught."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from alloykit.alignment.aligning import aligned
from alloykit.data.examples import from_arrays
from alloykit.errors import DataError, InvalidParameter, MismatchedCheckpoints, MissingInput
from alloykit.federation.one_shot import average, taught, together, trained_apart
from alloykit.federation.partitioning import dirichlet
from alloykit.training.rows import Rows
from alloykit.training.settings import Training

CENTRES = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
LOCAL = Training(epochs=15, batch_size=16, learning_rate=1e-2)
SERVER = Training(epochs=30, batch_size=32, learning_rate=1e-2)


def blobs(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    return CENTRES[labels] + torch.randn(count, 2, generator=generator), labels


def partitions() -> dict[str, Rows]:
    inputs, labels = blobs(300, 0)
    dealt = dirichlet(labels, 3, 2, concentration=0.3, least=20)
    return {name: Rows(inputs[r], labels[r]) for name, r in zip("abc", dealt, strict=True)}


def net(width: int = 16) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 3))


def accuracy(model: nn.Module) -> float:
    inputs, labels = blobs(500, 7)
    with torch.no_grad():
        return float((model(inputs).argmax(1) == labels).float().mean())


def unlabelled(count: int = 200):
    return from_arrays(blobs(count, 3)[0], torch.zeros(count, dtype=torch.long), "train")


@pytest.fixture(scope="module")
def apart() -> dict[str, nn.Module]:
    return trained_apart(net, partitions(), LOCAL, same_start=False)


@pytest.fixture(scope="module")
def alike() -> dict[str, nn.Module]:
    return trained_apart(net, partitions(), LOCAL)


def test_clients_are_trained_from_one_start_or_each_from_its_own():
    parts = partitions()
    start = net()
    before = copy.deepcopy(start.state_dict())
    brief = Training(epochs=1, batch_size=1000, learning_rate=1e-4, optimizer="sgd")
    same = trained_apart(start, parts, brief)
    other = trained_apart(start, dict(reversed(parts.items())), brief, same_start=False)
    for model in same.values():
        torch.testing.assert_close(model[0].weight.detach(), before["0.weight"], rtol=0, atol=1e-3)
    assert all(torch.equal(t, before[n]) for n, t in start.state_dict().items())
    assert not torch.allclose(other["a"][0].weight, other["b"][0].weight, atol=0.1)
    again = trained_apart(start, parts, brief, same_start=False)
    assert all(torch.equal(other[n][0].weight, again[n][0].weight) for n in "abc")


def test_the_average_is_that_of_the_weights(alike):
    counts = {"a": 100, "b": 60, "c": 40}
    found = average(alike, num_examples=counts)
    for name, tensor in found.state_dict().items():
        wanted = sum(alike[c].state_dict()[name].double() * n / 200 for c, n in counts.items())
        torch.testing.assert_close(tensor, wanted.float(), rtol=1e-6, atol=1e-7)
    middle = average(alike, method="median").state_dict()["0.bias"]
    each = torch.stack([alike[c].state_dict()["0.bias"] for c in "abc"])
    torch.testing.assert_close(middle, each.median(0).values)


def test_aligned_units_are_averaged_with_their_like(apart):
    """A model and a copy of it with its units in another order: aligned, their mean is itself."""
    model, order = apart["a"], torch.randperm(16, generator=torch.Generator().manual_seed(0))
    turned = copy.deepcopy(model)
    with torch.no_grad():
        turned[0].weight.copy_(model[0].weight[order])
        turned[0].bias.copy_(model[0].bias[order])
        turned[2].weight.copy_(model[2].weight[:, order])
    batch = blobs(8, 1)[0]
    found = average({"x": model, "y": turned}, align=lambda models: aligned(models, batch))
    torch.testing.assert_close(found(batch), model(batch), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(average({"x": model, "y": turned})(batch), model(batch), atol=0.1)


def test_the_ensemble_answers_with_the_mean_of_probabilities(apart):
    counts = {"a": 1, "b": 2, "c": 1}
    inputs, _ = blobs(20, 5)
    said = together(apart, num_examples=counts)(inputs).exp()
    wanted = sum(F.softmax(apart[c](inputs), 1) * n / 4 for c, n in counts.items())
    torch.testing.assert_close(said, wanted, rtol=1e-5, atol=1e-6)
    assert all(p.requires_grad for p in apart["a"].parameters())


def test_students_of_every_architecture_learn_what_all_say(apart):
    clients = {
        **apart,
        "wide": trained_apart(lambda: net(24), {"wide": partitions()["a"]}, LOCAL)["wide"],
    }
    best_alone = max(map(accuracy, apart.values()))
    found = taught(clients, unlabelled(), SERVER, pooling="probabilities")
    assert set(found) == {("a", "b", "c"), ("wide",)}
    ensemble = accuracy(together(clients))
    for student in found.values():
        assert accuracy(student) > ensemble - 0.05
        assert not student.training
    assert ensemble > best_alone
    again = taught(clients, unlabelled(), SERVER, pooling="probabilities")
    for names, student in found.items():
        assert all(
            map(torch.equal, student.state_dict().values(), again[names].state_dict().values())
        )


def test_a_student_of_your_own_is_copied(apart):
    mine = net(5).requires_grad_(False)
    before = copy.deepcopy(mine.state_dict())
    (found,) = taught(
        apart, unlabelled(), SERVER, students=[mine], pooling="probabilities"
    ).values()
    assert found[0].out_features == 5
    assert accuracy(found) > 0.75
    assert all(torch.equal(t, before[n]) for n, t in mine.state_dict().items())


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda c: average({}), MissingInput, "at least one client"),
        (lambda c: average(c, num_examples={"a": 1}), InvalidParameter, "These differ:\n  b\n  c"),
        (lambda c: average(c, method="fedadam"), MissingInput, "server"),
        (lambda c: together({"a": "model.pt"}), InvalidParameter, "a: a str, not a"),
        (lambda c: taught({**c, "d": nn.Linear(2, 4)}, unlabelled(), SERVER), DataError,
         r"other shapes: \[200, 3\] and \[200, 4\]"),
    ],
)  # fmt: skip
def test_mistakes(call, error, text, apart):
    with pytest.raises(error, match=text):
        call(apart)


def test_models_that_differ_have_no_average(apart):
    with pytest.raises(
        MismatchedCheckpoints, match="1 of 4 models cannot be averaged with the others:\n  d: "
    ):
        average({**apart, "d": net(5)})
