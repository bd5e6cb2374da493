"""Run a comparison: every candidate once, a row each, a recommendation at the end."""

from __future__ import annotations

import datetime
import math
import platform
import shlex
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alloykit.comparison.assembly import assemble, save_assembled, suffix_of
from alloykit.comparison.candidate import Candidate
from alloykit.comparison.candidates import chosen_candidates
from alloykit.comparison.diagnosis import diagnose_members
from alloykit.comparison.journal import Journal
from alloykit.comparison.kept import Kept
from alloykit.comparison.measuring import Reference, agreement, best_single, measured, metrics_shown
from alloykit.comparison.recommending import Recommendation, recommend
from alloykit.comparison.report.data import Agreement, Barrier, ReportData
from alloykit.comparison.report.page import write_report
from alloykit.comparison.setting import Setting
from alloykit.comparison.trying import try_candidate
from alloykit.errors import (
    AlloyError,
    MissingExtra,
    MissingInput,
    OutputExists,
    UnknownName,
    did_you_mean,
)
from alloykit.types import Row

FEW = 100
"""Below this many validation examples a warning says so."""

STALE = 1e-3
"""A member's score may move by this much between runs, for another number of threads."""

Progress = Callable[[str, int, int], None]
"""Called before each piece of work with what comes next, how much is done, and of how much."""


@dataclass(frozen=True)
class Combination:
    """One row of a comparison as something to use: a model, and a file.

    Attributes:
        row: Its line in the comparison.
        setting: What the comparison was about.
    """

    row: Row
    setting: Setting

    @property
    def name(self) -> str:
        """The candidate's name."""
        return self.row.candidate

    def model(self) -> nn.Module:
        """The combined model, in eval mode."""
        return assemble(self.row.recipe, self.setting)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write it: one model's weights as ``.safetensors``, an ensemble as a ``.pt2`` program.

        Raises:
            InvalidParameter: A file name that promises another kind of file.
            OutputExists: The file exists and ``overwrite`` is not set.
        """
        return save_assembled(self.row.recipe, self.setting, Path(path), overwrite=overwrite)

    @property
    def suffix(self) -> str:
        """The ending of the file that ``save`` writes: ".safetensors" or ".pt2"."""
        return suffix_of(self.row.recipe)


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        setting: What it was about.
        rows: One per candidate, skipped and failed ones included.
        best_single: Name of the best single member on validation.
        recommendation: What to ship, and why.
        barriers: The straight lines between members with the same tensors.
        warnings: What to know before trusting the numbers.
    """

    setting: Setting
    rows: tuple[Row, ...]
    best_single: str
    recommendation: Recommendation
    barriers: tuple[Barrier, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def best(self) -> Combination:
        """The recommended candidate."""
        return self[self.recommendation.candidate]

    def __getitem__(self, candidate: str) -> Combination:
        done = {row.candidate: row for row in self.rows if row.status == "done"}
        if candidate not in done:
            raise UnknownName(
                f"No finished candidate is named {candidate!r}."
                f"{did_you_mean(candidate, list(done))} There are: {', '.join(done)}."
            )
        return Combination(done[candidate], self.setting)

    def report_data(self, *, command: str = "") -> ReportData:
        """All that the report shows. ``command`` is what repeats the comparison in a shell."""
        setting = self.setting
        splits = [setting.validation, setting.test]
        train = setting.train or setting.batch_norm
        if train is not None and train.name == "train":
            splits.insert(0, train)
        return ReportData(
            title=setting.title,
            task=setting.task,
            metric=setting.metric.name,
            higher_is_better=setting.metric.higher_is_better,
            metrics=tuple((m.name, m.higher_is_better) for m in metrics_shown(setting)),
            splits=tuple((s.name, len(s), s.digest) for s in splits),
            rows=self.rows,
            best_single=self.best_single,
            recommendation=self.recommendation.candidate,
            recommendation_reason=self.recommendation.reason,
            members=tuple(_member_facts(setting)),
            agreement=Agreement(setting.test_predictions.members, agreement(setting)),
            barriers=self.barriers,
            reproduce={r.candidate: _how_to(r, command) for r in self.rows if r.status == "done"},
            command=command or "alloykit.compare(members, validation=..., test=...)",
            environment=_environment(),
            settings={"seed": setting.seed, "resamples": setting.resamples},
            warnings=self.warnings,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )

    def report(self, path: str | Path, *, command: str = "", overwrite: bool = False) -> Path:
        """Write the report: one self-contained HTML page."""
        return write_report(self.report_data(command=command), Path(path), overwrite=overwrite)


def run_comparison(
    setting: Setting,
    *,
    wanted: Sequence[str] | None = None,
    folder: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Try every candidate that applies; skip the rest with a reason; survive those that fail.

    Args:
        setting: Members, data, metric.
        wanted: Names of candidates or methods to run; None runs all. Members always run.
        folder: Where ``rows.jsonl`` grows line by line; a comparison interrupted there goes on.
        overwrite: Start anew in a folder that holds another comparison.
        progress: Called before each piece of work.

    Raises:
        UnknownName: Wanted names that do not exist.
        DataError: Members that cannot be compared: outputs differ in shape, or hold NaN.
        OutputExists: The folder holds another comparison.
    """
    setting = replace(setting, kept=Kept(folder))
    candidates = chosen_candidates(setting, wanted)
    total = len(candidates) + 2
    _tell(progress, "members' predictions", 0, total)
    # Bad members and bad data show here, before anything is written.
    reference = best_single(setting)
    journal = Journal(folder, setting.fingerprint(), overwrite=overwrite)
    rows = []
    for index, candidate in enumerate(candidates):
        _tell(progress, candidate.name, index + 1, total)
        row = journal.finished(candidate.name)
        if row is None or not _rebuildable(row, setting):
            row = _row(candidate, setting, reference)
            journal.add(row)
        elif row.family == "member":
            _require_same(row, setting)
        rows.append(row)
    _tell(progress, "lines between members", total - 1, total)
    barriers, unwalked = _barriers(setting)
    _tell(progress, "done", total, total)
    return Comparison(
        setting=setting,
        rows=tuple(rows),
        best_single=reference.name,
        recommendation=recommend(rows, setting.metric, reference.name, examples=len(setting.test)),
        barriers=barriers,
        warnings=(*setting.notes, *_warnings(rows, setting), *unwalked),
    )


def _tell(progress: Progress | None, what: str, done: int, total: int) -> None:
    if progress is not None:
        progress(what, done, total)


def _rebuildable(row: Row, setting: Setting) -> bool:
    """Whether what the row's candidate learned is still there."""
    reference = row.recipe.get("state")
    kept_apart = row.recipe.get("kind") in ("fusion", "trained")
    return not kept_apart or (isinstance(reference, dict) and setting.kept.has(reference))


def _row(candidate: Candidate, setting: Setting, reference: Reference) -> Row:
    if candidate.why_not:
        return _not_tried(candidate, "skipped", candidate.why_not)
    try:
        return measured(candidate, try_candidate(candidate, setting), setting, reference)
    except (MissingExtra, MissingInput) as error:
        return _not_tried(candidate, "skipped", str(error))
    except Exception as error:
        # One broken candidate must not cost the others; its row carries the whole story.
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        return _not_tried(candidate, "failed", f"{type(error).__name__}: {error} ({where})")


def _require_same(row: Row, setting: Setting) -> None:
    """A member whose code has changed since the row was written makes all rows stale."""
    predictions = setting.validation_predictions
    outputs = predictions.outputs[predictions.members.index(row.candidate)]
    for metric in metrics_shown(setting):
        now = metric.value(outputs, setting.validation.targets)
        then = row.validation.get(metric.name, math.nan)
        if math.isnan(now) or math.isclose(now, then, rel_tol=STALE, abs_tol=STALE):
            continue
        raise OutputExists(
            f"{row.candidate} had {metric.name} {then:.4g} in the rows kept there, and {now:.4g} "
            "now: its code has changed. Choose another folder, or start anew with --overwrite."
        )


def _not_tried(candidate: Candidate, status: Any, reason: str) -> Row:
    return Row(candidate.name, candidate.family, status, reason=reason, members=candidate.members)


def _barriers(setting: Setting) -> tuple[tuple[Barrier, ...], tuple[str, ...]]:
    """The lines between members, or a warning that says why there are none."""
    try:
        return tuple(diagnose_members(setting)), ()
    except AlloyError as error:
        return (), (f"The lines between members could not be walked: {error}",)


def _warnings(rows: Sequence[Row], setting: Setting) -> list[str]:
    found = []
    by_digest: dict[str, list[str]] = {}
    for member in setting.members:
        by_digest.setdefault(member.digest, []).append(member.name)
    for names in by_digest.values():
        if len(names) > 1:
            found.append(f"{', '.join(names)} are the same model.")
    if len(setting.validation) < FEW:
        found.append(
            f"{len(setting.validation)} validation examples are few to choose on: "
            "only large gains can be told from luck."
        )
    if setting.leaked:
        found.append(
            f"{setting.leaked} of {len(setting.validation)} validation examples are also training "
            "examples: whatever was fitted on validation looks better than it is."
        )
    failed = [row.candidate for row in rows if row.status == "failed"]
    if failed:
        found.append(f"{len(failed)} candidates failed: {', '.join(failed)}.")
    return found


def _member_facts(setting: Setting) -> list[Mapping[str, Any]]:
    facts: list[Mapping[str, Any]] = []
    for member in setting.members:
        specs = member.checkpoint.specs().values()
        distinct = {(spec.place, spec.shape): spec for spec in specs}.values()
        facts.append(
            {
                "name": member.name,
                "source": member.source,
                "architecture": member.architecture,
                "parameters": sum(p.numel() for p in member.module.parameters()),
                "bytes": sum(spec.nbytes for spec in distinct),
                "dtype": ", ".join(
                    sorted({str(s.dtype)[6:] for s in distinct if s.dtype.is_floating_point})
                ),
                "digest": member.digest,
            }
        )
    return facts


def _how_to(row: Row, command: str) -> str:
    suffix = suffix_of(row.recipe)
    if command:
        return f"{command} --only {shlex.quote(row.candidate)} --save model{suffix}"
    return f"comparison[{row.candidate!r}].save('model{suffix}')"


def _environment() -> dict[str, Any]:
    return {
        "alloykit": metadata.version("alloykit"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
    }
