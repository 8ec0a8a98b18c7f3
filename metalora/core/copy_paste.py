"""How much a generated face is a copy of the reference photo rather than a likeness of the person.

FaceSim compares with the one photo that a method has seen, R-FaceSim with the person's other photos (Algorithm 3). A
likeness is about as close to either; a copy is closer to the photo it was made from.

Shape legend: N images, T test photos, D embedding width.
"""

import torch
from torch import Tensor

from metalora.core.metrics import cosine

_SAME = 1e-6
"""Radians under which two photos count as one: there is then nothing to tell a copy from a likeness."""


def copy_paste(generated_ND: Tensor, *, reference_D: Tensor, test_photos_TD: Tensor) -> Tensor:
    """Copy-paste score of each generated face in [-1, 1], [N] in float64.

    By angles between embeddings, as Xu et al. 2025 (WithAnyone) normalise them: for each test photo the generated
    face's angle to it minus its angle to the reference, over the angle between the two photos; the mean over them.
    1: the reference itself. 0: as far from the one as from the others. -1: the other photos themselves. The triangle
    inequality keeps it in between.

    Args:
        generated_ND: embeddings of the generated faces.
        reference_D: embedding of the reference photo's face.
        test_photos_TD: embeddings of the person's other photos, the reference not among them.
    """
    assert len(test_photos_TD) > 0, "no test photo with a face"
    to_reference_N1 = _angle(generated_ND, reference_D[None])
    to_tests_NT = _angle(generated_ND, test_photos_TD)
    apart_1T = _angle(reference_D[None], test_photos_TD)
    score_NT = torch.where(apart_1T > _SAME, (to_tests_NT - to_reference_N1) / apart_1T.clamp_min(_SAME), 0.0)
    return score_NT.clamp(-1, 1).mean(dim=1)


def _angle(a_ND: Tensor, b_TD: Tensor) -> Tensor:
    """Angle in radians between every row of a and every row of b, [N, T]."""
    return torch.arccos(cosine(a_ND, b_TD).clamp(-1, 1))
