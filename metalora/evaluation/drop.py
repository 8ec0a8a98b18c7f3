"""How much of FaceSim is lost in R-FaceSim (Table 3), person by person."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def drop_of_people(rows: "pd.DataFrame") -> "pd.Series":
    """(R-FaceSim - FaceSim) / FaceSim over everybody's found faces, by jackknife: one pseudo-value per person.

    A ratio of means, not a mean of ratios: somebody whose FaceSim is near 0 would rule the latter.

    Args:
        rows: one method's rows of a score table.

    Returns:
        Pseudo-values by identity; their mean is the drop, their spread its error.
    """
    import pandas as pd

    seen = rows.dropna(subset=["face_sim", "r_face_sim"])
    face, robust = (seen.groupby("identity")[name].mean() for name in ("face_sim", "r_face_sim"))
    people = sorted(set(seen["identity"]))  # as groupby sorts them
    whole = robust.sum() / face.sum() - 1
    without = (robust.sum() - robust.to_numpy()) / (face.sum() - face.to_numpy()) - 1
    return pd.Series(len(people) * whole - (len(people) - 1) * without, index=people)
