"""The paper's tables and figures from made-up scores: what is written, and that a claim follows the numbers."""

import io
import re
import runpy
import subprocess
from contextlib import redirect_stderr

import numpy as np
import pandas as pd
import pytest

from experiments.fig3 import plot as fig3
from experiments.fig4 import plot as fig4
from experiments.fig6 import plot as fig6
from experiments.fig7 import plot as fig7
from experiments.r1_selection import plot as r1_selection
from experiments.r1_selection import run as r1_run
from experiments.shown import Claim, places, present, study_of, told, verdict
from experiments.table1 import plot as table1
from experiments.table2 import plot as table2
from experiments.table3 import plot as table3
from experiments.table4 import plot as table4
from metalora.core import metrics
from metalora.core.errors import UserError
from metalora.evaluation.drop import drop_of_people
from metalora.evaluation.frontier import frontier_gap
from metalora.evaluation.score_table import read_scores
from metalora.reporting.study import Study, paper_reference
from metalora.reporting.tables import NONE
from metalora.running.progress import Board
from tests.reporting.made_up import make_scores


def with_rival(scores, *, face=0.7, copied=0.2, clip=0.76):
    """The table and a tuning-free rival, whose faces are near the reference and less near the other photos."""
    base = scores[scores["method"] == "meta_lora"].copy()
    base = base[(base["rank"] == 1) & (base["iterations"] == 375)]
    base[["method", "rank", "iterations"]] = ["ip_adapter", 0, 0]
    seen = base["face_found"] == 1
    noise = np.random.default_rng(0).normal(0, 0.01, len(base))
    base.loc[seen, "r_face_sim"] = face + noise[seen]
    base.loc[seen, "face_sim"] = face + copied
    base.loc[base["clip_t"].notna(), "clip_t"] = clip
    return pd.concat([scores, base], ignore_index=True)


def study(tmp_path, **changes):
    table = read_scores([make_scores(tmp_path, pictures=False, **changes)])
    table["kind"] = ["stylized" if k % 2 else "recontextualized" for k in range(len(table))]
    return Study(with_rival(table), world="a made-up world", seconds={}, facts={})


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    return study(tmp_path_factory.mktemp("grid"), ranks=(1, 4, 16), people=4, clip_people=4, prompts=4)


def test_figures_are_vector_and_pixels_and_the_same_each_time(grid, tmp_path):
    for place in ("a", "b"):
        shown = fig3.make(grid, tmp_path / place)
        assert [picture.name for picture in shown.pictures] == ["fig3"]
        fig6.make(grid, tmp_path / place)
    for name in ("fig3.pdf", "fig6.pdf", "fig3.png"):
        first, second = ((tmp_path / place / name).read_bytes() for place in ("a", "b"))
        assert first == second
        assert first.startswith(b"%PDF" if name.endswith("pdf") else b"\x89PNG")
    assert (
        b"/Subtype /Image" not in (tmp_path / "a" / "fig3.pdf").read_bytes()
    )  # lines and text, nothing painted as pixels


def test_the_frontier_is_the_distance_of_two_known_parabolas(tmp_path):
    rows = []
    for method, up in (("meta_lora", 0.1), ("lora_aug", 0.0)):
        for n, clip in enumerate((0.5, 0.6, 0.7, 0.8)):
            shared = {"method": method, "rank": 1, "iterations": n, "class_noun": "woman", "face_found": 1.0}
            for k in range(5):
                face = 0.4 + up - (clip - 0.5) ** 2 + 0.01 * k
                unsplash = {"identity": f"a{k}", "r_face_sim": face, "clip_t": np.nan, "test_photos": 3}
                ffhq = {"identity": f"b{k}", "r_face_sim": np.nan, "clip_t": clip, "face_found": np.nan}
                rows += [shared | unsplash, shared | ffhq]
    found = frontier_gap(pd.DataFrame(rows), method="meta_lora", other="lora_aug", class_noun="woman", resamples=50)
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert found.clip_t == pytest.approx((0.5, 0.8))
    away = pd.DataFrame(rows)
    away.loc[away["method"] == "lora_aug", "clip_t"] -= 0.5
    assert frontier_gap(away, method="meta_lora", other="lora_aug", class_noun="woman") is None  # no common CLIP-T


def test_the_drops_mean_is_the_drop_of_the_means():
    scores = {"face_sim": [0.5, 0.7, 0.4, 0.4, 0.01], "r_face_sim": [0.4, 0.6, 0.4, 0.3, 0.02]}
    rows = pd.DataFrame({"identity": list("aabbc")} | scores)
    means = rows.groupby("identity")[["face_sim", "r_face_sim"]].mean().sum()
    exact = means["r_face_sim"] / means["face_sim"] - 1
    assert drop_of_people(rows).mean() == pytest.approx(exact, abs=0.06)  # the jackknife's own bias correction
    same = rows.assign(face_sim=rows["r_face_sim"] * 2)
    assert drop_of_people(same).to_numpy() == pytest.approx(np.full(3, -0.5))


def test_table_3_claims_what_the_scores_say(grid, tmp_path):
    shown = table3.make(grid, tmp_path)
    (claim,) = shown.claims
    assert claim.holds is True
    assert "IP-Adapter-like loses 22.1%" in claim.evidence  # (0.7 - 0.9) / 0.9, and its noise
    labels = [row[0] for row in shown.tables[0].rows]
    assert labels[:4] == ["IP-Adapter-like", "LoRA", "LoRA+aug", "Meta-LoRA"]
    assert "PuLID (FLUX.1-dev)" in labels and labels.count("Meta-LoRA") == 1
    honest = Study(
        with_rival(grid.scores[grid.scores["method"] != "ip_adapter"], copied=0.0), world="", seconds={}, facts={}
    )
    assert table3.make(honest, tmp_path).claims[0].holds is False


def test_published_methods_stand_once_beside_the_papers_numbers(grid, tmp_path):
    scores, rival = grid.scores, grid.scores[grid.scores["method"] == "ip_adapter"]
    names = ("pulid", "instantid_sdxl", "instantid_lightning", "photomaker_sdxl", "photomaker_lightning")
    everybody = pd.concat([scores, *(rival.assign(method=name) for name in names)], ignore_index=True)
    for plot in (table3, table4):
        table = plot.make(Study(everybody, world="", seconds={}, facts={}), tmp_path).tables[0]
        for row in table.rows:
            assert [other[0] for other in table.rows].count(row[0]) == 1
            if "SD-XL" in row[0] or "FLUX" in row[0]:
                assert row[2] != NONE and row[-1] != NONE  # ours, and the paper's


def test_a_few_people_decide_nothing_that_random_signs_would_not():
    alike = np.array([0.01, 0.02, 0.015, 0.012])
    few, many = (metrics.paired_bootstrap(np.tile(alike, n), np.zeros(4 * n)) for n in (1, 2))
    assert few.low > 0 and few.p == 2 / 2**4 and verdict(few) is None
    assert many.low > 0 and many.p == 2 / 2**8 and verdict(many) is True
    assert told(many) == "+1.4 points (+1.2 to +1.7; p = 0.008)"
    assert verdict(metrics.paired_bootstrap(-np.tile(alike, 2), np.zeros(8))) is False


def test_table_4_finds_the_strongest_of_the_others(grid, tmp_path):
    face, _ = table4.make(grid, tmp_path).claims
    assert face.holds is False and "IP-Adapter-like" in face.evidence
    alone = Study(grid.scores[grid.scores["method"].isin(["base", "meta_lora"])], world="", seconds={}, facts={})
    assert table4.make(alone, tmp_path).claims[0].holds is None


def test_the_papers_own_table_4_is_no_argument_against_its_claims(tmp_path):
    rows = []
    for method in paper_reference()["table_4"]["rows"]:
        rank, iterations = (
            (1, 375 if method["method"] == "meta_lora" else 625) if "lora" in method["method"] else (0, 0)
        )
        for k in range(8):
            who = {"method": method["method"], "rank": rank, "iterations": iterations, "identity": f"p{k}", "seed": 0}
            scores = {name: method[name] / 100 + 0.001 * k for name in ("clip_t", "clip_i", "r_face_sim")}
            who |= {"class_noun": "woman", "prompt_id": "x", "file": f"{method['method']}-{k}", "face_found": 1.0}
            rows.append(who | scores | {"face_sim": scores["r_face_sim"]})
    shown = table4.make(Study(pd.DataFrame(rows), world="", seconds={}, facts={}), tmp_path)
    face, clip = shown.claims
    assert face.holds is True and "of 7" in face.evidence
    assert clip.holds is True and "+0.0 points" in clip.evidence and "from LoRA at 625" in clip.evidence


def test_a_judge_takes_the_highest_shares_ties_and_never_a_missing_face():
    def model(scores):
        cells = {"identity": ["a", "a", "b"], "prompt_id": ["1", "2", "1"], "seed": [0, 0, 0]}
        return pd.DataFrame(cells | {"r_face_sim": scores, "face_found": [float(s == s) for s in scores]})

    won = table1.wins([model([0.5, 0.2, np.nan]), model([0.4, 0.2, -0.3])], "r_face_sim")
    assert won == pytest.approx(np.array([[0.75, 0.0], [0.25, 1.0]]))


def test_table_1_shifts_towards_the_copier(grid, tmp_path):
    shown = table1.make(grid, tmp_path)
    assert "JUDGED BY A MACHINE" in shown.tables[0].title
    best = shown.claims[0]
    assert best.holds is not True and "IP-Adapter-like" in best.evidence
    assert all("no people have been asked" in claim.evidence for claim in shown.claims)
    ours = grid.scores[grid.scores["method"] != "ip_adapter"]

    def shift(*, face, copied):  # chosen often but not always by the unseen photos
        rival = with_rival(ours, face=face, copied=copied)
        return table1.make(Study(rival, world="", seconds={}, facts={}), tmp_path).claims[1]

    copies, differs = shift(face=0.43, copied=0.4), shift(face=0.5, copied=-0.4)
    assert copies.holds is True and copies.evidence.startswith("IP-Adapter-like +")
    assert differs.holds is False and differs.evidence.startswith("IP-Adapter-like -")
    assert shown.claims[1].holds is None  # who is chosen always is not chosen more often


def test_table_2_counts_sets(tmp_path):
    made = study(tmp_path / "made", seeds=(0, 1), iterations=(375,), people=2, clip_people=4, prompts=4)
    rival = made.scores["method"] == "ip_adapter"
    made.scores["seed_diversity"] = np.where(rival, 0.1, 0.2)

    def prompt(*, recontextualized, stylized):
        scores = made.scores.copy()
        clip = np.where(scores["kind"] == "stylized", stylized, recontextualized)
        scores["clip_t"] = scores["clip_t"].mask(rival & scores["clip_t"].notna(), clip)
        shown = table2.make(Study(scores, world="", seconds={}, facts={}), tmp_path)
        assert shown.tables[0].rows[1][1].startswith("100.0")  # always more diverse
        return [text.split()[0] for text in shown.tables[0].rows[0][1:]], shown.claims[0].holds

    assert prompt(recontextualized=0.5, stylized=0.5) == (["100.0", "100.0", "100.0"], True)
    assert prompt(recontextualized=0.9, stylized=0.9) == (["0.0", "0.0", "0.0"], False)
    assert prompt(recontextualized=0.5, stylized=0.9) == (["100.0", "100.0", "0.0"], True)  # the mean of a set counts
    ours = made.scores[(made.scores["method"] == "meta_lora") & made.scores["clip_t"].notna()]
    made.scores.loc[rival & made.scores["clip_t"].notna(), "clip_t"] = ours["clip_t"].to_numpy()
    assert table2.make(made, tmp_path).tables[0].rows[0][1].startswith("50.0")  # a tie is half


def test_grids_show_people_by_name_and_say_what_is_missing(tmp_path, grid, monkeypatch):
    monkeypatch.setenv("METALORA_OUTPUTS", str(tmp_path / "nowhere"))
    shown = fig4.make(grid, tmp_path)
    assert shown.claims[0].holds is None and "make sets" in shown.claims[0].evidence
    pictures = fig7.make(grid, tmp_path).pictures
    assert [picture.name for picture in pictures] == ["fig7", "fig8"]
    assert all(picture.pdf and picture.pdf.read_bytes().startswith(b"%PDF") for picture in pictures)


def test_the_widest_r1_is_held_against_the_narrowest_early_in_stage_2(tmp_path):
    def meta(name, **changes):
        few = {"people": 4, "clip_people": 4, "prompts": 3, "pictures": False}
        table = read_scores([make_scores(tmp_path / name, methods=("meta_lora",), **few, **changes)])
        return Study(table, world="", seconds={}, facts={})

    studies = {(16, 400): meta("a", dearer=-0.05), (64, 400): meta("b", dearer=0.1)}
    early, best = r1_selection.make(studies, tmp_path / "out").claims
    assert early.holds is True  # r1 64 costs CLIP-T
    assert best.holds is None and "has not been run" in best.evidence
    assert (tmp_path / "out" / "r1_selection.pdf").is_file()
    with pytest.raises(UserError, match="no Stage 2"):
        r1_selection.studies_in(tmp_path)


def stage_2(at, *, lost=0.01):
    """Meta-LoRA's R-FaceSim by iterations, and how far its CLIP-T lies below the base's; eight people."""
    rows = []
    for k in range(8):
        shared = {"identity": f"p{k}", "class_noun": "woman", "prompt_id": "x", "seed": 0, "face_found": 1.0}
        rows.append(shared | {"method": "base", "rank": 0, "iterations": 0, "clip_t": 0.8, "r_face_sim": 0.05})
        for iterations, face in at.items():
            scores = {"clip_t": 0.8 - lost, "r_face_sim": face + 0.001 * (k % 3)}
            rows.append(shared | {"method": "meta_lora", "rank": 1, "iterations": iterations} | scores)
    table = pd.DataFrame(rows).assign(face_sim=np.nan, clip_i=np.nan)
    return Study(table.assign(file=[str(n) for n in range(len(rows))]), world="", seconds={}, facts={})


def test_the_papers_r1_is_held_against_every_other_cell():
    def best(changed=None):
        studies = {(r1, steps): stage_2({375: 0.4, 500: 0.4}) for r1 in (16, 32, 64) for steps in (400, 500, 600)}
        studies[32, 500] = stage_2({375: 0.5, 500: 0.4})
        return r1_selection._best(studies | (changed or {}))

    highest = best()
    assert highest.holds is True and "R-FaceSim of r1 32, Stage 1 500, Stage 2 375 is 50.1" in highest.evidence
    assert "of 17 other cells" in highest.evidence and "8 people" in highest.evidence
    same_r1 = best({(32, 500): stage_2({375: 0.5, 500: 0.5})})  # as good after 500 iterations of Stage 2
    assert same_r1.holds is None and "Stage 1 500, Stage 2 500" in same_r1.evidence
    lower = best({(32, 400): stage_2({375: 0.6})})
    assert lower.holds is False and "60.1 of r1 32, Stage 1 400, Stage 2 375" in lower.evidence
    dearer = best({(32, 400): stage_2({375: 0.6}, lost=0.04)})  # outside the budget
    assert dearer.holds is True and "of 15 other cells" in dearer.evidence
    assert best({(32, 500): stage_2({375: 0.5}, lost=0.04)}).holds is False


def test_every_prior_that_stage_1_names_gets_its_stage_2(monkeypatch):
    ran = []

    def command(words, **_):
        ran.append(words[3:])
        given = dict(word.split("=", 1) for word in words if "=" in word)
        told = io.StringIO()
        with Board(stream=told) as board, redirect_stderr(told):
            if words[3] == "meta-train":
                board.say(f"prior: out/r{given['meta_rank']}/prior.safetensors")
        failed = given.get("meta_rank") == "64" and words[3] == "reproduce"
        return subprocess.CompletedProcess(words, int(failed), "", told.getvalue() + "metalora: no room\n" * failed)

    monkeypatch.setattr(subprocess, "run", command)
    r1_run.main(["ranks=16,32", "steps=200,400", "jobs=1", "people.count=4"])
    second = [words for words in ran if words[0] == "reproduce"]
    assert [[word for word in words if "priors" in word] for words in second] == [
        [f"priors.woman=out/r{rank}/prior-{steps:06d}.safetensors"] for steps in (400, 200) for rank in (16, 32)
    ]
    assert all({"people.count=4", "experiment=mini/r1_selection"} <= set(words) for words in ran)
    with pytest.raises(SystemExit, match="Stage 2 from r1 64 after 200: metalora: no room"):
        r1_run.main(["ranks=64", "steps=200"])


def test_a_folder_without_scores_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["choose", str(tmp_path)])
    with pytest.raises(SystemExit, match=f"choose: no scores to choose from; .*got {tmp_path}"):
        runpy.run_module("experiments.learning_rate.choose", run_name="__main__")


def test_words_folders_and_files(tmp_path, grid, capsys):
    assert places("fig3", ["a", "b", "out=c"])[1].name == "c"
    with pytest.raises(UserError, match="unknown option"):
        places("fig3", ["colour=red"])
    with pytest.raises(UserError, match="no scores to show"):
        study_of([tmp_path])
    present("fig6", fig6.make(grid, tmp_path), out=tmp_path)
    printed = capsys.readouterr().out
    written = (tmp_path / "fig6.md").read_text()
    assert len(re.findall(r"The paper: .*here: ", printed)) == len(re.findall("The paper: ", written)) == 4
    assert Claim("x", None, "y").line() == "The paper: x. NOT DECIDED here: y."
