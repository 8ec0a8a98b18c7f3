"""The comparison's table and claims from a made-up score table, and poses of rendered people."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from experiments.comparison.compare import claims, drop_of_people, main, of_people, summarised
from experiments.comparison.pose import YawEstimator
from metalora.miniworld.population import identity
from metalora.miniworld.renderer import render
from metalora.miniworld.shots import sample_shot

METHODS = {"base": (0.05, 0.06, 0.0), "meta_lora": (0.4, 0.4, 0.0), "ip_adapter": (0.6, 0.5, 0.3)}
"""FaceSim, R-FaceSim and copy-paste score of each method's images."""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two people of each class, two prompts; one image of the last method has no face."""
    rows = []
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "picture.png")
    for method, (face_sim, r_face_sim, copied) in METHODS.items():
        for number, noun in enumerate(("man", "woman", "man", "woman")):
            for prompt in ("frontal-01", "frontal-02"):
                found = not (method == "ip_adapter" and number == 3 and prompt == "frontal-02")
                rows.append(
                    {
                        "file": "picture.png",
                        "reference": "picture.png",
                        "method": method,
                        "rank": 0,
                        "iterations": 375 if method == "meta_lora" else 0,
                        "identity": f"{noun}-{number}",
                        "class_noun": noun,
                        "prompt_id": prompt,
                        "prompt": "a photo",
                        "seed": 0,
                        "face_found": float(found),
                        "face_sim": face_sim if found else np.nan,
                        "r_face_sim": r_face_sim if found else np.nan,
                        "copy_paste": copied if found else np.nan,
                        "clip_t": 0.4,
                    }
                )
    path = tmp_path / "scores.parquet"
    pd.DataFrame(rows).to_parquet(path)
    return path


def test_a_miss_counts_as_0_in_the_scores_and_not_at_all_in_the_drop(table: Path) -> None:
    scores = pd.read_parquet(table)
    found = {row["method"]: row for row in summarised(scores).to_dict("records")}
    assert list(found) == ["base", "meta_lora", "ip_adapter"]
    assert found["ip_adapter"]["FaceSim"] == pytest.approx(0.6 * 7 / 8)
    assert found["ip_adapter"]["drop"] == pytest.approx(-1 / 6)
    assert found["ip_adapter"]["copy-paste"] == pytest.approx(0.3)
    assert found["ip_adapter"]["faces found"] == pytest.approx(7 / 8)
    assert found["meta_lora"]["drop"] == pytest.approx(0.0)
    assert of_people(scores.query("method == 'ip_adapter'"), "face_sim", missed=True)["woman-3"] == pytest.approx(0.3)


def test_the_drop_is_a_ratio_of_means() -> None:
    """Somebody whose FaceSim is near 0 does not rule it."""
    rows = pd.DataFrame(
        {"identity": ["a", "b", "c"], "face_sim": [0.5, 0.5, 0.001], "r_face_sim": [0.4, 0.4, 0.1], "face_found": 1.0}
    )
    assert rows["r_face_sim"].sum() / rows["face_sim"].sum() - 1 == pytest.approx(-0.1, abs=0.002)
    assert drop_of_people(rows).mean() == pytest.approx(-0.1, abs=0.15)  # the ratios' own mean would be 33
    assert abs((rows["r_face_sim"] / rows["face_sim"] - 1).mean()) > 30


def test_the_condition_for_a_comparison_is_told_with_its_number(table: Path) -> None:
    scores = pd.read_parquet(table)
    first, second = claims(scores)
    assert "0.475" in first
    assert first.endswith("at least 0.2 reached")
    assert "copy-paste higher by 0.300" in second
    weak = scores.assign(face_sim=scores["face_sim"].where(scores["method"] != "ip_adapter", 0.1))
    assert claims(weak)[0].endswith("NOT reached")


def test_all_files_are_written_and_old_tables_refused(table: Path, tmp_path: Path) -> None:
    main(tmp_path / "out", [table])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"scores.csv", "table.md", "grid.png"}
    assert "| Meta-LoRA | 375 | 40.0 (40.0 to 40.0) |" in (tmp_path / "out" / "table.md").read_text()
    sheet = Image.open(tmp_path / "out" / "grid.png")
    assert sheet.height == 3 * 66
    pd.read_parquet(table).drop(columns="copy_paste").to_parquet(table)
    with pytest.raises(SystemExit, match="no copy-paste score"):
        main(tmp_path / "out", [table])


def test_turned_heads_are_told_by_side_and_about_by_degrees() -> None:
    estimator, person = YawEstimator(), identity("validation", "woman", 0)
    rng = np.random.default_rng(0)
    yaws = [-35.0, 0.0, 35.0]
    shots = [
        sample_shot(rng, fixed={"style": "photo", "scene": "studio", "yaw": yaw, "scale": 0.8, "pitch": 0.0})
        for yaw in yaws
    ]
    found = [estimator.yaw(picture) for picture in render([person] * 3, shots, height=160, width=160)]
    assert found == pytest.approx(yaws, abs=12)
    assert estimator.yaw(np.zeros((64, 64, 3), np.uint8)) is None
