"""``alloykit methods``."""

from __future__ import annotations

from itertools import groupby

from alloykit.cli.console import Json, print_json, print_table


def methods(as_json: Json = False) -> None:
    """List every merge method, ensemble rule and soup, with what each needs."""
    import alloykit

    every = alloykit.methods()
    if as_json:
        print_json(every)
        return
    for sort, entries in groupby(every, key=lambda entry: entry["sort"]):
        rows = [(e["name"], e["needs"] or "–", e["summary"]) for e in entries]
        print_table(f"{sort.capitalize()}s", ["name", "needs", "what it does"], rows)
