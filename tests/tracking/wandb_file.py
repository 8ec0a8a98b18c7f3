"""Reads what wandb keeps of an offline run: the log of records that `wandb sync` would send."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32768  # LevelDB's log format, after a header of seven bytes


def records(path: Path, *, seconds: float = 60) -> list[Any]:
    """Every record of the `.wandb` file of a run that has ended, as wandb's own protocol buffers.

    wandb's own process writes the file; on a busy machine it may still do so when the run is over for everybody else.
    """
    end = time.monotonic() + seconds
    while True:
        found = list(_records(path))
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        assert time.monotonic() < end, f"the run in {path} did not end"
        time.sleep(0.2)


def _records(path: Path) -> Iterator[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, parts = path.read_bytes(), 7, b""
    assert data[:4] in (b":W&B", b"")
    while position + 7 <= len(data):
        left = BLOCK - position % BLOCK
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        if kind == 0:
            return
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def texts(path: Path) -> Iterator[str]:
    """Every text in every record, whichever field it is in."""

    def within(message: Any) -> Iterator[str]:
        for descriptor, value in message.ListFields():
            values = value if descriptor.is_repeated else [value]
            for one in values.values() if hasattr(values, "values") else values:
                if hasattr(one, "ListFields"):
                    yield from within(one)
                elif isinstance(one, bytes | str):
                    yield one.decode(errors="replace") if isinstance(one, bytes) else one

    for record in records(path):
        yield from within(record)


def history(path: Path) -> list[dict[str, Any]]:
    """Every logged row."""
    rows = [record.history.item for record in records(path) if record.WhichOneof("record_type") == "history"]
    return [{"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row} for row in rows]


def run_record(path: Path) -> Any:
    """Project, group, job type and configuration."""
    return next(record.run for record in records(path) if record.WhichOneof("record_type") == "run")


def config(path: Path) -> dict[str, Any]:
    """The configuration the run was told with."""
    return {item.key: json.loads(item.value_json) for item in run_record(path).config.update if item.key[0] != "_"}


def artifacts(path: Path) -> list[Any]:
    """What was used and made."""
    return [record.artifact for record in records(path) if record.WhichOneof("record_type") == "artifact"]
