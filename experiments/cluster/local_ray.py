"""A Ray cluster of several nodes on this machine for one command: `python -m experiments.cluster.local_ray CMD`.

Every node is a raylet of its own on loopback, with one CPU; the head has none, so that no work goes to it. At the end
only these processes are stopped (`ray stop` would stop everybody's).
"""

import contextlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping

HERE = "127.0.0.2"
"""Loopback, but not the address that Ray takes for a word for the machine's own one."""


def is_installed() -> bool:
    """Whether Ray is there."""
    return importlib.util.find_spec("ray") is not None


@contextlib.contextmanager
def running(*, nodes: int = 2, cpus: int = 1) -> Iterator[Mapping[str, str]]:
    """Start the cluster; yields what a command's environment needs to find it.

    Args:
        nodes: raylets beside the head.
        cpus: that each says it has.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 80 * 2**20}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "node_ip_address": HERE, **memory},
    )
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=cpus, node_ip_address=HERE, **memory)
        cluster.wait_for_nodes()
        yield {"RAY_ADDRESS": cluster.address, "RAY_USAGE_STATS_ENABLED": "0"}
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    with running() as found:
        sys.exit(subprocess.run(sys.argv[1:], env={**os.environ, **found}, check=False).returncode)
