"""The figures of an earlier, independent study with the same protocol, to be reached or beaten.

Four members, each trained on its own partition (Dirichlet 0.3); three seeds. COMMON: MLPs from
one common start. DISSIMILAR: a linear model, an MLP with one hidden layer, a wide one with
BatchNorm and dropout, and a small CNN (digits) or a residual MLP (letters).

Row -> data set -> (accuracy in percent, its standard deviation over seeds, log loss). The study
gave log losses to two decimals and without deviations.
"""

SEEDS = 3

Figures = dict[str, dict[str, tuple[float, float, float]]]

COMMON: Figures = {
    "best single (by validation)": {"digits": (81.1, 9.1, 0.80), "letters": (63.5, 3.6, 3.83)},
    "weight average": {"digits": (70.4, 4.9, 0.82), "letters": (46.3, 8.6, 1.83)},
    "weight average, by examples": {"digits": (76.1, 3.1, 0.70), "letters": (49.0, 6.3, 1.86)},
    "average (probabilities)": {"digits": (90.7, 6.1, 0.48), "letters": (83.1, 1.4, 0.70)},
    "average (logits)": {"digits": (86.8, 4.6, 0.39), "letters": (59.1, 8.3, 1.54)},
    "weighted by examples": {"digits": (91.5, 5.1, 0.44), "letters": (83.3, 2.9, 0.69)},
    "weighted by accuracy": {"digits": (91.0, 5.4, 0.45), "letters": (83.0, 1.1, 0.70)},
    "vote": {"digits": (90.4, 6.2, 0.52), "letters": (82.5, 1.1, 0.76)},
    "average, then temperature": {"digits": (90.7, 6.1, 0.28), "letters": (83.1, 1.4, 0.53)},
    "weights for the log loss": {"digits": (87.5, 5.5, 0.38), "letters": (83.0, 3.6, 0.69)},
    "weights for the log loss (logits)": {
        "digits": (91.9, 2.6, 0.29),
        "letters": (61.5, 6.5, 1.33),
    },
    "greedy selection for accuracy": {"digits": (92.7, 4.0, 0.43), "letters": (84.0, 2.0, 0.70)},
    "log_pool head": {"digits": (94.6, 1.8, 0.16), "letters": (86.6, 0.5, 0.43)},
    "concat head": {"digits": (95.4, 1.5, 0.16), "letters": (90.1, 0.4, 0.33)},
    "concat head (hidden 64)": {"digits": (95.0, 1.4, 0.18), "letters": (82.7, 1.3, 0.65)},
    "attention head": {"digits": (94.1, 1.8, 0.27), "letters": (83.3, 1.1, 0.68)},
    "attention_mean head": {"digits": (94.4, 1.3, 0.21), "letters": (85.1, 1.8, 0.56)},
    "concat head on features": {"digits": (95.5, 1.6, 0.16), "letters": (88.7, 1.3, 0.37)},
    "concat head, out of fold": {"digits": (95.9, 1.8, 0.12), "letters": (89.3, 0.1, 0.33)},
    "small student of average, union, no labels": {
        "digits": (87.1, 3.8, 0.52),
        "letters": (73.2, 2.2, 0.83),
    },
    "student of average, union, no labels": {
        "digits": (87.2, 2.6, 0.51),
        "letters": (78.0, 2.8, 0.74),
    },
    "student of average, validation, no labels": {
        "digits": (86.0, 2.2, 0.54),
        "letters": (72.3, 1.6, 0.86),
    },
    "student of average, validation, labels too": {
        "digits": (92.8, 0.6, 0.37),
        "letters": (82.3, 0.7, 0.66),
    },
    "weight average taught by average, validation, no labels": {
        "digits": (87.8, 3.1, 0.50),
        "letters": (77.2, 2.7, 0.78),
    },
    "weight average taught by average, validation, labels too": {
        "digits": (92.4, 1.2, 0.32),
        "letters": (86.2, 0.8, 0.56),
    },
    "small student of concat head, union, no labels": {
        "digits": (94.4, 1.4, 0.18),
        "letters": (82.0, 1.3, 0.71),
    },
    "student of concat head, union, no labels": {
        "digits": (93.8, 0.2, 0.18),
        "letters": (85.6, 1.3, 0.55),
    },
    "weight average taught by concat head, validation, no labels": {
        "digits": (92.9, 1.1, 0.20),
        "letters": (83.9, 2.0, 0.55),
    },
    "weight average fine-tuned on validation": {
        "digits": (94.0, 0.3, 0.19),
        "letters": (87.5, 0.7, 0.42),
    },
    "trained on validation alone": {"digits": (92.1, 0.4, 0.24), "letters": (84.3, 1.1, 0.54)},
    "retrained on the union": {"digits": (97.3, 0.6, 0.12), "letters": (94.9, 0.2, 0.16)},
    "small model retrained on the union": {
        "digits": (97.1, 0.6, 0.11),
        "letters": (88.8, 0.6, 0.38),
    },
}

DISSIMILAR: Figures = {
    "best single (by validation)": {"digits": (82.7, 8.6, 0.71), "letters": (65.9, 4.0, 2.53)},
    "average (probabilities)": {"digits": (94.1, 4.2, 0.49), "letters": (81.6, 2.5, 0.83)},
    "average (logits)": {"digits": (90.6, 4.1, 0.33), "letters": (73.1, 3.1, 0.84)},
    "weighted by examples": {"digits": (94.7, 3.7, 0.45), "letters": (81.9, 3.8, 0.86)},
    "weighted by accuracy": {"digits": (94.8, 3.6, 0.46), "letters": (80.1, 3.3, 0.78)},
    "vote": {"digits": (92.6, 5.3, 0.48), "letters": (80.5, 2.9, 0.88)},
    "average, then temperature": {"digits": (94.1, 4.2, 0.20), "letters": (81.6, 2.5, 0.56)},
    "weights for the log loss": {"digits": (91.3, 2.7, 0.36), "letters": (77.7, 3.5, 0.72)},
    "weights for the log loss (logits)": {
        "digits": (93.6, 3.6, 0.25),
        "letters": (73.8, 1.6, 0.82),
    },
    "greedy selection for accuracy": {"digits": (94.9, 2.1, 0.46), "letters": (83.3, 2.8, 0.85)},
    "log_pool head": {"digits": (96.0, 1.4, 0.12), "letters": (86.2, 2.1, 0.44)},
    "concat head": {"digits": (96.1, 1.0, 0.13), "letters": (91.1, 0.8, 0.31)},
    "concat head (hidden 64)": {"digits": (95.2, 1.7, 0.17), "letters": (84.7, 0.3, 0.56)},
    "attention head": {"digits": (94.9, 1.3, 0.23), "letters": (79.8, 7.4, 0.78)},
    "attention_mean head": {"digits": (95.0, 1.7, 0.18), "letters": (87.0, 1.3, 0.46)},
    "concat head on features": {"digits": (96.1, 0.7, 0.25), "letters": (91.3, 1.1, 0.30)},
    "concat head, out of fold": {"digits": (97.2, 1.0, 0.09), "letters": (90.1, 1.4, 0.30)},
    "small student of average, union, no labels": {
        "digits": (89.0, 4.1, 0.53),
        "letters": (72.8, 1.4, 1.04),
    },
    "student of average, union, no labels": {
        "digits": (90.2, 4.2, 0.52),
        "letters": (78.5, 2.0, 0.90),
    },
    "student of average, validation, no labels": {
        "digits": (87.7, 2.7, 0.57),
        "letters": (72.3, 2.2, 1.05),
    },
    "student of average, validation, labels too": {
        "digits": (93.8, 0.6, 0.38),
        "letters": (83.5, 1.0, 0.76),
    },
    "small student of concat head, union, no labels": {
        "digits": (95.6, 0.6, 0.13),
        "letters": (81.6, 1.0, 0.63),
    },
    "student of concat head, union, no labels": {
        "digits": (95.8, 0.7, 0.12),
        "letters": (85.9, 1.4, 0.47),
    },
}

STUDY = {"common start": COMMON, "dissimilar architectures": DISSIMILAR}
