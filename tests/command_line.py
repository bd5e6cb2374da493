"""Run the command line inside the test, as a user would from a shell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from alloykit.cli import main


@dataclass(frozen=True)
class Finished:
    """What a command ended with."""

    code: int
    out: str
    err: str


def run(capsys: pytest.CaptureFixture[str], arguments: Sequence[object]) -> Finished:
    """Run ``alloykit`` with these arguments."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    code = ended.value.code
    return Finished(0 if code is None else int(code), captured.out, captured.err)
