"""What is exchanged with the Hugging Face hub: base models come, LoRAs go. A failure is one line with advice."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from metalora.core.errors import UserError

PIPELINE_FILES = ("model_index.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors")
"""A pipeline in diffusers' layout: not the single-file weights that lie beside it."""
UNUSED_FILES = ("*.fp16.*", "*non_ema*", "text_encoders/*")
"""Variants of the same weights, and single files that some repositories keep in a folder."""
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?$")


def is_hub_id(path: str | Path) -> bool:
    """Whether this names a model on the hub (ORG/NAME or ORG/NAME@REVISION) and not a folder."""
    return bool(_HUB_ID.match(str(path))) and not Path(path).exists()


def model_directory(path: str | Path, *, key: str = "backbone.path") -> Path:
    """The folder of a base model: a hub id is looked up in the hub's cache and downloaded when it is not there.

    Args:
        path: a folder, or ORG/NAME, or ORG/NAME@REVISION.
        key: the configuration key that named it.

    Raises:
        UserError: no access (licence not accepted, not logged in), no such model, no connection.
    """
    if not is_hub_id(path):
        return Path(path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    name, _, revision = str(path).partition("@")
    wanted: dict[str, Any] = {"revision": revision or None, "allow_patterns": list(PIPELINE_FILES)}
    wanted["ignore_patterns"] = list(UNUSED_FILES)
    with _explained(name, key=key, to="download"):
        with contextlib.suppress(LocalEntryNotFoundError):
            cached = Path(snapshot_download(name, local_files_only=True, **wanted))
            if _is_whole(cached):
                return cached
        return Path(snapshot_download(name, **wanted))


def _is_whole(folder: Path) -> bool:
    """Whether a cached pipeline has what its index names: another program may have fetched a few files of it, or a
    download may have broken off."""
    try:
        index = json.loads((folder / "model_index.json").read_text())
        parts = [folder / name for name, kind in index.items() if isinstance(kind, list) and kind[0] is not None]
        shards = [path.parent / name for path in folder.glob("*/*.safetensors.index.json") for name in _shards(path)]
    except (OSError, ValueError, KeyError):
        return False
    models = [part for part in parts if (part / "config.json").is_file()]
    return (
        all(part.is_dir() and any(part.iterdir()) for part in parts)
        and all(any(model.glob("*.safetensors")) for model in models)
        and all(shard.is_file() for shard in shards)
    )


def _shards(index: Path) -> set[str]:
    return set(json.loads(index.read_text())["weight_map"].values())


def check_repository(name: str, *, key: str = "push") -> None:
    """Raise UserError when this cannot be a repository's name."""
    if not _HUB_ID.match(name) or "@" in name:
        raise UserError("no name of a repository", expected="ORG/NAME", got=name, key=key)


def push(repository: str, files: Mapping[str, Path | bytes], *, private: bool, key: str = "push") -> str:
    """Put files into a model repository in one commit; the repository is made when it is not there.

    Args:
        repository: ORG/NAME.
        files: name in the repository -> file or content.

    Returns:
        where it can be seen.

    Raises:
        UserError: not ORG/NAME, not logged in, no right to write, no connection.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    check_repository(repository, key=key)
    api = HfApi()
    with _explained(repository, key=key, to="upload"):
        where = api.create_repo(repository, private=private, exist_ok=True)
        operations = [
            CommitOperationAdd(name, file if isinstance(file, bytes) else str(file)) for name, file in files.items()
        ]
        api.create_commit(repository, operations, commit_message="Upload a LoRA made by metalora")
    return str(where)


@contextlib.contextmanager
def _explained(name: str, *, key: str, to: str) -> Iterator[None]:
    """Turn what the hub and the network answer into one line."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    what = f"cannot {to} {name}"
    login = "`hf auth login` or HF_TOKEN"
    try:
        yield
    except GatedRepoError as error:
        expected = f"its licence accepted on its page, then {login}; or the path of a folder that has the model"
        raise UserError(f"{what}: access is gated", expected=expected, got="no access", key=key) from error
    except (HFValidationError, LocalTokenNotFoundError, RepositoryNotFoundError) as error:
        expected = f"a repository that exists and, if it is private or to be written to, {login}"
        if to == "download":
            expected += "; or a folder that exists"
        raise UserError(what, expected=expected, got=_first_line(error), key=key) from error
    except RevisionNotFoundError as error:
        raise UserError(what, expected="a revision that exists", got=_first_line(error), key=key) from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        expected = "a connection to the hub (HF_HUB_OFFLINE not set), or the path of a folder that has the model"
        raise UserError(f"{what}: the hub cannot be reached", expected=expected, got="offline", key=key) from error
    except HfHubHTTPError as error:
        expected = f"{login}, with the right to write" if to == "upload" else login
        raise UserError(what, expected=expected, got=_first_line(error), key=key) from error
    except Exception as error:
        # The client's own errors of the line have a module of their own, whose name changes between versions.
        if not isinstance(error, ConnectionError | TimeoutError) and not type(error).__module__.startswith("httpx"):
            raise
        got = f"{type(error).__name__}: {_first_line(error)}"
        raise UserError(f"{what}: the hub cannot be reached", expected="a connection", got=got, key=key) from error


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
