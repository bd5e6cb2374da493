"""Teachers: one, several pooled in every way, with other classes; always frozen."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from alloykit.data.examples import as_examples
from alloykit.distillation.confidence import confidence_weights, pooled_by_confidence
from alloykit.distillation.features import LayerOutput, pooled_features
from alloykit.distillation.mapping import check_classes, mapped_teachers
from alloykit.distillation.teacher import Teacher, digest_of
from alloykit.ensembling.average import average
from alloykit.ensembling.module import Ensemble
from alloykit.errors import DataError, InvalidParameter, InvalidWeights, MissingInput, UnknownName

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


class Says(nn.Module):
    """Answers every example with the same probabilities."""

    def __init__(self, *probabilities):
        super().__init__()
        self.register_buffer("logs", torch.tensor(probabilities).log())

    def forward(self, x):
        return self.logs.expand(len(x), -1)


def nets(count=3, seed=0):
    torch.manual_seed(seed)
    return [
        nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)) for _ in range(count)
    ]


def test_one_teacher_gives_its_log_probabilities_and_no_gradient():
    (net,) = nets(1)
    found = Teacher(net)(X)
    assert_close(found, net.eval()(X).log_softmax(1).detach())
    assert not found.requires_grad


def test_several_teachers_are_pooled_by_their_probabilities():
    one, other = Says(0.9, 0.1), Says(0.5, 0.5)
    assert_close(Teacher([one, other])(X).exp()[0], torch.tensor([0.7, 0.3]))
    by_hand = Teacher({"a": one, "b": other}, weights={"b": 3, "a": 1})
    assert_close(by_hand(X).exp()[0], torch.tensor([0.6, 0.4]))
    assert by_hand.weights == (0.25, 0.75)


def test_weights_by_a_metric_on_validation():
    right, wrong = Says(0.8, 0.1, 0.1), Says(0.1, 0.8, 0.1)
    data = as_examples((X, torch.tensor([0, 0, 0, 0, 1, 2])), "validation")
    teacher = Teacher([right, wrong], weights="accuracy", validation=data)
    assert teacher.weights == pytest.approx((4 / 5, 1 / 5))
    with pytest.raises(MissingInput, match="Weights by accuracy take validation data"):
        Teacher([right, wrong], weights="accuracy")


def test_confidence_by_hand():
    stack = torch.tensor([[[0.5, 0.5]], [[0.99, 0.01]]]).log()
    entropy = torch.tensor([math.log(2), -0.99 * math.log(0.99) - 0.01 * math.log(0.01)])
    expected = (-entropy).exp() / (-entropy).exp().sum()
    assert_close(confidence_weights(stack)[:, 0], expected)
    labelled = confidence_weights(stack, torch.tensor([1]))[:, 0]
    losses = torch.tensor([0.5, 0.01]).log().neg().exp()
    assert_close(labelled, 1 - losses / losses.sum())
    assert_close(confidence_weights(stack, torch.tensor([-100]))[:, 0], expected)
    assert_close(confidence_weights(stack).sum(0), torch.ones(1))


def test_three_teachers_by_confidence_sum_to_one():
    stack = torch.randn(3, 6, 3).log_softmax(-1)
    for labels in (None, Y):
        assert_close(confidence_weights(stack, labels).sum(0), torch.ones(6))
        assert_close(pooled_by_confidence(stack, labels).exp().sum(1), torch.ones(6))
    teacher = Teacher(nets(), weights="confidence")
    assert not torch.equal(teacher(X), teacher(X, Y))


def test_votes_are_hard_labels_and_ties_go_to_the_larger_mean():
    vote = Teacher([Says(0.9, 0.1), Says(0.4, 0.6), Says(0.4, 0.6)], weights="vote")
    assert vote(X).exp()[0].tolist() == [0.0, 1.0]
    tie = Teacher([Says(0.9, 0.1), Says(0.4, 0.6)], weights="vote")
    assert tie(X).exp()[0].tolist() == [1.0, 0.0]


def test_any_combination_may_teach_and_values_are_averaged():
    members = nets()
    ensemble = Ensemble([copy.deepcopy(m) for m in members], average())
    assert_close(Teacher(ensemble)(X), Teacher(members)(X))
    found = Teacher([nn.Linear(4, 2), nn.Linear(4, 2)], task="regression", weights=[1, 0])
    assert found(X).shape == (6, 2)


def test_a_teacher_with_a_softmax_and_one_with_a_single_output():
    softmax = nn.Sequential(nn.Linear(4, 3), nn.Softmax(1))
    assert_close(Teacher(softmax)(X).exp(), softmax(X).detach())
    single = nn.Linear(4, 1)
    assert_close(Teacher(single)(X).exp()[:, 1], single(X)[:, 0].sigmoid().detach())


@pytest.mark.parametrize("weights", [None, [1, 2, 3], "confidence", "vote"])
def test_teachers_keep_their_bytes_flags_and_gradients(weights):
    members = nets()
    before = [copy.deepcopy(m.state_dict()) for m in members]
    teacher = Teacher(members, weights=weights)
    for _ in range(3):
        teacher(X, Y)
    for member, state in zip(members, before, strict=True):
        assert member.training
        assert all(p.requires_grad for p in member.parameters())
        for name, tensor in member.state_dict().items():
            assert torch.equal(tensor, state[name]), name


def test_moving_a_teacher_leaves_the_models_where_they_are():
    members = nets()
    Teacher(members).to("meta")
    assert {t.device.type for member in members for t in member.state_dict().values()} == {"cpu"}


def test_a_teacher_stays_out_of_the_module_that_holds_it():
    holder = nn.Module()
    holder.teacher = Teacher(nets())
    assert not holder.state_dict()
    assert not list(holder.parameters())
    holder.train()
    assert torch.equal(holder.teacher(X), holder.teacher(X))


def test_digests_tell_tensors_and_structure_apart():
    one, other = nets(1)[0], nets(1, seed=1)[0]
    assert digest_of(one) == digest_of(copy.deepcopy(one))
    assert digest_of(one) != digest_of(other)
    assert digest_of(nn.ReLU()) != digest_of(nn.GELU())
    same = Teacher([one, other]).identity()
    assert same == Teacher([one, other], weights=[1, 1]).identity()
    assert same != Teacher([one, other], weights=[1, 2]).identity()
    assert same != Teacher([one, other], weights="vote").identity()


def test_bad_teachers():
    with pytest.raises(MissingInput, match="There is no teacher"):
        Teacher([])
    with pytest.raises(InvalidWeights, match="3"):
        Teacher(nets(), weights=[1, 2])
    with pytest.raises(InvalidParameter, match="the teachers are a, b"):
        Teacher(dict(zip("ab", nets(2), strict=True)), weights={"a": 1})
    with pytest.raises(UnknownName, match="accuracy"):
        Teacher(nets(), weights="acuracy")
    with pytest.raises(InvalidParameter, match="is for classes"):
        Teacher(nets(), weights="vote", task="regression")
    with pytest.raises(DataError, match="outputs of the teacher teacher 2 hold NaN"):
        Teacher([Says(0.5, 0.5), Says(float("nan"), 0.5)])(X)


def test_class_maps():
    found = mapped_teachers({"a": Says(0.2, 0.5, 0.3)}, [2, None, 0], 4)["a"](X[:1]).exp()[0]
    assert_close(found[[0, 2]], torch.tensor([0.6, 0.4]) * (1 - 1e-4))
    assert found[[1, 3]].sum() == pytest.approx(1e-4)
    members = {"a": Says(0.5, 0.5), "b": Says(0.2, 0.3, 0.5)}
    mapped = mapped_teachers(members, {"a": [2, 0]}, 3)
    assert mapped["b"] is members["b"]
    check_classes(mapped, X, 3)
    with pytest.raises(
        DataError, match=r"student has 4 classes(.|\n)*a: 2 classes\n  b: 3 classes(.|\n)*mapping="
    ):
        check_classes(members, X, 4)
    with pytest.raises(InvalidParameter, match="the teachers are a, b"):
        mapped_teachers(members, {"c": [0, 1]}, 3)
    with pytest.raises(InvalidParameter, match="7 is not among"):
        mapped_teachers(members, {"a": [0, 7]}, 3)
    with pytest.raises(DataError, match="mapping has 3 entries, and the teacher 2 classes"):
        mapped_teachers(members, {"a": [0, 1, None]}, 3)["a"](X)


def test_features_of_named_layers():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 2))
    images = torch.randn(5, 1, 4, 4)
    found = LayerOutput(net, "0")(images)
    assert_close(found, net[0](images).mean((2, 3)).detach())
    with pytest.raises(
        InvalidParameter, match=r"The teacher has no layer '3'(.|\n)*0: Conv2d\n  1: Flatten"
    ):
        LayerOutput(net, "3")
    assert pooled_features(torch.ones(2, 5, 7), "x").shape == (2, 7)
    with pytest.raises(DataError, match="gives a str, not a tensor"):
        pooled_features("text", "x")
