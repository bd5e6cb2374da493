from __future__ import annotations

import importlib.metadata
import inspect

import pytest

from alloykit.errors import InvalidParameter, UnknownName
from alloykit.registry import Registry, ensemble_rules, merge_methods, soups


def test_the_registries_hold_what_their_folders_hold():
    assert {"linear", "ties", "slerp", "fisher", "tsv_m", "wsm"} <= set(merge_methods.names())
    assert "gram" not in merge_methods.names()  # a module beside them, not a method
    assert soups.names() == ["greedy", "interpolation", "learned", "uniform"]
    assert {"average", "vote", "weighted"} <= set(ensemble_rules.names())


@pytest.mark.parametrize("registry", [merge_methods, ensemble_rules, soups], ids=lambda r: r.sort)
def test_every_entry_is_documented_and_says_when_to_use_it(registry):
    for entry in registry.entries():
        text = inspect.getdoc(entry.factory) or ""
        assert 10 < len(entry.summary) <= 100, entry.name
        assert entry.summary.endswith("."), entry.name
        assert "Use it" in text, entry.name
        for parameter in entry.parameters:
            assert f"    {parameter}: " in text, (entry.name, parameter)


@pytest.mark.parametrize("registry", [merge_methods, ensemble_rules, soups], ids=lambda r: r.sort)
def test_every_entry_can_be_built_as_it_is(registry):
    for entry in registry.entries():
        required = [
            name
            for name, parameter in entry.parameters.items()
            if parameter.default is inspect.Parameter.empty
        ]
        assert not required, entry.name
        assert registry.build(entry.name) is not None


def test_an_unknown_name_gets_a_suggestion_and_the_list():
    with pytest.raises(UnknownName) as caught:
        merge_methods.build("liner")
    assert str(caught.value) == (
        "There is no merge method 'liner'. Did you mean 'linear'? "
        f"All {len(merge_methods.names())}: {', '.join(merge_methods.names())}."
    )


def test_an_unknown_parameter_gets_a_suggestion_and_the_list():
    with pytest.raises(InvalidParameter) as caught:
        merge_methods.build("interpolate", alpah=1)
    assert str(caught.value) == (
        "interpolate has no parameter 'alpah'. Did you mean 'alpha'? It takes: alpha."
    )
    with pytest.raises(InvalidParameter, match="It takes: none"):
        merge_methods.build("median", alpha=1)


def make(name: str, module: str):
    def factory() -> str:
        return module

    factory.__name__, factory.__module__ = name, module
    return factory


def test_two_modules_cannot_claim_one_name():
    registry = Registry("merge method", "alloykit.merging")
    registry.add(make("mean", "one"))
    registry.add(make("mean", "one"))
    with pytest.raises(ValueError, match="Two merge methods are named 'mean'"):
        registry.add(make("mean", "two"))


def test_installed_plug_ins_are_found_in_the_group_of_the_package(monkeypatch):
    registry = Registry("merge method", "alloykit.merging")

    class EntryPoint:
        name = "extra"

        def load(self):
            registry.add(make("extra", "plug_in"), needs=frozenset())

    asked = []

    def entry_points(*, group):
        asked.append(group)
        return [EntryPoint()]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    assert "extra" in registry.names()
    assert asked == ["alloykit.merging"]
    assert registry.build("extra") == "plug_in"


def test_a_broken_plug_in_is_named_and_left_out(monkeypatch):
    class EntryPoint:
        name, value = "broken", "nowhere:nothing"

        def load(self):
            raise ModuleNotFoundError("No module named 'nowhere'")

    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: [EntryPoint()])
    registry = Registry("soup", "alloykit.soups")
    with pytest.warns(
        UserWarning, match=r"plug-in 'broken' .* left out: No module named 'nowhere'"
    ):
        assert registry.names() == []  # its own are registered elsewhere
