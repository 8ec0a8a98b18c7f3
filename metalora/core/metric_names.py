"""Every number a run tells, under one name with one unit: metrics.csv, wandb, TensorBoard and the dashboard agree."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A number by name."""

    name: str
    """`GROUP/NAME`, the same wherever it is written."""
    unit: str
    meaning: str


ITERATION = "iteration"
"""What every curve is drawn over: optimizer steps done."""

LOSS = Metric(
    "train/loss", "squared error", "mean over people of each one's own mean, over the steps since the last row"
)
LOSS_WARM_UP = Metric("train/loss_warm_up", "squared error", "the same, of the steps in warm-up alone")
LOSS_META = Metric("train/loss_meta", "squared error", "the same, of the steps that train Meta-Down")
NORM_META_DOWN = Metric("train/grad_norm_meta_down", "norm", "of Meta-Down's gradient; 0 in warm-up")
NORM_ROWS = Metric("train/grad_norm_rows", "norm", "of a person's whole gradient, mean over people")
NORM_MID = Metric("train/grad_norm_mid", "norm", "of a person's Mid (without Meta-Down: Down), mean over people")
NORM_UP = Metric("train/grad_norm_up", "norm", "of a person's Up, mean over people")
BUCKET = Metric("train/bucket", "number", "of the bucket that trains")
PHASE = Metric("train/phase", "0 or 1", "0 in warm-up, 1 while Meta-Down trains")
IMAGES_PER_SECOND = Metric("train/images_per_second", "1/s", "samples trained on, by wall clock, since the last row")
PEAK_MEMORY = Metric("train/peak_memory_mb", "MiB", "largest so far: of the GPU's tensors, or of the process")

NORMS = (NORM_ROWS, NORM_MID, NORM_UP)
SPEED = (IMAGES_PER_SECOND, PEAK_MEMORY)

CLIP_T = Metric("eval/clip_t", "cosine", "prompt following; higher is better")
CLIP_I = Metric("eval/clip_i", "cosine", "likeness to the untouched base's image")
FACE_SIM = Metric("eval/face_sim", "cosine", "face against the training photo, faces not found as 0")
R_FACE_SIM = Metric("eval/r_face_sim", "cosine", "face against other photos of the person, faces not found as 0")
FACE_FOUND = Metric("eval/face_found", "share", "of the generated images with a face")
SCORES = (R_FACE_SIM, FACE_SIM, CLIP_T, CLIP_I, FACE_FOUND)

METRICS = (
    *(LOSS, LOSS_WARM_UP, LOSS_META, NORM_META_DOWN, *NORMS, BUCKET, PHASE),
    *SPEED,
    *SCORES,
)
TABLE = "eval/tradeoff"
"""The trade-off as a table: a row per method, rank, iterations and class."""
SAMPLES = "samples/grid"
"""Pictures drawn from the exported file at a checkpoint."""
