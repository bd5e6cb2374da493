"""Distances and angles between examples, as the student and the teacher see them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from alloykit.distillation.contract import EXAMPLES, Compare, distillation_loss
from alloykit.errors import InvalidParameter


@distillation_loss(
    tasks=EXAMPLES,
    source="features",
    any_width=True,
    formula="w_d · mean H(d_ij^s - d_ij^t) + w_a · mean H(cos_ijk^s - cos_ijk^t)",
    paper="Park et al., Relational knowledge distillation, 2019, arXiv:1904.05068.",
)
def relational(distance: float = 25.0, angle: float = 50.0) -> Compare:
    """Let the student place the examples of a batch to each other as the teacher does.

    loss = w_d · mean H(d_ij^s - d_ij^t) + w_a · mean H(cos_ijk^s - cos_ijk^t)

    d_ij is the distance of two examples over the batch's mean distance, cos_ijk the angle that
    three examples make, H the Huber loss.

    Use it when features have other widths, or for embeddings: only relations are compared. Angles
    take batch³ numbers, so keep batches below about 256.

    Args:
        distance: w_d >= 0; 25 is the paper's.
        angle: w_a >= 0; 50 is the paper's.

    Shapes:
        student [row, width], teacher [row, other width] -> [], the mean over pairs and triples

    Raises:
        InvalidParameter: A negative weight.

    Example:
        >>> corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> relational()(corners, 3 * corners).abs() < 1e-6
        tensor(True)

    References:
        Park, Kim, Lu, Cho, Relational knowledge distillation, 2019, arXiv:1904.05068, equations 5
        to 10. As the authors' code we take the mean over all ordered pairs and triples, those of
        an example with itself included.
    """
    if not (distance >= 0 and angle >= 0):
        raise InvalidParameter(
            "The 'distance' and 'angle' of relational must be at least 0. "
            f"Got {distance:g} and {angle:g}."
        )

    def compare(student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        one, other = _differences(student), _differences(teacher)
        loss = distance * F.smooth_l1_loss(_distances(one), _distances(other))
        # With nothing to weigh, batch³ numbers need not be made.
        return loss + angle * F.smooth_l1_loss(_angles(one), _angles(other)) if angle else loss

    return compare


def _differences(features: Tensor) -> Tensor:
    flat = features.flatten(1)
    return flat[None] - flat[:, None]


def _distances(differences: Tensor) -> Tensor:
    distances = torch.linalg.vector_norm(differences, dim=-1)
    different = (distances > 0).sum().clamp_min(1)
    mean = distances.sum() / different
    found: Tensor = distances / mean.clamp_min(torch.finfo(distances.dtype).tiny)
    return found


def _angles(differences: Tensor) -> Tensor:
    directions = F.normalize(differences, dim=-1)
    return torch.bmm(directions, directions.transpose(1, 2))
