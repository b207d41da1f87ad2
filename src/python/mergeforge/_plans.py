"""What a plan and a merge say of themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def size(count: int) -> str:
    """Bytes in words, as the command line has them."""
    for unit, bytes_of_unit in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= bytes_of_unit:
            return f"{count / bytes_of_unit:.2f} {unit}"
    return f"{count} bytes"


def counted(count: int, what: str) -> str:
    """So many of something."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor of the output."""

    name: str
    """Its name."""
    dtype: str
    """Its type, as safetensors calls it: "BF16", "F32", …"""
    shape: tuple[int, ...]
    """Its shape."""
    file: str
    """The file of the output that it goes to."""
    action: Mapping[str, Any] = field(repr=False)
    """What is done: `{"merge": [inputs], "parameters": …}`, `{"copy": [holders]}` or `{"made": [words]}`."""


@dataclass(frozen=True, repr=False)
class Plan:
    """What a merge will do, from its config and the headers of the checkpoints."""

    method: str
    """The merge method."""
    models: tuple[str, ...]
    """The models, as the config has them."""
    base_model: str | None
    """Which of them is the base."""
    donor: str
    """Which of them gives config.json, the tokenizer and the other files beside the weights."""
    tensors: tuple[PlannedTensor, ...]
    """Every tensor of the output, in the order of writing."""
    read_bytes: int
    """Bytes of the inputs that are read, each once."""
    write_bytes: int
    """Bytes of the output's weights."""
    memory_bytes: int
    """The most memory for buffers and held inputs."""
    threads: int
    """Worker threads."""
    warnings: tuple[str, ...]
    """What was probably not meant."""
    notes: tuple[str, ...]
    """What is good to know and needs no change."""
    left_out: tuple[Mapping[str, Any], ...]
    """What of the models is not in the output."""
    as_dict: Mapping[str, Any]
    """All of it, as `mergeforge plan --json` prints it."""

    @property
    def bytes(self) -> int:
        """Bytes of the output's weights: the same as `write_bytes`."""
        return self.write_bytes

    def __repr__(self) -> str:
        copied = sum("merge" not in tensor.action for tensor in self.tensors)
        files = len({tensor.file for tensor in self.tensors})
        lines = [f"<Plan: {self.method} of {', '.join(self.models)}"]
        lines += [f"  tensors  {len(self.tensors) - copied} merged, {copied} copied"]
        lines += [f"  read     {size(self.read_bytes)}"]
        lines += [f"  write    {size(self.write_bytes)} in {counted(files, 'file')}"]
        lines += [f"  memory   at most {size(self.memory_bytes)}, {counted(self.threads, 'thread')}"]
        lines += [f"  left out {left['model']}: {left['what']}" for left in self.left_out]
        lines += [f"  note     {note}" for note in self.notes]
        lines += [f"  warning  {warning}" for warning in self.warnings]
        return "\n".join(lines) + ">"


def plan_of(text: str) -> Plan:
    """The plan in the words of `plan --json`."""
    plan = json.loads(text)
    tensors = (
        PlannedTensor(tensor["name"], tensor["dtype"], tuple(tensor["shape"]), tensor["file"], tensor["action"])
        for tensor in plan["tensors"]
    )
    return Plan(
        method=plan["method"],
        models=tuple(plan["models"]),
        base_model=plan["base_model"],
        donor=plan["donor"],
        tensors=tuple(tensors),
        read_bytes=plan["read_bytes"],
        write_bytes=plan["write_bytes"],
        memory_bytes=plan["memory_bytes"],
        threads=plan["threads"],
        warnings=tuple(plan["warnings"]),
        notes=tuple(plan["notes"]),
        left_out=tuple(plan["left_out"]),
        as_dict=plan,
    )


@dataclass(frozen=True)
class Merged:
    """What a merge did."""

    out: Path
    """The new folder."""
    notes: tuple[str, ...]
    """What is good to know and needs no change."""
    manifest: Mapping[str, Any] = field(repr=False)
    """What `mergeforge.json` in it has: inputs, seed, the digest of every tensor, odd values; and beside that `run`: times."""
