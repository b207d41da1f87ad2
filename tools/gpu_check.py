#!/usr/bin/env python3
"""What does mergeforge do on a real GPU: is it right, and how far from the best possible?

For a machine with an NVIDIA GPU, CUDA's tools and Python, but neither Rust nor a network. It is given the
built program. Where that finds a GPU through WebGPU too (`wgpu`, on Vulkan), kernels and merges are measured
both ways, one beside the other.

    python3 tools/gpu_check.py kernels  --binary mergeforge --out results
    python3 tools/gpu_check.py stream   --binary mergeforge --out results
    python3 tools/gpu_check.py disk     --binary mergeforge --out results --dir /a/folder/on/a/disk
    python3 tools/gpu_check.py mergekit --binary mergeforge --out results --wheels WHEELS
    python3 tools/gpu_check.py all      --binary mergeforge --out results --minutes 30

Each part ends within ten minutes (`--minutes`) and writes PART.json, with all figures, and PART.md, tables of
them. A step that fails is noted with what it said, and the others go on; the exit code is then 1. What could
not be tried is `not run`, with the reason, and never a pass. `--tiny` shrinks everything, to rehearse the
tool where there is no GPU; a wgpu device that is software is then measured if there is no other.

This process stays small and loads no libraries: until a child starts its program, it counts as a copy of this
one, and its peak memory would be ours. So whatever needs numpy, torch or large buffers runs in a child.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import datetime
import gzip
import hashlib
import itertools
import json
import math
import mmap
import os
import pathlib
import platform
import random
import re
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

Json = dict[str, Any]

PARTS = ("kernels", "stream", "disk", "mergekit")

# What `all` gives to each part, of the time that is left when it begins.
PART_SHARES = {"kernels": 0.25, "stream": 0.35, "disk": 0.2, "mergekit": 0.2}

# A call of ten minutes needs a moment to start and to clean up.
MINUTES = 9.5

# What the program is meant to reach.
FLOOR_RATIO_MOST = 1.25
HOST_BYTES_MOST = 4 << 30
DEVICE_BYTES_MOST = 8 << 30
STREAM_SHARE_LEAST = 0.9
MERGEKIT_RATIO_LEAST = 10.0

# What it is meant to reach through wgpu, beside CUDA on the same card: the share of the rate of the kernel
# `consensus`, and the times that a whole merge by ties takes.
WGPU_RATE_LEAST = 0.75
WGPU_RATIO_MOST = 2.0

# Reads and writes that threads share out among themselves.
PIECE_BYTES = 8 << 20

# No merge and no floor takes so long; one that hangs must not take the others' time.
RUN_LIMIT_S = 150.0

# What must stay free beside inputs and output: the program, this tool, the page cache's own tables.
SPARE_BYTES = 6 << 30

# The last words of a program that are kept.
WORDS_KEPT = 6000

# Of ru_inblock, in bytes.
BLOCK_BYTES = 512

BEGAN = time.monotonic()


def say(text: str) -> None:
    print(f"[{time.monotonic() - BEGAN:7.1f} s] {text}", file=sys.stderr, flush=True)


def gb(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


def gib(count: float | None) -> str:
    return "–" if count is None else f"{count / (1 << 30):.2f} GiB"


# ----------------------------------------------------------------------------------------------------------
# Steps and what is written of them


class NotRun(Exception):
    """A step cannot be tried; the reason."""


class Failed(Exception):
    """A step was tried and did not do what it should; what was said."""


@dataclasses.dataclass
class Table:
    title: str
    columns: list[str]
    rows: list[list[str]] = dataclasses.field(default_factory=list)
    note: str = ""

    def markdown(self) -> str:
        lines = [f"## {self.title}", ""]
        if self.rows:
            cells = [self.columns, ["---"] * len(self.columns), *self.rows]
            lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
        else:
            lines.append("Nothing was measured.")
        return "\n".join([*lines, *(["", self.note] if self.note else []), ""])


class Part:
    """One part: its steps, tables and files. All is written after every step, since a call may be cut off."""

    def __init__(self, name: str, args: argparse.Namespace, deadline: float) -> None:
        self.name = name
        self.args = args
        self.deadline = deadline
        self.budget_s = self.left_s()
        self.steps: list[Json] = []
        self.tables: list[Table] = []
        self.facts: Json = {}
        self.began = datetime.datetime.now(datetime.UTC)

    def left_s(self) -> float:
        return self.deadline - time.monotonic()

    def step(self, name: str, action: Callable[[], Json | None], needs_s: float = 1.0) -> Json | None:
        """Runs a step that needs so many seconds at the least; its figures, or nothing where it has none."""
        say(f"{self.name}: {name}")
        began = time.monotonic()
        entry: Json = {"step": name}
        self.steps.append(entry)
        try:
            if self.args.skip and re.search(self.args.skip, name):
                raise NotRun("left out by --skip")
            if self.left_s() < needs_s:
                raise NotRun("no time left")
            entry |= {"status": "ok", "figures": action() or {}}
        except NotRun as why:
            entry |= {"status": "not run", "why": str(why)}
        except Failed as what:
            entry |= {"status": "failed", "why": str(what)[-WORDS_KEPT:]}
        except Exception:
            # A slip of this tool, or a program that answers in another way: the other steps may still do.
            entry |= {"status": "failed", "why": traceback.format_exc()[-WORDS_KEPT:]}
        entry["seconds"] = round(time.monotonic() - began, 3)
        if entry["status"] != "ok":
            say(f"{self.name}: {name}: {told(entry)}")
        self.save()
        return entry.get("figures")

    def table(self, title: str, columns: list[str], note: str = "") -> Table:
        self.tables.append(Table(title, columns, note=note))
        return self.tables[-1]

    def failed(self) -> bool:
        return any(step["status"] == "failed" for step in self.steps)

    def save(self) -> None:
        written = {
            "part": self.name,
            "date": self.began.isoformat(timespec="seconds"),
            "seconds": round((datetime.datetime.now(datetime.UTC) - self.began).total_seconds(), 1),
            "tiny": self.args.tiny,
            "facts": self.facts,
            "steps": self.steps,
            "tables": [dataclasses.asdict(table) for table in self.tables],
        }
        (self.args.out / f"{self.name}.json").write_text(json.dumps(written, indent=1) + "\n")
        (self.args.out / f"{self.name}.md").write_text(self.markdown())

    def markdown(self) -> str:
        steps = Table("Steps", ["step", "result", "seconds"])
        steps.rows = [
            [step["step"], told(step), f"{step['seconds']:.1f}"] for step in self.steps if "seconds" in step
        ]
        facts = [
            f"- {name}: {value}" for name, value in self.facts.items() if not isinstance(value, (dict, list))
        ]
        rehearsed = ["**A rehearsal with `--tiny`: the figures mean nothing.**", ""] if self.args.tiny else []
        head = [f"# gpu_check {self.name}, {self.began:%Y-%m-%d %H:%M} UTC", "", *rehearsed, *facts, ""]
        return "\n".join([*head, *(table.markdown() for table in [*self.tables, steps])])


def told(step: Json) -> str:
    """A step's result in a line."""
    lines = step.get("why", "").strip().splitlines()
    if step["status"] == "not run":
        return f"not run: {lines[0] if lines else ''}"
    if step["status"] == "failed":
        # The line in which a program says what is wrong, if there is one.
        return f"failed: {next((line for line in lines if 'rror:' in line), lines[-1] if lines else '')}"
    return step["status"]


# ----------------------------------------------------------------------------------------------------------
# Running programs


@dataclasses.dataclass
class Ran:
    code: int
    wall_s: float
    cpu_s: float
    rss_bytes: int
    disk_read_bytes: int
    out: str
    err: str
    late: bool

    def words(self) -> str:
        return (self.out + self.err).strip()[-WORDS_KEPT:]


def run(command: list[Any], limit_s: float, environment: dict[str, str] | None = None) -> Ran:
    """Runs to the end, or to the limit, when the program and all that it started is stopped."""
    words = [str(word) for word in command]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        try:
            child = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=os.environ | (environment or {}),
                start_new_session=True,
            )
        except OSError as error:
            raise Failed(f"{words[0]} cannot be started: {error}") from error
        late = threading.Event()

        def stop() -> None:
            late.set()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)

        timer = threading.Timer(max(limit_s, 0.1), stop)
        timer.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            stop()
            raise
        finally:
            timer.cancel()
        wall_s = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    return Ran(
        child.returncode,
        wall_s,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss * 1024,
        usage.ru_inblock * BLOCK_BYTES,
        *texts,
        late.is_set(),
    )


def succeeded(ran: Ran, what: str) -> Ran:
    if ran.late:
        raise NotRun(f"{what}: stopped when it was still running after {ran.wall_s:.0f} s")
    if ran.code:
        raise Failed(f"{what}: exit code {ran.code}\n{ran.words()}")
    return ran


def answer(ran: Ran, what: str) -> Any:
    """What a program that has to succeed printed, as JSON."""
    text = succeeded(ran, what).out
    try:
        return json.loads(text)
    except ValueError as error:
        raise Failed(f"{what}: no JSON ({error})\n{ran.words()}") from error


def in_child(worker: str, request: Json, limit_s: float) -> Json:
    """A worker of this file, in a process of its own."""
    command = [sys.executable, pathlib.Path(__file__).resolve(), f"worker-{worker}", json.dumps(request)]
    found = answer(run(command, limit_s), worker)
    if "not_run" in found:
        raise NotRun(found["not_run"])
    return found


def tool(name: str) -> str:
    """A program of the machine; CUDA's tools are often not on the path."""
    of_cuda = pathlib.Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"
    found = shutil.which(name) or shutil.which(name, path=str(of_cuda))
    if not found:
        raise NotRun(f"there is no {name}")
    return found


# ----------------------------------------------------------------------------------------------------------
# The machine

GPU_FACTS = (
    "index",
    "name",
    "driver_version",
    "memory.total",
    "compute_cap",
    "pcie.link.gen.current",
    "pcie.link.gen.max",
    "pcie.link.width.current",
    "pcie.link.width.max",
    "clocks.max.memory",
    "ecc.mode.current",
)


def memory_info() -> dict[str, int]:
    """/proc/meminfo in bytes; nothing where there is none."""
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}


def processor() -> str:
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def cores() -> int:
    return len(os.sched_getaffinity(0))


def gpu_facts() -> list[Json]:
    command = [tool("nvidia-smi"), f"--query-gpu={','.join(GPU_FACTS)}", "--format=csv,noheader,nounits"]
    lines = succeeded(run(command, 30), "nvidia-smi").out.strip().splitlines()
    return [dict(zip(GPU_FACTS, (cell.strip() for cell in line.split(",")))) for line in lines]


def machine(part: Part) -> None:
    """The facts that every result needs beside it."""
    args = part.args
    part.facts |= {
        "CPU": f"{processor()}, {cores()} cores",
        "memory": gib(memory_info().get("MemTotal")),
        "system": f"{platform.system()} {platform.release()}",
        "load at the start": f"{os.getloadavg()[0]:.1f}",
    }
    part.facts["mergeforge"] = f"{args.binary.name}, SHA-256 {sha256_of(args.binary)[:16]}"

    def version() -> Json:
        part.facts["mergeforge"] += (
            ", " + succeeded(run([args.binary, "--version"], 30), "version").out.strip()
        )
        return {}

    def gpus() -> Json:
        part.facts["gpus"] = gpu_facts()
        for gpu in part.facts["gpus"]:
            link = "generation {} of {}, {} of {} lanes".format(
                *(
                    gpu[f"pcie.link.{what}"]
                    for what in ("gen.current", "gen.max", "width.current", "width.max")
                )
            )
            part.facts[f"GPU {gpu['index']}"] = (
                f"{gpu['name']}, {gpu['memory.total']} MiB, compute capability {gpu['compute_cap']}, "
                f"driver {gpu['driver_version']}, PCIe when idle: {link}"
            )
        return {"gpus": part.facts["gpus"]}

    part.step("version", version)
    part.step("nvidia-smi", gpus)


def sha256_of(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# What the tool goes on with where the program does not list its devices.
NO_DEVICES = {"devices": [], "absent": {"wgpu": "the program did not list its devices"}}


def found_devices(part: Part) -> Json:
    """The devices that the program finds, with their facts, and why a family has none."""

    def listed() -> Json:
        found = answer(run([part.args.binary, "devices", "--json"], 60), "devices")
        for device in found["devices"]:
            facts = [f"{name.replace('_', ' ')} {value}" for name, value in device["facts"].items()]
            part.facts[device["id"]] = ", ".join([device["name"], *facts])
        for family, why in found["absent"].items():
            part.facts[family] = f"absent: {why}"
        part.facts["--device auto"] = found["auto"]
        return found

    return part.step("devices", listed) or NO_DEVICES


def family_of(device: Json) -> str:
    return device["id"].partition(":")[0]


def is_software(device: Json) -> bool:
    return device["facts"].get("kind") == "software"


def measured_adapters(part: Part, found: Json) -> list[Json]:
    """The devices of wgpu whose speed says something. To rehearse, software does where there is no other."""
    adapters = [device for device in found["devices"] if family_of(device) == "wgpu"]
    hardware = [device for device in adapters if not is_software(device)]
    return hardware or (adapters[:1] if part.args.tiny else [])


def why_no_adapter(found: Json) -> str:
    software = [device for device in found["devices"] if family_of(device) == "wgpu"]
    if software:
        return f"a software adapter, and no other: {', '.join(device['name'] for device in software)}"
    return found["absent"].get("wgpu", "the program knows no wgpu")


def same_card(adapter: Json, cuda_name: str) -> bool:
    """Whether the makers' names are the same, but for what CUDA adds to that of a part of a card."""
    return adapter["name"] in cuda_name


class MemoryWatch:
    """How far the machine's memory outside of the page cache rises: pinned buffers and a driver's own
    memory may be no part of what a process is counted to hold."""

    def __init__(self) -> None:
        self.before = self.most = self.used()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    @staticmethod
    def used() -> int:
        info = memory_info()
        return info.get("MemTotal", 0) - sum(
            info.get(name, 0) for name in ("MemFree", "Buffers", "Cached", "SReclaimable")
        )

    def watch(self) -> None:
        while not self.done.wait(0.05):
            self.most = max(self.most, self.used())

    def __enter__(self) -> "MemoryWatch":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def rise(self) -> int:
        return self.most - self.before


class DeviceWatch:
    """How far the GPU's used memory rises, as nvidia-smi tells it. Nothing where there is no nvidia-smi."""

    def __init__(self, index: int) -> None:
        self.rise_bytes: int | None = None
        try:
            query = [
                tool("nvidia-smi"),
                f"--id={index}",
                "--query-gpu=memory.used",
                "--format=csv,noheader,nounits",
            ]
        except NotRun:
            query = []
        self.query = query

    def __enter__(self) -> "DeviceWatch":
        if self.query:
            self.before = int(succeeded(run(self.query, 30), "nvidia-smi").out.split()[0])
            self.told = tempfile.TemporaryFile()
            self.child = subprocess.Popen(
                [*self.query, "--loop-ms=100"],
                stdin=subprocess.DEVNULL,
                stdout=self.told,
                stderr=subprocess.DEVNULL,
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self.query:
            self.child.kill()
            self.child.wait()
            self.told.seek(0)
            # The last line may be cut.
            seen = [
                int(line) for line in self.told.read().decode().splitlines()[:-1] if line.strip().isdigit()
            ]
            self.told.close()
            if seen:
                self.rise_bytes = (max(seen) - self.before) << 20


# ----------------------------------------------------------------------------------------------------------
# Models: Llama's names and shapes, values like those of fine-tunes


@dataclasses.dataclass(frozen=True)
class Shape:
    layers: int
    hidden: int
    inter: int
    heads: int
    kv_heads: int
    vocab: int
    shard_bytes: int

    def tensors(self) -> list[tuple[str, list[int]]]:
        hidden, inter = self.hidden, self.inter
        kv = hidden // self.heads * self.kv_heads
        of_layer = {
            "input_layernorm": [hidden],
            "self_attn.q_proj": [hidden, hidden],
            "self_attn.k_proj": [kv, hidden],
            "self_attn.v_proj": [kv, hidden],
            "self_attn.o_proj": [hidden, hidden],
            "post_attention_layernorm": [hidden],
            "mlp.gate_proj": [inter, hidden],
            "mlp.up_proj": [inter, hidden],
            "mlp.down_proj": [hidden, inter],
        }
        layers = [
            (f"model.layers.{layer}.{name}.weight", shape)
            for layer in range(self.layers)
            for name, shape in of_layer.items()
        ]
        embedding = [self.vocab, hidden]
        ends = [("model.norm.weight", [hidden]), ("lm_head.weight", embedding)]
        return [("model.embed_tokens.weight", embedding), *layers, *ends]

    def model_bytes(self) -> int:
        return sum(2 * math.prod(shape) for _, shape in self.tensors())

    def config(self) -> Json:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.inter,
            "max_position_embeddings": 4096,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "vocab_size": self.vocab,
        }


LLAMA_2_7B = Shape(32, 4096, 11008, 32, 32, 32000, 5_000_000_000)
TINY = Shape(2, 64, 176, 4, 2, 512, 200_000)

MODELS = ("base", "model-1", "model-2")

# Written first and completed last: a folder without it is not ours.
STAMP = "gpu_check.json"

# The shares of elements that do not move, one for each tensor: about half, as in fine-tunes in bfloat16, so
# that a density of 0.5 cuts now among zeros, now among equal steps.
UNMOVED = (0.35, 0.45, 0.5, 0.55, 0.65)

# Of those that move, most by a few units in the last place, and this share of all by a lot.
FAR_SHARE = 0.02
NEAR_UNITS = 1.5
FAR_UNITS = 40.0

# Steps are added to the bits of magnitudes: within these bounds no sum reaches the sign or infinity.
STEP_MOST = 1024
BITS_LEAST, BITS_MOST = 0x0800, 0x7000


class ArrayPools:
    """Random values, made once; tensors are cut out of them at places that hashes give.

    To draw 20 billion values would take longer than to merge them. What matters for a merge is how values
    collide, which pieces of a pool keep, and that they come in no order that a cache could use.
    """

    elements = 1 << 23
    piece = 1 << 21
    name = "numpy"

    def __init__(self, seed: int, threads: int) -> None:
        import numpy as np

        self.np = np
        makers = [self.made_weights, self.made_norms, *(self.step_maker(unmoved) for unmoved in UNMOVED)]
        pools = [np.empty(self.elements, np.uint16) for _ in makers]
        # In parts that caches hold, each from a seed of its own: the same values for any number of threads.
        part = 1 << 18
        tasks = itertools.product(range(len(makers)), range(0, self.elements, part))

        def make(task: tuple[int, int]) -> None:
            pool, first = task
            draw = np.random.Generator(np.random.SFC64([seed, pool, first]))
            pools[pool][first : first + part] = makers[pool](draw, part)

        with ThreadPoolExecutor(threads) as executor:
            list(executor.map(make, tasks))
        self.weights, self.norms, *self.steps = pools
        self.scratch = threading.local()

    def made_weights(self, draw: Any, count: int) -> Any:
        bits = (draw.standard_normal(count, self.np.float32) * self.np.float32(0.02)).view(
            self.np.uint32
        ) >> 16
        return self.np.clip(bits & 0x7FFF, BITS_LEAST, BITS_MOST) | (bits & 0x8000)

    def made_norms(self, draw: Any, count: int) -> Any:
        return draw.integers(0x3F70, 0x3F90, count, self.np.uint16)

    def step_maker(self, unmoved: float) -> Callable[[Any, int], Any]:
        np = self.np

        def made(draw: Any, count: int) -> Any:
            kind, normal = draw.random(count, np.float32), draw.standard_normal(count, np.float32)
            scale = np.where(kind < 1 - FAR_SHARE, np.float32(NEAR_UNITS), np.float32(FAR_UNITS))
            units = np.minimum(1 + np.floor(np.abs(normal) * scale), STEP_MOST)
            return np.where(kind < unmoved, 0, np.copysign(units, normal)).astype(np.int16).view(np.uint16)

        return made

    def base(self, norm: bool, first: int, count: int) -> Any:
        return (self.norms if norm else self.weights)[first : first + count]

    def moved(self, norm: bool, first: int, count: int, kind: int, steps_first: int) -> Any:
        """Bits plus steps: whole units in the last place of each value."""
        if not hasattr(self.scratch, "out"):
            self.scratch.out = self.np.empty(self.piece, self.np.uint16)
        out = self.scratch.out[:count]
        steps = self.steps[kind][steps_first : steps_first + count]
        return self.np.add(self.base(norm, first, count), steps, out=out)


class PlainPools:
    """The same without numpy: small pools, and slow."""

    elements = 1 << 14
    piece = 1 << 12
    name = "plain"

    def __init__(self, seed: int) -> None:
        draw = random.Random(seed)
        self.weights = [self.made_weight(draw.gauss(0, 0.02)) for _ in range(self.elements)]
        self.norms = [draw.randrange(0x3F70, 0x3F90) for _ in range(self.elements)]
        self.steps = [[self.made_step(draw, unmoved) for _ in range(self.elements)] for unmoved in UNMOVED]

    @staticmethod
    def made_weight(value: float) -> int:
        bits = struct.unpack("<I", struct.pack("<f", value))[0] >> 16
        return min(max(bits & 0x7FFF, BITS_LEAST), BITS_MOST) | bits & 0x8000

    @staticmethod
    def made_step(draw: random.Random, unmoved: float) -> int:
        kind, normal = draw.random(), draw.gauss(0, 1)
        if kind < unmoved:
            return 0
        units = 1 + int(abs(normal) * (NEAR_UNITS if kind < 1 - FAR_SHARE else FAR_UNITS))
        return min(units, STEP_MOST) * (1 if normal > 0 else -1)

    def values(self, norm: bool, first: int, count: int) -> list[int]:
        return (self.norms if norm else self.weights)[first : first + count]

    def base(self, norm: bool, first: int, count: int) -> bytes:
        return struct.pack(f"<{count}H", *self.values(norm, first, count))

    def moved(self, norm: bool, first: int, count: int, kind: int, steps_first: int) -> bytes:
        steps = self.steps[kind][steps_first : steps_first + count]
        values = (bits + step for bits, step in zip(self.values(norm, first, count), steps))
        return struct.pack(f"<{count}H", *values)


def place(limit: int, *words: Any) -> int:
    """A number below the limit that depends on the words alone."""
    digest = hashlib.blake2b("/".join(map(str, words)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % limit


def shards_of(shape: Shape) -> list[list[tuple[str, list[int]]]]:
    shards: list[list[tuple[str, list[int]]]] = [[]]
    filled = 0
    for name, dims in shape.tensors():
        size = 2 * math.prod(dims)
        if shards[-1] and filled + size > shape.shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append((name, dims))
        filled += size
    return shards


def header_of(tensors: list[tuple[str, list[int]]]) -> tuple[bytes, dict[str, int], int]:
    """A safetensors header, where each tensor begins in the file, and the file's size."""
    entries: Json = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, dims in tensors:
        size = 2 * math.prod(dims)
        entries[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = struct.pack("<Q", len(text)) + text
    offsets = {name: len(head) + entries[name]["data_offsets"][0] for name, _ in tensors}
    return head, offsets, len(head) + at


@dataclasses.dataclass(frozen=True)
class Tile:
    """A piece of a tensor of all models."""

    tensor: str
    number: int
    shard: int
    offset: int
    elements: int


def laid_out(
    folder: pathlib.Path, shape: Shape
) -> tuple[list[pathlib.Path], list[tuple[bytes, dict[str, int], int]]]:
    shards = shards_of(shape)
    total = len(shards)
    files = [folder / f"model-{n:05}-of-{total:05}.safetensors" for n in range(1, total + 1)]
    return files, [header_of(shard) for shard in shards]


def created(folder: pathlib.Path, shape: Shape, stamp: Json) -> list[int]:
    """A model's folder with everything but the tensors' data; its files, open."""
    if folder.exists() and any(folder.iterdir()) and not (folder / STAMP).exists():
        raise SystemExit(f"{folder} holds files that gpu_check did not write")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / STAMP).write_text(json.dumps(stamp | {"complete": False}))
    files, heads = laid_out(folder, shape)
    opened = []
    for file, (head, _, size) in zip(files, heads):
        opened.append(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644))
        os.truncate(opened[-1], size)
        os.pwrite(opened[-1], head, 0)
    where = {name: file.name for file, (_, offsets, _) in zip(files, heads) for name in offsets}
    index = {"metadata": {"total_size": shape.model_bytes()}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=1))
    return opened


def stamp_of(shape: Shape, seed: int, model: str) -> Json:
    return {"version": 1, "shape": dataclasses.asdict(shape), "seed": seed, "model": model}


def is_complete(folder: pathlib.Path, stamp: Json) -> bool:
    try:
        found = json.loads((folder / STAMP).read_text())
    except (OSError, ValueError):
        return False
    return found.pop("complete", False) and (found.pop("made_with", None), found)[1] == stamp


def write_whole(file: int, data: Any, offset: int) -> None:
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def tiles_of(shape: Shape, piece: int) -> Iterator[Tile]:
    for shard, tensors in enumerate(shards_of(shape)):
        _, offsets, _ = header_of(tensors)
        for name, dims in tensors:
            count = math.prod(dims)
            for number, first in enumerate(range(0, count, piece)):
                yield Tile(name, number, shard, offsets[name] + 2 * first, min(piece, count - first))


def worker_generate(request: Json) -> Json:
    """Writes the models that are not there yet, on all cores: what takes long frees Python's lock."""
    shape, seed = Shape(**request["shape"]), request["seed"]
    start = time.perf_counter()
    try:
        pools: Any = ArrayPools(seed, request["threads"])
    except ImportError:
        pools = PlainPools(seed)
    pools_s = time.perf_counter() - start
    opened = {}
    for model in MODELS:
        folder = pathlib.Path(request["dir"]) / model
        if not is_complete(folder, stamp_of(shape, seed, model)):
            opened[model] = created(folder, shape, stamp_of(shape, seed, model))
    start = time.perf_counter()

    def write(tile: Tile) -> None:
        norm = tile.tensor.endswith("norm.weight")
        key = (seed, tile.tensor, tile.number)
        last = pools.elements - tile.elements
        first = place(last, *key)
        for model, files in opened.items():
            if model == "base":
                data = pools.base(norm, first, tile.elements)
            else:
                kind = place(len(UNMOVED), seed, model, tile.tensor)
                data = pools.moved(norm, first, tile.elements, kind, place(last, model, *key))
            write_whole(files[tile.shard], data, tile.offset)

    with ThreadPoolExecutor(request["threads"]) as threads:
        for _ in threads.map(write, tiles_of(shape, pools.piece)):
            pass
    seconds = time.perf_counter() - start
    for model, files in opened.items():
        for file in files:
            if request["fsync"]:
                os.fsync(file)
            os.close(file)
        stamp = stamp_of(shape, seed, model) | {"complete": True, "made_with": pools.name}
        (pathlib.Path(request["dir"]) / model / STAMP).write_text(json.dumps(stamp))
    made = shape.model_bytes() * len(opened)
    return {
        "made_with": pools.name,
        "bytes": made,
        "seconds": seconds,
        "pools_seconds": pools_s,
        "seconds_with_fsync": time.perf_counter() - start,
        "gb_per_s": made / 1e9 / seconds,
    }


# ----------------------------------------------------------------------------------------------------------
# What the machine could do: host memory, files, and the way to the GPU


def on_threads(count: int, work: Callable[[int], int]) -> tuple[float, int]:
    """Seconds from a common start to the last end, and the bytes of all threads."""
    gate = threading.Barrier(count + 1)

    def gated(number: int) -> int:
        gate.wait()
        return work(number)

    with ThreadPoolExecutor(count) as threads:
        running = [threads.submit(gated, number) for number in range(count)]
        gate.wait()
        start = time.perf_counter()
        moved = sum(one.result() for one in running)
        return time.perf_counter() - start, moved


def worker_copy(request: Json) -> Json:
    """Memory copied by all cores, each in buffers too large for caches. ctypes frees Python's lock."""
    size, threads = request["bytes"], request["threads"]
    buffers = [(mmap.mmap(-1, size), mmap.mmap(-1, size)) for _ in range(threads)]
    at = [[ctypes.addressof(ctypes.c_char.from_buffer(one)) for one in pair] for pair in buffers]
    for pair in at:
        for one in pair:
            ctypes.memset(one, 1, size)

    def copy(number: int) -> int:
        for _ in range(request["rounds"]):
            ctypes.memmove(at[number][0], at[number][1], size)
        return size * request["rounds"]

    rates = []
    for _ in range(3):
        seconds, moved = on_threads(threads, copy)
        rates.append(moved / 1e9 / seconds)
    return {"gb_per_s": statistics.median(rates), "all": rates, "threads": threads}


def pieces_of(files: list[str]) -> list[tuple[int, int, int]]:
    """(number of the file, offset, bytes)."""
    return [
        (number, offset, min(PIECE_BYTES, os.path.getsize(file) - offset))
        for number, file in enumerate(files)
        for offset in range(0, os.path.getsize(file), PIECE_BYTES)
    ]


def worker_pump(request: Json) -> Json:
    """Reads files into reused buffers by all cores, and meanwhile writes as many bytes as an output has: what
    the host needs at the least, with no GPU and no mergeforge. With no `output_bytes` it only reads.
    """
    sources = [os.open(file, os.O_RDONLY) for file in request["files"]]
    reads = pieces_of(request["files"])
    folder, output_bytes = pathlib.Path(request["folder"]), request["output_bytes"]
    writes = [
        (offset, min(PIECE_BYTES, output_bytes - offset)) for offset in range(0, output_bytes, PIECE_BYTES)
    ]
    tasks = iter(mixed(reads, writes))
    lock = threading.Lock()
    out_file = folder / "pump.out"
    out = os.open(out_file, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600) if output_bytes else -1

    def work(_: int) -> int:
        buffer = memoryview(mmap.mmap(-1, PIECE_BYTES))
        moved = 0
        while True:
            with lock:
                task = next(tasks, None)
            if task is None:
                return moved
            if len(task) == 3:
                source, offset, size = task
                moved += os.preadv(sources[source], [buffer[:size]], offset)
            else:
                write_whole(out, buffer[: task[1]], task[0])
                moved += task[1]

    try:
        seconds, moved = on_threads(request["threads"], work)
        start = time.perf_counter()
        if output_bytes and request["fsync"]:
            os.fsync(out)
        synced = time.perf_counter() - start
    finally:
        if output_bytes:
            os.close(out)
            out_file.unlink()
    expected = sum(size for *_, size in reads) + output_bytes
    if moved != expected:
        raise SystemExit(f"{moved} bytes moved instead of {expected}")
    return {
        "seconds": seconds + synced,
        "sync_seconds": synced,
        "bytes": moved,
        "gb_per_s": moved / 1e9 / seconds,
    }


def mixed(reads: list[Any], writes: list[Any]) -> Iterator[Any]:
    """Reads, with the writes spread evenly among them."""
    done = 0
    for number, read in enumerate(reads, 1):
        yield read
        due = len(writes) * number // len(reads)
        yield from writes[done:due]
        done = due


def worker_torch(request: Json) -> Json:
    """Copies by CUDA itself, through torch: pinned memory to the GPU, back, both at once, and on the GPU."""
    try:
        import torch
    except ImportError:
        return {"not_run": "there is no torch"}
    if not torch.cuda.is_available():
        return {"not_run": "torch sees no GPU"}
    device = torch.device("cuda", request["index"])
    torch.cuda.set_device(device)
    size, count = request["bytes"], request["count"]

    def pinned() -> Any:
        return [torch.randint(0, 255, (size,), dtype=torch.uint8).pin_memory() for _ in range(2)]

    def on_device() -> Any:
        return [torch.randint(0, 255, (size,), dtype=torch.uint8, device=device) for _ in range(2)]

    host_from, host_to, there_from, there_to = pinned(), pinned(), on_device(), on_device()
    way_in, way_out = torch.cuda.Stream(), torch.cuda.Stream()

    def timed(start_copies: Callable[[], None], moved: int) -> Json:
        rates = []
        for turn in range(request["repeat"] + 1):
            torch.cuda.synchronize()
            start = time.perf_counter()
            start_copies()
            torch.cuda.synchronize()
            if turn:
                rates.append(moved / 1e9 / (time.perf_counter() - start))
        return {"gb_per_s": statistics.median(rates), "least": min(rates), "most": max(rates)}

    def copies(stream: Any, to: Any, source: Any) -> None:
        with torch.cuda.stream(stream):
            for turn in range(count):
                to[turn % 2].copy_(source[turn % 2], non_blocking=True)

    def both() -> None:
        copies(way_in, there_to, host_from)
        copies(way_out, host_to, there_from)

    total = size * count
    found = {
        "h2d": timed(lambda: copies(way_in, there_to, host_from), total),
        "d2h": timed(lambda: copies(way_out, host_to, there_from), total),
        # Each way moves this much; counted one way.
        "both_each_way": timed(both, total),
        # Each byte is read and written.
        "device_copy": timed(lambda: copies(way_in, there_to, there_from), 2 * total),
    }
    return found | {"torch": torch.__version__, "name": torch.cuda.get_device_name(device)}


def measure_host(part: Part, files: list[pathlib.Path], folder: pathlib.Path) -> Json:
    """Host memory and files, by all cores."""
    args, threads = part.args, cores()
    table = part.table(
        "The machine by itself",
        ["what", "GB/s"],
        "Measured without mergeforge. Copies on the host count each byte once, those on the device twice.",
    )
    size = (1 << 20) if args.tiny else (128 << 20)
    request = {"bytes": size, "threads": threads, "rounds": 2 if args.tiny else 12}
    found: Json = {}
    copied = part.step("host memory copy, all cores", lambda: in_child("copy", request, part.left_s()))
    names = [str(file) for file in files]
    read = {"files": names, "folder": str(folder), "output_bytes": 0, "threads": threads, "fsync": False}
    # The second run counts: in the first, the page cache may not have the files.
    reads = part.step(
        "file read into reused buffers, all cores",
        lambda: [in_child("pump", read, part.left_s()) for _ in range(2)][-1],
    )
    for what, figures in (("host memory copy", copied), ("file read", reads)):
        if figures:
            found[what] = figures["gb_per_s"]
            table.rows.append([f"{what}, {threads} threads", f"{figures['gb_per_s']:.1f}"])
    return found | measure_link(part, table)


def measure_link(part: Part, table: Table) -> Json:
    index = device_index(part.args.device)
    size, count = (1 << 20, 2) if part.args.tiny else (256 << 20, 8)
    request = {"bytes": size, "count": count, "repeat": 2 if part.args.tiny else 7, "index": index}
    figures = part.step(
        "copies to, from and on the GPU (torch)", lambda: in_child("torch", request, part.left_s())
    )
    found = {}
    names = {"h2d": "to the GPU", "d2h": "from the GPU", "both_each_way": "each way, both at once"}
    for key, name in (names | {"device_copy": "on the GPU, read and written"}).items():
        if figures:
            found[key] = figures[key]["gb_per_s"]
            table.rows.append([f"copy {name}", f"{figures[key]['gb_per_s']:.1f}"])
    return found


def device_index(device: str) -> int:
    number = device.partition(":")[2]
    return int(number) if number.isdigit() else 0


# ----------------------------------------------------------------------------------------------------------
# Merges


def config_of(merge: str, folder: pathlib.Path) -> str:
    """The YAML of a merge of base and two models, all of which are read."""
    path = {model: json.dumps(str(folder / model)) for model in MODELS}
    if merge == "linear":
        weights = dict(zip(MODELS, (0.2, 0.5, 0.3)))
        models = [
            f"  - model: {path[model]}\n    parameters: {{weight: {weights[model]}}}" for model in MODELS
        ]
        lines = ["merge_method: linear", "models:", *models]
    else:
        models = [
            f"  - model: {path[model]}\n    parameters: {{weight: 0.5, density: 0.5}}" for model in MODELS[1:]
        ]
        lines = [f"merge_method: {merge}", f"base_model: {path['base']}", "models:", *models]
    return "\n".join([*lines, "dtype: bfloat16", ""])


MERGES = ("ties", "linear", "dare_ties")


class Bench:
    """Models in a folder, and merges of them into the same folder. Nothing is left of the outputs."""

    def __init__(self, part: Part, folder: pathlib.Path, shape: Shape) -> None:
        self.part = part
        self.args = part.args
        self.folder = folder
        self.shape = shape
        self.out = folder / "out"
        self.input_bytes = len(MODELS) * shape.model_bytes()
        self.output_bytes = shape.model_bytes()
        self.by_cpu: dict[str, Json] = {}

    def files(self) -> list[pathlib.Path]:
        return sorted(file for model in MODELS for file in (self.folder / model).glob("*.safetensors"))

    def generate(self, fsync: bool) -> Json:
        request = {
            "dir": str(self.folder),
            "shape": dataclasses.asdict(self.shape),
            "seed": self.args.seed,
            "threads": cores(),
            "fsync": fsync,
        }
        made = in_child("generate", request, self.part.left_s())
        say(f"{gb(made['bytes'])} made with {made['made_with']}, {made['gb_per_s']:.2f} GB/s")
        return made

    def config(self, merge: str) -> pathlib.Path:
        path = self.folder / f"{merge}.yml"
        path.write_text(config_of(merge, self.folder))
        return path

    @contextlib.contextmanager
    def output(self) -> Iterator[pathlib.Path]:
        """A place for an output, which does not outlive its use: memory may not hold two of them."""
        shutil.rmtree(self.out, ignore_errors=True)
        try:
            yield self.out
        finally:
            shutil.rmtree(self.out, ignore_errors=True)

    def flags(self, device: str, more: list[str]) -> list[str]:
        return ["--device", device, "--json", *self.args.flags.split(), *more]

    def merge(
        self,
        merge: str,
        device: str,
        more: list[str] | None = None,
        sums: bool = False,
        recall: bool = False,
    ) -> Json:
        """One merge: times, stages, memory; with `sums`, what the output's files hold. No merge profits from
        thresholds that one before it found, unless it is to `recall` them."""
        what = f"merge {merge} on {device}"
        with self.output() as out, MemoryWatch() as memory:
            command = [
                self.args.binary,
                "merge",
                self.config(merge),
                out,
                "--quiet",
                *([] if recall else ["--no-cache"]),
                *self.flags(device, more or []),
            ]
            ran = run(command, min(self.part.left_s(), RUN_LIMIT_S))
            manifest = answer(ran, what)
            found = {
                "merge": merge,
                "seconds": manifest["seconds"],
                "process_seconds": ran.wall_s,
                "cpu_seconds": ran.cpu_s,
                "rss_bytes": ran.rss_bytes,
                "disk_read_bytes": ran.disk_read_bytes,
                "device": manifest["device"],
                "threads": manifest["threads"],
                "stages": manifest["stages"],
                "bottleneck": manifest["bottleneck"],
                "tensors": len(manifest["tensors"]),
                "digest": hashlib.sha256(
                    json.dumps(manifest["tensors"], sort_keys=True).encode()
                ).hexdigest(),
            }
            if sums:
                found["by_tensor"] = manifest["tensors"]
                found["by_file"] = sums_of(sorted(out.glob("*.safetensors")))
        found["memory_rise_bytes"] = memory.rise()
        say(f"{what}: {found['seconds']:.3f} s, the whole process {ran.wall_s:.2f} s; {found['bottleneck']}")
        return found

    def merged_by_cpu(self, merge: str) -> Json:
        """The CPU's merge with its sums, which those of every device are compared with."""
        if merge not in self.by_cpu:
            self.by_cpu[merge] = self.merge(merge, "cpu", sums=True)
        return self.by_cpu[merge]

    def floor(self, merge: str, device: str, more: list[str] | None = None) -> Json:
        what = f"floor of {merge} on {device}"
        with self.output() as out:
            command = [
                self.args.binary,
                "bench",
                "floor",
                self.config(merge),
                out,
                *self.flags(device, more or []),
            ]
            ran = run(command, min(self.part.left_s(), RUN_LIMIT_S))
            found = answer(ran, what)
        say(f"{what}: {found['seconds']:.3f} s")
        return found | {"process_seconds": ran.wall_s, "disk_read_bytes": ran.disk_read_bytes}

    def pump(self, fsync: bool) -> Json:
        request = {
            "files": [str(file) for file in self.files()],
            "folder": str(self.folder),
            "output_bytes": self.output_bytes,
            "threads": cores(),
            "fsync": fsync,
        }
        found = in_child("pump", request, self.part.left_s())
        say(f"read and written without mergeforge: {found['seconds']:.3f} s")
        return found


def sums_of(files: list[pathlib.Path]) -> dict[str, str]:
    """A sum over each file's pieces, which all cores hash."""

    def piece(task: tuple[int, int, int]) -> tuple[int, bytes]:
        number, offset, size = task
        with files[number].open("rb", buffering=0) as file:
            return number, hashlib.sha256(os.pread(file.fileno(), size, offset)).digest()

    sums = [hashlib.sha256() for _ in files]
    with ThreadPoolExecutor(cores()) as threads:
        for number, digest in threads.map(piece, pieces_of([str(file) for file in files])):
            sums[number].update(digest)
    return {file.name: found.hexdigest() for file, found in zip(files, sums)}


@contextlib.contextmanager
def bench_in(part: Part, folder: pathlib.Path, shape: Shape | None, fsync: bool) -> Iterator[Bench]:
    """Models, made if they are not there. Those that are made here go again, unless they are to be kept."""
    made_here: list[pathlib.Path] = []

    def ready() -> Json:
        if shape is None:
            raise NotRun(f"{part.name} has no room for a model")
        folder.mkdir(parents=True, exist_ok=True)
        made_here.extend(
            folder / model
            for model in MODELS
            if not is_complete(folder / model, stamp_of(shape, part.args.seed, model))
        )
        return bench.generate(fsync)

    bench = Bench(part, folder, shape or TINY)
    try:
        part.step("models", ready)
        yield bench
    finally:
        shutil.rmtree(bench.out, ignore_errors=True)
        for merge in MERGES:
            (folder / f"{merge}.yml").unlink(missing_ok=True)
        if not part.args.keep_models:
            for model in made_here:
                if (model / STAMP).exists():
                    shutil.rmtree(model, ignore_errors=True)
            with contextlib.suppress(OSError):
                folder.rmdir()


def models_ready(part: Part) -> bool:
    return any(step["step"] == "models" and step["status"] == "ok" for step in part.steps)


def filesystem_of(folder: pathlib.Path) -> str:
    """The kind of the file system that a folder is on."""
    where, kind = pathlib.Path("/"), "unknown"
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/mounts").read_text().splitlines():
            _, at, found = line.split()[:3]
            at_path = pathlib.Path(at)
            if folder.resolve().is_relative_to(at_path) and len(at_path.parts) >= len(where.parts):
                where, kind = at_path, found
    return kind


def existing(folder: pathlib.Path) -> pathlib.Path:
    return next(one for one in [folder, *folder.parents] if one.exists())


def room_bytes(folder: pathlib.Path, in_memory: bool, asked: bool) -> int:
    """What inputs and output may take there: what is free, and what models of an earlier run hold."""
    info = os.statvfs(existing(folder))
    held = sum(file.stat().st_size for model in MODELS for file in (folder / model).glob("*.safetensors"))
    room = info.f_bavail * info.f_frsize
    # Where layers are asked for, only the file system says no: a virtual machine's memory may grow with use.
    if in_memory and not asked:
        room = min(room, memory_info().get("MemAvailable", room) - SPARE_BYTES)
    return room + held


def chosen_shape(
    part: Part, folder: pathlib.Path, in_memory: bool, most_bytes: float = math.inf
) -> Shape | None:
    """As many layers as were asked for, or as there is room for."""
    args = part.args
    if args.tiny:
        return TINY
    room = min(most_bytes, room_bytes(folder, in_memory, args.layers is not None))
    wanted = args.layers or LLAMA_2_7B.layers
    needed = lambda layers: (len(MODELS) + 1) * dataclasses.replace(LLAMA_2_7B, layers=layers).model_bytes()
    layers = next((layers for layers in range(wanted, 0, -1) if needed(layers) <= room), 0)
    part.facts["models"] = (
        f"base and 2, Llama-2-7B in bfloat16 with {layers} of its {LLAMA_2_7B.layers} layers"
    )
    if layers < wanted:
        part.facts["cut"] = (
            f"there is room for {gb(room)}, inputs and output of {wanted} layers take {gb(needed(wanted))}"
        )
    return dataclasses.replace(LLAMA_2_7B, layers=layers) if layers else None


# ----------------------------------------------------------------------------------------------------------
# Part: kernels


def part_kernels(part: Part) -> None:
    machine(part)
    found = found_devices(part)
    ids = [device["id"] for device in found["devices"]]
    adapters = [device for device in found["devices"] if family_of(device) == "wgpu"]
    checks = part.table(
        "Every kernel against the CPU's plain code, bit for bit", ["device", "kernel", "inputs", "result"]
    )
    for device in ids:
        part.step(f"check {device}", lambda device=device: check_device(part, device, checks))
    if not adapters:
        part.step("check wgpu", not_after(why_no_adapter(found)))
    measured = measured_adapters(part, found)
    left_out = [device["id"] for device in adapters if device not in measured]
    benched: dict[str, Json | None] = {}
    for device in ids:
        if device in left_out:
            part.step(f"bench kernels {device}", not_after("a software adapter"))
            continue
        benched[device] = part.step(
            f"bench kernels {device}", lambda device=device: bench_device(part, device), needs_s=5
        )
    if adapters:
        part.step("wgpu beside CUDA", lambda: kernels_beside_cuda(part, found, benched))
    cuda = next((device for device in ids if device.startswith("cuda")), None)
    table = part.table(
        "compute-sanitizer",
        ["tool", "run", "reports"],
        "initcheck may report padding that is read and not used: its count is told, and is no failure.",
    )
    # The shortest first, so that the slowest gets all the time that is left.
    for name in ("synccheck", "initcheck", "memcheck"):
        part.step(
            f"{name} of check", lambda name=name: sanitized_check(part, name, cuda, table, 0.35), needs_s=5
        )
    part.step("memcheck of a merge", lambda: sanitized_merge(part, cuda, table), needs_s=5)
    part.step("racecheck of check", lambda: sanitized_check(part, "racecheck", cuda, table, 1.0), needs_s=5)


def check_device(part: Part, device: str, table: Table) -> Json:
    ran = run([part.args.binary, "check", "--device", device, "--json"], part.left_s())
    # A device that computes wrong is told in the rows, and by the exit code.
    found = json.loads(ran.out) if ran.out.strip().startswith("[") else answer(ran, f"check {device}")
    rows = [row for one in found for row in one["kernels"]]
    for row in rows:
        result = f"DIFFERS: {row['wrong']}" if row["wrong"] else f"{row['launches']} launches equal"
        if row["by_cpu"]:
            # Their values are such that WebGPU promises nothing about them.
            result += f", {row['by_cpu']} of {row['pieces']} pieces computed by the CPU"
        table.rows.append([device, row["kernel"], row["inputs"], result])
    wrong = [row["wrong"] for row in rows if row["wrong"]]
    # What the CPU computed is equal to what the CPU computes.
    wrong += [
        f"{row['kernel']}, {row['inputs']}: the CPU computed all pieces, and the device was not checked"
        for row in rows
        if row["pieces"] and row["by_cpu"] == row["pieces"]
    ]
    if wrong or not rows:
        raise Failed(f"check {device}\n" + "\n".join(wrong or ["no kernel was checked"]))
    succeeded(ran, f"check {device}")
    return {"launches": sum(row["launches"] for row in rows), "rows": rows}


def bench_device(part: Part, device: str) -> Json:
    args = part.args
    repeat = args.repeat or (1 if args.tiny else 9 if device != "cpu" else 3)
    command = [args.binary, "bench", "kernels", "--device", device, "--json"]
    ran = run([*command, "--mebi-elements", args.mebi_elements, "--repeat", repeat], part.left_s())
    found = answer(ran, f"bench kernels {device}")
    table = part.table(
        f"Kernels on {device}: {found['name']}",
        ["kernel", "what", "Mi elements", "µs", "GB/s", "of copy", "of stream", "B/param", "target"],
        f"bfloat16, medians of {repeat}. A copy moves {found['copy_gb_per_s']:.0f} GB/s, each byte "
        "counted as read and as written. `of stream`: as many inputs and outputs with next to no arithmetic.",
    )
    for row in found["kernels"]:
        # wgpu is measured against CUDA, in a table of its own.
        aims = row["kernel"] == "consensus" and row["what"].startswith("ties") and device.startswith("cuda")
        share = row["share_of_stream"]
        aim = f"of stream ≥ {STREAM_SHARE_LEAST:.0%}: {met(share >= STREAM_SHARE_LEAST)}" if aims else ""
        table.rows.append(
            [
                row["kernel"],
                row["what"],
                f"{row['elements'] / (1 << 20):.3g}",
                f"{row['seconds'] * 1e6:.1f}",
                f"{row['gb_per_s']:.1f}",
                f"{row['share_of_copy']:.0%}",
                f"{share:.0%}",
                f"{row['bytes_per_parameter']:.2f}",
                aim,
            ]
        )
    return found


def kernels_beside_cuda(part: Part, found: Json, benched: dict[str, Json | None]) -> Json:
    """The rates of each adapter, row by row, beside those of the same card through CUDA, or of the first."""
    cards = [device for device in found["devices"] if family_of(device) == "cuda"]
    adapters = measured_adapters(part, found)
    if not adapters:
        raise NotRun(why_no_adapter(found))
    if not cards:
        raise NotRun("there is no CUDA device")
    rows: list[Json] = []
    for adapter in adapters:
        card = next((card for card in cards if same_card(adapter, card["name"])), cards[0])
        here, there = benched[adapter["id"]], benched[card["id"]]
        if here and there:
            rows += rates_beside(adapter, card, here, there)
    if not rows:
        raise NotRun("the kernels were not timed on both")
    table = part.table(
        "wgpu beside CUDA",
        ["wgpu", "CUDA", "kernel", "what", "GB/s", "CUDA's GB/s", "of CUDA's", "× time", "target"],
        "Of the tables above. Bytes are those that the launch counts, which may differ: then times do not "
        "differ as rates do.",
    )
    for row in rows:
        reached = met(row["of_cuda"] >= WGPU_RATE_LEAST) + ("" if row["same_card"] else ", another card")
        table.rows.append(
            [
                row["wgpu"],
                row["cuda"],
                row["kernel"],
                row["what"],
                f"{row['gb_per_s']:.1f}",
                f"{row['cuda_gb_per_s']:.1f}",
                f"{row['of_cuda']:.0%}",
                f"{row['time_ratio']:.2f}",
                f"of CUDA's ≥ {WGPU_RATE_LEAST:.0%}: {reached}" if row["kernel"] == "consensus" else "",
            ]
        )
    return {"rows": rows}


def rates_beside(adapter: Json, card: Json, here: Json, there: Json) -> Iterator[Json]:
    of_cuda = {(row["kernel"], row["what"]): row for row in there["kernels"]}
    for row in here["kernels"]:
        other = of_cuda.get((row["kernel"], row["what"]))
        if other:
            yield {
                "wgpu": adapter["id"],
                "cuda": card["id"],
                "same_card": same_card(adapter, card["name"]),
                "kernel": row["kernel"],
                "what": row["what"],
                "gb_per_s": row["gb_per_s"],
                "cuda_gb_per_s": other["gb_per_s"],
                "of_cuda": row["gb_per_s"] / other["gb_per_s"],
                "time_ratio": row["seconds"] / other["seconds"],
            }


def met(reached: bool) -> str:
    return "met" if reached else "missed"


SUMMARY = re.compile(r"(ERROR|RACECHECK) SUMMARY: (\d+) (?:errors?|hazards?)")


def sanitized(part: Part, name: str, cuda: str | None, arguments: list[Any], share: float) -> tuple[int, Ran]:
    """Runs the program under a sanitizer: the number of reports."""
    sanitizer = tool("compute-sanitizer")
    if cuda is None:
        raise NotRun("there is no CUDA device")
    command = [sanitizer, "--tool", name, "--print-limit", 20, part.args.binary, *arguments]
    ran = succeeded(run(command, part.left_s() * share), name)
    reports = [int(count) for _, count in SUMMARY.findall(ran.out + ran.err)]
    if not reports:
        raise Failed(f"{name} gave no summary\n{ran.words()}")
    return sum(reports), ran


def judged(name: str, what: str, reports: int, ran: Ran, table: Table) -> Json:
    table.rows.append([name, what, str(reports)])
    if reports and name != "initcheck":
        raise Failed(f"{ran.words()}\n{reports} reports of {name}")
    return {"reports": reports, "seconds": ran.wall_s, "words": ran.words() if reports else ""}


def sanitized_check(part: Part, name: str, cuda: str | None, table: Table, share: float) -> Json:
    reports, ran = sanitized(part, name, cuda, ["check", "--quick", "--device", cuda], share)
    return judged(name, "check", reports, ran, table)


def sanitized_merge(part: Part, cuda: str | None, table: Table) -> Json:
    tool("compute-sanitizer")
    with tempfile.TemporaryDirectory(prefix="gpu_check-") as folder:
        bench = Bench(part, pathlib.Path(folder), TINY)
        bench.generate(fsync=False)
        arguments = ["merge", bench.config("ties"), bench.out, "--device", cuda, "--threads", 2]
        arguments += ["--quiet", "--no-cache"]
        reports, ran = sanitized(part, "memcheck", cuda, arguments, 0.5)
    return judged("memcheck", "a small merge by ties", reports, ran, table)


# ----------------------------------------------------------------------------------------------------------
# Part: stream


@dataclasses.dataclass(frozen=True)
class How:
    """How all merges are measured."""

    device: str
    # What is added to a merge's name.
    name: str = ""
    # Whether nothing is in the page cache before a run.
    cold: bool = False
    # Rounds, where no number was asked for.
    rounds: int = 5
    # The share of the part's time that stays for what comes after.
    left_share: float = 0.0
    # For each merge that is to stand beside that of another device: the other device.
    beside: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Measured:
    """All runs of one merge. Of a round, merge, floor and what else ran in it met the same machine."""

    first: Json | None = None
    rounds: list[tuple[Json, Json]] = dataclasses.field(default_factory=list)
    pumps: list[Json] = dataclasses.field(default_factory=list)
    beside: list[Json] = dataclasses.field(default_factory=list)
    device_bytes: int | None = None

    def merges(self) -> list[Json]:
        return [merge for merge, _ in self.rounds]

    def ratio(self) -> float:
        return statistics.median(merge["seconds"] / floor["seconds"] for merge, floor in self.rounds)

    def ratio_beside(self, key: str) -> float:
        return statistics.median(merge[key] / other[key] for merge, other in zip(self.merges(), self.beside))

    def median(self, key: str) -> float:
        return statistics.median(merge[key] for merge in self.merges())

    def median_beside(self, key: str) -> float:
        return statistics.median(other[key] for other in self.beside)

    def floor_s(self) -> float:
        return statistics.median(floor["seconds"] for _, floor in self.rounds)

    def host_bytes(self) -> tuple[int, int]:
        runs = [*self.merges(), *([self.first] if self.first else [])]
        return max(one["rss_bytes"] for one in runs), max(one["memory_rise_bytes"] for one in runs)


def part_stream(part: Part) -> None:
    machine(part)
    found = found_devices(part)
    folder = part.args.dir or pathlib.Path("/dev/shm/mergeforge-gpu-check")
    part.facts["file system"] = filesystem_of(existing(folder))
    shape = chosen_shape(part, folder, in_memory=True)
    with bench_in(part, folder, shape, fsync=False) as bench:
        if not models_ready(part):
            return
        alone = measure_host(part, bench.files(), folder)
        part.facts["independent"] = alone
        pumped = part.step("read and written without mergeforge", lambda: bench.pump(fsync=False))
        # Those through wgpu come after these, too.
        how = How(part.args.device, left_share=1 / 2 if measured_adapters(part, found) else 1 / 3)
        runs = measure_merges(part, bench, how)
        stream_tables(part, bench, runs, alone, pumped)
        compare_bytes(part, bench, how)
        measure_wgpu(part, bench, found, runs)
        if not part.args.no_sweep:
            sweep(part, bench)


def measure_merges(part: Part, bench: Bench, how: How) -> dict[str, Measured]:
    """Rounds over all merges, rather than all rounds of one: a slow minute then spoils one round of each."""
    runs = {merge: Measured() for merge in MERGES}
    for merge in MERGES:
        part.step(
            f"{merge}{how.name}: first run, watched",
            lambda merge=merge: first_run(part, bench, merge, how, runs[merge]),
        )
    repeat = part.args.repeat or (1 if part.args.tiny else how.rounds)
    longest = 0.0
    for turn, merge in itertools.product(range(repeat), MERGES):
        step = f"{merge}{how.name}: round {turn + 1}"
        if runs[merge].first is None:
            part.step(step, not_after("its first run did not succeed"))
            continue
        if turn and part.left_s() < longest + how.left_share * part.budget_s:
            part.step(step, not_after("no time left"))
            continue
        began = time.monotonic()
        part.step(step, lambda merge=merge, turn=turn: one_round(bench, merge, turn, how, runs[merge]))
        longest = max(longest, time.monotonic() - began)
    return runs


def not_after(why: str) -> Callable[[], Json]:
    def action() -> Json:
        raise NotRun(why)

    return action


def first_run(part: Part, bench: Bench, merge: str, how: How, measured: Measured) -> Json:
    """An uncounted run: it warms up what can be warm, which with wgpu includes a check that the program does
    before it first uses a device, and carries the watches that would cost time."""
    with tempfile.TemporaryDirectory(prefix="gpu_check-") as folder:
        trace = pathlib.Path(folder) / "trace.json"
        # A second folder would be a second thing to fetch: one trace of the hardest merge says enough.
        traced = merge == "ties"
        # nvidia-smi counts as CUDA does; wgpu may count in another way.
        with DeviceWatch(device_index(part.args.device)) as watch:
            found = bench.merge(merge, how.device, ["--trace", str(trace)] if traced else [])
        if traced:
            packed = gzip.compress(trace.read_bytes(), 6)
            name = re.sub(r"\W", "-", f"{part.name}-{merge}{how.name}")
            (part.args.out / f"{name}.trace.json.gz").write_bytes(packed)
    measured.first = found
    measured.device_bytes = watch.rise_bytes
    return found | {"device_rise_bytes": watch.rise_bytes}


def one_round(bench: Bench, merge: str, turn: int, how: How, measured: Measured) -> Json:
    """What is measured takes turns in going first."""
    found: Json = {}
    runs = [
        ("floor", lambda: bench.floor(merge, how.device)),
        ("merge", lambda: bench.merge(merge, how.device)),
    ]
    if merge in how.beside:
        runs.append(("beside", lambda: bench.merge(merge, how.beside[merge])))
    if how.cold:
        runs.append(("pump", lambda: bench.pump(fsync=True)))
    for name, measure in runs if turn % 2 == 0 else reversed(runs):
        if how.cold:
            make_cold(bench.files())
        found[name] = measure()
    measured.rounds.append((found["merge"], found["floor"]))
    if merge in how.beside:
        measured.beside.append(found["beside"])
    if how.cold:
        measured.pumps.append(found["pump"])
    return found


def stream_tables(
    part: Part, bench: Bench, runs: dict[str, Measured], alone: Json, pumped: Json | None
) -> None:
    table = part.table(
        "Merges in memory",
        [
            "merge",
            "s",
            "floor s",
            "× floor",
            "target",
            "process s",
            "in GB/s",
            "of the copy to the GPU",
            "held back by",
        ],
        f"{gb(bench.input_bytes)} in, {gb(bench.output_bytes)} out; medians of the rounds. `s`: from the "
        "first read to the last write, as the floor is timed: the same pump, kernels off. `process s`: from "
        "start to exit. `in GB/s`: "
        "inputs by `s`; beside it the share of what torch's copies reach with nothing else running."
        + (
            f" Reading and writing alone, without mergeforge and a GPU, took {pumped['seconds']:.2f} s."
            if pumped
            else ""
        ),
    )
    for merge, measured in runs.items():
        if measured.rounds:
            rate = bench.input_bytes / 1e9 / measured.median("seconds")
            table.rows.append(
                [
                    merge,
                    f"{measured.median('seconds'):.2f}",
                    f"{measured.floor_s():.2f}",
                    f"{measured.ratio():.2f}",
                    f"≤ {FLOOR_RATIO_MOST}: {met(measured.ratio() <= FLOOR_RATIO_MOST)}",
                    f"{measured.median('process_seconds'):.2f}",
                    f"{rate:.1f}",
                    f"{rate / alone['h2d']:.0%}" if "h2d" in alone else "not run",
                    measured.merges()[-1]["bottleneck"],
                ]
            )
    floors_beside(part, bench, runs, alone)
    memory_table(part, runs)
    stage_table(part, runs)
    part.save()


def floors_beside(part: Part, bench: Bench, runs: dict[str, Measured], alone: Json) -> None:
    """The floor itself, checked against what its parts would take by themselves."""
    table = part.table(
        "The floor beside independent figures",
        ["what", "s"],
        "What each way alone would take for the same bytes: no floor can be faster than the slowest of them.",
    )
    rates = {
        "inputs to the GPU": (bench.input_bytes, "h2d"),
        "inputs to the GPU while it copies back": (bench.input_bytes, "both_each_way"),
        "output from the GPU": (bench.output_bytes, "d2h"),
        "inputs read by all cores": (bench.input_bytes, "file read"),
    }
    for what, (moved, key) in rates.items():
        table.rows.append([what, f"{moved / 1e9 / alone[key]:.2f}" if key in alone else "not run"])
    table.rows += [[f"floor of {merge}", f"{one.floor_s():.2f}"] for merge, one in runs.items() if one.rounds]


def memory_table(part: Part, runs: dict[str, Measured], where: str = "") -> None:
    table = part.table(
        f"Peak memory{where}",
        ["merge", "resident", "rise of the machine's", "target", "rise of the GPU's", "target"],
        "`resident`: ru_maxrss. The machine's: outside of the page cache, since pinned buffers and the "
        "driver's memory may not count as resident; other programs count too. The GPU's: by nvidia-smi ten "
        "times a second, with the driver's context.",
    )
    for merge, one in runs.items():
        if one.first:
            resident, rise = one.host_bytes()
            host = met(max(resident, rise) <= HOST_BYTES_MOST)
            there = one.device_bytes
            device = "not run: nvidia-smi told nothing" if there is None else met(there <= DEVICE_BYTES_MOST)
            aims = f"≤ {gib(HOST_BYTES_MOST)}: {host}", f"≤ {gib(DEVICE_BYTES_MOST)}: {device}"
            table.rows.append([merge, gib(resident), gib(rise), aims[0], gib(there), aims[1]])


def stage_table(part: Part, runs: dict[str, Measured], where: str = "") -> None:
    names = list(
        dict.fromkeys(
            stage["stage"] for one in runs.values() for found in one.merges() for stage in found["stages"]
        )
    )
    table = part.table(
        f"Stages{where}: busy share, and GB/s while busy", ["merge", *names], "The last round of each."
    )
    for merge, one in runs.items():
        if one.rounds:
            stages = {stage["stage"]: stage for stage in one.merges()[-1]["stages"]}
            cells = [
                f"{stages[name]['share']:.0%}, {stages[name]['gb_per_s']:.1f}" if name in stages else "–"
                for name in names
            ]
            table.rows.append([merge, *cells])


def measure_wgpu(part: Part, bench: Bench, found: Json, of_cuda: dict[str, Measured]) -> None:
    """The same merges through WebGPU, on the first adapter whose speed says something, beside CUDA's."""
    adapter = next(iter(measured_adapters(part, found)), None)
    if adapter is None:
        part.step("merges on wgpu", not_after(why_no_adapter(found)))
        return
    ran_on = {merge: one.first["device"] for merge, one in of_cuda.items() if one.first}
    if any(device.startswith("wgpu") for device in ran_on.values()):
        part.step("merges on wgpu", not_after(f"--device {part.args.device} was one"))
        return
    on_cuda = {merge: device for merge, device in ran_on.items() if device.startswith("cuda")}
    how = How(
        adapter["id"],
        name=f" on {adapter['id']}",
        rounds=3,
        # For the bytes; other settings take what is left.
        left_share=1 / 6,
        beside=dict.fromkeys(on_cuda, part.args.device),
    )
    runs = measure_merges(part, bench, how)
    another_card = not all(same_card(adapter, device) for device in on_cuda.values())
    wgpu_table(part, how.name, runs, another_card)
    memory_table(part, runs, how.name)
    stage_table(part, runs, how.name)
    compare_bytes(part, bench, how)


def wgpu_table(part: Part, where: str, runs: dict[str, Measured], another_card: bool) -> None:
    table = part.table(
        f"Merges{where} beside CUDA",
        [
            "merge",
            "process s",
            "CUDA's process s",
            "× CUDA's",
            "target",
            "s",
            "CUDA's s",
            "× CUDA's",
            "floor s",
            "× floor",
            "first process s",
            "held back by",
        ],
        "Medians of the rounds. `process s`: from start to exit, so the device is opened in it, and the "
        "target is for it. `s`: from the first read to the last write. `CUDA's`: of merges in the same "
        "rounds. `floor s`: the floor through wgpu. `first process s`: the run before the rounds. In that of "
        "the first merge, the shaders are compared with the CPU, if the program does so before it uses them.",
    )
    for merge, one in runs.items():
        if not one.rounds:
            continue
        beside, aim = ["–"] * 4, "not run: CUDA has no merges to compare"
        if one.beside:
            beside = [
                f"{one.median_beside('process_seconds'):.2f}",
                f"{one.ratio_beside('process_seconds'):.2f}",
                f"{one.median_beside('seconds'):.2f}",
                f"{one.ratio_beside('seconds'):.2f}",
            ]
            aim = met(one.ratio_beside("process_seconds") <= WGPU_RATIO_MOST)
            aim += ", another card" if another_card else ""
        table.rows.append(
            [
                merge,
                f"{one.median('process_seconds'):.2f}",
                *beside[:2],
                f"≤ {WGPU_RATIO_MOST:.0f}: {aim}" if merge == "ties" else "",
                f"{one.median('seconds'):.2f}",
                *beside[2:],
                f"{one.floor_s():.2f}",
                f"{one.ratio():.2f}",
                f"{one.first['process_seconds']:.2f}",
                one.merges()[-1]["bottleneck"],
            ]
        )
    part.save()


def compare_bytes(part: Part, bench: Bench, how: How) -> None:
    for merge in MERGES:
        part.step(
            f"{merge}{how.name}: the CPU's bytes",
            lambda merge=merge: same_bytes(bench, merge, how.device),
            needs_s=30,
        )


def same_bytes(bench: Bench, merge: str, device: str) -> Json:
    """The output on the device and on the CPU: digests in the manifests, and the files as written."""
    there = bench.merge(merge, device, sums=True)
    here = bench.merged_by_cpu(merge)
    for what in ("by_tensor", "by_file"):
        if there[what] != here[what]:
            differ = [name for name, found in here[what].items() if there[what].get(name) != found]
            raise Failed(f"error: {len(differ)} of {len(here[what])} {what[3:]}s differ: {differ[:8]}")
    return {"tensors": here["tensors"], "cpu_seconds": here["seconds"], "device_seconds": there["seconds"]}


def sweep(part: Part, bench: Bench) -> None:
    """One setting at a time away from the defaults, for ties."""
    table = part.table(
        "Ties with other settings",
        ["setting", "s", "floor s", "× floor", "resident", "held back by"],
        "One run of each: for orientation.",
    )
    count = cores()
    threads = sorted({2, max(1, count // 2), count, 2 * count})
    settings = [("--threads", str(n)) for n in threads]
    settings += [
        ("--chunk-tiles", str(n)) for n in ((1, 16) if part.args.tiny else (512, 1024, 2048, 4096, 8192))
    ]
    settings += [("--host-memory", f"{n}MiB") for n in ((64,) if part.args.tiny else (512, 1024, 2048, 4096))]

    def one(setting: tuple[str, str]) -> Json:
        merge = bench.merge("ties", part.args.device, list(setting))
        floor = bench.floor("ties", part.args.device, list(setting))
        times = [
            f"{merge['seconds']:.2f}",
            f"{floor['seconds']:.2f}",
            f"{merge['seconds'] / floor['seconds']:.2f}",
        ]
        table.rows.append([" ".join(setting), *times, gib(merge["rss_bytes"]), merge["bottleneck"]])
        return {"merge": merge, "floor": floor}

    for setting in settings:
        part.step(f"ties {' '.join(setting)}", lambda setting=setting: one(setting), needs_s=10)
    part.step("ties with known thresholds", lambda: with_known_thresholds(bench, table), needs_s=10)


def with_known_thresholds(bench: Bench, table: Table) -> Json:
    """A merge that uses what the one before found: a single pass."""
    first, again = (bench.merge("ties", bench.args.device, recall=True) for _ in range(2))
    if first["digest"] != again["digest"]:
        raise Failed("error: known thresholds changed the output")
    table.rows.append(
        ["thresholds known", f"{again['seconds']:.2f}", "–", "–", gib(again["rss_bytes"]), again["bottleneck"]]
    )
    return {"first": first, "again": again}


# ----------------------------------------------------------------------------------------------------------
# Part: disk


def make_cold(files: list[pathlib.Path]) -> None:
    """Lets the page cache forget files that are on the disk. What others left unwritten is not the next run's
    to wait for."""
    os.sync()
    for file in files:
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if os.geteuid() == 0:
        # A container may not be allowed to; the advice above is what counts.
        with contextlib.suppress(OSError):
            pathlib.Path("/proc/sys/vm/drop_caches").write_text("1")


def part_disk(part: Part) -> None:
    machine(part)
    folder = part.args.dir or part.args.out / "disk-models"
    part.facts["file system"] = kind = filesystem_of(existing(folder))
    if kind in ("tmpfs", "ramfs") and not part.args.tiny:
        part.step("models", not_after(f"{existing(folder)} is in memory: --dir takes a folder on a disk"))
        return
    shape = chosen_shape(part, folder, in_memory=False, most_bytes=part.args.gigabytes * 1e9)
    with bench_in(part, folder, shape, fsync=True) as bench:
        if not models_ready(part):
            return
        runs = measure_merges(part, bench, How(part.args.device, cold=True, rounds=3))
        disk_tables(part, bench, runs)
        table = part.table(
            "Ties, nothing in the page cache, reads past it", ["reads", "s", "CPU s"], "One run of each."
        )
        for how in ("copied", "direct"):
            part.step(f"ties --reads {how}", lambda how=how: cold_reads(bench, how, table), needs_s=30)


def cold_reads(bench: Bench, how: str, table: Table) -> Json:
    make_cold(bench.files())
    found = bench.merge("ties", bench.args.device, ["--reads", how])
    table.rows.append([how, f"{found['seconds']:.2f}", f"{found['cpu_seconds']:.1f}"])
    return found


def disk_tables(part: Part, bench: Bench, runs: dict[str, Measured]) -> None:
    table = part.table(
        "Merges on the disk, nothing in the page cache",
        [
            "merge",
            "s",
            "floor s",
            "× floor",
            "target",
            "with fsync s",
            "alone with fsync s",
            "×",
            "really read",
            "held back by",
        ],
        f"{gb(bench.input_bytes)} in, {gb(bench.output_bytes)} out; medians of the rounds. `s` and "
        "`floor s`: to the last write, before fsync. `with fsync s`: the whole process, from start to exit. "
        "`alone`: this tool's threads read the inputs, and write and sync as many bytes as the output has. "
        "`really read`: what the merge read from the disk, by the inputs' bytes: below 95 % it was not cold. "
        "The host of a virtual machine may have cached all the same.",
    )
    for merge, one in runs.items():
        if not one.rounds:
            continue
        alone_s = statistics.median(pump["seconds"] for pump in one.pumps)
        table.rows.append(
            [
                merge,
                f"{one.median('seconds'):.2f}",
                f"{one.floor_s():.2f}",
                f"{one.ratio():.2f}",
                f"≤ {FLOOR_RATIO_MOST}: {met(one.ratio() <= FLOOR_RATIO_MOST)}",
                f"{one.median('process_seconds'):.2f}",
                f"{alone_s:.2f}",
                f"{one.median('process_seconds') / alone_s:.2f}",
                f"{one.median('disk_read_bytes') / bench.input_bytes:.0%}",
                one.merges()[-1]["bottleneck"],
            ]
        )
    memory_table(part, runs)
    stage_table(part, runs)
    part.save()


# ----------------------------------------------------------------------------------------------------------
# Part: mergekit

MERGEKIT_VERSION = "0.1.5"

MERGEKIT_MODES = (["--cuda"], ["--cuda", "--lazy-unpickle"], ["--cuda", "--low-cpu-memory"], ["--gpu-rich"])

# Synthetic models have no tokenizer, for which mergekit would ask the network.
MERGEKIT_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

MERGEKIT_RUN = "from mergekit.scripts.run_yaml import main; main()"


def part_mergekit(part: Part) -> None:
    machine(part)
    folder = part.args.dir or pathlib.Path("/dev/shm/mergeforge-gpu-check")
    part.facts["file system"] = filesystem_of(existing(folder))
    with tempfile.TemporaryDirectory(prefix="gpu_check-") as site:
        environment = part.step("mergekit", lambda: installed(part, pathlib.Path(site)))
        if environment is None:
            return
        with bench_in(part, folder, chosen_shape(part, folder, in_memory=True), fsync=False) as bench:
            if models_ready(part):
                measure_mergekit(part, bench, environment)


def installed(part: Part, site: pathlib.Path) -> Json:
    """mergekit from the wheels that are given. Its own needs come from there too, or are on the machine."""
    wheels = part.args.wheels
    if wheels is None:
        raise NotRun("no --wheels were given")
    files = sorted(wheels.glob("*.whl"))
    if not files:
        raise NotRun(f"{wheels.name} has no wheels")
    flags = [
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-compile",
        "--disable-pip-version-check",
        "--target",
        site,
    ]
    succeeded(run([sys.executable, "-m", "pip", "install", *flags, *files], part.left_s()), "pip")
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = MERGEKIT_ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(paths)}
    ask = "import importlib.metadata as m, torch; print(m.version('mergekit'), torch.cuda.is_available())"
    version, cuda = succeeded(run([sys.executable, "-c", ask], 120, environment), "mergekit").out.split()
    if version != MERGEKIT_VERSION:
        raise Failed(f"mergekit {version} is there, and not {MERGEKIT_VERSION}")
    if cuda != "True":
        raise NotRun("torch sees no GPU")
    return environment


def measure_mergekit(part: Part, bench: Bench, environment: dict[str, str]) -> None:
    table = part.table(
        f"Beside mergekit {MERGEKIT_VERSION}",
        [
            "merge",
            "mergekit",
            "s",
            "without start-up s",
            "mergeforge s",
            "ratio",
            "without start-up",
            "target",
            "resident",
        ],
        "Whole processes. Each of mergekit's runs stands beside one of mergeforge's on the same files. The "
        "start-up is that of `--help`: imports.",
    )
    command = [sys.executable, "-c", MERGEKIT_RUN]
    helped = part.step(
        "start-up",
        lambda: {
            "seconds": [
                succeeded(run([*command, "--help"], 120, environment), "help").wall_s for _ in range(2)
            ][-1]
        },
    )
    start_s = helped["seconds"] if helped else 0.0

    def one(merge: str, mode: list[str]) -> Json:
        ours = bench.merge(merge, part.args.device)
        with bench.output() as out:
            ran = run([*command, bench.config(merge), out, *mode], part.left_s(), environment)
            succeeded(ran, " ".join(["mergekit", *mode]))
            if not list(out.glob("*.safetensors")):
                raise Failed(f"mergekit wrote nothing\n{ran.words()}")
        wall_s, our_s = ran.wall_s, ours["process_seconds"]
        ratio = wall_s / our_s
        cells = [f"{wall_s:.1f}", f"{wall_s - start_s:.1f}", f"{our_s:.2f}", f"{ratio:.1f}"]
        cells += [
            f"{(wall_s - start_s) / our_s:.1f}",
            f"≥ {MERGEKIT_RATIO_LEAST:.0f}: {met(ratio >= MERGEKIT_RATIO_LEAST)}",
        ]
        table.rows.append([merge, " ".join(mode), *cells, gib(ran.rss_bytes)])
        return {"mergekit_seconds": wall_s, "ratio": ratio, "rss_bytes": ran.rss_bytes, "mergeforge": ours}

    part.step("warm-up", lambda: bench.merge(MERGES[0], part.args.device))
    for merge, mode in itertools.product(MERGES, MERGEKIT_MODES):
        part.step(
            f"{merge}, mergekit {' '.join(mode)}", lambda merge=merge, mode=mode: one(merge, mode), needs_s=20
        )


# ----------------------------------------------------------------------------------------------------------
# Command line

RUN_PART = {"kernels": part_kernels, "stream": part_stream, "disk": part_disk, "mergekit": part_mergekit}

WORKERS = {"generate": worker_generate, "copy": worker_copy, "pump": worker_pump, "torch": worker_torch}


def parse_args() -> argparse.Namespace:
    path = pathlib.Path
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=[*PARTS, "all"])
    parser.add_argument("--binary", type=path, required=True, help="the built mergeforge")
    parser.add_argument("--out", type=path, required=True, help="folder for PART.json and PART.md")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help="for all that is asked for [%(default)s]"
    )
    in_memory = "/dev/shm/mergeforge-gpu-check, for disk OUT/disk-models"
    parser.add_argument("--dir", type=path, help=f"folder for models and outputs [{in_memory}]")
    parser.add_argument("--layers", type=int, help="of Llama-2-7B's 32 [as many as there is room for]")
    parser.add_argument(
        "--gigabytes", type=float, default=20, help="disk: inputs and output at most [%(default)s]"
    )
    parser.add_argument("--device", default="cuda", help="for merges but those on wgpu [%(default)s]")
    parser.add_argument(
        "--flags", default="", metavar="WORDS", help='more flags for merges and floors, like "--threads 8"'
    )
    parser.add_argument(
        "--repeat", type=int, help="rounds [5; disk and wgpu 3], and repeats of bench kernels [9; CPU 3]"
    )
    parser.add_argument("--mebi-elements", type=int, help="of bench kernels [64]")
    parser.add_argument("--seed", type=int, default=1, help="of the models [%(default)s]")
    parser.add_argument("--no-sweep", action="store_true", help="stream: no runs with other settings")
    parser.add_argument("--skip", metavar="PATTERN", help="leave out steps whose name has this")
    parser.add_argument("--keep-models", action="store_true", help="leave the models for the next part")
    parser.add_argument(
        "--wheels", type=path, help=f"folder with wheels of mergekit {MERGEKIT_VERSION} and its needs"
    )
    parser.add_argument("--tiny", action="store_true", help="everything as small as it gets: a rehearsal")
    args = parser.parse_args()
    args.mebi_elements = args.mebi_elements or (1 if args.tiny else 64)
    for name in ("binary", "out", "dir", "wheels"):
        if getattr(args, name):
            # Not `resolve`: a program may be a link that must be called by its name.
            setattr(args, name, getattr(args, name).absolute())
    if not os.access(args.binary, os.X_OK):
        parser.error(f"{args.binary} is no program")
    if args.device == "cpu" and args.part != "kernels" and not args.tiny:
        say("--device cpu: figures of a GPU will be missing or meaningless")
    return args


def run_part(name: str, args: argparse.Namespace, deadline: float) -> bool:
    part = Part(name, args, deadline)
    try:
        RUN_PART[name](part)
    finally:
        part.save()
    counts = [sum(step["status"] == status for step in part.steps) for status in ("ok", "failed", "not run")]
    say("{}: {} ok, {} failed, {} not run".format(name, *counts))
    print(part.markdown())
    return not part.failed()


def run_parts(args: argparse.Namespace) -> bool:
    deadline = time.monotonic() + 60 * args.minutes
    chosen = list(PARTS) if args.part == "all" else [args.part]
    good = True
    for number, name in enumerate(chosen):
        share = PART_SHARES[name] / sum(PART_SHARES[later] for later in chosen[number:])
        left_s = deadline - time.monotonic()
        good &= run_part(name, args, time.monotonic() + left_s * share)
    return good


def main() -> int:
    if len(sys.argv) == 3 and sys.argv[1].startswith("worker-"):
        print(json.dumps(WORKERS[sys.argv[1].removeprefix("worker-")](json.loads(sys.argv[2]))))
        return 0
    # So that a call that is cut off takes its models away.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu_check-") as cache:
        # Devices that the program checks before their first use are checked once in each call of this tool.
        os.environ["MERGEFORGE_CACHE"] = cache
        return 0 if run_parts(args) else 1


if __name__ == "__main__":
    sys.exit(main())
