"""A comparison as it really looks: four members, eighteen candidates, three skipped, one failed."""

from __future__ import annotations

import math
from typing import Any

from alloykit.comparison.report.data import Agreement, Barrier, ReportData
from alloykit.types import Costs, Interval, Row

EXAMPLES = 2000
LEVEL = 0.95
MEMBERS = ("seed 1", "seed 2", "seed 3", "seed 4 (augmented)")
FINISHED: tuple[tuple[str, Any, float, float, float, int], ...] = (
    # name, family, accuracy on test, log loss, overconfidence, forward passes
    ("seed 1", "member", 0.8815, 0.402, 0.062, 1),
    ("seed 2", "member", 0.8785, 0.415, 0.066, 1),
    ("seed 3", "member", 0.8740, 0.431, 0.071, 1),
    ("seed 4 (augmented)", "member", 0.8890, 0.371, 0.048, 1),
    ("average of probabilities", "predictions", 0.9310, 0.231, -0.012, 4),
    ("average of logits", "predictions", 0.9290, 0.239, 0.018, 4),
    ("majority vote", "predictions", 0.9215, 0.498, 0.031, 4),
    ("weighted average", "predictions", 0.9305, 0.229, -0.010, 4),
    ("stacking", "predictions", 0.9275, 0.243, 0.022, 4),
    ("best two, averaged", "predictions", 0.9140, 0.287, 0.009, 2),
    ("linear", "weights", 0.6120, 1.391, -0.183, 1),
    ("linear, BatchNorm re-estimated", "weights", 0.8610, 0.452, 0.021, 1),
    ("aligned by weights, then linear", "weights", 0.8965, 0.344, 0.034, 1),
    ("aligned by activations, then linear", "weights", 0.9035, 0.318, 0.029, 1),
    ("uniform soup", "soup", 0.1020, 2.304, 0.011, 1),
    ("greedy soup", "soup", 0.8890, 0.371, 0.048, 1),
    ("greedy soup of aligned members", "soup", 0.9055, 0.312, 0.026, 1),
    ("learned soup of aligned members", "soup", 0.9065, 0.309, 0.024, 1),
    ("concat head", "fusion", 0.9280, 0.236, 0.011, 4),
    ("attention head", "fusion", 0.9255, 0.241, 0.014, 4),
    ("student of average", "student", 0.9190, 0.262, 0.019, 1),
    ("retrained on train", "retrained", 0.9285, 0.225, 0.013, 1),
)
RELIANCE = {
    "members": list(MEMBERS),
    "classes": ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
    "what": "Mean attention of the head, on test examples of each class.",
    "matrix": [
        [0.25 + 0.2 * math.sin(2 * member + 1.3 * label) for label in range(10)]
        for member in range(4)
    ],
}
LEFT_OUT = (
    (
        "ties",
        "weights",
        "skipped",
        "It needs the base that the members were fine-tuned from. Give it with --base.",
    ),
    (
        "fisher",
        "weights",
        "skipped",
        "It needs training data for the Fisher information: the study has no train split.",
    ),
    (
        "task arithmetic",
        "weights",
        "skipped",
        "It needs the base that the members were fine-tuned from. Give it with --base.",
    ),
    ("slerp", "weights", "failed", "It takes exactly 2 models. Got 4."),
)
METRICS = (
    ("accuracy", True),
    ("log_loss", False),
    ("brier", False),
    ("ece", False),
    ("f1", True),
    ("auroc", True),
)


def _interval(value: float, half: float) -> Interval:
    return Interval(value, value - half, value + half, LEVEL)


def _calibration(accuracy: float, gap: float) -> tuple[tuple[float, float, int], ...]:
    bins = []
    for index in range(15):
        confidence = (index + 0.6) / 15
        count = round(EXAMPLES * 0.62 * math.exp(-(14 - index) / (2.2 + 3 * (1 - accuracy))))
        wave = 0.012 * math.sin(2.4 * index + 9 * accuracy)
        right = confidence - gap * 4 * confidence * (1.05 - confidence) + wave
        bins.append((confidence, min(max(right, 0.0), 1.0), count if index > 1 else 0))
    return tuple(bins)


def _history(loss: float) -> dict[str, Any]:
    epochs = [
        {
            "number": number,
            "loss": loss + 1.6 * math.exp(-0.35 * number),
            "validation": 0.93 - 0.4 * math.exp(-0.3 * number) - 0.0006 * number,
            "learning_rate": 0.002,
            "seconds": 1.4,
        }
        for number in range(1, 17)
    ]
    return {
        "epochs": epochs, "metric": "accuracy", "higher_is_better": True, "best": 13,
        "stopped": "no better for 3 epochs",
    }  # fmt: skip


def done(name: str, family: Any, accuracy: float, loss: float, gap: float, passes: int) -> Row:
    single = 0.8890
    members = (name,) if family == "member" else MEMBERS
    better = None if name == MEMBERS[3] else _interval(accuracy - single, 0.011)
    return Row(
        candidate=name,
        family=family,
        status="done",
        members=members,
        recipe={"method": name, "members": list(members)},
        validation={"accuracy": accuracy + 0.004 - 0.002 * math.sin(37 * accuracy)},
        test={
            "accuracy": accuracy,
            "log_loss": loss,
            "brier": 0.36 * loss,
            "ece": abs(gap) + 0.004,
            "f1": accuracy - 0.0031,
            "auroc": 1 - 0.06 * loss,
        },
        intervals={
            "accuracy": _interval(accuracy, 1.96 * math.sqrt(accuracy * (1 - accuracy) / EXAMPLES))
        },
        improvement=better,
        p_value=None if better is None else min(1.0, math.exp(-abs(better.value) * 190)),
        costs=Costs(
            parameters=11_173_962 * passes,
            bytes=44_730_000 * passes,
            peak_memory=61_000_000 + 46_000_000 * passes,
            latency=0.00121 * passes * (1 + 0.02 * math.sin(50 * loss)),
            forward_passes=passes,
            fit_seconds=0.4 * passes,
        ),
        calibration=_calibration(accuracy, gap),
        history=_history(loss) if family in ("student", "retrained") else {},
        reliance=RELIANCE if name == "attention head" else {},
        notes=("BatchNorm statistics were averaged, not re-estimated.",)
        if name in ("linear", "uniform soup")
        else (),
    )


def _barrier(first: str, second: str, height: float) -> Barrier:
    alphas = tuple(i / 10 for i in range(11))
    hill = [4 * a * (1 - a) for a in alphas]
    base = [0.402 + 0.03 * a for a in alphas]
    losses = tuple(b + height * h**1.5 for b, h in zip(base, hill, strict=True))
    mended = tuple(b + (0.13 * height - 0.05) * h for b, h in zip(base, hill, strict=True))
    low = max(0.0, 0.13 * height - 0.05)
    verdict = f"A hill of {height:.2f} as averaged; {low:.2f} once BatchNorm is re-estimated. " + (
        "Align these two before merging." if height > 1 else "These two can be merged."
    )
    wrong = tuple(0.12 + 0.005 * a + 0.16 * low * h for a, h in zip(alphas, hill, strict=True))
    return Barrier(first, second, alphas, losses, mended, verdict, wrong)


def sample(**changed: Any) -> ReportData:
    """The realistic comparison; keyword arguments replace its fields."""
    rows = [done(*entry) for entry in FINISHED]
    rows += [Row(name, family, status, reason) for name, family, status, reason in LEFT_OUT]  # type: ignore[arg-type]
    pairs = [(a, b) for i, a in enumerate(MEMBERS) for b in MEMBERS[i + 1 :]]
    heights = (1.9, 1.7, 0.42, 2.05, 1.2, 1.5)
    agreement = (
        (1.0, 0.874, 0.861, 0.842),
        (0.874, 1.0, 0.868, 0.839),
        (0.861, 0.868, 1.0, 0.831),
        (0.842, 0.839, 0.831, 1.0),
    )
    fields: dict[str, Any] = {
        "title": "Four ResNet-18 on CIFAR-10",
        "task": "classification",
        "metric": "accuracy",
        "higher_is_better": True,
        "metrics": METRICS,
        "splits": (
            ("validation", 1000, "sha256:" + "4be1" * 16),
            ("test", EXAMPLES, "sha256:" + "90fc" * 16),
        ),
        "rows": tuple(rows),
        "best_single": MEMBERS[3],
        "recommendation": "average of probabilities",
        "recommendation_reason": "It was best on validation, and no cheaper one came close. "
        "If only one forward pass is possible, take ‘learned soup of aligned members’.",
        "members": tuple(
            {
                "name": name,
                "source": f"runs/resnet18-{i}.safetensors",
                "architecture": "ResNet",
                "parameters": 11_173_962,
                "bytes": 44_730_000,
                "dtype": "float32",
                "digest": "sha256:" + f"{i}a7c" * 16,
            }
            for i, name in enumerate(MEMBERS, 1)
        ),
        "agreement": Agreement(MEMBERS, agreement),
        "barriers": tuple(_barrier(a, b, h) for (a, b), h in zip(pairs, heights, strict=True)),
        "reproduce": {
            name: f'alloykit combine runs/resnet18-*.safetensors --with "{name}" \\\n'
            "    --validation data/validation.npz --out combined.safetensors"
            for name, family, *_ in FINISHED
            if family != "member"
        },
        "command": "alloykit compare study.yaml --seed 0 --out report.html",
        "environment": {
            "alloykit": "0.1.0",
            "torch": "2.13.0",
            "python": "3.12.4",
            "threads": 8,
            "machine": "x86_64, 8 cores",
        },
        "settings": {"seed": 0, "resamples": 1000, "level": 0.95, "batch size": 256},
        "warnings": (
            "2 candidates average BatchNorm statistics as they are: a train split would mend that.",
        ),
        "created": "2026-03-14T09:26:53+00:00",
    }
    return ReportData(**(fields | changed))
