"""What a fuzzer once found is refused, or read rightly, from then on: see ``fuzz.py``."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random

import pytest
from fuzz_targets import TARGETS, attack
from mutations import mutated, restructured, spelt

CORPUS = Path(__file__).parent / "corpus"
FOUND = sorted(path for path in CORPUS.rglob("*") if path.is_file())


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_stays_mended(path: Path, tmp_path: Path) -> None:
    target = TARGETS[path.parent.name]
    target.prepare(tmp_path)
    began = time.process_time()
    attack(target, tmp_path, path.read_bytes())
    assert time.process_time() - began < 3


@pytest.mark.parametrize("name", TARGETS)
def test_a_short_attack_finds_nothing(name: str, tmp_path: Path) -> None:
    """The seeds, and two hundred changes to them: the fuzzer itself keeps working."""
    target, rng = TARGETS[name], Random(0)
    target.prepare(tmp_path)
    answers = [attack(target, tmp_path, data) for data in target.seeds]
    assert "" in answers, "no seed is accepted"
    assert any(answers), "no seed is refused"
    for _ in range(200):
        attack(target, tmp_path, target.change(rng.choice(target.seeds), target.seeds, rng))


def test_changes_depend_on_the_seed_alone() -> None:
    tree = {"a": [1, 2, {"b": "c"}], "d": None}
    for change in (
        lambda rng: mutated(b"some bytes 123", [b"other"], rng),
        lambda rng: spelt(restructured(tree, rng), rng),
    ):
        assert [change(Random(s)) for s in range(50)] == [change(Random(s)) for s in range(50)]
        assert len({change(Random(s)) for s in range(50)}) > 25
    assert tree == {"a": [1, 2, {"b": "c"}], "d": None}
