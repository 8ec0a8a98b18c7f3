"""Who started the processes of a run, told from the environment."""

import pytest
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

from metalora.core.errors import UserError
from metalora.training.ranks import Ranks, started_by_torchrun

NAMES = ("LOCAL_RANK", "RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
NAMES += ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")
NAMES += (
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "SLURM_RESTART_COUNT",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_NNODES",
    "SLURM_JOB_NAME",
)


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_one_process_stays_one_inside_a_cluster_job(bare: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}.items():
        bare.setenv(name, value)
    ranks = Ranks()
    assert isinstance(ranks.environment(), LightningEnvironment)
    assert (ranks.world, ranks.rank, ranks.local_rank) == (1, 0, 0)


def test_without_anybody_the_first_process_starts_the_others() -> None:
    ranks = Ranks(devices=2)
    assert not ranks.environment().creates_processes_externally
    assert (ranks.world, ranks.rank) == (2, 0)


def test_a_started_process_knows_its_place(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("LOCAL_RANK", "1")
    assert Ranks(devices=2).rank == 1
    for name, value in {"NODE_RANK": "2", "MASTER_ADDR": "first", "MASTER_PORT": "1234"}.items():
        bare.setenv(name, value)
    assert Ranks(devices=2, nodes=3).rank == 5 and Ranks(devices=2, nodes=3).local_rank == 1


def test_torchrun(bare: pytest.MonkeyPatch) -> None:
    assert started_by_torchrun() is None
    started = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "GROUP_RANK": "1"}
    for name, value in started.items():
        bare.setenv(name, value)
    ranks = Ranks(devices=2, nodes=2)
    assert started_by_torchrun() == 4 and isinstance(ranks.environment(), TorchElasticEnvironment)
    assert (ranks.rank, ranks.local_rank) == (3, 1)
    with pytest.raises(UserError, match=r"trainer\.devices, trainer\.nodes"):
        Ranks(devices=3).environment()


@pytest.mark.parametrize("per_node", [None, "2"])
def test_srun_with_as_many_tasks_but_not_a_batch_script(bare: pytest.MonkeyPatch, per_node: str | None) -> None:
    for name, value in {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}.items():
        bare.setenv(name, value)
    assert isinstance(Ranks(devices=2, nodes=1).environment(), LightningEnvironment)
    for name, value in {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}.items():
        bare.setenv(name, value)
    bare.setenv("SLURM_NODEID", "1")
    if per_node is not None:
        bare.setenv("SLURM_NTASKS_PER_NODE", per_node)
    ranks = Ranks(devices=2, nodes=2)
    assert isinstance(ranks.environment(), SLURMEnvironment) and (ranks.rank, ranks.local_rank) == (3, 1)
    bare.setenv("SLURM_NNODES", "4")
    with pytest.raises(UserError, match="machine"):
        ranks.environment()


def test_machines_that_do_not_know_where_to_meet() -> None:
    with pytest.raises(UserError, match=r"NODE_RANK.*trainer\.nodes"):
        Ranks(devices=1, nodes=2).environment()


def test_another_error_is_not_taken_for_a_lost_process() -> None:
    with pytest.raises(RuntimeError, match="shapes"), Ranks(devices=2).joined():
        raise RuntimeError("shapes differ")
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer [127.0.0.1]:1. More words.")
    with (
        pytest.raises(UserError, match=r"lost another one.*got Connection closed by peer") as caught,
        Ranks(devices=2).joined(),
    ):
        raise lost
    assert "More words" not in str(caught.value)


def test_a_run_is_named_alike_by_its_processes_and_unlike_another(bare: pytest.MonkeyPatch) -> None:
    assert Ranks().run == "" and Ranks(devices=2).run == ""  # nobody else has to know
    srun = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_NODEID": "0", "SLURM_JOB_ID": "7"}
    for name, value in (srun | {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}).items():
        bare.setenv(name, value)
    first = Ranks(devices=2).run
    bare.setenv("SLURM_PROCID", "1")
    bare.setenv("SLURM_LOCALID", "1")
    assert Ranks(devices=2).run == first != ""
    bare.setenv("SLURM_JOB_ID", "8")
    assert Ranks(devices=2).run != first
