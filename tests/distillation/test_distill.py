"""The verb distill: what is trained, what is left alone, and what bad input gets."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.testing import assert_close

from alloykit.api.distilling import distill
from alloykit.data.examples import as_examples
from alloykit.distillation.store import stored_outputs
from alloykit.distillation.teacher import Teacher
from alloykit.errors import (
    DataError,
    DataLeak,
    InvalidParameter,
    MissingInput,
    OutputExists,
    UnknownName,
)
from alloykit.registry import distillation_losses
from alloykit.training.settings import Training

SHORT = Training(epochs=2, batch_size=16)
OF_EXAMPLES = [
    e.name for e in distillation_losses.entries() if "classification" in e.contract["tasks"]
]


def draw(count=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=generator)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


TRAIN, HELD_OUT = draw(), draw(32, seed=1)


def teachers(count=2, outputs=3):
    torch.manual_seed(0)
    return [
        nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, outputs))
        for _ in range(count)
    ]


def student(seed=5, outputs=3):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, outputs)
    )


def plain_student():
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3))


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("name", OF_EXAMPLES)
def test_every_loss_leaves_teachers_and_the_given_student_as_they_are(name):
    teaching, given = teachers(1)[0], student()
    before = state(teaching), state(given)
    features = distillation_losses.entry(name).contract["source"] == "features"
    options = {"layers": ("2", "2")} if features else {}
    found = distill(given, teaching, train=TRAIN, loss=name, training=SHORT, **options)
    assert same(state(teaching), before[0])
    assert same(state(given), before[1])
    assert given.training
    assert teaching.training
    assert all(p.requires_grad for p in teaching.parameters())
    assert all(p.grad is None for p in teaching.parameters())
    assert not same(state(found.student), before[1])
    assert state(found.student).keys() == before[1].keys()
    assert not found.student.training
    found.student(TRAIN[0])


def test_a_student_of_another_architecture_reaches_an_ensemble_on_digits():
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    x = torch.tensor(images[order] / 16, dtype=torch.float32)
    y = torch.tensor(labels[order])
    train, held_out = (x[:1000], y[:1000]), (x[1000:], y[1000:])
    members = []
    for seed in range(4):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
        for _ in range(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(train[0]), train[1]).backward()
            optimizer.step()
        members.append(net)
    torch.manual_seed(9)
    blank = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(72, 10),
    )  # fmt: skip
    settings = Training(epochs=30, learning_rate=5e-3)
    found = distill(blank, members, train=train[0], alpha=0, validation=held_out, training=settings)
    teacher, before, after = (
        found.facts[key]["accuracy"] for key in ("teacher", "before", "student")
    )
    assert teacher > 0.9
    assert before < 0.3
    assert after > teacher - 0.03


def test_facts_and_history():
    found = distill(student(), teachers(), train=TRAIN, validation=HELD_OUT, training=SHORT)
    assert found.facts["loss"] == "soft 0.5 x kl(T=2) + hard 0.5 x cross-entropy"
    assert found.facts["examples"] == 64
    assert found.facts["student"].keys() == {"accuracy", "log_loss"}
    assert found.facts["seconds"].keys() == {"teacher", "training"}
    assert len(found.history.epochs) == 2
    assert found.history.metric == "log_loss"
    best = found.history.epochs[found.history.best - 1].validation
    assert found.facts["student"]["log_loss"] == pytest.approx(best)
    without = distill(student(), teachers(), train=TRAIN, training=SHORT)
    assert without.facts["student"] is None


def test_it_repeats_bit_for_bit_and_the_seed_matters():
    runs = [
        distill(student(), teachers(), train=TRAIN, training=Training(epochs=2, seed=s)).student
        for s in (0, 0, 1)
    ]
    assert same(state(runs[0]), state(runs[1]))
    assert not same(state(runs[0]), state(runs[2]))


def test_stored_online_and_given_outputs_train_the_same():
    asked = Teacher(teachers())
    options = {"train": TRAIN, "training": SHORT}
    # Without BatchNorm, after which a bias has no gradient but rounding, that AdamW blows up.
    stored = distill(plain_student(), teachers(), **options).student
    online = distill(plain_student(), teachers(), augment=lambda x: x, **options).student
    given = distill(plain_student(), asked(TRAIN[0]), **options).student
    kept = stored_outputs(asked, as_examples(TRAIN, "train"))
    reused = distill(plain_student(), kept, **options).student
    for other in (online, given, reused):
        for one, two in zip(stored.parameters(), other.parameters(), strict=True):
            assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_teachers_see_the_augmented_inputs():
    seen = []

    class Watching(nn.Linear):
        def forward(self, x):
            seen.append(x.clone())
            return super().forward(x)

    def noisy(x):
        return x + torch.randn_like(x)

    class Watched(nn.Linear):
        shown: list = []  # noqa: RUF012

        def forward(self, x):
            if self.training:
                self.shown.append(x.clone())
            return super().forward(x)

    distill(Watched(4, 3), Watching(4, 3), train=TRAIN, augment=noisy, training=SHORT)
    asked = seen[-len(Watched.shown) :]
    assert len(asked) == 8
    assert all(torch.equal(a, b) for a, b in zip(asked, Watched.shown, strict=True))
    assert not torch.equal(asked[0], asked[4])


def test_features_of_other_widths_are_mapped_and_hooks_are_gone():
    teaching = teachers(1)[0]
    options = {"train": TRAIN, "training": SHORT, "layers": ("2", "2")}
    found = distill(student(), teaching, loss={"kl": 1, "hint": 5}, **options)
    assert not found.student[2]._forward_hooks
    assert not teaching[2]._forward_hooks
    without = distill(student(), teaching, train=TRAIN, training=SHORT)
    assert not same(state(found.student), state(without.student))
    augmented = distill(
        student(), teaching, loss={"kl": 1, "hint": 5}, augment=lambda x: x, **options
    )
    for one, two in zip(found.student.parameters(), augmented.student.parameters(), strict=True):
        assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_a_pretrained_central_model_is_updated_without_labels():
    members = teachers(3)
    central = copy.deepcopy(members[0])
    found = distill(central, members, train=TRAIN[0], alpha=0, training=SHORT)
    assert "hard 0 x" in found.facts["loss"]
    for unlabelled in ((TRAIN[0], None), TRAIN[0].numpy()):
        again = distill(central, members, train=unlabelled, alpha=0, training=SHORT)
        assert same(state(found.student), state(again.student))


@pytest.mark.parametrize("weights", [[1, 3], "log_loss", "confidence", "vote"])
def test_every_weighting_trains(weights):
    found = distill(
        student(), teachers(), train=TRAIN, validation=HELD_OUT, weights=weights, training=SHORT
    )
    assert np.isfinite(found.history.losses).all()


@pytest.mark.parametrize("keep", ["half", 1, 2])
def test_every_form_of_store_trains_in_a_folder(keep, tmp_path):
    options = {"train": TRAIN, "training": SHORT, "keep": keep}
    found = distill(student(), teachers(), stored=tmp_path, **options)
    again = distill(student(), teachers(), stored=tmp_path, **options)
    assert same(state(found.student), state(again.student))


def test_regression():
    x, y = torch.randn(40, 4), torch.randn(40)
    found = distill(
        nn.Linear(4, 1), [nn.Linear(4, 1), nn.Linear(4, 1)], train=(x, y), task="regression",
        validation=(torch.randn(8, 4), torch.randn(8)), training=SHORT,
    )  # fmt: skip
    assert found.facts["student"].keys() == {"mse", "r2"}
    assert found.facts["loss"] == "soft 0.5 x values + hard 0.5 x squared error"


def test_tokens_with_padding_and_top_k(tmp_path):
    torch.manual_seed(0)
    words = torch.randint(1, 11, (20, 7))
    labels = words.roll(1, 1)
    labels[:, 5:] = -100

    def model(width):
        return nn.Sequential(nn.Embedding(11, width), nn.Linear(width, 11))

    teaching, held_out = model(16), (torch.randint(1, 11, (6, 7)), torch.randint(0, 11, (6, 7)))
    for keep in ("full", 3):
        found = distill(
            model(4), teaching, train=(words, labels), validation=held_out, task="tokens",
            keep=keep, training=SHORT,
        )  # fmt: skip
        assert np.isfinite(found.history.losses).all()


def test_teachers_of_other_classes_are_mapped():
    teaching = teachers(1, outputs=5)[0]
    with pytest.raises(
        DataError, match=r"student has 3 classes(.|\n)*teacher: 5 classes(.|\n)*mapping="
    ):
        distill(student(), teaching, train=TRAIN)
    mapping = [2, None, 0, 1, None]
    found = distill(student(), teaching, train=TRAIN, mapping=mapping, training=SHORT)
    assert np.isfinite(found.history.losses).all()


def test_a_student_with_a_softmax_is_understood():
    base = student()
    softmax = nn.Sequential(copy.deepcopy(base), nn.Softmax(1))
    plain = distill(base, teachers(), train=TRAIN, training=SHORT).student
    found = distill(softmax, teachers(), train=TRAIN, training=SHORT).student
    assert_close(found(HELD_OUT[0]), plain(HELD_OUT[0]).softmax(1), atol=1e-3, rtol=1e-2)


def test_an_accelerator_trains_to_the_same_weights():
    plain = distill(student(), teachers(), train=TRAIN, training=SHORT)
    found = distill(
        student(), teachers(), train=TRAIN, training=SHORT, accelerator=Accelerator(cpu=True)
    )
    for one, two in zip(plain.student.parameters(), found.student.parameters(), strict=True):
        assert_close(one, two)


def test_snapshots_hold_no_teacher(tmp_path):
    distill(student(), teachers(), train=TRAIN, training=SHORT, snapshot=tmp_path)
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert "teacher/teacher_outputs.bin" in files
    largest = (tmp_path / "training.safetensors").stat().st_size
    parameters = 4 * sum(t.numel() for t in student().state_dict().values())
    assert largest < 5 * parameters + 16384


def test_a_finished_snapshot_is_returned_and_another_run_is_refused(tmp_path):
    options = {"train": TRAIN, "training": SHORT, "snapshot": tmp_path}
    found = distill(student(), teachers(), **options)
    again = distill(student(), teachers(), **options)
    assert same(state(found.student), state(again.student))
    files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for changed in ({"temperature": 3.0}, {"alpha": 0.2}, {"training": Training(epochs=3)}):
        with pytest.raises(OutputExists):
            distill(student(), teachers(), **{**options, **changed})
    with pytest.raises(OutputExists, match="student"):
        distill(student(seed=6), teachers(), **options)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == files


def test_a_snapshot_of_another_teacher_is_refused_where_nothing_is_stored(tmp_path):
    options = {"train": TRAIN, "training": SHORT, "snapshot": tmp_path, "augment": lambda x: x}
    distill(student(), teachers(2), **options)
    with pytest.raises(OutputExists, match="teacher"):
        distill(student(), teachers(3), **options)


BAD = [
    ({"temperature": 0}, InvalidParameter, "'temperature' of a distillation must be above 0. Got 0"),
    ({"alpha": 1.2}, InvalidParameter, r"'alpha' must be in \[0, 1\]. Got 1.2"),
    ({"loss": "kll"}, UnknownName, "Did you mean 'kl'"),
    ({"beta": 1}, InvalidParameter, "kl has no parameter 'beta'"),
    ({"loss": "hint"}, MissingInput, r"hint compares features: pass layers="),
    ({"loss": "hint", "layers": ("9", "2")}, InvalidParameter, r"student has no layer '9'(.|\n)*0: Linear"),
    ({"loss": "hint", "layers": ("2", "x")}, InvalidParameter, r"take one teacher; 2 were given"),
    ({"layers": ("2", "2")}, InvalidParameter, "'layers' is for losses of features"),
    ({"train": TRAIN[0]}, MissingInput, r"The hard loss \(alpha=0.5\) needs labels"),
    ({"train": TRAIN[0], "alpha": 0, "loss": "decoupled"}, MissingInput, "decoupled needs labels"),
    ({"train": (TRAIN[0][:1], TRAIN[1][:1])}, DataError, "has 1 examples, and a student needs at least 2"),
    ({"train": (TRAIN[0], TRAIN[1] + 2)}, DataError, "outside 0 to 2"),
    ({"validation": (TRAIN[0][:0], TRAIN[1][:0])}, DataError, "validation: it has no examples"),
    ({"validation": TRAIN}, DataLeak, "train and validation share 64"),
    ({"validation": TRAIN, "train": TRAIN[0], "alpha": 0}, DataLeak, "share 64"),
    ({"weights": "accuracy"}, MissingInput, "Weights by accuracy take validation data"),
    ({"augment": lambda x: x, "stored": "x"}, InvalidParameter, "exclude each other"),
    ({"keep": 3}, InvalidParameter, "leaves out none"),
    ({"loss": "mse", "keep": 2}, InvalidParameter, "mse needs all of the teacher's classes"),
    ({"training": Training(patience=2)}, MissingInput, "patience"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "error", "text"), BAD)
def test_bad_input_gets_one_error_and_nothing_is_written(options, error, text, tmp_path):
    place = tmp_path / "new"
    given = student()
    before = state(given)
    with pytest.raises(error, match=text):
        distill(given, teachers(), **{"train": TRAIN, "snapshot": place, **options})
    assert not place.exists()
    assert same(state(given), before)


def test_outputs_of_other_data_and_options_that_need_the_teachers():
    stored = stored_outputs(Teacher(teachers()), as_examples(TRAIN, "train"))
    with pytest.raises(DataError, match="other examples"):
        distill(student(), stored, train=draw(seed=3))
    with pytest.raises(DataError, match="64 examples; the data has 32"):
        distill(student(), torch.zeros(64, 3), train=HELD_OUT)
    with pytest.raises(DataError, match="student has 3 classes, and the stored outputs have 4"):
        distill(student(), torch.zeros(64, 4), train=TRAIN)
    with pytest.raises(InvalidParameter, match="'augment' needs the teachers themselves"):
        distill(student(), stored, train=TRAIN, augment=lambda x: x)
    with pytest.raises(InvalidParameter, match="'weights' needs the teachers themselves"):
        distill(student(), stored, train=TRAIN, weights=[1])


def test_a_loss_that_becomes_nan_says_where():
    class Failing(nn.Linear):
        """NaN from the middle of the second epoch on."""

        calls = 0

        def forward(self, x):
            Failing.calls += self.training
            return super().forward(x) * (float("nan") if Failing.calls > 6 else 1)

    given = Failing(4, 3)
    before = state(given)
    with pytest.raises(DataError, match=r"epoch 2(.|\n)*step 3") as error:
        distill(given, torch.zeros(64, 3), train=TRAIN, training=Training(epochs=3, batch_size=16))
    kept = state(error.value.student)
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())
    assert kept.keys() == before.keys()
    assert not same(kept, before)
    assert same(state(given), before)


def test_features_asked_in_every_step_train_as_stored_ones_do():
    options = {"train": TRAIN, "loss": {"kl": 1, "hint": 1}, "layers": ("1", "2"), "alpha": 0.5,
               "training": SHORT}  # fmt: skip
    stored = distill(plain_student(), teachers(1)[0], **options)
    asked = distill(plain_student(), teachers(1)[0], augment=lambda inputs: inputs, **options)
    assert_close(asked.history.losses, stored.history.losses, rtol=0, atol=1e-5)
    assert all(
        torch.allclose(one, state(asked.student)[name], atol=1e-5)
        for name, one in state(stored.student).items()
    )
