#!/usr/bin/env python3
"""Builds kernels/*.cu and kernels/forward/*.cu into kernels/ptx/*.ptx, and examines each for what users' drivers rely on. Needs no GPU.

The PTX is in the repository and in the binary, so that a user needs the NVIDIA driver and nothing else. It must therefore
be the same bytes wherever it is built, be text that drivers from CUDA 12.0 on accept, and round as the CPU does.
The compilers are wheels with exact versions, in a virtual environment of their own (349 MB on the disk).

    python3 tools/build_kernels.py                # builds, checks, and writes what has changed
    python3 tools/build_kernels.py --check        # builds and checks; exit code 1 if kernels/ptx is not what was built
    python3 tools/build_kernels.py --self-test    # are planted faults found?
    python3 tools/build_kernels.py --cuts DIR     # writes what drivers get for some methods; needs no compiler

Checks: every PTX assembles for every GPU below, with the assemblers of CUDA 13.0 and 12.0; for the measured GPUs
no entry spills or has a stack; the machine code of sm_90 has no fused multiply-add; every entry states its block size. The
table shows the resources of each entry, and the time of the assembler.

A driver does not get a whole file: each entry is cut out of it (see `cut`), and it compiles the entries that a merge needs
when the merge is the first of its kind on a device. Every cut assembles, and what the first merges of some methods need is
assembled in at most half a second of one processor.

A PTX begins with the hash of its sources, which `cargo test` computes again (`tests/all/kernel_files.rs`), and the recipe:

    // mergeforge kernel NAME, source blake3:HASH
    // recipe: RECIPE

The hash is of prelude.cuh, params.cuh, counting.cuh, choice.cuh, NAME.cu and the recipe, in this order. Each is hashed as the length of
its name (8 bytes, little endian), its name, the length of its content, its content; the last one's name is `recipe`.
"""

import argparse
import concurrent.futures
import dataclasses
import importlib
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Every wheel that is used, and no dependencies: theirs are not pinned, and resolve to versions that clash.
WHEELS = [
    "blake3==1.0.11",
    "nvidia-cuda-cccl==13.0.85",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-nvcc-cu12==12.0.76",
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-nvdisasm==13.2.78",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-nvvm==13.0.88",
]

# compute_75 is the oldest that CUDA 13 knows; drivers translate it for any later GPU. Without --fmad=false, x * y + z is
# rounded once where the CPU rounds twice. Division, square root and subnormals are exact unless one asks otherwise.
FLAGS = ["-ptx", "-arch=compute_75", "-std=c++17", "--fmad=false", "-O3", "-Werror", "all-warnings"]

# What kernels may include.
HEADERS = ["prelude.cuh", "params.cuh", "counting.cuh", "choice.cuh"]

# What the hash knows of the build. Change it with anything that may change the text.
RECIPE = f"nvcc 13.0.88 {' '.join(FLAGS)}; .version: the oldest that assembles; module ids zeroed"

# CUDA 13 writes 9.0, which older drivers refuse; 8.0 is what those of CUDA 12.0 read.
VERSIONS = ["7.0", "7.1", "7.2", "7.3", "7.4", "7.5", "7.6", "7.7", "7.8", "8.0"]

# Turing, Ampere, Hopper and Blackwell: assembled as a driver does it, so that registers and spills are known.
GPUS_MEASURED = ["sm_75", "sm_80", "sm_90", "sm_120"]
# These need only take the text, which the assembler finds out in a third of the time when it does not optimise.
GPUS_TAKING = ["sm_86", "sm_89", "sm_100"]
# The same with the assembler of CUDA 12.0, which knows none after Hopper.
GPUS_TAKING_OLD = ["sm_75", "sm_80", "sm_90"]
# In the table.
GPUS_SHOWN = ["sm_75", "sm_80", "sm_90"]
# Whose machine code is read. One, since the disassembler takes over a second to start.
GPU_READ = "sm_90"

# Entries that may spill or have a stack, with the bytes and the reason. None does.
STACK_ALLOWED: dict[str, int] = {}
# Entries that may hold fused multiply-adds, with how many. Only the assembler's own sequences for exact division and
# square roots are a reason: they round as the CPU does.
FUSED_ALLOWED: dict[str, int] = {"decoder_norm": 27, "decoder_soften": 16, "decoder_gate": 17}

# The entries that the program has compiled before a merge of a base and two models in bfloat16 (slerp: one model) begins.
# `tests/all/first_use.rs` compares this with what it asks of a driver.
FIRST_USE = {
    "ties": ["keys_bfloat16", "levels_1_bfloat16", "levels_2_bfloat16", "magnitudes_2_bfloat16", "consensus_2_bfloat16"],
    "dare_ties": ["masked_sums_2_bfloat16", "consensus_2_bfloat16"],
    "linear": ["weighted_sum_bfloat16"],
    "slerp": ["gram_bfloat16", "weighted_sum_bfloat16"],
}
# Of a processor's time, which other programs cannot take away; the least of so many runs.
FIRST_USE_SECONDS_MAX = 0.5
FIRST_USE_RUNS = 5

STACK_HINT = (
    "What a called function gets the address of, and arrays that are not indexed by constants, have to be on a stack. "
    "Spills end with fewer values at once, or __launch_bounds__(threads, blocks) with fewer blocks."
)
FUSED_HINT = (
    "Leave out fma(), and / and sqrt of floats, of which the assembler makes them: "
    "if that is what they are, and must be, add the entry to FUSED_ALLOWED."
)

FUSED = re.compile(r"\b[FD]FMA2?\b")
BLOCK_MAX = 1024


class Failure(Exception):
    """What is wrong with which file, and the way out."""


@dataclasses.dataclass
class Usage:
    """What an entry takes on one GPU."""

    registers: int = 0
    stack: int = 0
    spilled: int = 0
    shared: int = 0
    assembled_ms: float = 0.0
    fused: int = 0


@dataclasses.dataclass
class Kernel:
    """A built kernel: its text, and what each entry takes on each GPU."""

    name: str
    text: str
    version: str
    block: dict[str, int]
    usage: dict[str, dict[str, Usage]]


@dataclasses.dataclass
class Assembly:
    """A GPU that a kernel is assembled for."""

    gpu: str
    old: bool = False
    measured: bool = False

    def __str__(self) -> str:
        return f"the assembler of CUDA {'12.0' if self.old else '13.0'} for {self.gpu}"


ASSEMBLIES = [
    *(Assembly(gpu, measured=True) for gpu in GPUS_MEASURED),
    *(Assembly(gpu) for gpu in GPUS_TAKING),
    *(Assembly(gpu, old=True) for gpu in GPUS_TAKING_OLD),
]


@dataclasses.dataclass
class Tools:
    nvcc: pathlib.Path
    ptxas: pathlib.Path
    ptxas_old: pathlib.Path
    nvdisasm: pathlib.Path


def run(command: list[object], folder: pathlib.Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], cwd=folder, capture_output=True, text=True, check=False)


def talk(ended: subprocess.CompletedProcess[str]) -> str:
    return (ended.stdout + ended.stderr).strip()


# The compilers.


def prepare(folder: pathlib.Path) -> Tools:
    """The virtual environment with the wheels; made anew when it is not of these wheels and this Python."""
    for command in ("gcc", "g++"):
        if not shutil.which(command):
            raise Failure(f"{command} is missing, which nvcc uses as its preprocessor: install it (apt-get install g++)")
    wanted = "\n".join([f"python {sys.version}", *WHEELS]) + "\n"
    stamp = folder / "wheels.txt"
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != wanted:
        install(folder)
        stamp.write_text(wanted, encoding="utf-8")
    packages = site_packages(folder)
    sys.path.insert(0, str(packages))
    nvidia = packages / "nvidia"
    new, old = nvidia / "cu13" / "bin", nvidia / "cuda_nvcc" / "bin"
    tools = Tools(new / "nvcc", new / "ptxas", old / "ptxas", new / "nvdisasm")
    for tool in dataclasses.astuple(tools):
        if not tool.is_file():
            raise Failure(f"{tool} is missing: remove {folder} and run this again")
    return tools


def site_packages(folder: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))


def install(folder: pathlib.Path) -> None:
    # A folder given by mistake must not be cleared.
    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").is_file():
        raise Failure(f"{folder} is no virtual environment: remove it, or name another with --venv")
    print(f"installing the compilers into {folder}", file=sys.stderr)
    try:
        venv.create(folder, clear=True, with_pip=True)
    except subprocess.CalledProcessError as error:
        raise Failure(f"{folder}: Python makes no virtual environment: install python3-venv") from error
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    ended = run([*pip, "--no-deps", "--no-compile", "--only-binary", ":all:", *WHEELS])
    if ended.returncode:
        raise Failure(f"{folder}: the compilers cannot be installed (there are wheels for Linux only):\n{talk(ended)}")


# The text.


def source_of(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Kernels of merges lie in the folder; what a forward pass needs and no merge, in a folder of its own."""
    path = folder / f"{name}.cu"
    return path if path.is_file() else folder / "forward" / path.name


def source_hash(folder: pathlib.Path, name: str) -> str:
    """See the top of this file."""
    files = [*(folder / header for header in HEADERS), source_of(folder, name)]
    hasher = importlib.import_module("blake3").blake3()
    for part, content in [*((file.name, file.read_bytes()) for file in files), ("recipe", RECIPE.encode())]:
        hasher.update(len(part).to_bytes(8, "little") + part.encode())
        hasher.update(len(content).to_bytes(8, "little") + content)
    return hasher.hexdigest()


def compiled(tools: Tools, folder: pathlib.Path, name: str, work: pathlib.Path) -> str:
    """nvcc's text from `.version` on, without what depends on the place of the sources."""
    out = work / "nvcc.ptx"
    source = source_of(folder, name)
    ended = run([tools.nvcc, *FLAGS, f"-I{folder.absolute()}", source.name, "-o", out], source.parent)
    if ended.returncode:
        raise Failure(f"{folder / name}.cu does not compile:\n{talk(ended)}")
    # Before it is what nvcc says of itself; the recipe names its version.
    text = out.read_text(encoding="utf-8")
    text = text[text.index(".version ") :]
    # Names with internal linkage carry a hash of the file's path. The length stays: it is part of the name.
    return re.sub(r"(_INTERNAL_|_GLOBAL__N__)[0-9a-f]{8}_", r"\g<1>00000000_", text)


def lowered(tools: Tools, text: str, work: pathlib.Path, name: str) -> tuple[str, str]:
    """The text with the oldest `.version` that assembles, and that version."""
    ended = None
    for version in VERSIONS:
        candidate, count = re.subn(r"\A\.version \d+\.\d+$", f".version {version}", text, flags=re.MULTILINE)
        if count != 1:
            raise Failure(f"{name}.ptx has no .version: nvcc writes something new, so look at `compiled` in this tool")
        path = work / "lowered.ptx"
        path.write_text(candidate, encoding="utf-8")
        ended = run([tools.ptxas, f"-arch={GPUS_MEASURED[0]}", path, "-o", work / "lowered.cubin"])
        if ended.returncode == 0:
            return candidate, version
    raise Failure(
        f"{name}.cu gives no PTX that drivers of CUDA 12.0 read ({VERSIONS[-1]} for {GPUS_MEASURED[0]}): "
        f"replace the instructions that are named here:\n{talk(ended)}"
    )


def block_sizes(text: str) -> dict[str, int]:
    """The entries, and the most threads of a block that each is compiled for (0: not reported)."""
    found = {}
    for head in re.finditer(r"^\.visible \.entry (\w+)\((.*?)^\{", text, re.MULTILINE | re.DOTALL):
        limits = re.search(r"^\.maxntid ([\d, ]+)$", head[2], re.MULTILINE)
        threads = 1
        for side in limits[1].split(",") if limits else ["0"]:
            threads *= int(side)
        found[head[1]] = threads
    return found


# What a driver gets.


@dataclasses.dataclass
class Part:
    """An entry, a function, or something else at the top of a PTX file."""

    kind: str
    name: str
    text: str


def parts(text: str) -> tuple[str, list[Part]]:
    """The head of a file (`.version`, `.target`, `.address_size`), and its parts: each begins with a directive at the beginning
    of a line, and ends with a line `}` or, as long as there was no line `{`, with a line that ends with `;`."""
    lines = text.splitlines(keepends=True)
    behind = next(i for i, line in enumerate(lines) if line.startswith(".address_size")) + 1
    found, part = [], []
    for line in lines[behind:]:
        if not part and not line.startswith("."):
            continue
        part.append(line)
        if line == "}\n" or ("{\n" not in part and line.endswith(";\n")):
            words = part[0].split()
            kind = next((kind for kind in (".entry", ".func") if kind in words), "")
            name = re.search(r"([\w$]*)\W*$", part[0].rpartition("(")[0])
            found.append(Part(kind, name[1] if name else "", "".join(part)))
            part = []
    return "".join(line for line in lines[:behind] if line.startswith(".")), found


def cut(text: str, entry: str) -> str:
    """The text that a driver gets for an entry: the head, the entry, the functions that a part of the text mentions, and
    every part that is neither. `src/backend/cuda/ptx.rs` cuts by the same rule."""
    head, all_parts = parts(text)
    wanted = [part.kind == "" or (part.kind, part.name) == (".entry", entry) for part in all_parts]
    while True:
        so_far = "".join(part.text for part, is_wanted in zip(all_parts, wanted, strict=True) if is_wanted)
        more = [
            i
            for i, part in enumerate(all_parts)
            if not wanted[i] and part.kind == ".func" and re.search(rf"(?<![\w$]){re.escape(part.name)}(?![\w$])", so_far)
        ]
        if not more:
            break
        for i in more:
            wanted[i] = True
    return head + "".join("\n" + part.text for part, is_wanted in zip(all_parts, wanted, strict=True) if is_wanted)


def write_cuts(ptx: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes what a driver gets for the first merges: METHOD/ENTRY.ptx."""
    for method, entries in FIRST_USE.items():
        (folder / method).mkdir(parents=True)
        for entry in entries:
            text = (ptx / f"{kernel_of(entry)}.ptx").read_text(encoding="utf-8")
            (folder / method / f"{entry}.ptx").write_text(cut(text, entry), encoding="utf-8")


def kernel_of(entry: str) -> str:
    """The kernel of an entry: its name without the number of models and the type."""
    return re.sub(r"(_\d+)?_[a-z0-9]+$", "", entry)


def assemble_cut(tools: Tools, kernel: Kernel, entry: str) -> None:
    """Assembles the text of an entry, which must have no other."""
    with tempfile.TemporaryDirectory() as temporary:
        ptx = pathlib.Path(temporary) / "cut.ptx"
        ptx.write_text(cut(kernel.text, entry), encoding="utf-8")
        ended = run([tools.ptxas, "-v", "-O0", f"-arch={GPU_READ}", ptx, "-o", ptx.with_suffix(".cubin")])
        if ended.returncode:
            raise Failure(talk(ended))
        if (has := list(usage(talk(ended)))) != [entry]:
            raise Failure(f"the text has the entries {has}")


def first_use_seconds(tools: Tools, kernels: list[Kernel], methods: dict[str, list[str]]) -> dict[str, float]:
    """The time that assembling each entry takes of a processor. No other process of this one may run meanwhile."""
    texts = {entry: kernel.text for kernel in kernels for entry in kernel.block}
    seconds = {}
    with tempfile.TemporaryDirectory() as temporary:
        ptx = pathlib.Path(temporary) / "cut.ptx"
        for entry in sorted({entry for entries in methods.values() for entry in entries} & set(texts)):
            ptx.write_text(cut(texts[entry], entry), encoding="utf-8")
            seconds[entry] = min(assembling_seconds(tools, ptx) for _ in range(FIRST_USE_RUNS))
    return seconds


def assembling_seconds(tools: Tools, ptx: pathlib.Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = run([tools.ptxas, f"-arch={GPU_READ}", ptx, "-o", ptx.with_suffix(".cubin")])
    if ended.returncode:
        raise Failure(talk(ended))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def first_use_faults(seconds: dict[str, float], methods: dict[str, list[str]]) -> list[str]:
    found = []
    for method, entries in methods.items():
        missing = [entry for entry in entries if entry not in seconds]
        if missing:
            found.append(f"the first {method} needs {', '.join(missing)}, which no kernel has: correct FIRST_USE")
            continue
        total = sum(seconds[entry] for entry in entries)
        if total > FIRST_USE_SECONDS_MAX:
            each = ", ".join(f"{entry} {seconds[entry]:.2f}" for entry in entries)
            found.append(
                f"the first {method} waits for {total:.2f} s of assembling, {FIRST_USE_SECONDS_MAX} s is the most: {each}"
            )
    return found


def show_first_use(seconds: dict[str, float]) -> None:
    how = f"in ms of a processor for {GPU_READ}, the least of {FIRST_USE_RUNS}"
    print(f"first merge of a base and two models in bfloat16: what is compiled before it, {how}")
    for method, entries in FIRST_USE.items():
        each = ", ".join(f"{entry} {1e3 * seconds[entry]:.0f}" for entry in entries if entry in seconds)
        print(f"{method:10}{1e3 * sum(seconds.get(entry, 0) for entry in entries):>5.0f}: {each}")


# What the assemblers say.


def usage(said: str) -> dict[str, Usage]:
    """From `ptxas -v`. What it says of functions that an entry calls counts for the entry."""
    found: dict[str, Usage] = {}
    entry = Usage()
    for line in said.splitlines():
        if started := re.search(r"Compiling entry function '(\w+)'", line):
            entry = found.setdefault(started[1], Usage())
        if frame := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            entry.stack += int(frame[1])
            entry.spilled += int(frame[2]) + int(frame[3])
        if used := re.search(r"Used (\d+) registers", line):
            entry.registers = int(used[1])
            shared = re.search(r"(\d+)(?:\+\d+)? bytes smem", line)
            entry.shared = int(shared[1]) if shared else 0
            lasting = re.search(r"(\d+) bytes (?:cumulative stack size|lmem)", line)
            entry.stack = max(entry.stack, int(lasting[1]) if lasting else 0)
        if took := re.search(r"Compile time = ([\d.]+) ms", line):
            entry.assembled_ms = float(took[1])
    return found


def count_fused(nvdisasm: pathlib.Path, cubin: pathlib.Path, entries: dict[str, Usage]) -> None:
    """Counts the fused multiply-adds of each entry. A function that is called stands by itself: it counts for all."""
    ended = run([nvdisasm, "--print-code", cubin])
    sections = re.split(r"^\s*\.section\s+\.text\.(\w+),.*$", ended.stdout, flags=re.MULTILINE)
    if ended.returncode or not set(entries) <= set(sections[1::2]):
        raise Failure(f"nvdisasm does not show its entries: {talk(ended)[:500]}")
    for section, code in zip(sections[1::2], sections[2::2], strict=True):
        fused = len(FUSED.findall(code))
        for entry in [entries[section]] if section in entries else entries.values():
            entry.fused += fused


def assemble(tools: Tools, kernel: Kernel, assembly: Assembly) -> dict[str, Usage]:
    """What each entry takes on a GPU."""
    with tempfile.TemporaryDirectory() as temporary:
        ptx, cubin = pathlib.Path(temporary) / f"{kernel.name}.ptx", pathlib.Path(temporary) / "cubin"
        ptx.write_text(kernel.text, encoding="utf-8")
        effort = [] if assembly.measured else ["-O0"]
        ptxas = tools.ptxas_old if assembly.old else tools.ptxas
        ended = run([ptxas, "-v", *effort, f"-arch={assembly.gpu}", ptx, "-o", cubin])
        if ended.returncode:
            raise Failure(talk(ended))
        entries = usage(talk(ended))
        if set(entries) != set(kernel.block):
            raise Failure(f"entries {sorted(entries)} were assembled, and the PTX has {sorted(kernel.block)}")
        if assembly.measured and assembly.gpu == GPU_READ:
            count_fused(tools.nvdisasm, cubin, entries)
    return entries


def faults(kernel: Kernel) -> list[str]:
    """What is wrong with a kernel that assembles."""
    found = []
    for entry, threads in kernel.block.items():
        if not 0 < threads <= BLOCK_MAX:
            found.append(f"{entry} must have __launch_bounds__ of 1 to {BLOCK_MAX} threads, and has {threads}")
        on = kernel.usage.get(entry, {})
        beyond = {gpu: used for gpu, used in on.items() if used.stack + used.spilled > STACK_ALLOWED.get(entry, 0)}
        if beyond:
            numbers = ", ".join(f"{used.stack} and {used.spilled} on {gpu}" for gpu, used in beyond.items())
            found.append(f"{entry} has a stack and spills, in bytes: {numbers}. {STACK_HINT}")
        fused = on.get(GPU_READ, Usage()).fused
        if fused > FUSED_ALLOWED.get(entry, 0):
            found.append(f"{entry} has {fused} fused multiply-adds on {GPU_READ}. {FUSED_HINT}")
    if not kernel.block:
        found.append('there is no entry: declare one with extern "C" __global__')
    return found


# All of them.


def build(tools: Tools, folder: pathlib.Path, name: str) -> Kernel:
    with tempfile.TemporaryDirectory() as temporary:
        work = pathlib.Path(temporary)
        text, version = lowered(tools, compiled(tools, folder, name, work), work, name)
    head = f"// mergeforge kernel {name}, source blake3:{source_hash(folder, name)}\n// recipe: {RECIPE}\n"
    return Kernel(name, head + text, version, block_sizes(text), {})


def build_all(tools: Tools, folder: pathlib.Path, names: list[str], workers: int) -> tuple[list[Kernel], list[str]]:
    """The kernels that compile, and what is wrong with any."""
    built, wrong = [], []
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for future in [pool.submit(build, tools, folder, name) for name in names]:
            try:
                built.append(future.result())
            except Failure as failure:
                wrong.append(str(failure))
        # The longest first, so that no worker is left alone with it.
        longest = sorted(built, key=lambda kernel: -len(kernel.text))
        jobs = [(kernel, assembly) for kernel in longest for assembly in ASSEMBLIES]
        for (kernel, assembly), future in [(job, pool.submit(assemble, tools, *job)) for job in jobs]:
            try:
                entries = future.result()
            except Failure as failure:
                wrong.append(f"{folder / kernel.name}.cu is refused by {assembly}: {failure}")
                continue
            for entry, used in entries.items() if assembly.measured else []:
                kernel.usage.setdefault(entry, {})[assembly.gpu] = used
        cuts = [(kernel, entry) for kernel in built for entry in kernel.block]
        for (kernel, entry), future in [(job, pool.submit(assemble_cut, tools, *job)) for job in cuts]:
            try:
                future.result()
            except Failure as failure:
                wrong.append(f"{entry}, cut out of {kernel.name}.ptx, is refused: {failure}")
    wrong += [f"{folder / kernel.name}.cu: {fault}" for kernel in built for fault in faults(kernel)]
    return built, wrong


def show(kernels: list[Kernel]) -> None:
    gpus = "".join(f"{gpu:>24}" for gpu in GPUS_SHOWN)
    print(f"{'':36}{gpus}")
    columns = f"{'regs':>6}{'spill':>6}{'smem':>6}{'ms':>6}"
    print(f"{'entry':24}{'PTX':>5}{'block':>7}" + columns * len(GPUS_SHOWN))
    for kernel in kernels:
        for entry, gpus_used in kernel.usage.items():
            line = f"{entry:24}{kernel.version:>5}{kernel.block.get(entry, 0):>7}"
            for used in (gpus_used.get(gpu, Usage()) for gpu in GPUS_SHOWN):
                line += f"{used.registers:>6}{used.spilled + used.stack:>6}{used.shared:>6}{used.assembled_ms:>6.0f}"
            print(line)
    print("registers a thread; bytes of spills and stack, and of static shared memory; milliseconds of assembling")


def changes(kernels: list[Kernel], ptx: pathlib.Path) -> tuple[list[tuple[pathlib.Path, bytes]], list[pathlib.Path]]:
    """What differs in the folder: files to write, and files of kernels that are no more."""
    wanted = {ptx / f"{kernel.name}.ptx": kernel.text.encode() for kernel in kernels}
    stale = [path for path in sorted(ptx.glob("*.ptx")) if path not in wanted]
    changed = [(path, text) for path, text in wanted.items() if not path.is_file() or path.read_bytes() != text]
    return changed, stale


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--check", action="store_true", help="write nothing, fail if kernels/ptx is not what was built")
    arguments.add_argument("--self-test", action="store_true", help="build planted faults, fail if one is not found")
    arguments.add_argument("--cuts", type=pathlib.Path, metavar="DIR", help="write what drivers get for some methods")
    arguments.add_argument("--kernels", type=pathlib.Path, default=ROOT / "kernels", metavar="DIR")
    arguments.add_argument("--venv", type=pathlib.Path, default=ROOT / "target" / "kernels-venv", metavar="DIR")
    arguments.add_argument("--jobs", type=int, default=2, metavar="N", help="compilers and assemblers at once (2)")
    given = arguments.parse_args()
    if given.cuts:
        write_cuts(given.kernels / "ptx", given.cuts)
        return
    tools = prepare(given.venv.absolute())
    if given.self_test:
        self_test(tools)
    else:
        build_folder(tools, given.kernels, given.check, given.jobs)


def build_folder(tools: Tools, folder: pathlib.Path, check: bool, jobs: int) -> None:
    names = sorted(path.stem for place in (folder, folder / "forward") for path in place.glob("*.cu"))
    for needed in (folder / header for header in HEADERS):
        if not needed.is_file():
            raise Failure(f"{needed} is missing: --kernels DIR names the folder of the kernels")
    if not names:
        raise Failure(f"{folder} holds no .cu files: --kernels DIR names the folder of the kernels")
    kernels, wrong = build_all(tools, folder, names, jobs)
    show(kernels)
    seconds = first_use_seconds(tools, kernels, FIRST_USE)
    show_first_use(seconds)
    wrong += first_use_faults(seconds, FIRST_USE)
    if wrong:
        raise Failure("\n".join(wrong))
    changed, stale = changes(kernels, folder / "ptx")
    if check:
        differs = [f"{path} is not what its source gives now" for path, _ in changed]
        differs += [f"{path} belongs to no kernel" for path in stale]
        if differs:
            raise Failure("\n".join([*differs, "run python3 tools/build_kernels.py, and commit what it changes"]))
        print(f"{len(kernels)} kernels: as in {folder / 'ptx'}")
        return
    (folder / "ptx").mkdir(exist_ok=True)
    for path, text in changed:
        path.write_bytes(text)
    for path in stale:
        path.unlink()
    print(f"{len(kernels)} kernels: {len(changed)} written, {len(stale)} removed")


# Are faults found?

# Kernels with what must be known of them, each by the name of its entry or of its file.
PLANTED = {
    "entries": (
        """
#define ENTRY(name, threads) extern "C" __global__ void __launch_bounds__(threads) name(ARGUMENTS)
#define ARGUMENTS const uint4* memory, const unsigned* table, unsigned char* results
#define X(i) ((const float*)memory)[(i) * 1024 + threadIdx.x]
#define OUT(i) ((float*)results)[(i) * 1024 + threadIdx.x]
ENTRY(faultless, 256) { OUT(0) = X(0) * X(1) + 1.0f; }
ENTRY(fused, 256) { OUT(0) = __fmaf_rn(X(0), X(1), 1.0f); }
ENTRY(divides, 256) { OUT(0) = X(0) / X(1); }
ENTRY(stacks, 256) {
    float a[64] = {};
    for (int i = 0; i < 99; i++) a[table[i] % 64] += X(i);
    OUT(0) = a[table[99] % 64];
}
ENTRY(spills, 1024) {
    float a[99];
    #pragma unroll
    for (int i = 0; i < 99; i++) a[i] = X(i);
    __syncthreads();
    #pragma unroll
    for (int i = 0; i < 99; i++) OUT(i) = a[98 - i];
}
extern "C" __global__ void unbounded(ARGUMENTS) { OUT(0) = X(0); }
""",
        [
            "fused has 1 fused multiply-adds on sm_90",
            r"divides has \d+ fused multiply-adds on sm_90",
            r"stacks has a stack and spills, in bytes: 256 and 0 on sm_75",
            r"spills has a stack and spills, in bytes: .*\d and [1-9]\d* on sm_120",
            "unbounded must have __launch_bounds__ of 1 to 1024 threads, and has 0",
        ],
    ),
    "undefined": ("__device__ int f() { return x; }\n", [r'undefined\.cu does not compile:\n.*identifier "x" is undefined']),
    "warned": ("__device__ void f() { int unused; }\n", [r"warned\.cu does not compile:\n.*was declared but never referenced"]),
    "empty": ("__device__ int f() { return 1; }\n", [r"empty\.cu: there is no entry"]),
    "new": (
        """
extern "C" __global__ void __launch_bounds__(32) f(unsigned* out) {
    asm volatile("redux.sync.add.u32 %0, %0, 0xffffffff;" : "+r"(out[0]));
}
""",
        [r"new\.cu gives no PTX that drivers of CUDA 12\.0 read.*\n.*redux"],
    ),
}

# An entry that takes the assembler long by what it calls, beside one that does not.
DRAGGING = """
#define ENTRY(name) extern "C" __global__ void __launch_bounds__(256) name(const float* in, float* out)
#define ONCE sum = in[++i] > sum ? sum * in[i + 1] : sum - in[i / 2];
#define TENFOLD(step) step step step step step step step step step step
__device__ __noinline__ float long_way(const float* in) {
    float sum = 0.0f;
    int i = 0;
    TENFOLD(TENFOLD(TENFOLD(ONCE) ONCE ONCE ONCE ONCE ONCE))
    return sum;
}
ENTRY(light) { out[0] = in[0] * in[1]; }
ENTRY(dragging) { out[0] = in[0] > 0.0f ? long_way(in) : in[1]; }
"""


def self_test(tools: Tools) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        for name, (source, _) in PLANTED.items():
            (folder / f"{name}.cu").write_text(source, encoding="utf-8")
        for name in HEADERS:
            (folder / name).touch()
        _, wrong = build_all(tools, folder, list(PLANTED), 2)
        (folder / "dragging.cu").write_text(DRAGGING, encoding="utf-8")
        dragging = build(tools, folder, "dragging")
    methods = {"faultless merge": ["light"], "dragging merge": ["dragging", "light"], "lost merge": ["nowhere"]}
    wrong += first_use_faults(first_use_seconds(tools, [dragging], methods), methods)
    reported = "\n".join(wrong)
    expected = [fault for _, faults in PLANTED.values() for fault in faults]
    expected += ["the first dragging merge waits for .*: dragging .*, light 0\\.0", "the first lost merge needs nowhere"]
    missed = [f"a planted fault is not found: {fault}" for fault in expected if not re.search(fault, reported)]
    if missed or "faultless" in reported:
        raise Failure("\n".join([*missed, "the report must not say faultless:", reported]))
    print(f"{len(expected)} planted faults found")


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(f"tools/build_kernels.py: {failure}")
