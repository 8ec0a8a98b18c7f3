"""The four scores against a slow reading of Algorithm 3, and what is said about them."""

import math

import numpy as np
import pytest
import torch

from metalora.core import metrics


def slow_r_face_sim(generated, photos):
    """Algorithm 3 loop by loop, in plain Python, sharing nothing with the package.

    generated: {identity: {prompt: vector}}, photos: {identity: [vector]}, photo 0 is the reference.
    """

    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    scores = []
    for identity, of_prompt in generated.items():
        reference = photos[identity][0]
        test = [photo for photo in photos[identity] if photo is not reference]
        for vector in of_prompt.values():
            sumsim, count = 0.0, 0
            for photo in test:
                sumsim += cosine(vector, photo)
                count += 1
            scores.append(sumsim / count)
    return sum(scores) / len(scores)


def test_r_face_sim_is_algorithm_3():
    draw = torch.Generator().manual_seed(3)
    photos = {f"p{k}": torch.randn(4 + k, 16, generator=draw) for k in range(5)}
    generated = {i: {f"prompt{p}": torch.randn(16, generator=draw) + photos[i][1] for p in range(7)} for i in photos}

    slow = slow_r_face_sim(
        {i: {p: vector.tolist() for p, vector in of.items()} for i, of in generated.items()},
        {i: [vector.tolist() for vector in of] for i, of in photos.items()},
    )

    scores, identities = [], []
    for identity, of_prompt in generated.items():
        of_identity = metrics.r_face_sim(torch.stack(list(of_prompt.values())), photos[identity][1:])
        scores.extend(of_identity.tolist())
        identities.extend([identity] * len(of_prompt))
    fast = metrics.identity_means(scores, identities, among_K=list(photos)).mean()
    assert abs(fast - slow) < 1e-6
    with_reference = np.mean([metrics.r_face_sim(torch.stack(list(generated[i].values())), photos[i]) for i in photos])
    assert abs(with_reference - slow) > 1e-3  # the reference must not be among the test photos


def test_paired_cosine_takes_rows_of_any_length():
    a, b = torch.tensor([[3.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 9.0], [5.0, 5.0]])
    assert metrics.paired_cosine(a, b).tolist() == pytest.approx([0.0, 1.0])


def test_misses_count_as_zero_or_not_at_all():
    scores, found = np.array([0.8, np.nan, 0.4, 0.6]), np.array([True, False, True, True])
    identities = ["a", "a", "b", "b"]
    headline = metrics.identity_means(metrics.misses_as_zero(scores, found), identities, among_K=["a", "b"])
    detected = metrics.identity_means(scores, identities, among_K=["b", "a", "nobody"])
    assert headline.tolist() == pytest.approx([0.4, 0.5])
    assert detected[:2].tolist() == pytest.approx([0.5, 0.8])
    assert np.isnan(detected[2])


def test_bootstrap_interval_is_the_sampling_error():
    means = np.random.default_rng(0).normal(0.5, 0.1, 400)
    interval = metrics.bootstrap(means)
    assert interval.mean == pytest.approx(means.mean())
    assert (interval.high - interval.low) / 2 == pytest.approx(1.96 * means.std() / 20, rel=0.1)
    assert interval == metrics.bootstrap(means)
    assert interval != metrics.bootstrap(means, seed=1)
    assert metrics.bootstrap(np.append(means, np.nan)) == interval
    assert np.isnan(metrics.bootstrap(np.array([np.nan])).mean)


def test_paired_bootstrap_is_narrower_than_unpaired_people():
    rng = np.random.default_rng(1)
    people = rng.normal(0.5, 0.2, 40)
    a, b = people + 0.02 + rng.normal(0, 0.01, 40), people + rng.normal(0, 0.01, 40)
    paired = metrics.paired_bootstrap(a, b)
    assert 0 < paired.low < paired.mean < paired.high < 0.03
    assert paired.share_above == 1.0
    assert metrics.bootstrap(a).low < metrics.bootstrap(b).high  # apart, the two would overlap
    b[0] = np.nan
    assert metrics.paired_bootstrap(a, b).identities == 39


def reach(iterations, *conditions):
    pairs = [(np.array([curve], dtype=float), np.array([target], dtype=float)) for curve, target in conditions]
    return metrics.first_reach(np.array(iterations, dtype=float), *pairs)[0]


def test_first_reach_is_linear_between_checkpoints():
    assert reach([250, 375, 500], ([0.2, 0.4, 0.5], 0.3)) == pytest.approx(312.5)
    assert reach([250, 375, 500], ([0.2, 0.4, 0.5], 0.4)) == pytest.approx(375)
    assert reach([250, 375, 500], ([0.2, 0.4, 0.5], 0.1)) == 250
    assert reach([250, 375, 500], ([0.2, 0.4, 0.5], 0.51)) == np.inf
    assert reach([250, 375, 500], ([0.2, 0.2, 0.5], 0.2)) == 250
    assert reach([250, 375, 500], ([0.5, 0.1, 0.3], 0.2)) == 250
    assert reach([250], ([0.5], 0.2)) == 250
    assert reach([250], ([0.1], 0.2)) == np.inf


def test_first_reach_needs_both_curves_at_once():
    rising, falling = ([0.2, 0.4], 0.3), [0.8, 0.7]
    assert reach([0, 100], rising, (falling, 0.75)) == pytest.approx(50)
    assert reach([0, 100], rising, (falling, 0.74)) == pytest.approx(50)
    assert reach([0, 100], rising, (falling, 0.76)) == np.inf  # CLIP-T is too low by then
    assert reach([0, 100, 200], ([0.2, 0.4, 0.6], 0.3), ([0.8, 0.7, 0.9], 0.76)) == pytest.approx(130)  # it comes back


def people(curve, count, spread):
    """A curve [C] as [C, K]: the same for everybody up to a constant of mean zero."""
    return np.asarray(curve)[:, None] + np.linspace(-spread, spread, count)


def test_steps_to_match():
    slow, clip = people([0.2, 0.3, 0.4, 0.5, 0.55], 16, 0.1), people([0.80, 0.79, 0.78, 0.77, 0.76], 9, 0.05)
    quick = people([0.3, 0.45, 0.55, 0.6, 0.62], 16, 0.1)
    grid = [250, 375, 500, 625, 750]
    target = {"target_r_face_sim_K": slow[3], "target_clip_t_K": clip[3], "target_iterations": 625}

    itself = metrics.steps_to_match(grid, r_face_sim_CK=slow, clip_t_CK=clip, **target)
    assert itself.matched == itself.plain == pytest.approx(625)
    assert itself.ratio == pytest.approx(1)

    match = metrics.steps_to_match(grid, r_face_sim_CK=quick, clip_t_CK=clip, **target)
    assert match.matched == match.plain == pytest.approx(437.5)
    assert match.ratio == pytest.approx(625 / 437.5)
    assert match.clip_t_at_plain == pytest.approx(0.785)
    assert match.no_lower_clip_t
    assert match.matched_share == 1
    assert match.matched_interval[0] == pytest.approx(437.5, abs=1e-6)  # the same people: shifts cancel

    costly = metrics.steps_to_match(grid, r_face_sim_CK=quick, clip_t_CK=clip - 0.05, **target)
    assert costly.plain == pytest.approx(437.5)
    assert costly.matched is None and costly.ratio is None and costly.no_lower_clip_t is False
    assert costly.matched_interval == (np.inf, np.inf)

    never = metrics.steps_to_match(grid, r_face_sim_CK=quick - 0.5, clip_t_CK=clip, **target)
    assert never.plain is None and never.clip_t_at_plain is None and never.no_lower_clip_t is None


def test_steps_to_match_interval_covers_the_people():
    rng = np.random.default_rng(5)
    slow = people([0.2, 0.3, 0.4, 0.5, 0.55], 16, 0) + rng.normal(0, 0.05, (5, 16))
    quick = people([0.3, 0.45, 0.55, 0.6, 0.62], 16, 0) + rng.normal(0, 0.05, (5, 16))
    clip = people([0.80, 0.79, 0.78, 0.77, 0.76], 9, 0)
    target = {"target_r_face_sim_K": slow[3], "target_clip_t_K": clip[3], "target_iterations": 625}
    match = metrics.steps_to_match([250, 375, 500, 625, 750], r_face_sim_CK=quick, clip_t_CK=clip, **target)
    low, high = match.matched_interval
    assert 250 < low < match.matched < high < 750
    assert high - low > 10


def test_scores_of_the_same_people_are_resampled_together():
    """Where CLIP-T is no lower for exactly those whose R-FaceSim is reached, it asks for nothing more."""
    gain_CK = people([-0.2, -0.1, 0.1, 0.2], 16, 0) + np.random.default_rng(3).normal(0, 0.2, 16)
    same = {"r_face_sim_CK": 0.5 + gain_CK, "clip_t_CK": 0.7 + gain_CK, "target_iterations": 625}
    same |= {"target_r_face_sim_K": np.full(16, 0.5), "target_clip_t_K": np.full(16, 0.7)}
    together, apart = (metrics.steps_to_match([250, 375, 500, 625], **same, same_people=it) for it in (True, False))
    assert together.matched_interval == together.plain_interval == apart.plain_interval
    assert apart.matched_share < together.matched_share


def test_trend_follows_a_parabola_and_survives_few_points():
    x = np.linspace(0.7, 0.8, 6)
    fit = metrics.trend(x, 3 - 2 * x + 5 * x**2)
    assert fit(0.75) == pytest.approx(3 - 1.5 + 5 * 0.75**2)
    assert metrics.trend([0.7, 0.8], [0.3, 0.5])(0.75) == pytest.approx(0.4)
    assert metrics.trend([0.7], [0.3])(0.9) == pytest.approx(0.3)


def test_relative_drop_is_table_3s():
    assert metrics.relative_drop(84.76, 75.72) == pytest.approx(-0.107, abs=5e-4)
    assert np.isnan(metrics.relative_drop(0.0, 0.1))


def test_sign_flips_by_counting():
    assert metrics.sign_flip_p(np.array([1.0, 1.0, 1.0])) == pytest.approx(2 / 8)
    assert metrics.sign_flip_p(np.array([3.0, -1.0, 2.0])) == pytest.approx(4 / 8)  # sums of at least 4: +-(4, 6)
    assert metrics.sign_flip_p(np.array([0.1, -0.1])) == 1.0
    assert math.isnan(metrics.sign_flip_p(np.array([])))


def test_sign_flips_drawn_at_random_agree_with_all_of_them(monkeypatch):
    difference = np.random.default_rng(2).normal(0.4, 1.0, 14)
    exact = metrics.sign_flip_p(difference)
    monkeypatch.setattr(metrics, "EXACT_UP_TO", 3)
    assert metrics.sign_flip_p(difference) == pytest.approx(exact, abs=0.01)
    assert metrics.sign_flip_p(difference) == metrics.sign_flip_p(difference)  # seeded
    assert 0.05 < exact < 0.95


def test_sign_flips_are_as_often_below_a_level_as_it_says():
    rng = np.random.default_rng(6)
    ps = np.array([metrics.sign_flip_p(rng.normal(0, 1, 10)) for _ in range(400)])
    assert (ps < 0.1).mean() == pytest.approx(0.1, abs=0.045)
