"""The trade-off study: its protocol, what is kept of a run, and answers that follow made-up scores."""

import hashlib
import json
import threading

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.tradeoff import measures, plot, protocol, recognition, run, store
from experiments.tradeoff.choose import common_rate, own_rate
from experiments.tradeoff.control import control
from experiments.tradeoff.evidence import Evidence, of_seed
from experiments.tradeoff.identify import identified, nearest, recognised, recognised_photos
from experiments.tradeoff.protocol import RUNS, Prior, Run
from experiments.tradeoff.questions import QUESTIONS
from metalora.core.errors import UserError
from metalora.evaluation.curves import CellKey
from metalora.evaluation.frontier import best_at, frontier, frontier_area
from metalora.people.benchmark import Subject

WORLD = {"world": "made up", "seconds": 1.0, "command": "none", "learning_rate": 1e-3}
PEOPLE = 12


def scores_of(one: Run, *, faster: float = 2.0, random_loss: float = 0.1) -> pd.DataFrame:
    """What a world would give in which Meta-LoRA is `faster` and everything else is as the paper says."""
    people = [f"p-{noun}-{k}" for noun in one.classes for k in range(PEOPLE)]
    rates = {5e-4: 0.5, 1e-3: 0.7, 2e-3: 0.9, 5e-3: 1.0, 1e-2: 0.95}
    speed = {"common": 1.0, "slow": 0.7, "own": 1.0}.get(one.rate) or rates[one.rate]
    rng = np.random.default_rng([one.seed, len(one.name)])
    rows = []

    def add(method, rank, iterations, face, clip):
        for k, person in enumerate(people):
            for prompt in ("frontal-1", "frontal-2", "scene-1"):
                shift = 0.01 * (k % 5) + rng.normal(0, 0.002)
                row = {"method": method, "rank": rank, "iterations": iterations, "identity": person, "part": "unsplash"}
                row |= {"class_noun": person.split("-")[1], "prompt_id": prompt, "seed": one.seed}
                row |= {"test_photos": 4, "reference_faces": 1}
                row |= dict.fromkeys(store.SCORES, np.nan)
                if prompt == "scene-1":
                    row |= {"clip_t": clip + shift, "clip_i": 0.7}
                else:
                    own = face + shift
                    row |= {
                        "face_found": 1.0,
                        "face_sim": own + 0.02,
                        "r_face_sim": own,
                        "identified": float(k % 4 > 0),
                    }
                    row["copy_paste"] = 0.1 if method == "lora" else 0.0
                rows.append(row)

    add("base", 0, 0, 0.03, 0.42)
    for method in one.methods:
        for iterations in one.iterations:
            effective = iterations * (faster if method == "meta_lora" else 1.0)
            face = 0.45 * speed * (1 - np.exp(-effective / 300))
            clip = 0.42 - 1e-5 * iterations - (0.1 if one.rank == 16 else 0)
            clip -= 0.05 if one.rate == 1e-2 else 0.0
            if method == "lora":
                face, clip = face - 0.1, clip - (0.15 if one.rate != 5e-4 else 0)
            if one.prior.random or one.prior.spectrum:
                face -= random_loss
            face += (
                0.02 * np.log2(one.prior.people / 50) * (one.prior.people != 100) if one.prior.people != 100 else 0.02
            )
            add(method, one.rank, iterations, face, clip)
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    for one in RUNS:
        if not one.name.startswith("own-"):
            store.write_run(one.name, scores_of(one), WORLD, results=folder)
    for seed in protocol.SEEDS:
        one = next(r for r in RUNS if r.name == f"own-lora-s{seed}")
        store.write_run(one.name, scores_of(one), WORLD, results=folder)
    return folder


def test_every_run_has_a_name_of_its_own_and_every_question_its_runs() -> None:
    names = [one.name for one in RUNS]
    assert len(set(names)) == len(names)
    for question in QUESTIONS:
        for beginning in question.runs:
            assert any(name.startswith(beginning) for name in names)
    assert {one.benchmark for one in RUNS if one.name.startswith("rate-")} == {protocol.VALIDATION}
    assert {one.benchmark for one in RUNS if not one.name.startswith("rate-")} == {protocol.TEST}
    assert {one.seed for one in RUNS if one.name.startswith("rank01")} == {0, 1, 2}


def test_stage_one_takes_as_many_samples_whatever_the_people() -> None:
    for people in (50, 100, 200):
        words = dict(word.split("=") for word in Prior(people=people).words)
        assert int(words["stage1.uses_per_example"]) * people == 1000
        assert words["stage1.q_total"] == "1000"


def test_rates_are_chosen_on_validation_people(results) -> None:
    assert common_rate(results) == 5e-3
    assert own_rate("meta_lora", results) == 5e-3
    assert own_rate("lora", results) == 5e-4


def test_runs_at_a_rate_that_is_run_anyway_are_left_out(results) -> None:
    own = {one.methods[0]: one for one in RUNS if one.name.startswith("own-")}
    assert run.is_there_already(own["meta_lora"], results)
    assert not run.is_there_already(own["lora"], results)
    assert not run.is_there_already(RUNS[0], results)


def test_the_first_run_needs_no_other(tmp_path) -> None:
    assert run.rate_of(RUNS[0], tmp_path) == 5e-4
    assert not run.is_there_already(RUNS[0], tmp_path)


def test_runs_of_one_cell_go_two_at_a_time_and_none_is_lost(tmp_path, monkeypatch) -> None:
    both = threading.Barrier(2, timeout=60)

    def do(one, folder) -> None:
        both.wait()  # never passed by one alone
        store.write_run(one.name, scores_of(one), WORLD, results=folder)

    monkeypatch.setattr(run, "do", do)
    monkeypatch.setattr(run, "world", lambda: "made up")
    run.main(["only=r1-0", f"results={tmp_path}"])
    wanted = [one.name for one in RUNS if one.name.startswith("r1-0")]
    assert sorted(line["name"] for line in store.costs(tmp_path)) == sorted(wanted)
    assert all(store.scores_path(name, results=tmp_path).is_file() for name in wanted)


def test_a_command_says_all_that_the_protocol_fixes(tmp_path) -> None:
    one = next(r for r in RUNS if r.name == "rank16-s2")
    words = run.words_of(one, rate=5e-3, priors={"man": tmp_path / "m"})
    expected = {"rank=16", "seed=2", "protocol.seeds=[2]", "learning_rate=0.005", "benchmark=mini_test"}
    expected |= {"iterations=[250,375,500,625]", "methods=[lora_aug,meta_lora]", f"priors.man={tmp_path / 'm'}"}
    assert expected <= set(words)


def test_a_control_is_made_once_and_the_priors_are_told(tmp_path, monkeypatch) -> None:
    """Written again it would be another file (its header has no order), and what was begun on it lost."""
    made, told = [], []
    prior = tmp_path / "prior.safetensors"
    prior.write_bytes(b"learned")
    monkeypatch.setattr(run, "make_control", lambda path, change, out: (made.append(change), out.write_bytes(b"drawn")))
    monkeypatch.setattr(run, "metalora", lambda words, say: prior)
    monkeypatch.setattr(run, "rate_of", lambda one, results: 1e-3)
    monkeypatch.setattr(run, "scores_of", lambda one: None)
    monkeypatch.setattr(run, "keep_people", lambda one, results: None)
    monkeypatch.setattr(run, "world", lambda: "made up")
    monkeypatch.setattr(store, "write_run", lambda name, frame, cost, results: told.append(cost))
    one = next(r for r in RUNS if r.name == "random-s1")
    for _ in range(2):
        run.do(one, tmp_path)
    assert made and set(made) == {"random-1"} and len(made) <= 2  # both classes are this one file here
    sha256 = hashlib.sha256(b"drawn").hexdigest()
    expected = {"meta_rank": 32, "people": 100, "steps": 1000, "random": True, "spectrum": False}
    assert told[0]["prior"] == told[1]["prior"] == expected | {"man": sha256, "woman": sha256}
    made.clear()
    run.do(next(r for r in RUNS if r.name == "spectrum-s1"), tmp_path)
    assert made and set(made) <= {"spectrum-2", "spectrum-3"}  # a draw for each class and seed


def test_answers_follow_the_scores(results, tmp_path) -> None:
    plot.main([f"results={results}", f"out={tmp_path}"])
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert sorted(answers) == list("abcdef")
    holds = {letter: [claim["holds"] for claim in claims] for letter, claims in answers.items()}
    assert holds["a"][:2] == [True, True]
    assert holds["b"][:2] == [True, True]
    assert holds["c"][:2] == [True, True]
    assert all(holds["d"])
    text = (tmp_path / "tradeoff.md").read_text()
    assert "1.67 times fewer" in text
    assert "0.005" in text
    assert "each at its own rate" in text
    assert "24 people is recognised in 75.0% (95%: " in text
    assert "At rank 16 it is 75.0% (95%: " in text
    assert text.count(" 4, seed 0 ") == 4 * 2 + 1  # cells, and the area: beside that seed of the other ranks
    for letter in "abcdef":
        assert list(tmp_path.glob(f"{letter}_*.png"))
        assert f"## ({letter})" in text


def test_an_effect_that_is_not_there_is_not_claimed(results, tmp_path) -> None:
    for one in RUNS:
        if one.name.startswith(("rate-", "rank01-", "slow-", "random-")):
            store.write_run(one.name, scores_of(one, faster=1.0, random_loss=0.0), WORLD, results=tmp_path)
    plot.main([f"results={tmp_path}"])
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert sorted(answers) == ["a", "b", "d"]
    assert answers["a"][1]["holds"] is False  # 375 iterations do not do what 625 do
    assert answers["d"][-1]["holds"] is not True
    text = (tmp_path / "tradeoff.md").read_text()
    assert "Not run yet." in text
    assert "each at its own rate" not in text  # LoRA's own rate has not been run


def test_a_random_control_has_the_norm_and_a_draw_of_its_seed() -> None:
    learned = torch.arange(12.0).view(3, 4)
    drawn = [control(learned, change=f"random-{seed}", layer="a") for seed in (0, 1)]
    for one in drawn:
        torch.testing.assert_close(one.norm(), learned.norm())
    assert not torch.allclose(*drawn)
    assert torch.equal(drawn[1], control(learned, change="random-1", layer="a"))
    assert not torch.allclose(drawn[0], control(learned, change="random-0", layer="b"))
    torch.testing.assert_close(control(learned, change="0.5", layer="a"), learned / 2)


def test_random_directions_keep_the_singular_values() -> None:
    learned = torch.diag(torch.tensor([3.0, 2.0, 1.0])) @ torch.eye(3, 5)
    drawn = [control(learned, change=f"spectrum-{seed}", layer="a") for seed in (0, 1)]
    for one in drawn:
        torch.testing.assert_close(torch.linalg.svdvals(one), torch.tensor([3.0, 2.0, 1.0]))
        assert not torch.allclose(one.abs(), learned, atol=0.2)
    assert not torch.allclose(*drawn)


def test_runs_of_another_world_are_refused(results) -> None:
    with pytest.raises(UserError, match="other weights"):
        store.check_world("another", results=results)
    store.check_world("made up", results=results)


def test_a_missing_run_is_named(tmp_path) -> None:
    with pytest.raises(UserError, match="rank01-s0"):
        _ = Evidence(tmp_path).common
    with pytest.raises(UserError, match="unknown option"):
        run.main(["colour=red"])


def test_what_is_kept_of_a_run_says_the_same(results) -> None:
    one = RUNS[0]
    before, after = scores_of(one), store.read_run(one.name, results=results)
    np.testing.assert_allclose(after["r_face_sim"], before["r_face_sim"], atol=1e-6)
    assert list(after["identity"]) == list(before["identity"])
    assert next(line["name"] for line in store.costs(results)) == one.name


def test_time_of_runs_side_by_side_counts_once(tmp_path) -> None:
    lines = [{"name": str(n), "seconds": 3600.0, "cores": n, "world": "w"} for n in (1, 2)]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "1.5 hours" in plot.cost(tmp_path)


def test_the_frontier_is_the_best_at_no_lower_clip_t() -> None:
    clip, face = np.array([[0.4, 0.3, 0.35]]), np.array([[0.0, 0.4, 0.2]])
    best = best_at(clip, face, np.array([[0.30, 0.35, 0.39, 0.41]]))
    np.testing.assert_allclose(best[0, :3], [0.4, 0.2, 0.04], atol=1e-9)
    assert best[0, 3] == -np.inf
    rng = np.random.default_rng(0)
    clip, face, line = rng.random((3, 5)), rng.random((3, 5)), rng.random((3, 40))
    ways = [np.stack([np.interp(np.linspace(0, 4, 40_001), range(5), row) for row in x]) for x in (clip, face)]
    slowly = [[ways[1][k][ways[0][k] >= x].max(initial=-np.inf) for x in line[k]] for k in range(3)]
    np.testing.assert_allclose(best_at(clip, face, line), slowly, atol=1e-4)


def test_cells_of_different_seeds_are_not_compared(results) -> None:
    scores = Evidence(results).common
    four, one = CellKey("lora_aug", 4, 625), CellKey("lora_aug", 1, 625)
    with pytest.raises(UserError, match="cells of different seeds"):
        measures.compare(scores, four, one, metric="r_face_sim")
    assert measures.compare(of_seed(scores, 0), four, one, metric="r_face_sim").identities == 2 * PEOPLE


def test_a_gap_is_what_is_alike_and_what_is_found(results) -> None:
    scores = Evidence(results).common
    ours, other = CellKey("lora_aug", 1, 625), CellKey("lora", 1, 625)
    parts = measures.parts_of_gap(scores, ours, other)
    assert parts[1].mean == parts[1].high == 0  # every face is found
    gone = scores["method"].eq("lora") & scores["prompt_id"].eq("frontal-1") & scores["seed"].eq(0)
    missing = scores.assign(face_found=scores["face_found"].mask(gone, 0.0), r_face_sim=scores["r_face_sim"].mask(gone))
    parts = measures.parts_of_gap(missing, ours, other)
    whole = measures.compare(missing, ours, other, metric="r_face_sim")
    assert parts[0].mean + parts[1].mean == pytest.approx(whole.mean, abs=1e-9)
    assert parts[0].mean > 0.05 and parts[1].mean > 0.03


def test_the_area_between_frontiers_is_the_shift_between_them(results) -> None:
    scores = Evidence(results).common
    keys = [CellKey("base", 0, 0), *(CellKey("lora_aug", 1, n) for n in protocol.CHECKPOINTS)]
    lifted = scores[scores["method"] == "lora_aug"].assign(method="lifted")
    lifted["r_face_sim"] += 0.05
    both = pd.concat([scores, lifted], ignore_index=True)
    others = [CellKey("lifted", 1, n) for n in protocol.CHECKPOINTS]
    area = frontier_area(both, others, keys[1:])
    assert area.mean == pytest.approx(0.05, abs=1e-6)
    assert area.low == pytest.approx(0.05, abs=1e-6)
    band = frontier(scores, keys)
    assert (band.low <= band.mean).all()
    assert (band.mean <= band.high).all()
    assert band.high.max() > band.low.max()


def test_an_unseen_photo_does_not_recognise_itself(tmp_path) -> None:
    names = ("a0", "a1", "a2", "a3", "b0", "b1", "b2")
    files = {name: tmp_path / name for name in names}
    for path in files.values():
        path.write_bytes(path.name.encode())
    e = np.eye(4, dtype=np.float32)
    vectors = dict(zip(names, (e[0], e[0], e[0], e[3] + 0.1 * e[1], e[1], e[1], None), strict=True))
    subjects = [
        Subject("a", "man", files["a0"], (files["a1"], files["a2"], files["a3"]), "unsplash"),
        Subject("b", "man", files["b0"], (files["b1"], files["b2"]), "unsplash"),
    ]
    found = recognised_photos(subjects, _Faces(vectors))
    # a3 looks like nobody but itself; b2 shows no face, and without b1 nobody would know b.
    assert found == {"people": 2, "reference_photo": 1.0, "unseen_photo": 0.5, "unseen_photos": 4}


def test_the_best_cell_is_found_over_rates_and_says_its_interval(tmp_path) -> None:
    for name, rate, right in (("rank01-s0", 1e-3, 0.5), ("own-meta_lora-s0", 5e-3, 0.75), ("random-s0", 1e-3, 1.0)):
        one = next(r for r in RUNS if r.name == name)
        scores = scores_of(one)
        scores["identified"] = scores["identified"] * 0 + [float(k % 4 < 4 * right) for k in range(len(scores))]
        store.write_run(name, scores, WORLD | {"learning_rate": rate}, results=tmp_path)
        rows = [("meta_lora", 1, 625, 0, f"p{k}", "man", 5, 5, int(k < 20 * right)) for k in range(20)]
        names = ["method", "rank", "iterations", "seed", "identity", "class_noun", "pictures", "faces", "recognised"]
        store.write_people(name, pd.DataFrame(rows, columns=names), results=tmp_path)
    text = recognition.said(tmp_path)
    assert "of people are (best cell: Meta-LoRA, rank 1, 0.005, 625 iterations; " in text
    assert "seed's 5 frontal pictures 75.0% (95%: " in text
    assert "100.0%" not in text  # a control is no method
    again = next(r for r in RUNS if r.name == "rank01-s1")
    store.write_people(again.name, pd.DataFrame(rows, columns=names).assign(seed=1, recognised=0), results=tmp_path)
    store.write_run(again.name, scores_of(again), WORLD | {"learning_rate": 1e-3}, results=tmp_path)
    text = recognition.said(tmp_path)  # a cell of one seed does not win over those of two
    assert "of people are (best cell: Meta-LoRA, rank 1, 0.001, 625 iterations; " in text


class _Faces:
    """Embeddings by file name."""

    def __init__(self, vectors) -> None:
        self.vectors = vectors

    def faces(self, pictures):
        return [self.vectors[picture.path.name] for picture in pictures]


def test_a_face_is_taken_for_the_nearest_of_all(tmp_path) -> None:
    files = {name: tmp_path / name for name in ("a1", "a2", "b1", "x", "y", "z")}
    for path in files.values():
        path.write_bytes(path.name.encode())
    e = np.eye(3, dtype=np.float32)
    vectors = {"a1": e[0], "a2": None, "b1": e[1], "x": e[0], "y": e[1], "z": None}
    subjects = [
        Subject("a", "man", files["x"], (files["a1"], files["a2"]), "unsplash"),
        Subject("b", "man", files["y"], (files["b1"],), "unsplash"),
    ]
    frame = pd.DataFrame({"file": [str(files[n]) for n in "xyzx"], "identity": ["a", "a", "a", "b"]})
    frame["face_found"] = [1.0, 1.0, 0.0, np.nan]
    found = identified(frame, subjects, _Faces(vectors))
    np.testing.assert_array_equal(found.to_numpy(), [1.0, 0.0, 0.0, np.nan])
    assert nearest([e[2] + 0.1 * e[1], None], ["a", "b"], e[:2]) == ["b", None]
    frame = frame.assign(method="lora", rank=1, iterations=9, seed=[0, 0, 1, 0], class_noun="man")
    together = recognised(frame, subjects, _Faces(vectors | {"y": e[1] / 2}))  # the mean of a and half a b is an a
    assert together[["identity", "seed", "pictures", "faces", "recognised"]].to_numpy().tolist() == [
        ["a", 0, 2, 2, 1],
        ["a", 1, 1, 0, 0],
    ]
    subjects[1] = Subject("b", "man", files["y"], (files["a2"],), "unsplash")
    with pytest.raises(UserError, match="no unseen photo"):
        identified(frame, subjects, _Faces(vectors))
