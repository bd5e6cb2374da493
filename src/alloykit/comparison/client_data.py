"""The clients' data of a study: files of their own, or one split dealt out."""

from __future__ import annotations

from pathlib import Path

from alloykit.comparison.federation_spec import dealt
from alloykit.comparison.study import Study
from alloykit.data.examples import Examples
from alloykit.data.sources import load_split
from alloykit.errors import MissingInput


def partitions_of(study: Study, folder: Path) -> dict[str, Examples]:
    """Client -> its examples, from files of their own or dealt out from one split.

    Raises:
        MissingInput: There are neither.
    """
    data = study.data
    if data.partitions:
        return {
            name: load_split(spec, "train", folder, batch_size=study.batch_size)
            for name, spec in data.partitions.items()
        }
    if data.deal is None or data.train is None:
        raise MissingInput(
            "The study has no data for clients. Give data.partitions, a split for each client by "
            "name; or data.train and data.deal, which deals it out to simulated clients."
        )
    whole = load_split(data.train, "train", folder, batch_size=study.batch_size)
    dealt_out = dealt(whole.targets, data.deal)
    return {name: whole.keep(rows.tolist()) for name, rows in dealt_out.items()}
