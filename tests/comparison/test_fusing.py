"""How compare judges heads: by rows they were not fitted on, whatever is chosen on the way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from alloykit.comparison.candidate import Candidate
from alloykit.comparison.fusing import fit, head_data, head_shape, judged
from alloykit.comparison.setting import Member, Setting
from alloykit.data.examples import as_examples
from alloykit.evaluation.metrics import METRICS
from alloykit.fusion.checking import settled
from alloykit.fusion.concat import concat
from alloykit.fusion.head import FittedHead, FusionHead, HeadData, HeadShape
from alloykit.types import Task


class Remembering(nn.Module):
    """Answers "seen" (class 1) for rows that it was fitted on, else "new" (class 0)."""

    def __init__(self, known: Tensor) -> None:
        super().__init__()
        self.known = known

    def forward(self, members: tuple[Tensor, ...], context: Tensor | None) -> Tensor:
        seen = (members[0][:, None] == self.known[None]).all(-1).any(-1).long()
        return torch.eye(members[0].shape[1])[seen].clamp_min(1e-6).log()


class Spy:
    """A head that remembers its rows, and how often it was fitted on how many."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def head(self) -> FusionHead:
        def fitted(data: HeadData, shape: HeadShape) -> FittedHead:
            self.rows.append(len(data.targets))
            assert (data.targets >= 0).all()
            return FittedHead(Remembering(data.members[0]))

        return FusionHead("spy", {}, lambda shape: nn.Identity(), fitted, frozenset({"tokens"}))


def setting(task: Task, inputs: Tensor, targets: Tensor) -> Setting:
    torch.manual_seed(0)
    members = tuple(Member(name, nn.Linear(4, 3).eval()) for name in "ab")
    split = as_examples((inputs, targets), "validation")
    name = "perplexity" if task == "tokens" else "accuracy"
    return Setting(members, split, as_examples((inputs, targets), "test"), task, METRICS[name])


def asked(of: Setting) -> tuple[HeadData, HeadShape]:
    candidate = Candidate("spy head", "fusion", "spy", members=("a", "b"))
    given = head_data(candidate, of, "validation")
    return given, head_shape(candidate, of, given)


def test_no_example_is_answered_by_a_head_that_was_fitted_on_it() -> None:
    x = torch.randn(43, 4, generator=torch.Generator().manual_seed(1))
    of, spy = setting("classification", x, torch.arange(43) % 3), Spy()
    given, shape = asked(of)
    assert (fit(spy.head(), given, shape).module(given.members, None).argmax(1) == 1).all()
    assert (judged(spy.head(), given, shape, of).argmax(-1) == 0).all()
    assert spy.rows[0] == 43
    assert sorted(43 - rows for rows in spy.rows[1:]) == [8, 8, 9, 9, 9]


def test_tokens_of_one_example_stay_together_and_unscored_ones_are_left_out() -> None:
    x = torch.randn(20, 5, 4, generator=torch.Generator().manual_seed(1))
    x[:, 1] = x[:, 0]  # A head fitted on one half of an example would know the other.
    targets = torch.randint(3, (20, 5), generator=torch.Generator().manual_seed(2))
    targets[::3, 3:] = -100
    targets[7] = -100
    of, spy = setting("tokens", x, targets), Spy()
    given, shape = asked(of)
    said = judged(spy.head(), given, shape, of)
    scored = targets != -100
    assert said.shape == (20, 5, 3)
    assert (said[scored].argmax(-1) == 0).all()
    assert (said[~scored] == 0).all()
    assert sum(int(scored.sum()) - rows for rows in spy.rows) == int(scored.sum())


def test_few_examples_choose_the_pull_in_every_fold() -> None:
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    given, shape = asked(setting("classification", x, torch.arange(40) % 3))
    fitted = fit(concat(), given, shape)
    assert settled(concat(), fitted, 199).parameters["pull"] is None
    assert settled(concat(), fitted, 200).parameters["pull"] == fitted.chosen["pull"]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_pull_chosen_once_hardly_flatters(seed: int) -> None:
    # Labels that mean nothing are the worst case: only luck tells the pulls apart.
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, 4, generator=generator)
    targets = torch.randint(3, (200,), generator=generator)
    of = replace(setting("classification", x, targets), seed=seed)
    given, shape = asked(of)
    once = settled(concat(), fit(concat(), given, shape), 200)
    score = METRICS["log_loss"].value
    simple = score(judged(once, given, shape, of), targets)
    nested = score(judged(concat(), given, shape, of), targets)
    assert nested - simple < 0.02
