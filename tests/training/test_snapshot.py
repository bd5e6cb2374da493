from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from alloykit.errors import CheckpointError, InvalidParameter, OutputExists
from alloykit.training.history import History
from alloykit.training.loop import Validation, train
from alloykit.training.losses import loss_of
from alloykit.training.rows import Rows
from alloykit.training.settings import Training
from alloykit.training.snapshot import FILE

LOSS = loss_of("classification")


class Stop(Exception):
    """Stands for whatever ends a process."""


def data() -> Rows:
    inputs = torch.randn(45, 3, generator=torch.Generator().manual_seed(0))
    return Rows(inputs, (inputs[:, 0] > 0).long(), augment=lambda x: x + 0.1 * torch.randn_like(x))


def net(seed: int, tied: bool = True) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3),
            nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2),
        )  # fmt: skip
        if tied:
            model[5].weight = model[4].weight
        model.register_buffer("steps_seen", torch.zeros(()), persistent=False)
        model.register_forward_hook(lambda module, args, out: module.steps_seen.add_(1) and None)
        return model


VALIDATION = Validation(
    lambda model: float(LOSS(model, Rows(*held()).part(torch.arange(20)))), "loss"
)


def held() -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.randn(20, 3, generator=torch.Generator().manual_seed(9))
    return inputs, (inputs[:, 0] > 0).long()


def run(
    folder: Path | None, *, stop: int | None = None, start: int = 0, every: float = 0.0, **settings
) -> tuple[History, list[torch.Tensor]]:
    """A run from other initial weights each time: what was started counts, not what came after."""
    model, steps = net(start), []

    def after_step() -> None:
        steps.append(1)
        if len(steps) == stop:
            raise Stop

    training = Training(
        **{"epochs": 3, "batch_size": 8, "accumulate": 2, "learning_rate": 0.05} | settings
    )
    # Large enough for float16 to overflow at first, so that the scale of the loss changes.
    size = 30.0 if training.precision == "float16" else 1.0
    history = train(
        model, data(), lambda m, part: size * LOSS(m, part), training, validation=VALIDATION, after_step=after_step,
        snapshot=folder, identity={"data": "a"}, every=every,
    )  # fmt: skip
    return history, [tensor.clone() for tensor in (*model.parameters(), *model.buffers())]


def told(history: History) -> dict:
    """All but the clock."""
    found = history.to_json()
    for epoch in found["epochs"]:
        del epoch["seconds"]
    return found


def same(one, other) -> bool:
    return told(one[0]) == told(other[0]) and all(map(torch.equal, one[1], other[1]))


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("every", [0.0, 1000.0])
def test_an_interruption_after_any_step_leads_to_the_same_bits(tmp_path, every, precision):
    straight = run(None, precision=precision)
    assert straight[0].steps == 9
    for stop in range(1, 10):
        folder = tmp_path / str(stop)
        with pytest.raises(Stop):
            run(folder, stop=stop, every=every, precision=precision)
        start = 0 if stop <= (3 if every else 1) else 7  # before the first snapshot
        assert same(run(folder, start=start, every=every, precision=precision), straight)


def test_momentum_is_gone_on_with(tmp_path):
    given = {"optimizer": "sgd", "momentum": 0.9}
    straight = run(None, **given)
    for stop in (2, 5):
        with pytest.raises(Stop):
            run(tmp_path / str(stop), stop=stop, **given)
        assert same(run(tmp_path / str(stop), start=7, **given), straight)
    assert not same(run(None, optimizer="sgd"), straight)


def test_many_interruptions_of_one_run(tmp_path):
    for _ in range(4):
        with pytest.raises(Stop):
            run(tmp_path / "run", stop=2)
    assert same(run(tmp_path / "run", start=3), run(None))


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    (tmp_path / ".alloykit-0123.tmp").write_bytes(b"half")
    (tmp_path / "notes.tmp").write_bytes(b"the user's own")
    run(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["notes.tmp", FILE]


def test_a_finished_run_is_returned_at_once(tmp_path):
    first = run(tmp_path)
    again = run(tmp_path, stop=1, start=5)
    assert same(again, first)
    assert [file.name for file in tmp_path.iterdir()] == [FILE]


def test_the_snapshot_is_safetensors_and_json(tmp_path):
    from safetensors import safe_open

    run(tmp_path)
    with safe_open(tmp_path / FILE, "pt") as file:
        record = json.loads(file.metadata()["alloykit.training"])
        names = list(file.keys())
    assert record["settings"]["training"]["batch_size"] == 8
    assert record["settings"]["identity"] == {"data": "a"}
    assert {name.split("/")[0] for name in names} == {"model", "kept", "optimizer"}
    assert "model/steps_seen" in names


def test_another_run_is_refused_with_all_that_differs(tmp_path):
    run(tmp_path, stop=None)
    model = net(0, tied=False)
    model[6] = nn.Linear(8, 3)
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(OutputExists) as caught:
        train(
            model, Rows(held()[0]), LOSS, Training(epochs=4, learning_rate=0.05),
            snapshot=tmp_path, identity={"data": "b", "teacher": [1]},
        )  # fmt: skip
    text = str(caught.value)
    for line in (
        "is the snapshot of another run:",
        "identity.data   snapshot: a   now: b",
        "identity.teacher   snapshot: missing   now: [1]",
        "training.epochs   snapshot: 3   now: 4",
        "training.batch_size   snapshot: 8   now: 64",
        "training.accumulate   snapshot: 2   now: 1",
        "examples   snapshot: 45   now: 20",
        "metric   snapshot: loss   now: ",
        "model.5.weight   snapshot: missing   now: torch.float32 [8, 8]",
        "model.6.weight   snapshot: torch.float32 [2, 8]   now: torch.float32 [3, 8]",
        "give another folder",
    ):
        assert line in text
    assert (tmp_path / FILE).read_bytes() == before


def test_other_frozen_parameters_are_another_run(tmp_path):
    for value in (1.0, 2.0):
        model = net(0)
        model[0].requires_grad_(False)
        with torch.no_grad():
            model[0].weight.fill_(value)
        if value == 2.0:
            with pytest.raises(OutputExists, match="frozen parameters   snapshot: sha256"):
                train(model, data(), LOSS, Training(epochs=1), snapshot=tmp_path)
        else:
            train(model, data(), LOSS, Training(epochs=1), snapshot=tmp_path)


@pytest.mark.parametrize("damage", ["cut", "empty", "bit in a tensor", "bit in the record", "text"])
def test_a_damaged_snapshot_is_one_error_that_names_the_file(tmp_path, damage):
    run(tmp_path)
    file = tmp_path / FILE
    whole = file.read_bytes()
    record = whole.index(b"higher_is_better")
    broken = {
        "cut": whole[:-10],
        "empty": b"",
        "bit in a tensor": whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:],
        "bit in the record": whole[:record] + b"l" + whole[record + 1 :],
        "text": b"not a snapshot at all",
    }[damage]
    file.write_bytes(broken)
    with pytest.raises(CheckpointError, match=r"training\.safetensors"):
        run(tmp_path)
    assert file.read_bytes() == broken


def test_somebody_elses_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.ones(1)}, tmp_path / FILE)
    with pytest.raises(CheckpointError, match="is no snapshot of a training run"):
        run(tmp_path)


def test_a_loss_that_is_nan_leaves_the_snapshot_of_before(tmp_path):
    calls = []

    def loss(model, part):
        calls.append(1)
        return LOSS(model, part) * (float("nan") if len(calls) == 9 else 1)

    from alloykit.errors import DataError

    for _ in range(2):
        with pytest.raises(DataError, match="epoch 2 of 2, step 3"):
            train(
                net(0), data(), loss, Training(epochs=2, batch_size=8), snapshot=tmp_path, every=0
            )
        calls[:] = [1] * 8  # the same loss at the same step, reached again from the snapshot


def test_settings_that_no_snapshot_can_hold(tmp_path):
    for identity in ({"model": nn.Linear(1, 1)}, {"x": float("nan")}):
        with pytest.raises(InvalidParameter, match="identity of a run must be JSON values"):
            train(net(0), data(), LOSS, snapshot=tmp_path, identity=identity)
    with pytest.raises(InvalidParameter, match=r"must be at least 0 seconds\. Got -1"):
        train(net(0), data(), LOSS, snapshot=tmp_path, every=-1)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be made"):
        train(net(0), data(), LOSS, snapshot=tmp_path / "file" / "folder")


def test_a_tuple_in_the_identity_is_the_same_list_after_a_restart(tmp_path):
    for _ in range(2):
        train(
            net(0), data(), LOSS, Training(epochs=1), snapshot=tmp_path,
            identity={"members": ("a", "b"), "nested": {"1": None}},
        )  # fmt: skip


KILLED = """
import os, random, signal, sys, time
sys.path.insert(0, sys.argv[2])
import test_snapshot as runs
from pathlib import Path
folder = Path(sys.argv[1])
SETTINGS = dict(epochs=12, patience=3, learning_rate=0.1)

def attempt():
    runs.run(folder, every=0, start=os.getpid() % 1000, **SETTINGS)

def first():
    runs.run(folder, every=0, stop=2, **SETTINGS)

def forked(work, wait):
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    if wait is not None:
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]

forked(first, None)
killed, parts = 0, set()
while True:
    status = forked(attempt, random.uniform(0.02, 0.12) if killed < 5 else None)
    for file in folder.iterdir():
        parts.add(file.suffix)
    if not os.WIFSIGNALED(status):
        break
    killed += 1
ends = runs.run(folder, every=0, **SETTINGS), runs.run(None, **SETTINGS)
print(killed, runs.same(*ends), bool(ends[1][0].stopped), sorted(f.name for f in folder.iterdir()))
"""


def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path):
    """Dropout, BatchNorm, augmentation, accumulation, tied weights and early stopping in it."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "run"), str(Path(__file__).parent)],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    killed, equal, stopped, files = done.stdout.split(maxsplit=3)
    assert int(killed) >= 2
    assert (equal, stopped, files.strip()) == ("True", "True", f"['{FILE}']")
