"""Random numbers depend on their key alone."""

import pytest
import torch

from metalora.core.noise import generator, noise, timestep

DRAWN = [-0.009811365, 0.312558979, -0.481446654, -0.778908968]
"""Numbers 1, 2, 19 and 20 of one stream."""
KEY = {"seed": 1, "identity": "p1", "iteration": 7, "occurrence": 0}


def test_equal_keys_give_equal_numbers() -> None:
    assert torch.equal(noise((2, 3), **KEY), noise((2, 3), **KEY))
    assert torch.equal(timestep(**KEY), timestep(**KEY))


def test_every_part_of_the_key_counts() -> None:
    other = {"seed": 2, "identity": "p2", "iteration": 8, "occurrence": 1}
    for part, value in other.items():
        changed = {**KEY, part: value}
        assert not torch.equal(noise((2, 3), **KEY), noise((2, 3), **changed)), part
        assert timestep(**KEY) != timestep(**changed), part


def test_parts_do_not_run_together() -> None:
    assert generator("a", 1, 12).initial_seed() != generator("a", 11, 2).initial_seed()
    assert generator("ab", "c").initial_seed() != generator("a", "bc").initial_seed()
    assert generator(1).initial_seed() != generator("1").initial_seed()


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    noise((4,), **KEY)
    timestep(**KEY)
    assert torch.equal(before, torch.get_rng_state())


def test_the_numbers_are_those_of_every_machine_up_to_rounding() -> None:
    assert generator("noise", 0, "p", 0, 0).initial_seed() == 1694128182157644523
    drawn = noise((20,), seed=0, identity="p", iteration=0, occurrence=0)
    assert drawn[[0, 1, 18, 19]].tolist() == pytest.approx(DRAWN, abs=5e-6)


def test_timesteps_are_logit_normal() -> None:
    drawn = torch.stack([timestep(seed=0, identity="p", iteration=i, occurrence=0) for i in range(2000)])
    assert drawn.min() > 0 and drawn.max() < 1
    normal = torch.logit(drawn)
    assert abs(normal.mean()) < 0.1 and abs(normal.std() - 1) < 0.1
