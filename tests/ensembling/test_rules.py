"""What each rule computes, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from alloykit.ensembling.average import average
from alloykit.ensembling.calibrated import calibrated
from alloykit.ensembling.greedy_selection import (
    PooledScores,
    TruthScores,
    greedy_selection,
    selected,
)
from alloykit.ensembling.median import median
from alloykit.ensembling.per_class import per_class
from alloykit.ensembling.rule import build_rule, candidate_rules, shown, starting_state
from alloykit.ensembling.vote import vote
from alloykit.ensembling.weighted import weighted
from alloykit.errors import DataError, InvalidParameter, InvalidWeights, MissingInput, UnknownName
from alloykit.evaluation.calibration import fit_temperature
from alloykit.evaluation.metrics import metric


def logs(*members):
    return torch.tensor(members).log()


def random_case(members=4, examples=200, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (examples,), generator=generator)
    skill = torch.linspace(0.3, 2.5, members)[:, None, None]
    truth = torch.nn.functional.one_hot(targets, classes)
    noise = torch.randn(members, examples, classes, generator=generator)
    return (skill * truth + noise).log_softmax(-1), targets


def test_average_in_each_space_by_hand():
    stack = logs([[0.9, 0.1]], [[0.5, 0.5]])
    assert_close(average().combine(stack, {}).exp(), torch.tensor([[0.7, 0.3]]))
    # Geometric means 0.3·√5 and 0.1·√5, so 3 to 1.
    for space in ("logits", "geometric"):
        assert_close(average(space).combine(stack, {}).exp(), torch.tensor([[0.75, 0.25]]))
    values = torch.tensor([[[1.0, 2.0]], [[3.0, 6.0]]])
    assert_close(average("values").combine(values, {}), torch.tensor([[2.0, 4.0]]))


def test_average_of_logits_is_the_softmax_of_mean_raw_logits_and_the_geometric_mean():
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(3, 50, 6, generator=generator) * 4
    ours = average("logits").combine(raw.log_softmax(-1), {}).exp()
    assert_close(ours, raw.mean(0).softmax(-1), rtol=0, atol=1e-6)
    geometric = raw.softmax(-1).double().prod(0) ** (1 / 3)
    geometric /= geometric.sum(-1, keepdim=True)
    assert_close(ours.double(), geometric, rtol=0, atol=1e-6)


def test_one_certain_no_vetoes_in_logits_but_not_in_probabilities():
    stack = logs([[1e-30, 1.0]], [[0.9, 0.1]], [[0.9, 0.1]])
    assert int(average().combine(stack, {}).argmax()) == 0
    assert int(average("logits").combine(stack, {}).argmax()) == 1


def test_impossible_classes_stay_impossible_without_becoming_nan():
    stack = torch.tensor([[[0.0, -1e4]], [[0.0, -1e4]]])
    for rule in (average(), average("logits"), median(), vote()):
        result = rule.combine(stack, {})
        assert bool(torch.isfinite(result).all())
        assert int(result.argmax()) == 0


def test_weighted_by_hand_divides_by_the_sum():
    stack = logs([[0.8, 0.2]], [[0.4, 0.6]])
    assert_close(weighted(weights=[3, 1]).combine(stack, {}).exp(), torch.tensor([[0.7, 0.3]]))
    with pytest.raises(InvalidWeights, match="3 weights for 2 models"):
        weighted(weights=[1, 1, 1]).combine(stack, {})
    with pytest.raises(InvalidParameter, match="either 'by' or 'weights'"):
        weighted(by="f1", weights=[1, 1])


def test_weighted_by_a_metric_follows_the_members_scores():
    stack = logs([[0.9, 0.1], [0.9, 0.1]], [[0.9, 0.1], [0.1, 0.9]])
    targets = torch.tensor([0, 1])
    found = weighted("accuracy").fit(stack, targets)["weights"]
    assert_close(found, torch.tensor([1 / 3, 2 / 3]).double())
    squared = weighted("accuracy", power=2).fit(stack, targets)["weights"]
    assert_close(squared, torch.tensor([0.2, 0.8]).double())


@pytest.mark.parametrize("loss", ["log_loss", "brier"])
def test_weighted_by_a_loss_beats_uniform_and_every_member_on_that_loss(loss):
    stack, targets = random_case()
    rule = weighted(loss)
    state = rule.fit(stack, targets)
    measure = metric(loss)
    ours = measure.value(rule.combine(stack, state), targets)
    others = [average().combine(stack, {}), *stack]
    assert all(ours <= measure.value(other, targets) + 1e-6 for other in others)
    assert float(state["gap"]) <= 1e-8


def test_weighted_by_mse_beats_uniform_on_values():
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(80, 2, generator=generator)
    spread = torch.tensor([0.2, 1.0, 3.0])[:, None, None]
    values = targets + spread * torch.randn(3, 80, 2, generator=generator)
    rule = weighted(space="values")
    state = rule.fit(values, targets)
    assert state["weights"][0] > 0.9
    measure = metric("mse")
    best = measure.value(rule.combine(values, state), targets)
    assert best < measure.value(values.mean(0), targets)
    assert best <= measure.value(values[0], targets) + 1e-7
    flat = rule.fit(values[..., :1], targets[:, 0])
    assert float(flat["weights"].sum()) == pytest.approx(1)


def test_weighted_refuses_losses_without_a_certified_optimum():
    with pytest.raises(InvalidParameter, match="brier can be found for space=probabilities"):
        weighted("brier", space="logits")
    with pytest.raises(InvalidParameter, match="does not fit space='values'"):
        weighted("accuracy", space="values")
    with pytest.raises(InvalidParameter, match="must be one of probabilities, logits"):
        average("probability")
    with pytest.raises(UnknownName, match="There is no metric 'acuracy'"):
        weighted("acuracy")


def test_vote_by_hand():
    stack = logs([[0.6, 0.4]], [[0.6, 0.4]], [[0.01, 0.99]])
    result = vote(smoothing=0.01).combine(stack, {}).exp()
    # Votes ⅔ and ⅓, each plus 0.01, the winner another 0.01; all divided by 1.03.
    expected = torch.tensor([[2 / 3 + 0.02, 1 / 3 + 0.01]]) / 1.03
    assert_close(result, expected)


def test_vote_ties_go_to_the_larger_mean_probability_among_the_tied():
    # One vote for 0, one for 1, and class 2 has the largest mean but no vote.
    stack = logs([[0.5, 0.04, 0.46]], [[0.06, 0.5, 0.44]])
    assert int(vote().combine(stack, {}).argmax()) == 0
    stack = logs([[0.5, 0.06, 0.44]], [[0.04, 0.5, 0.46]])
    assert int(vote().combine(stack, {}).argmax()) == 1
    assert vote().combine(stack, {}).exp()[0].tolist() == pytest.approx(
        [0.501 / 1.004, 0.502 / 1.004, 0.001 / 1.004], abs=1e-6
    )


def test_vote_is_finite_where_nobody_voted_for_the_truth():
    stack = logs([[1 - 1e-30, 1e-30]], [[1 - 1e-30, 1e-30]])
    loss = metric("log_loss").value(vote().combine(stack, {}), torch.tensor([1]))
    assert loss == pytest.approx(-math.log(1e-3 / 1.003), rel=1e-5)


def test_weighted_vote_follows_the_heavier_member():
    stack = logs([[0.9, 0.1]], [[0.2, 0.8]], [[0.2, 0.8]])
    assert int(vote(weights=[3, 1, 1]).combine(stack, {}).argmax()) == 0
    assert int(vote().combine(stack, {}).argmax()) == 1
    targets = torch.tensor([0])
    state = vote("accuracy").fit(stack, targets)
    assert state["weights"].tolist() == [1.0, 0.0, 0.0]
    with pytest.raises(InvalidParameter, match="smoothing"):
        vote(smoothing=0)


def test_median_ignores_one_outlier_for_values_and_probabilities():
    values = torch.tensor([[1.0], [2.0], [3.0], [1e9]])
    assert float(median("values").combine(values, {})) == 2.5
    stack = logs([[0.7, 0.3]], [[0.6, 0.4]], [[1e-9, 1.0]])
    assert_close(median().combine(stack, {}).exp(), torch.tensor([[0.6, 0.4]]))
    # Medians 0.5, 0.2 and 0.1 do not sum to one.
    stack = logs([[0.5, 0.4, 0.1]], [[0.8, 0.1, 0.1]], [[0.2, 0.2, 0.6]])
    expected = torch.tensor([[0.5, 0.2, 0.1]]) / 0.8
    assert_close(median().combine(stack, {}).exp(), expected)
    even = logs([[0.9, 0.1]], [[0.5, 0.5]])
    assert_close(median().combine(even, {}).exp(), torch.tensor([[0.7, 0.3]]))


def test_greedy_selection_keeps_the_shortest_best_prefix():
    stack = logs([[0.9, 0.1], [0.9, 0.1]], [[0.1, 0.9], [0.1, 0.9]], [[0.8, 0.2], [0.1, 0.9]])
    state = greedy_selection("accuracy", rounds=10).fit(stack, torch.tensor([0, 1]))
    assert state["weights"].tolist() == [0.0, 0.0, 1.0]


def test_greedy_selection_never_does_worse_than_the_best_member_on_its_metric():
    stack, targets = random_case(seed=3)
    for name in ("accuracy", "f1", "log_loss"):
        measure = metric(name)
        rule = greedy_selection(name, rounds=20)
        ours = measure.loss(measure.value(rule.combine(stack, rule.fit(stack, targets)), targets))
        assert ours <= min(measure.loss(measure.value(m, targets)) for m in stack) + 1e-6


def test_greedy_selection_on_the_truth_column_equals_the_full_arrays():
    stack, targets = random_case(members=6, seed=4)
    full = PooledScores(stack, targets, metric("log_loss"), "probabilities")
    fast = TruthScores(stack, targets)
    assert selected(full, 6, 15).tolist() == selected(fast, 6, 15).tolist()


def test_greedy_selection_nears_the_certified_optimum():
    stack, targets = random_case(seed=5)
    measure = metric("log_loss")
    exact, greedy = weighted("log_loss"), greedy_selection("log_loss", rounds=200)
    scores = [
        measure.value(rule.combine(stack, rule.fit(stack, targets)), targets)
        for rule in (exact, greedy)
    ]
    assert scores[0] - 1e-6 <= scores[1] <= scores[0] + 1e-3


def test_greedy_selection_in_logits_and_values():
    stack, targets = random_case(seed=6)
    rule = greedy_selection("log_loss", rounds=10, space="logits")
    state = rule.fit(stack, targets)
    mixed = (state["weights"].float()[:, None, None] * stack).sum(0).log_softmax(-1)
    assert_close(rule.combine(stack, state), mixed, rtol=0, atol=1e-5)
    values = torch.tensor([[[0.0], [0.0]], [[2.0], [2.0]]])
    found = greedy_selection("mae", rounds=4).fit(values, torch.tensor([[1.0], [1.0]]))
    assert found["weights"].tolist() == [0.5, 0.5]
    with pytest.raises(InvalidParameter, match="at least 1"):
        greedy_selection(rounds=0)


def test_per_class_learns_who_knows_which_class():
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(4, (400,), generator=generator)
    truth = torch.nn.functional.one_hot(targets, 4).float()
    skill = torch.tensor([[4.0, 4.0, 0.0, 0.0], [0.0, 0.0, 4.0, 4.0]])
    noise = torch.randn(2, 400, 4, generator=generator)
    stack = (skill[:, None] * truth + noise).log_softmax(-1)
    rule = per_class()
    state = rule.fit(stack, targets)
    ratio = state["class_weights"]
    assert bool((ratio[0, :2] > ratio[1, :2]).all())
    assert bool((ratio[1, 2:] > ratio[0, 2:]).all())
    accuracy = metric("accuracy")
    ours = accuracy.value(rule.combine(stack, state), targets)
    assert ours > accuracy.value(average("logits").combine(stack, {}), targets) + 0.01


def test_per_class_with_an_overwhelming_pull_is_the_log_pool():
    stack, targets = random_case()
    rule = per_class(pull=1e9)
    state = rule.fit(stack, targets)
    expected = average("logits").combine(stack, {})
    assert_close(rule.combine(stack, state), expected, rtol=0, atol=1e-4)
    with pytest.raises(InvalidParameter, match="above 0"):
        per_class(pull=0)


def test_calibrated_divides_the_pooled_log_probabilities_by_the_fitted_temperature():
    stack, targets = random_case()
    rule = calibrated("weighted", {"by": "log_loss"})
    state = rule.fit(stack, targets)
    inner = weighted("log_loss")
    pooled = inner.combine(stack, inner.fit(stack, targets))
    temperature = fit_temperature(pooled, targets)
    assert float(state["temperature"]) == pytest.approx(temperature)
    assert abs(temperature - 1) > 0.01
    assert_close(rule.combine(stack, state), (pooled / temperature).log_softmax(-1))
    assert_close(state["weights"], inner.fit(stack, targets)["weights"])


def test_calibrated_keeps_weights_by_hand_and_refuses_what_it_cannot_hold():
    stack, targets = random_case(members=2)
    state = calibrated("weighted", {"weights": [3, 1]}).fit(stack, targets)
    assert state["weights"].tolist() == [0.75, 0.25]
    with pytest.raises(InvalidParameter, match="cannot hold itself"):
        calibrated("calibrated")
    with pytest.raises(InvalidParameter, match="serves regression"):
        calibrated("average", {"space": "values"})
    with pytest.raises(UnknownName, match="Did you mean 'average'"):
        calibrated("averag")


def test_tokens_are_fitted_without_the_ignored_positions():
    stack, targets = random_case(members=3, examples=30)
    for name in ("weighted", "per_class", "greedy_selection", "calibrated"):
        rule = build_rule(name, task="tokens")
        flat = rule.fit(stack, targets)
        shaped = stack.view(3, 10, 3, 5)
        labels = targets.view(10, 3)
        junk = torch.zeros(3, 10, 1, 5).log_softmax(-1)
        ignored = torch.full((10, 1), -100)
        state = rule.fit(torch.cat([shaped, junk], 2), torch.cat([labels, ignored], 1))
        for key, value in flat.items():
            assert_close(state[key], value, rtol=0, atol=1e-5)
        result = rule.combine(shaped, state)
        assert result.shape == (10, 3, 5)
        assert_close(result.view(30, 5), rule.combine(stack, state), rtol=0, atol=1e-6)


def test_fitting_refuses_rows_that_do_not_fit():
    stack, targets = random_case(members=2, examples=6)
    rule = weighted("log_loss")
    with pytest.raises(DataError, match="Targets \\[5\\] do not fit members' outputs \\[6, 5\\]"):
        rule.fit(stack, targets[:5])
    with pytest.raises(DataError, match="Labels outside 0 to 4:\n  7"):
        rule.fit(stack, targets.clone().fill_(7))
    broken = stack.clone()
    broken[1, 0, 0] = torch.nan
    with pytest.raises(DataError, match="member 2: 1 NaN"):
        rule.fit(broken, targets)
    with pytest.raises(DataError, match="no examples to fit on"):
        rule.fit(stack, torch.full((6,), -100))
    with pytest.raises(DataError, match="do not fit members' outputs"):
        weighted("mse").fit(stack, torch.zeros(6, 4))


def test_a_rule_that_was_not_fitted_says_so():
    stack, _ = random_case(members=2)
    for rule in (weighted("log_loss"), per_class(), greedy_selection(), vote("f1"), calibrated()):
        with pytest.raises(MissingInput, match=f"The rule {rule.name} has not been fitted"):
            rule.combine(stack, {})


def test_build_rule_goes_by_the_task():
    assert build_rule("weighted", task="regression").parameters["space"] == "values"
    assert build_rule("average", task="tokens").parameters["space"] == "probabilities"
    with pytest.raises(InvalidParameter, match="serves classification and tokens, not regression"):
        build_rule("vote", task="regression")
    with pytest.raises(InvalidParameter, match=r"vote has no parameter 'wheights'\. Did you mean"):
        build_rule("vote", task="tokens", wheights=[1])


def test_candidates_are_many_and_fit_their_task():
    for task, least in (("classification", 15), ("tokens", 15), ("regression", 5)):
        rules = candidate_rules(task)
        assert len(rules) >= least
        assert all(task in rule.tasks for rule in rules)
        assert len({shown(rule) for rule in rules}) == len(rules)


def test_starting_state_holds_weights_by_hand():
    assert starting_state(weighted(weights=[1, 3]), 2)["weights"].tolist() == [0.25, 0.75]
    assert starting_state(average(), 2) == {}
    assert shown(weighted(weights=[1, 3])) == "weighted(weights=[1, 3], power=1.0)"
