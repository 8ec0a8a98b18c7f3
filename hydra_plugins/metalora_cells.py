"""Hydra's sweeper with a memory. Hydra imports this at every start, so nothing heavy is imported at the top."""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper


class CellSweeper(BasicSweeper):
    """Writes down every cell of the grid, launches what is not done, and goes on past cells that fail.

    Args:
        max_batch_size: cells per launch; None: all at once.
        params: axes of every task.
        tasks: axes of one task. Axes that are typed replace both; these vary slowest, so that cells of one trajectory
            lie far apart.
        attempts: launches of a cell whose worker was lost.
    """

    def __init__(
        self,
        max_batch_size: int | None,
        params: Mapping[str, str] | None = None,
        tasks: Mapping[str, Mapping[str, str]] | None = None,
        attempts: int = 3,
    ) -> None:
        super().__init__(max_batch_size, dict(params or {}))
        self.tasks, self.attempts = tasks or {}, attempts

    def _parse_config(self) -> list[str]:
        assert self.config is not None
        axes = self.tasks.get(self.config.task) or {}
        return [f"{key}={values}" for key, values in axes.items()] + super()._parse_config()

    def sweep(self, arguments: list[str]) -> Any:
        """Launch the grid; ends with exit status 1 when a cell is not done."""
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from hydra.core.utils import JobStatus

        from metalora import cli
        from metalora.running.launching import awaiting_all, ctrl_c_left_to_workers
        from metalora.running.sweep import Sweep

        assert self.config is not None and self.hydra_context is not None and self.launcher is not None
        for key, number in (("attempts", self.attempts), ("max_batch_size", self.max_batch_size or 1)):
            if type(number) is not int or number < 1:
                cli.fail(f"not the number needed; expected 1 or more; got {number}; key: hydra.sweeper.{key}")
        loader = self.hydra_context.config_loader
        overrides = OverridesParser.create(config_loader=loader).parse_overrides([*self._parse_config(), *arguments])
        batches: Sequence[Sequence[Sequence[str]]] = self.split_arguments(overrides, self.max_batch_size)
        swept = {override.get_key_element() for override in overrides if override.is_sweep_override()}
        sweep = Sweep(
            [[list(words) for words in batch] for batch in batches],
            composed=lambda words: loader.load_sweep_config(self.config, words),
            swept=swept,
        )
        cli.speak()  # the configuration is whole: from here on people hear everything
        launcher, outputs = self.launcher, f"paths.outputs='{self.config.paths.outputs}'"

        def launch(cells: list[list[str]], first: int) -> None:  # a worker elsewhere may have another environment
            with ctrl_c_left_to_workers(launcher), awaiting_all(launcher):
                ended = launcher.launch([[*words, outputs] for words in cells], initial_job_idx=first)
            for job in ended:
                if job is not None and job.status == JobStatus.FAILED:  # not the cell: what should have run it
                    raise job._return_value

        return sweep.run(launch, attempts=self.attempts)
