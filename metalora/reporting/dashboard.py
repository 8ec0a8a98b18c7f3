"""The wandb workspace as code: trade-off, curves over iterations and ranks, training, sample grids.

Its panels read the names of `core.metric_names` and the words of the configuration that runs are told by
(`metalora/tracking/loggers.py`). wandb-workspaces is the extra `dashboard`.
"""

from typing import TYPE_CHECKING, Any

from metalora.core.errors import UserError, how_to_install
from metalora.core.metric_names import (
    BUCKET,
    CLIP_T,
    FACE_FOUND,
    FACE_SIM,
    IMAGES_PER_SECOND,
    ITERATION,
    LOSS,
    LOSS_META,
    LOSS_WARM_UP,
    NORM_META_DOWN,
    NORM_MID,
    NORM_UP,
    PEAK_MEMORY,
    PHASE,
    R_FACE_SIM,
    SAMPLES,
    TABLE,
    Metric,
)

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

NAME = "metalora"


def workspace(*, entity: str, project: str) -> "Workspace":
    """The workspace of a project; nothing is sent before its `save`.

    Raises:
        UserError: wandb-workspaces is not installed.
    """
    ws, _ = _library()
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[_tradeoff(), _iterations(), _ranks(), _samples(), _training(), _speed()],
        settings=ws.WorkspaceSettings(x_axis=ITERATION, smoothing_type="none", max_runs=100),
        runset_settings=ws.RunsetSettings(
            pinned_columns=["run:displayName", "run:jobType", "run:group", "config:method", "config:rank"]
        ),
        auto_generate_panels=False,
    )


def definition(made: "Workspace") -> dict[str, Any]:
    """What `save` would send, as plain values."""
    return made._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)


def _tradeoff() -> "Section":
    ws, wr = _library()
    fields = {"x": CLIP_T.name, "y": R_FACE_SIM.name}
    return ws.Section(
        name="Trade-off",
        is_open=True,
        panels=[
            wr.ScatterPlot(
                title="R-FaceSim over CLIP-T, each run at its last iteration",
                x=wr.SummaryMetric(CLIP_T.name),
                y=wr.SummaryMetric(R_FACE_SIM.name),
                z=wr.Config("rank"),
                regression=False,
            ),
            wr.CustomChart(  # every cell of the tables, all iterations
                query={"summaryTable": {"tableKey": TABLE}},
                chart_name="wandb/scatter/v0",
                chart_fields=fields,
                chart_strings={"title": "R-FaceSim over CLIP-T, every cell"},
            ),
        ],
    )


def _iterations() -> "Section":
    return _lines(
        "Scores over iterations",
        [(metric.name.removeprefix("eval/"), [metric]) for metric in (R_FACE_SIM, CLIP_T, FACE_SIM, FACE_FOUND)],
        is_open=True,
    )


def _ranks() -> "Section":
    ws, wr = _library()
    return ws.Section(
        name="Scores over ranks",
        is_open=True,
        panels=[
            wr.ScatterPlot(
                title=f"{metric.name.removeprefix('eval/')} over rank",
                x=wr.Config("rank"),
                y=wr.SummaryMetric(metric.name),
                log_x=True,
            )
            for metric in (R_FACE_SIM, CLIP_T)
        ],
    )


def _samples() -> "Section":
    """Empty unless `logger.upload_images=true`."""
    ws, wr = _library()
    panel = wr.MediaBrowser(title="Drawn from the exported files", media_keys=[SAMPLES], num_columns=3)
    return ws.Section(name="Samples", panels=[panel])


def _training() -> "Section":
    norms = [("Meta-Down", NORM_META_DOWN), ("Mid", NORM_MID), ("Up", NORM_UP)]
    return _lines(
        "Training",
        [
            ("loss", [LOSS]),
            ("loss by phase", [LOSS_WARM_UP, LOSS_META]),
            *((f"gradient norm of {part}", [metric]) for part, metric in norms),
            ("bucket", [BUCKET]),
            ("phase", [PHASE]),
        ],
    )


def _speed() -> "Section":
    return _lines("Speed and memory", [("images per second", [IMAGES_PER_SECOND]), ("peak memory", [PEAK_MEMORY])])


def _lines(name: str, plots: list[tuple[str, list[Metric]]], *, is_open: bool = False) -> "Section":
    ws, wr = _library()
    panels = [
        wr.LinePlot(title=title, x=ITERATION, y=[metric.name for metric in metrics], title_y=metrics[0].unit)
        for title, metrics in plots
    ]
    return ws.Section(name=name, panels=panels, is_open=is_open)


def _library() -> tuple[Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise UserError(
            "wandb-workspaces is not installed",
            expected=how_to_install("dashboard"),
            got=str(error),
            key="task=dashboard",
        ) from error
    return ws, wr
