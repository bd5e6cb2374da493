from __future__ import annotations

import pytest
import torch

import alloykit
import digits_samples as digits
from alloykit.soups.uniform import uniform


def test_it_is_the_plain_average_with_its_score():
    validation = digits.splits()["validation"]
    models = {name: net for name, net in digits.members().items() if name != "bad"}
    result = alloykit.soup(models, "uniform", validation=validation)
    plain = alloykit.average(models)
    assert all(torch.equal(a, b) for a, b in zip(
        result.model.state_dict().values(), plain.state_dict().values(), strict=True))  # fmt: skip
    with torch.no_grad():
        hits = (plain(validation[0]).argmax(1) == validation[1]).double().mean().item()
    assert result.choice.value == pytest.approx(hits)
    assert result.choice.weights == (0.25,) * 4
    assert result.choice.trials == ()


def test_batch_norm_is_re_estimated_on_the_data_given():
    models = digits.members(True)
    result = alloykit.soup(
        models, "uniform", validation=digits.splits()["validation"],
        batch_norm=digits.splits()["train"],
    )  # fmt: skip
    net = alloykit.average(models, batch_norm=digits.splits()["train"])
    torch.testing.assert_close(result.model[1].running_mean, net[1].running_mean)
    torch.testing.assert_close(result.model[1].running_var, net[1].running_var)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_single_member_stays_as_it_is(batch_norm):
    choice = uniform()(digits.checkpoints(batch_norm)[:1], digits.judge(batch_norm))
    assert choice.value == digits.single_values(batch_norm, "accuracy")[0]
