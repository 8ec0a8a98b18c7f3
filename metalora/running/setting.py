"""The composed configuration, turned into the objects tasks work with; each is built when first used."""

from collections.abc import Collection, Mapping
from functools import cached_property
from math import inf, ulp
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import MISSING, DictConfig, OmegaConf

from metalora.core.contracts import AlignedFaceEmbedder, Backbone, ClipScorer, FaceDetector, FaceEmbedder
from metalora.core.errors import UserError
from metalora.core.memory import keep_freed_memory
from metalora.people.augment import shapes_for
from metalora.training.configuration import quantization_of

DEVICES = ("cpu", "cuda")


class _Number(NamedTuple):
    """What may stand under a key."""

    least: float
    whole: bool = True
    otherwise: tuple[str | None, ...] = ()
    """What else: null, or a word."""

    @property
    def expected(self) -> str:
        if self.whole:
            text = f"a whole number of {self.least} or more"
        else:
            text = "a number above 0" if self.least else "a number of 0 or more"
        return ", or ".join([text, *(word or "null" for word in self.otherwise)])

    def takes(self, value: Any) -> bool:
        if value is None or isinstance(value, str):
            return value in self.otherwise
        kinds = (int,) if self.whole else (int, float)
        return type(value) in kinds and self.least <= value < inf


_ABOVE_0 = _Number(ulp(0.0), whole=False)
_OR_NULL = (None,)
_NUMBERS = {
    **dict.fromkeys(("rank", "batch_size", "cohort_size", "sampling.steps", "sampling.batch_size"), _Number(1)),
    **dict.fromkeys(("stage1.rank", "stage1.batch_size", "stage1.q_bucket", "stage1.q_total"), _Number(1)),
    **dict.fromkeys(("meta_rank", "stage1.prior_every"), _Number(1, otherwise=_OR_NULL)),
    **dict.fromkeys(("seed", "stage1.q_warmup", "logger.samples", "headline.target_rank"), _Number(0)),
    "headline.target_iterations": _Number(1),
    **dict.fromkeys(
        (
            f"protocol.{part}"
            for part in ("several_photo_people", "single_photo_people", "frontal_prompts", "clip_prompts")
        ),
        _Number(0, otherwise=_OR_NULL),
    ),
    **dict.fromkeys(("trainer.workers", "trainer.threads"), _Number(1, otherwise=("auto",))),
    **dict.fromkeys(("learning_rate", "stage1.learning_rate", "stage1.uses_per_example"), _ABOVE_0),
    **dict.fromkeys(("trainer.checkpoint_seconds", "trainer.rank_timeout"), _ABOVE_0),
    **dict.fromkeys(("gradient_clip", "stage1.gradient_clip"), _ABOVE_0._replace(otherwise=_OR_NULL)),
    "sampling.guidance": _Number(0, whole=False),
}
"""The numbers that are checked before anything is read."""
_ABSENT = object()


class Setting:
    """Plain configuration values and the models they name.

    Holds no DictConfig, so it crosses process borders as `Setting(setting.values)`.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = dict(values)

    @classmethod
    def of(cls, cfg: DictConfig) -> "Setting":
        """Resolve a composed configuration. A required value may be missing as long as nobody asks for it: drawing with
        a LoRA needs no folder of Stage-1 people."""
        values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
        assert isinstance(values, dict)
        if (device := values["trainer"]["device"]) not in DEVICES:
            raise UserError("unknown device", expected=" or ".join(DEVICES), got=str(device), key="trainer.device")
        setting = cls({str(key): value for key, value in values.items()})
        setting._check_numbers()
        return setting

    def _check_numbers(self) -> None:
        """Refuse what no run can use before anything is read: minutes later the same would be an error of torch's."""
        for key, number in _NUMBERS.items():
            value = self._find(key)
            if value not in (MISSING, _ABSENT) and not number.takes(value):
                raise UserError("not the number needed", expected=number.expected, got=str(value), key=key)

    def _find(self, key: str) -> Any:
        value: Any = self.values
        for part in key.split("."):
            value = value.get(part, _ABSENT) if isinstance(value, Mapping) else _ABSENT
        return value

    def __getitem__(self, key: str) -> Any:
        """The value of a dotted key.

        Raises:
            UserError: the value, or a part of it, is required and was not given.
        """
        value: Any = self.values
        for part in key.split("."):
            value = value[part]
        if missing := _missing(key, value):
            raise UserError("a required value is missing", expected=f"{missing}=VALUE", got="nothing", key=missing)
        return value

    def changed(self, **values: Any) -> "Setting":
        """A copy with some top-level values replaced; built models are not carried over."""
        return Setting(self.values | values)

    def sharing(self, **values: Any) -> "Setting":
        """The same as `changed`, with the models built so far: for values that no model depends on."""
        copy = self.changed(**values)
        vars(copy).update({name: model for name, model in vars(self).items() if name != "values"})
        return copy

    def at_benchmark(self, root: Path) -> "Setting":
        """A copy whose benchmark lies in another folder."""
        return self.changed(benchmark=self.values["benchmark"] | {"root": str(root)})

    @cached_property
    def backbone(self) -> Backbone:
        """The frozen base model."""
        _require_device(self["trainer.device"])
        import diffusers
        import transformers

        diffusers.utils.logging.disable_progress_bar()  # their bars would break ours
        transformers.utils.logging.disable_progress_bar()
        return _instantiate(self["backbone"])

    @cached_property
    def detector(self) -> FaceDetector:
        """The face detector."""
        return _instantiate(self["scorer.detector"])

    @cached_property
    def embedder(self) -> FaceEmbedder:
        """The face embedder scores are computed with."""
        return _instantiate(self["scorer.embedder"])

    @cached_property
    def second_embedder(self) -> FaceEmbedder | AlignedFaceEmbedder:
        """The other face embedder, where one is configured."""
        try:
            return _instantiate(self["scorer.second_embedder"])
        except UserError as error:  # the same classes serve as the first one, and name its keys
            key = error.key.replace("scorer.embedder.", "scorer.second_embedder.")
            raise UserError(error.what, expected=error.expected, got=error.got, key=key) from None

    @cached_property
    def clip(self) -> ClipScorer:
        """The CLIP model scores are computed with."""
        return _instantiate(self["scorer.clip"])

    @cached_property
    def cache_root(self) -> Path:
        """Where latents, text embeddings and score embeddings are kept."""
        return Path(self["paths.cache"])

    @property
    def backbone_key(self) -> dict[str, Any]:
        """What of the backbone an artifact depends on: which model, in which precision; not where it lies or runs."""
        return {
            "name": self["backbone.name"],
            "dtype": self["backbone.dtype"],
            "fingerprint": self.backbone.fingerprint,
            **quantization_of(self.backbone),
        }

    @property
    def stage1_recipe(self) -> dict[str, Any]:
        """What of `stage1` the final prior depends on."""
        recipe = {key: value for key, value in self["stage1"].items() if key != "prior_every"}
        if recipe.get("balance") == 1:  # as before there was a choice
            del recipe["balance"]
        return recipe

    @property
    def shapes(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """The training shapes (height, width), one set per resolution."""
        multiple = self.backbone.pixel_multiple
        return tuple(shapes_for(resolution, multiple=multiple) for resolution in self.numbers("resolutions", least=1))

    @property
    def iterations(self) -> tuple[int, ...]:
        """Stage-2 checkpoints in order."""
        return tuple(sorted(set(self.numbers("iterations", least=1))))

    def numbers(self, key: str, *, least: int, count: int | None = None) -> tuple[int, ...]:
        """Whole numbers under a key; `iterations=375` and `iterations=[250,375]` both work.

        Raises:
            UserError: none, not whole numbers, one below `least`, or not `count` of them.
        """
        given = self[key]
        values = given if isinstance(given, list) else [given]
        whole = all(isinstance(value, int) and not isinstance(value, bool) and value >= least for value in values)
        if not values or not whole or count not in (None, len(values)):
            some = "one or more whole numbers" if count is None else f"{count} whole numbers"
            raise UserError("not the numbers needed", expected=f"{some} of {least} or more", got=str(given), key=key)
        return tuple(values)

    def words(self, key: str, *, known: Collection[str] = ()) -> list[str]:
        """Words under a key; `methods=lora` and `methods=[lora,lora_aug]` both work, and null is none.

        Args:
            known: what they may be; by default anything.

        Raises:
            UserError: a word that is not known.
        """
        given = self[key]
        found = [str(word) for word in (given if isinstance(given, list) else [] if given is None else [given])]
        if strange := [word for word in found if known and word not in known]:
            raise UserError(f"unknown in {key}", expected=", ".join(known), got=", ".join(strange), key=key)
        return found

    def folder(self, task: str, label: str, digest: str) -> Path:
        """`outputs/NAME/TASK/LABEL-HASH`, or `out=` when it is given."""
        if self["out"]:
            return Path(self["out"])
        return Path(self["paths.outputs"]) / self["name"] / task / f"{label}-{digest}"


def _require_device(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "there is no GPU that torch can use",
            expected="a CUDA device, or trainer=auto for the CPU",
            got="torch.cuda.is_available() is False",
            key="trainer.device",
        )


def _missing(key: str, value: Any) -> str | None:
    """The first dotted key in a value that stands for one that has to be given."""
    if isinstance(value, Mapping):
        return next((found for part, item in value.items() if (found := _missing(f"{key}.{part}", item))), None)
    return key if isinstance(value, str) and value == MISSING else None


def _instantiate(node: Mapping[str, Any]) -> Any:
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(dict(node))
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):  # the person's own mistake, not the configuration's
            raise error.__cause__ from None
        raise


def set_threads(setting: Setting) -> None:
    """Apply `trainer.threads` to torch; `auto` leaves torch's own choice."""
    import torch

    keep_freed_memory()
    threads = setting["trainer.threads"]
    if threads != "auto":
        torch.set_num_threads(int(threads))
