"""The registries of methods: a file in the right folder registers itself, everything else reads.

A factory function is registered together with its contract; its signature is its parameters. The
command line, the study file, the docs page, the contract tests and ``compare`` read the registry.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import pkgutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from alloykit.errors import InvalidParameter, UnknownName, did_you_mean


@dataclass(frozen=True)
class Entry:
    """One registered factory.

    Attributes:
        name: Its name, that of the factory.
        factory: Parameters -> the method, rule or soup.
        contract: What was declared with it: needs, members, tasks and so on.
    """

    name: str
    factory: Callable[..., Any]
    contract: Mapping[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """The first line of the factory's docstring."""
        return (inspect.getdoc(self.factory) or "").partition("\n")[0]

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The factory's parameters."""
        return inspect.signature(self.factory).parameters

    def build(self, **parameters: Any) -> Any:
        """Call the factory, refusing parameters that it does not have."""
        unknown = [name for name in parameters if name not in self.parameters]
        if unknown:
            known = list(self.parameters)
            raise InvalidParameter(
                f"{self.name} has no parameter {unknown[0]!r}."
                f"{did_you_mean(unknown[0], known)} It takes: {', '.join(known) or 'none'}."
            )
        return self.factory(**parameters)


class Registry:
    """Named factories of one sort, found in one package and in installed plug-ins.

    A plug-in names a module in the entry-point group of the package's name ("alloykit.merging");
    importing it registers what it holds.

    Args:
        sort: What it holds, in words ("merge method").
        package: The package whose modules register themselves when imported.
    """

    def __init__(self, sort: str, package: str) -> None:
        self.sort = sort
        self.package = package
        self._found: dict[str, Entry] = {}

    def add(self, factory: Callable[..., Any], **contract: Any) -> None:
        """Register ``factory`` under its own name."""
        name = factory.__name__
        if name in self._found and self._found[name].factory.__module__ != factory.__module__:
            raise ValueError(f"Two {self.sort}s are named {name!r}.")
        self._found[name] = Entry(name, factory, contract)

    @cached_property
    def _loaded(self) -> dict[str, Entry]:
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        for entry_point in importlib.metadata.entry_points(group=self.package):
            try:
                entry_point.load()
            except Exception as error:
                # One broken plug-in must not take away all that is built in.
                warnings.warn(
                    f"The plug-in {entry_point.name!r} of {self.package} was left out: {error}",
                    stacklevel=2,
                )
        return self._found

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._loaded)

    def entries(self) -> list[Entry]:
        """All entries, sorted by name."""
        return [self._loaded[name] for name in self.names()]

    def entry(self, name: str) -> Entry:
        """The entry of that name; UnknownName with a suggestion where there is none."""
        if name not in self._loaded:
            names = self.names()
            raise UnknownName(
                f"There is no {self.sort} {name!r}.{did_you_mean(name, names)} "
                f"All {len(names)}: {', '.join(names)}."
            )
        return self._loaded[name]

    def build(self, name: str, **parameters: Any) -> Any:
        """Build the method of that name with these parameters."""
        return self.entry(name).build(**parameters)


merge_methods = Registry("merge method", "alloykit.merging")
ensemble_rules = Registry("ensemble rule", "alloykit.ensembling")
soups = Registry("soup", "alloykit.soups")
fusion_heads = Registry("fusion head", "alloykit.fusion")
distillation_losses = Registry("distillation loss", "alloykit.distillation")
aggregators = Registry("aggregator", "alloykit.federation")
