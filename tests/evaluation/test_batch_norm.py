import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from alloykit.errors import DataError
from alloykit.evaluation.batch_norm import has_batch_norm, update_batch_norm

G = torch.Generator().manual_seed(0)
BATCHES = [(3 * torch.randn(n, 3, 6, 6, generator=G) + 1, torch.zeros(n)) for n in (8, 8, 5)]


def network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4, momentum=0.3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 5),
        nn.BatchNorm1d(5, affine=False),
        nn.BatchNorm1d(5, track_running_stats=False),
    )


def test_statistics_equal_those_of_torch_bit_for_bit():
    ours, theirs = network(), network()
    for model in (ours, theirs):
        model.train()(5 * BATCHES[0][0])
    update_bn(BATCHES, theirs)
    assert update_batch_norm(ours, BATCHES) == 2
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    assert int(ours[1].num_batches_tracked) == 3


def test_momenta_and_training_flags_are_restored():
    model = network().train()
    model[5].eval()
    flags = [module.training for module in model.modules()]
    update_batch_norm(model, BATCHES)
    assert [module.training for module in model.modules()] == flags
    assert (model[1].momentum, model[5].momentum) == (0.3, 0.1)
    model[1].momentum = None
    with pytest.raises(RuntimeError):
        update_batch_norm(model, [(torch.zeros(2, 1, 6, 6), torch.zeros(2))])
    assert [module.training for module in model.modules()] == flags
    assert (model[1].momentum, model[5].momentum) == (None, 0.1)


def test_dropout_stays_off():
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(2)).train()
    inputs = torch.randn(50, 2, generator=G)
    update_batch_norm(model, [(inputs, torch.zeros(50))])
    torch.testing.assert_close(model[1].running_mean, inputs.mean(0))
    torch.testing.assert_close(model[1].running_var, inputs.var(0))


def test_parameters_do_not_change():
    model = network()
    before = copy.deepcopy(list(model.parameters()))
    update_batch_norm(model, BATCHES)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_model_without_running_statistics_reads_nothing():
    def never():
        pytest.fail("was read")
        yield

    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False))
    assert not has_batch_norm(model)
    assert update_batch_norm(model, never()) == 0
    assert has_batch_norm(network())


def test_single_images_have_a_variance():
    ours, theirs = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    singles = [(inputs[:1], targets[:1]) for inputs, targets in BATCHES]
    update_bn(singles, theirs)
    update_batch_norm(ours, singles)
    assert torch.equal(ours.running_var, theirs.running_var)


def test_a_batch_that_fails_in_a_later_layer_leaves_no_trace():
    batches = [*BATCHES, (torch.randn(1, 3, 6, 6, generator=G), torch.zeros(1))]
    whole, without = network(), network()
    update_batch_norm(whole, batches)
    update_batch_norm(without, BATCHES)
    assert torch.equal(whole[1].running_mean, without[1].running_mean)
    assert int(whole[1].num_batches_tracked) == 3


def test_a_last_batch_of_one_example_is_left_out():
    one, other = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    pair = (torch.randn(6, 2, generator=G), torch.zeros(6))
    update_batch_norm(one, [pair, (torch.randn(1, 2, generator=G), torch.zeros(1))])
    update_batch_norm(other, [pair])
    assert torch.equal(one.running_mean, other.running_mean)
    with pytest.raises(DataError, match="1 BatchNorm layers need at least one batch of two"):
        update_batch_norm(one, [])
