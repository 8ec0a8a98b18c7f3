"""What Hydra's launchers lack when a worker is lost: the plugins of submitit and Ray raise at the first lost job and
leave the others, running or queued, to themselves."""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch


@contextlib.contextmanager
def awaiting_all(launcher: object) -> Iterator[None]:
    """Inside, a launcher waits for the last of its jobs.

    Raises:
        Exception: what the first of the lost jobs raised, at the end.
    """
    errors: list[Exception] = []

    def awaited(result: Any, nothing: Any) -> Any:
        def wait(job: Any) -> Any:
            try:
                return result(job)
            except Exception as error:
                errors.append(error)
                return nothing

        return wait

    plugin = type(launcher).__module__
    with contextlib.ExitStack() as stack:
        if plugin.startswith("hydra_plugins.hydra_submitit_launcher"):
            from submitit import Job

            stack.enter_context(patch.object(Job, "results", awaited(Job.results, [None])))
        elif plugin.startswith("hydra_plugins.hydra_ray_launcher"):
            import ray
            from hydra_plugins.hydra_ray_launcher import _core

            stack.enter_context(patch.object(_core, "ray", SimpleNamespace(get=awaited(ray.get, None))))
        yield
    if errors:
        raise errors[0]
