from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from alloykit.data.examples import as_examples
from alloykit.errors import DataError, InvalidParameter
from alloykit.evaluation import fisher
from alloykit.evaluation.fisher import fisher_diagonal


def by_the_book(model, inputs, rows_of):
    """Σ over examples and rows of squared gradients, one backward pass each, over the count."""
    model = copy.deepcopy(model).eval()
    found = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in model.named_parameters()}
    for i in range(len(inputs)):
        for weight, row in rows_of(model(inputs[i : i + 1])[0]):
            model.zero_grad()
            row.backward(retain_graph=True)
            for name, p in model.named_parameters():
                if p.grad is not None:
                    found[name] += weight * p.grad.double().square()
    return {name: f / len(inputs) for name, f in found.items()}


def of_classes(outputs):
    logs = outputs.log_softmax(-1)
    return zip(logs.exp().tolist(), logs, strict=True)


def close(found, expected):
    assert found.keys() == expected.keys()
    for name, each in expected.items():
        torch.testing.assert_close(found[name].double(), each, rtol=2e-4, atol=1e-9, msg=name)
        assert found[name].dtype == torch.float32
        assert not found[name].requires_grad


def inputs(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Branching(nn.Module):
    """Python's if on a value, which vectorised gradients cannot follow."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.one(x) if float(x.sum()) > 0 else self.two(x)


class TiedDecoder(nn.Module):
    """Uses the weight of a layer a second time, not through the layer."""

    def __init__(self):
        super().__init__()
        self.encode, self.head = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.encode(x).relu() @ self.encode.weight)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.step, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.step(self.step(x).relu()))


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.each, self.head = nn.Linear(2, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.each(x.reshape(len(x), 2, 2)).relu().mean(1))


def networks():
    torch.manual_seed(0)
    shared = nn.Linear(4, 4)
    norm = nn.BatchNorm1d(6)
    norm.running_mean, norm.running_var = torch.randn(6), torch.rand(6) + 0.5
    return {
        "perceptron": nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3, bias=False)),
        "norms and dropout": nn.Sequential(
            nn.Linear(4, 6), norm, nn.Dropout(0.5), nn.LayerNorm(6), nn.Linear(6, 3)
        ),
        "convolution": nn.Sequential(
            nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2), nn.Flatten(), nn.Linear(3, 3)
        ),
        "one layer twice": Twice(),
        "one parameter in two layers": nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(4, 3)),
        "a weight used outside of its layer": TiedDecoder(),
        "several positions": Positions(),
        "branching": Branching(),
    }


@pytest.mark.parametrize("name", networks())
def test_it_is_the_sum_over_examples_and_classes(name):
    model, x = networks()[name], inputs(7, 4)
    found = fisher_diagonal(model, as_examples((x, torch.zeros(7)), "train", batch_size=4))
    close(found, by_the_book(model, x, of_classes))


def test_it_is_the_same_in_pieces_of_any_size(monkeypatch):
    model, x = networks()["convolution"], inputs(9, 4)
    split = as_examples((x, torch.zeros(9)), "train")
    whole = fisher_diagonal(model, split)
    monkeypatch.setattr(fisher, "GRADIENT_BYTES", 200)
    close(fisher_diagonal(model, split), {n: f.double() for n, f in whole.items()})


def test_the_square_of_a_batch_gradient_is_something_else():
    model, x = networks()["perceptron"], inputs(7, 4)
    found = fisher_diagonal(model, as_examples((x, torch.zeros(7)), "train"))
    logs = model(x).log_softmax(-1)
    (logs * (0.5 * logs.detach()).exp()).sum().backward()
    assert not torch.allclose(found["0.weight"], model[0].weight.grad.square() / 7, rtol=0.1)


def test_sampled_labels_agree_on_average():
    model, x = networks()["perceptron"], inputs(3, 4)
    many = as_examples((x.repeat(3000, 1), torch.zeros(9000)), "train", batch_size=4500)
    expected = fisher_diagonal(model, as_examples((x, torch.zeros(3)), "train"))
    found = fisher_diagonal(model, many, labels="sampled")
    for name, each in expected.items():
        torch.testing.assert_close(found[name], each, rtol=0.15, atol=0.03 * float(each.max()))


def test_sampled_labels_depend_on_the_seed_and_not_on_the_batches():
    model, x = networks()["perceptron"], inputs(40, 4)
    one, other, third = (
        fisher_diagonal(
            model,
            as_examples((x, torch.zeros(40)), "train", batch_size=size),
            labels="sampled",
            seed=seed,
        )
        for size, seed in ((40, 0), (7, 0), (40, 1))
    )
    close(one, {name: each.double() for name, each in other.items()})
    assert not torch.allclose(one["0.weight"], third["0.weight"], rtol=0.01)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(6, 4), nn.Linear(4, 6)

    def forward(self, x):
        return self.head(self.embed(x).cumsum(1).tanh())


def test_tokens_are_sampled_at_every_scored_position():
    torch.manual_seed(0)
    model, x = Tokens(), torch.tensor([[1, 2, 3], [4, 5, 1]])
    targets = torch.tensor([[2, 3, -100], [5, -100, -100]])
    many = as_examples((x.repeat(3000, 1), targets.repeat(3000, 1)), "train", batch_size=3000)
    found = fisher_diagonal(model, many, task="tokens")
    expected = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for row, position in ((0, 0), (0, 1), (1, 0)):
        for p, log in of_classes(model(x)[row, position]):
            grads = torch.autograd.grad(log, list(model.parameters()), retain_graph=True)
            for name, grad in zip(expected, grads, strict=True):
                expected[name] += p * grad.square() / 2
    for name, each in expected.items():
        torch.testing.assert_close(found[name], each, rtol=0.2, atol=0.03 * float(each.max()))
    unseen = found["embed.weight"][[0, 3]]
    assert not unseen.any(), "words that no scored position depends on have no information"


def test_of_a_regression_it_is_the_squared_gradient_of_the_outputs():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)), inputs(6, 4)
    split = as_examples((x, torch.zeros(6, 2)), "train")
    expected = by_the_book(model, x, lambda outputs: [(1.0, o) for o in outputs])
    close(fisher_diagonal(model, split, task="regression"), expected)
    many = as_examples((x.repeat(2000, 1), torch.zeros(12000, 2)), "train", batch_size=4000)
    found = fisher_diagonal(model, many, task="regression", labels="sampled")
    for name, each in expected.items():
        torch.testing.assert_close(
            found[name].double(), each, rtol=0.15, atol=0.03 * float(each.max())
        )


@pytest.mark.parametrize("squeeze", [False, True], ids=["[example, 1]", "[example]"])
def test_a_single_logit_is_two_classes(squeeze):
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 1), inputs(6, 4)
    model = nn.Sequential(layer, nn.Flatten(0)) if squeeze else nn.Sequential(layer)
    found = fisher_diagonal(model, as_examples((x, torch.zeros(6).long()), "train"))

    def rows(outputs):
        return of_classes(torch.stack([torch.zeros(()), outputs.reshape(())]))

    close(found, by_the_book(model, x, rows))


def test_probabilities_are_taken_as_such():
    torch.manual_seed(0)
    logits, x = nn.Linear(4, 3), inputs(6, 4)
    split = as_examples((x, torch.zeros(6)), "train")
    expected = fisher_diagonal(nn.Sequential(logits), split)
    found = fisher_diagonal(nn.Sequential(logits, nn.Softmax(-1)), split)
    close(found, {name: each.double() for name, each in expected.items()})


def test_inputs_may_be_named_or_many():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, a, b):
            return {"logits": self.layer(a + b)}

    torch.manual_seed(0)
    model, x = Sum(), inputs(5, 4)
    expected = fisher_diagonal(model.layer, as_examples((x, torch.zeros(5)), "train"))
    for both in ((0.25 * x, 0.75 * x), {"b": 0.25 * x, "a": 0.75 * x}):
        found = fisher_diagonal(model, as_examples((both, torch.zeros(5)), "train"))
        close(found, {f"layer.{name}": each.double() for name, each in expected.items()})


def test_the_model_is_left_as_it_was_and_may_be_wrapped():
    model = networks()["norms and dropout"].train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    found = fisher_diagonal(nn.DataParallel(model), as_examples((inputs(5, 4), [0] * 5), "train"))
    assert found.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert model.training
    assert not any(layer._forward_hooks for layer in model.modules())


def test_half_precision_is_computed_in_float32():
    model = networks()["perceptron"]
    x = inputs(5, 4)
    split = as_examples((x, [0] * 5), "train")
    rounded = copy.deepcopy(model).bfloat16()
    expected = fisher_diagonal(copy.deepcopy(rounded).float(), split)
    close(fisher_diagonal(rounded, split), {n: f.double() for n, f in expected.items()})


def test_it_tells_how_far_it_is():
    told = []
    split = as_examples((inputs(5, 4), [0] * 5), "train", batch_size=2)
    fisher_diagonal(networks()["perceptron"], split, progress=lambda *how: told.append(how))
    assert told == [("Fisher information", done, 5) for done in (2, 4, 5)]


def test_what_cannot_be_done_is_said():
    split = as_examples((inputs(5, 4), [0] * 5), "train")
    model = networks()["perceptron"]
    with pytest.raises(InvalidParameter, match="for tokens 'sampled' only"):
        fisher_diagonal(model, split, task="tokens", labels="exact")
    with pytest.raises(InvalidParameter, match="Got 'true' for classification"):
        fisher_diagonal(model, split, labels="true")
    large = as_examples((torch.full((1, 4), 1e25), [[0.0]]), "train")
    with pytest.raises(DataError, match=r"The Fisher information of 0\.weight is not finite"):
        fisher_diagonal(nn.Sequential(nn.Linear(4, 1)), large, task="regression")
