from __future__ import annotations

from collections import Counter

import pytest

from alloykit.federation.sampling import asked, delay_of, drops_out, epochs_of
from alloykit.federation.settings import Federation

CLIENTS = [f"client {i}" for i in range(20)]


def test_who_is_asked_depends_on_names_and_round_alone():
    settings = Federation(fraction=0.3)
    first = asked(CLIENTS, settings, 4)
    assert len(first) == 6
    assert first == sorted(first) == asked(CLIENTS[::-1], settings, 4)
    assert first != asked(CLIENTS, settings, 5)
    assert first != asked(CLIENTS, Federation(fraction=0.3, seed=1), 4)


def test_every_client_is_asked_about_as_often():
    settings = Federation(clients_per_round=5)
    counts = Counter(name for number in range(1, 401) for name in asked(CLIENTS, settings, number))
    # 100 expected, standard deviation 8.7.
    assert set(counts) == set(CLIENTS)
    assert all(60 < count < 140 for count in counts.values())


def test_small_fractions_ask_one_and_the_busy_are_not_asked():
    assert len(asked(CLIENTS, Federation(fraction=0.001), 1)) == 1
    assert asked(CLIENTS, Federation(), 1, busy=CLIENTS[3:]) == sorted(CLIENTS[:3])
    assert asked(["a"], Federation(), 1, busy=["a"]) == []


def test_chances_are_what_they_say():
    settings = Federation(drop_out=0.3, stragglers=0.2, delay=3)
    rounds = range(1, 301)
    gone = [drops_out(settings, n, name) for n in rounds for name in CLIENTS]
    assert sum(gone) / 6000 == pytest.approx(0.3, abs=0.03)
    late = Counter(delay_of(settings, n, name) for n in rounds for name in CLIENTS)
    assert set(late) == {0, 1, 2, 3}
    assert late[0] / 6000 == pytest.approx(0.8, abs=0.03)
    assert all(late[k] / 6000 == pytest.approx(0.2 / 3, abs=0.02) for k in (1, 2, 3))


def test_slow_clients_train_fewer_epochs_or_come_late():
    fewer = Federation(stragglers=1.0, training={"epochs": 4})
    found = Counter(epochs_of(fewer, n, "a") for n in range(1, 301))
    assert set(found) == {1, 2, 3}
    assert {delay_of(fewer, n, "a") for n in range(1, 50)} == {0}
    late = Federation(stragglers=1.0, delay=1, training={"epochs": 4})
    assert {epochs_of(late, n, "a") for n in range(1, 50)} == {4}
    assert epochs_of(Federation(training={"epochs": 4}), 1, "a") == 4
