"""The accountant: epsilon as published, and as the library itself says."""

from __future__ import annotations

import math
import sys

import pytest

from alloykit.errors import InvalidParameter, MissingExtra
from alloykit.federation.privacy import epsilon_of, noise_multiplier_for

dp_accounting = pytest.importorskip("dp_accounting")

PUBLISHED = [
    ("rdp", 1.3, 150 / 60_000, 6_000, 1e-5, 0.7242234026109595),
    ("rdp", 1.0, 100 / 100_000, 30_000, 1e-7, 1.4154988495444845),
    ("rdp", 0.7, 1.0, 2, 1e-5, 10.8602036),
    ("pld", 0.7, 1.0, 2, 1e-5, 10.1224946),
    ("pld", 0.7, 0.01, 120, 1e-5, 2.4612381),
]
"""Accountant, noise multiplier, sampling rate, rounds, delta and epsilon, as the tests of TensorFlow
Privacy have them (compute_dp_sgd_privacy_lib_test.py)."""


@pytest.mark.parametrize(("name", "noise", "rate", "rounds", "delta", "epsilon"), PUBLISHED)
def test_published_settings(name, noise, rate, rounds, delta, epsilon):
    found = epsilon_of(noise, rounds=rounds, delta=delta, sampling_rate=rate, accountant=name)
    assert found == pytest.approx(epsilon, abs=1e-7)


def test_it_is_what_the_library_says():
    direct = dp_accounting.rdp.RdpAccountant()
    event = dp_accounting.PoissonSampledDpEvent(0.04, dp_accounting.GaussianDpEvent(1.5))
    direct.compose(event, 2_249)
    found = epsilon_of(1.5, rounds=2_249, delta=1e-5, sampling_rate=0.04)
    assert found == direct.get_epsilon(1e-5)
    # Opacus gives 7.32911117143 (accountants_test.py), with fewer orders of divergences.
    assert 7.32 < found < 7.32911117143


def test_it_is_no_looser_than_the_moments_accountant_and_pld_is_tighter():
    # Abadi et al., 2016, arXiv:1607.00133, section 3: 1.26, where strong composition gives 9.34.
    setting = {"rounds": 10_000, "delta": 1e-5, "sampling_rate": 0.01}
    renyi = epsilon_of(4.0, **setting)
    assert 0.9 < epsilon_of(4.0, accountant="pld", **setting) < renyi < 1.26


def test_the_ends():
    assert epsilon_of(0.0, rounds=1, delta=1e-5) == math.inf
    assert epsilon_of(1.0, rounds=0, delta=1e-5) == 0.0
    assert epsilon_of(1.0, rounds=10, delta=1e-5) > epsilon_of(
        1.0, rounds=10, delta=1e-5, sampling_rate=0.5
    )


def test_the_way_back():
    setting = {"rounds": 200, "delta": 1e-6, "sampling_rate": 0.05}
    noise = noise_multiplier_for(3.0, **setting)
    assert epsilon_of(noise, **setting) <= 3.0
    assert epsilon_of(noise, **setting) == pytest.approx(3.0, abs=1e-4)


def test_all_wrong_parameters_are_named():
    with pytest.raises(InvalidParameter) as caught:
        epsilon_of(-1.0, rounds=-1, delta=0.0, sampling_rate=1.5, accountant="moments")
    assert [line.split("'")[1] for line in str(caught.value).splitlines()[1:]] == [
        "noise_multiplier", "rounds", "delta", "sampling_rate", "accountant",
    ]  # fmt: skip
    with pytest.raises(InvalidParameter, match="'epsilon' parameter of noise_multiplier_for"):
        noise_multiplier_for(0.0, rounds=1, delta=1e-5)


def test_without_the_package_the_text_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(MissingExtra, match=r"pip install 'alloykit\[privacy\]'"):
        epsilon_of(1.0, rounds=1, delta=1e-5)
