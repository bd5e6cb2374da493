from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

pytest.importorskip("accelerate")
pytestmark = pytest.mark.xdist_group("port")

SCRIPT = """
import json, math, sys, warnings
import torch
from accelerate import Accelerator
from torch import nn
from alloykit.errors import DataError
from alloykit.training.loop import Validation, train
from alloykit.training.losses import loss_of
from alloykit.training.rows import Rows
from alloykit.training.settings import Training

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)).double()

def rows(count):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 4, (count, 3), generator=generator)
    tokens[torch.rand(count, 3, generator=generator) < 0.4] = -100
    return Rows(torch.randn(count, 3, 3, generator=generator).double(), tokens)

def weights(model):
    return [round(float(x), 12) for p in model.parameters() for x in p.detach().flatten()]

accelerator = Accelerator(cpu=True) if sys.argv[1] == "accelerate" else None
main = accelerator is None or accelerator.is_main_process
found = {}
for name, count, settings in (
    ("uneven", 33, dict(batch_size=8, accumulate=2, clip_norm=0.05)),
    ("one row for two", 5, dict(batch_size=1, accumulate=2)),
    ("odd", 10, dict(batch_size=3, warmup=0.3)),
    ("sgd", 10, dict(batch_size=4, optimizer="sgd", momentum=0.9)),
):
    if name == "uneven":  # interrupted after its second snapshot
        try:
            train(
                net(), rows(count), loss_of("tokens"),
                Training(epochs=5, learning_rate=0.01, patience=2, **settings),
                validation=Validation(lambda m: 1.0, "score", True), accelerator=accelerator,
                snapshot=sys.argv[2] + "/" + name, every=0, after_epoch=lambda epoch: 1 / 0,
            )
        except ZeroDivisionError:
            pass
    model = net()
    given = [1.0, 3.0, 2.0, 2.0, 9.0][name == "uneven" :]
    measured = iter(given) if main else iter([math.nan] * 5)
    history = train(
        model, rows(count), loss_of("tokens"),
        Training(epochs=5, learning_rate=0.01, patience=2, **settings),
        validation=Validation(lambda m: next(measured), "score", True), accelerator=accelerator,
        snapshot=sys.argv[2] + "/" + name, every=0,
    )
    found[name] = [weights(model), history.losses, history.best, len(history.epochs), history.steps]

def loss(model, part):
    bad = bool((part.rows == 4).any())  # lies in one process's share
    return loss_of("tokens")(model, part) * (math.nan if bad else 1.0)

model = net()
try:
    train(model, rows(10), loss, Training(batch_size=10), accelerator=accelerator)
except DataError as error:
    found["nan"] = [str(error), weights(model)]
assert type(model) is nn.Sequential and not model.training and "forward" not in vars(model)
if main:
    print("RESULT " + json.dumps(found))
"""


PRECISE = """
import torch
from accelerate import Accelerator
from torch import nn
from alloykit.training.loop import train
from alloykit.training.rows import Rows
from alloykit.training.settings import Training

inputs = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
rows = Rows(inputs, (inputs[:, 0] > 0).long())

def trained(accelerator, precision):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 2))
    seen = set()
    def loss(model, part):
        seen.add(model[0](part.inputs).dtype)
        return nn.functional.cross_entropy(model(part.inputs).float(), part.targets)
    training = Training(epochs=2, batch_size=8, accumulate=2, clip_norm=1.0, precision=precision)
    train(model, rows, loss, training, accelerator=accelerator)
    assert seen == {torch.bfloat16} and "forward" not in vars(model)
    assert model(inputs).dtype == torch.float32
    return model.state_dict().values()

both = trained(Accelerator(cpu=True, mixed_precision="bf16"), "float32"), trained(None, "bfloat16")
print(all(map(torch.equal, *both)))
"""


def launched(count: int, folder) -> dict:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    kind = "accelerate" if count > 1 else "plain"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, kind, str(folder / kind)], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=os.environ | (shared | {"RANK": str(i), "LOCAL_RANK": str(i)} if count > 1 else {}),
        )
        for i in range(count)
    ]  # fmt: skip
    try:
        ends = [process.communicate(timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * count, [e[1] for e in ends]
    line = next(line for out, _ in ends for line in out.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


def test_two_processes_give_what_one_gives(tmp_path):
    """Shares of unequal size and padding, a share of no rows, early stopping and NaN agreed on."""
    one, two = launched(1, tmp_path), launched(2, tmp_path)
    for name in ("uneven", "one row for two", "odd"):
        assert two[name][0] == pytest.approx(one[name][0], rel=1e-9, abs=1e-11)
        assert two[name][1] == pytest.approx(one[name][1], rel=1e-9)
        assert two[name][2:] == one[name][2:]
        assert one[name][2:4] == [2, 4]
    assert two["nan"] == one["nan"]
    assert "The loss became nan in epoch 1 of 20, step 1" in two["nan"][0]


def test_the_mixed_precision_of_an_accelerator_is_ours_to_the_bit():
    done = subprocess.run(
        [sys.executable, "-c", PRECISE], capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("True")
