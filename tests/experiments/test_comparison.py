"""The comparison's table and claims from a made-up score table, and poses of rendered people."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from experiments.comparison import pose
from experiments.comparison.compare import claims, drop_of_people, main, summarised
from metalora.core.errors import UserError
from metalora.miniworld.population import identity
from metalora.miniworld.renderer import render
from metalora.miniworld.shots import sample_shot
from metalora.perception.faces import MtcnnDetector

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


def test_a_miss_of_somebody_without_a_comparable_photo_is_no_score(table: Path) -> None:
    scores = pd.read_parquet(table).assign(test_photos=3)
    alone = (scores["identity"] == "woman-3") & (scores["method"] == "ip_adapter")
    scores.loc[alone, "test_photos"], scores.loc[alone, "r_face_sim"] = 0, np.nan
    found = {row["method"]: row for row in summarised(scores).to_dict("records")}
    assert found["ip_adapter"]["R-FaceSim"] == pytest.approx(0.5)  # of the three others


def test_several_ranks_of_a_method_are_refused(table: Path, tmp_path: Path) -> None:
    scores = pd.read_parquet(table)
    lora = scores["method"] == "meta_lora"
    pd.concat([scores.assign(rank=lora.astype(int)), scores[lora].assign(rank=16)]).to_parquet(table)
    with pytest.raises(
        UserError, match=r"at one rank; .*evaluate/\*-r1-\*.*; got meta_lora at ranks 1, 16; key: SCORES"
    ):
        main(tmp_path / "out", [table])
    scores.assign(rank=lora.astype(int)).to_parquet(table)
    main(tmp_path / "out", [table])


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
    detector, person = MtcnnDetector(), identity("validation", "woman", 0)
    rng = np.random.default_rng(0)
    yaws = [-35.0, 0.0, 35.0, 55.0]
    shots = [
        sample_shot(rng, fixed={"style": "photo", "scene": "studio", "yaw": yaw, "scale": 0.8, "pitch": 0.0})
        for yaw in yaws
    ]
    found = [pose.yaw_of(detector, picture) for picture in render([person] * 4, shots, height=160, width=160)]
    assert found == pytest.approx(yaws, abs=12)
    assert pose.yaw_of(detector, np.zeros((64, 64, 3), np.uint8)) is None


def test_a_picture_of_the_base_counts_once_whoever_it_is_held_against(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = pd.read_parquet(table)
    scores["file"] = [f"{row.method}-{row.class_noun}-{row.prompt_id}.png" for row in scores.itertuples()]
    own = scores["method"] != "base"
    scores.loc[own, "file"] = [f"{row.identity}-{row.file}" for row in scores[own].itertuples()]
    scores["reference"] = [f"{identity}.png" for identity in scores["identity"]]
    for file in {*scores["file"], *scores["reference"]}:
        Image.new("RGB", (64, 64), (len(file), 0, 0)).save(tmp_path / file)
    scores.to_parquet(table)
    degrees = iter(range(100))
    monkeypatch.setattr(pose, "yaw_of", lambda detector, image: float(next(degrees)))
    lines = [line.split(" | ") for line in pose.copied_poses([table]).splitlines()[2:]]
    assert [(line[0], *line[2:5]) for line in lines] == [
        ("| base", "does not", "4", "4"),
        ("| meta_lora", "does not", "8", "8"),
        ("| ip_adapter", "does not", "8", "8"),
    ]
