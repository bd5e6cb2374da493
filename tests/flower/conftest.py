"""Flower's processes on the loopback address; nothing is collected where Flower is missing."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

collect_ignore_glob = ["test_*.py"]
if importlib.util.find_spec("flwr"):
    collect_ignore_glob = []
    with warnings.catch_warnings():
        # Its command line warns of what is deprecated in its own dependencies.
        warnings.simplefilter("ignore", DeprecationWarning)
        for module in ("flwr.app", "flwr.clientapp", "flwr.serverapp"):
            importlib.import_module(module)
        from flwr.supercore.task_identity import TaskIdentity

APP = Path(__file__).resolve().parents[2] / "examples" / "flower_digits"
PATIENCE = 240.0
"""Seconds that a process may take on a machine that does other things, too."""

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}


class Machines:
    """A SuperLink and SuperNodes, each a process group of its own that ends with the test."""

    patience = PATIENCE

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = folder / "model.safetensors"
        self.app = folder / "app"
        shutil.copytree(APP, self.app, ignore=shutil.ignore_patterns("__pycache__"))
        home = folder / "home"
        home.mkdir()
        bin = Path(sys.executable).parent
        self._bin = bin
        self._environment = {
            **os.environ,
            **QUIET,
            "FLWR_HOME": str(home),
            "PATH": f"{bin}{os.pathsep}{os.environ['PATH']}",
        }
        self._processes: list[subprocess.Popen[bytes]] = []
        self._port = free_port()
        (home / "config.toml").write_text(
            '[superlink]\ndefault = "here"\n\n'
            f'[superlink.here]\naddress = "127.0.0.1:{self._port}"\ninsecure = true\n'
        )

    def superlink(self, *options: str) -> None:
        """Start it, and wait until it answers."""
        process = self._start(
            "superlink",
            "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(self._port),
            *options,
        )  # fmt: skip
        url = f"http://127.0.0.1:{self._port}/health"
        self.wait_until(lambda: process.poll() is not None or answers(url), "the SuperLink")
        assert process.poll() is None, self.log("superlink")

    def supernode(self, client: int, clients: int) -> subprocess.Popen[bytes]:
        """Start the machine of one client."""
        return self._start(
            f"supernode-{client}",
            "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{self._port}",
            "--host", "127.0.0.1", "--port", str(free_port()),
            "--node-config", f"partition-id={client} num-partitions={clients}",
        )  # fmt: skip

    def begin(self, settings: dict[str, Any], *options: str) -> subprocess.Popen[bytes]:
        """Start a run; the process that is returned ends with it."""
        given = {**settings, "output": str(self.output)}
        config = " ".join(f"{name}={json.dumps(value)}" for name, value in given.items())
        return self._start(
            "run", "flwr", "run", str(self.app), "here", "--stream", "--run-config", config,
            *options,
        )  # fmt: skip

    def finish(self, run: subprocess.Popen[bytes]) -> list[dict[str, Any]]:
        """Wait for a run that has to end well; the records of its rounds."""
        self.wait_until(lambda: run.poll() is not None, "the run")
        assert self.output.with_suffix(".json").exists(), self.log("run") + self.log("superlink")
        listed = subprocess.run(
            [self._bin / "flwr", "list", "here", "--format", "json"],
            env=self._environment, capture_output=True, text=True, timeout=PATIENCE, check=True,
        )  # fmt: skip
        assert json.loads(listed.stdout)["runs"][0]["status"] == "finished:completed"
        return json.loads(self.output.with_suffix(".json").read_text())

    def log(self, name: str) -> str:
        """What a process has said so far."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def wait_until(self, done: Callable[[], bool], what: str) -> None:
        """Look again and again, for as long as a busy machine may need."""
        ends = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < ends, f"{what} took too long\n{self.log('superlink')}"
            time.sleep(0.1)

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a process with all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        """Kill everything that was started, also what left its process group."""
        for process in reversed(self._processes):
            self.kill(process)
        mark = f"FLWR_HOME={self._environment['FLWR_HOME']}\0".encode()
        for entry in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark in entry.read_bytes():
                    os.kill(int(entry.parent.name), signal.SIGKILL)

    def _start(self, name: str, command: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [self._bin / command, *arguments],
                env=self._environment, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self._processes.append(process)
        return process


@pytest.fixture(autouse=True)
def server_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process make messages, as only Flower's own processes may."""
    for name in ("run_id", "node_id", "task_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    found = Machines(tmp_path)
    yield found
    found.close()


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example's model, data and training."""
    monkeypatch.syspath_prepend(str(APP))
    yield importlib.import_module("flower_digits.task")
    for name in [name for name in sys.modules if name.partition(".")[0] == "flower_digits"]:
        del sys.modules[name]


@pytest.fixture
def own_simulation(task: Any) -> Callable[..., Any]:
    """alloykit's rounds with the example's model, data and training, for the first clients."""
    from alloykit.federation.rounds import run_rounds
    from alloykit.federation.settings import Federation

    def run(method: str, clients: int, rounds: int, epochs: int, of: int | None = None) -> Any:
        parts = {str(client): task.rows_of(client, of or clients) for client in range(clients)}
        training = task.training(epochs, 0, 1, 0)
        settings = Federation(rounds=rounds, method=method, training=training, seed=0)
        return run_rounds(task.new_model(), parts, settings).model

    return run


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False
