#!/usr/bin/env python3
"""Counts what the kernels cost on a GPU, instruction by instruction, and compares it with what the memory has time for.

    python3 tools/kernel_cost.py              # counts, and writes the table of docs/performance.md
    python3 tools/kernel_cost.py --check      # counts; exit code 1 if a kernel became worse, or the table is another
    python3 tools/kernel_cost.py --self-test  # are planted changes found?

No GPU is needed: the PTX of the repository is assembled for sm_90 (with the compilers of `build_kernels.py`), disassembled, and
followed from the head of the loop over tiles back to it. There are many ways through that loop: other types of the output, odd
values, cuts among equal magnitudes. Which of them a row stands for is said by what must happen on it (`Way`): so many loads of
16 bytes, stores, shuffles, comparisons, and no call of what is rare. Of all ways on which that happens, the shortest counts: loops
inside the loop are gone through as often as it takes.

    issue   a multiprocessor issues 4 instructions of 32 threads a clock, and a tile is worked on by 4 times 32 threads: so a
            tile takes as many clocks as a thread has instructions
    ALU     integers, logic, comparisons and selections: 64 lanes, so 2 clocks for each instruction of a thread
    budget  the clocks in which the memory moves a tile: bytes x 1024 / (4.3 TB/s / 132) x 1.755 GHz, of an H200

`before` has issue and ALU clocks of the time when every block went the way of the odd ones. A row may have a largest share of
its budget (`most`), which --check holds.

The larger of issue and ALU bounds a kernel from below. It is a bound and no measurement: waits, conflicts and the work around
the loop come on top.
"""

import argparse
import collections
import dataclasses
import heapq
import pathlib
import re
import sys
import tempfile

import build_kernels
from build_kernels import Failure

ROOT = build_kernels.ROOT
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- kernels -->", "<!-- /kernels -->"
GPU = "sm_90"

# An H200: what a copy moved in a second, multiprocessors, clocks in a second.
BYTES_PER_SECOND, MULTIPROCESSORS, CLOCK = 4.3e12, 132, 1.755e9
TILE, ELEMENTS_OF_A_THREAD = 1024, 8


# What runs where, by the beginning of the name; the first that fits. All other names are the ALU's.
PIPES = {
    "FP32": ("FADD", "FMUL", "FFMA", "IMAD", "HADD2", "HMUL2", "HFMA2"),
    "memory": ("LD", "ST", "ATOM", "RED.", "REDG", "SHFL", "CCTL", "MEMBAR"),
    "branch": ("BRA", "BRX", "BSSY", "BSYNC", "BREAK", "CALL", "RET", "EXIT", "WARPSYNC", "BAR", "NOP", "YIELD", "JMP"),
    "uniform": ("U", "R2UR", "S2UR"),
    "other": ("S2R", "CS2R", "MUFU", "POPC", "REDUX", "FLO", "I2F.", "F2I", "F2F.", "BREV", "LEPC", "DEPBAR"),
}

# What happens on a way through the loop. Philox is known by its multipliers.
EVENTS = {
    "load": re.compile(r"^LDG\.\S*128"),
    "store": re.compile(r"^STG\.\S*128"),
    "shuffle": re.compile(r"^SHFL"),
    "keep": re.compile(r"^STS"),
    "add": re.compile(r"^ATOMS"),
    "compare": re.compile(r"^(FSETP?|ISETP|ISET)\b"),
    "arithmetic": re.compile(r"^F(ADD|MUL)"),
    "flag": re.compile(r"^FSET\."),
    "clamp": re.compile(r"^FMUL\.SAT"),
    "choose": re.compile(r"^FSEL"),
    "pack": re.compile(r"^PRMT"),
    "look up": re.compile(r"^LDS"),
    "draw": re.compile(r"0x[dD]2511[fF]53|-0x2[dD]AEE0AD", re.IGNORECASE),
}


@dataclasses.dataclass
class Way:
    """An entry, what it does, the bytes a parameter that it moves, and what must happen on the way through its loop."""

    entry: str
    what: str
    bytes: float
    # How often: exactly, or with a +, at least.
    happens: dict[str, str]
    # Of its budget, the most that it may take: 1 is the memory's own time.
    most: float | None = None
    # Issue and ALU clocks before ordinary blocks had ways of their own.
    before: tuple[int, int] | None = None


def merged(models: int) -> float:
    """Bytes a parameter of a merge of a base and so many models in bfloat16."""
    return 2.0 * (models + 2)


# What is left of the memory's time is for waits, which are not counted.
MOST = 0.8

# Of a block that takes the fast path: whole tiles, nothing odd, no cut among equal magnitudes inside of it, no undecided draw.
BEFORE = {
    "ties": {1: (424, 498), 2: (659, 794), 4: (1124, 1346)},
    "dare_ties": {1: (427, 520), 2: (685, 860), 4: (1184, 1482)},
}


def ways() -> list[Way]:
    found = []
    for models in (1, 2, 4):
        entry, loads = f"consensus_{models}_bfloat16", {"load": f"{models + 1}", "store": "1"}
        # Terms are compared with the elected sign by a multiplication, and the factor of those that agree is looked up.
        both = loads | {"clamp": f"{8 * models}", "look up": "8+", "pack": "4"}
        operations = 6 * models + 1
        # Magnitudes are compared with their model's threshold, weighed and counted.
        trimmed = {"flag": f"{8 * models}", "draw": "0", "arithmetic": f"{8 * (operations + 2 * models)}"}
        ties = both | trimmed
        found.append(Way(entry, f"ties, base + {models}", merged(models), ties, MOST, BEFORE["ties"][models]))
        # The first two of ten rounds have one product that differs between elements; a draw takes two comparisons.
        drawn = {"draw": f"{8 * models}+", "compare": f"{16 * models}+", "choose": f"{8 * models}"}
        dare = both | drawn | {"arithmetic": f"{8 * operations}"}
        # The generator leaves four models no more than the memory's time.
        most = MOST if models < 4 else 1.0
        found.append(Way(entry, f"dare_ties, base + {models}", merged(models), dare, most, BEFORE["dare_ties"][models]))
    # Two sums a model, of differences and of those that are kept, and the fold of one by each warp.
    sums = {"load": "3", "keep": "4", "shuffle": "5", "draw": "16+", "choose": "16", "arithmetic": f"{2 * (8 + 7 + 7) + 3 + 5}"}
    found.append(Way("masked_sums_2_bfloat16", "dare, base + 2", 6, sums, MOST, (550, 594)))
    # One key is counted by each thread for itself. The way of all others between the levels is the same for 2 and for 16: the
    # worst case has every key there.
    alone = {"load": "3", "look up": "0", "add": "0", "arithmetic": "48"}
    found.append(Way("levels_2_bfloat16", "base + 2, one level", 6, alone, MOST))
    between = {"load": "3", "look up": f"{2 * 8 * 5}", "add": f"{2 * 8}"}
    found.append(Way("levels_2_bfloat16", "base + 2, every key between 16 levels", 6, between, before=(2866, 2924)))
    # Beside a key that threads count for themselves, few others are in the bracket; here all of them are, and nothing is left of
    # the memory's time. The worst case has every key in a bracket; differences, signs of what is below, and keys with low bits are floats' work.
    bins = {"load": "3", "add": f"{2 * 8}"}
    found.append(Way("magnitudes_2_bfloat16", "base + 2", 6, {**bins, "arithmetic": "48"}, MOST, (1377, 1236)))
    found.append(Way("magnitudes_2_bfloat16", "base + 2, with a common key", 6, {**bins, "arithmetic": "64"}, 1.0, (1377, 1236)))
    anchored = {"load": "5", "store": "1", "arithmetic": "32+"}
    found.append(Way("weighted_sum_bfloat16", "base + 1", merged(1), anchored))
    products = {"load": "2", "keep": "3", "shuffle": "5", "arithmetic": "53+"}
    found.append(Way("gram_bfloat16", "base + 1", 4, products))
    return found


# The machine code.


@dataclasses.dataclass
class Block:
    """Instructions that follow each other, and the blocks that may come next."""

    instructions: list[str]
    next: list[int] = dataclasses.field(default_factory=list)


INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;")


def blocks_of(code: str) -> list[Block]:
    """The blocks of an entry."""
    lines: list[tuple[str, str]] = []
    for line in code.splitlines():
        if label := re.match(r"^(\.L_x_\d+):", line):
            lines.append(("label", label[1]))
        elif instruction := INSTRUCTION.match(line):
            lines.append(("instruction", instruction[1]))
    blocks, at = [Block([])], {}
    for kind, text in lines:
        if kind == "label" and blocks[-1].instructions:
            blocks.append(Block([]))
        if kind == "label":
            at[text] = len(blocks) - 1
            continue
        blocks[-1].instructions.append(text)
        if re.match(r"(@!?U?P\d+ )?(BRA|EXIT|RET|BRX)\b", text):
            blocks.append(Block([]))
    for number, block in enumerate(blocks):
        last = block.instructions[-1] if block.instructions else ""
        leaves = re.match(r"(@!?U?P\d+ )?(BRA|EXIT|RET|BRX)\b", last)
        # A predicate that is written with a branch as an operand; a branch for warps whose threads have parted.
        always = leaves and not leaves[1] and not re.search(r"BRA\S* !?U?P\d|BRA\.DIV", last)
        if leaves and (target := re.search(r"`\((\.L_x_\d+)\)", last)):
            block.next.append(at[target[1]])
        if not always and number + 1 < len(blocks):
            block.next.append(number + 1)
    return blocks


def bare(instruction: str) -> str:
    """An instruction without its predicate."""
    return re.sub(r"^@!?U?P\w+\s+", "", instruction)


def opcode(instruction: str) -> str:
    return bare(instruction).split(" ", 1)[0]


def pipe(name: str) -> str:
    return next((found for found, beginnings in PIPES.items() if name.startswith(beginnings)), "ALU")


# Ways through it.


def heads_of_loops(blocks: list[Block]) -> list[int]:
    """Where loops begin: what is jumped back to."""
    return sorted({to for number, block in enumerate(blocks) for to in block.next if to <= number})


def shortest(blocks: list[Block], head: int, happens: dict[str, str]) -> list[int] | None:
    """The blocks of the shortest way from a block back to it on which everything happens."""
    names = list(happens)
    exactly = [not count.endswith("+") for count in happens.values()]
    wanted = tuple(int(count.rstrip("+")) for count in happens.values())
    events = [[sum(bool(EVENTS[name].search(bare(one))) for one in block.instructions) for name in names] for block in blocks]
    rare = [any(one.startswith(("CALL", "EXIT", "RET")) for one in block.instructions) for block in blocks]

    def through(happened: tuple[int, ...], number: int) -> tuple[int, ...] | None:
        after = []
        for have, more, want, exact in zip(happened, events[number], wanted, exactly, strict=True):
            if exact and have + more > want:
                return None
            after.append(min(have + more, want))
        return tuple(after)

    begin = through((0,) * len(names), head)
    if begin is None:
        return None
    length = len(blocks[head].instructions)
    waiting = [(length, head, begin)]
    before: dict[tuple[int, tuple[int, ...]], tuple[int, tuple[int, ...]] | None] = {(head, begin): None}
    least = {(head, begin): length}
    while waiting:
        length, number, happened = heapq.heappop(waiting)
        if length > least[(number, happened)]:
            continue
        for to in blocks[number].next:
            if to == head and happened == wanted:
                way, place = [], (number, happened)
                while place is not None:
                    way.append(place[0])
                    place = before[place]
                return way[::-1]
            after = None if rare[to] or to == head else through(happened, to)
            if after is None:
                continue
            longer = length + len(blocks[to].instructions)
            if longer < least.get((to, after), longer + 1):
                least[(to, after)] = longer
                before[(to, after)] = (number, happened)
                heapq.heappush(waiting, (longer, to, after))
    return None


# What it costs.


@dataclasses.dataclass
class Cost:
    """What a thread issues for a tile, by where it runs."""

    pipes: dict[str, int]

    @property
    def issue(self) -> int:
        return sum(self.pipes.values())

    @property
    def alu(self) -> int:
        return 2 * self.pipes.get("ALU", 0)


def budget(bytes_per_parameter: float) -> float:
    return bytes_per_parameter * TILE / (BYTES_PER_SECOND / MULTIPROCESSORS) * CLOCK


def cost(code: str, way: Way) -> Cost:
    """Of the ways through all loops, the shortest."""
    blocks = blocks_of(code)
    found = []
    for head in heads_of_loops(blocks):
        if numbers := shortest(blocks, head, way.happens):
            pipes = collections.Counter(pipe(opcode(one)) for number in numbers for one in blocks[number].instructions)
            found.append(Cost(dict(pipes)))
    if not found:
        happens = ", ".join(f"{count} {event}" for event, count in way.happens.items())
        raise Failure(f"{way.entry} has no way through a loop with {happens} ({way.what}): correct `ways` in this tool")
    return min(found, key=lambda one: one.issue)


def disassembled(tools: build_kernels.Tools, text: str, entry: str) -> str:
    with tempfile.TemporaryDirectory() as temporary:
        ptx = pathlib.Path(temporary) / "cut.ptx"
        cubin = ptx.with_suffix(".cubin")
        ptx.write_text(build_kernels.cut(text, entry), encoding="utf-8")
        for command in ([tools.ptxas, f"-arch={GPU}", ptx, "-o", cubin], [tools.nvdisasm, "--print-code", cubin]):
            ended = build_kernels.run(command)
            if ended.returncode:
                raise Failure(f"{entry}: {build_kernels.talk(ended)[:500]}")
    # Functions that an entry calls stand behind it in the same section, or in sections of their own.
    sections = re.split(r"^\s*\.section\s+\.text\.(\w+),.*$", ended.stdout, flags=re.MULTILINE)
    return dict(zip(sections[1::2], sections[2::2], strict=True))[entry]


@dataclasses.dataclass
class Row:
    """A row of the table."""

    way: Way
    cost: Cost

    @property
    def clocks(self) -> int:
        """What a tile takes at the least."""
        return max(self.cost.issue, self.cost.alu)

    def __str__(self) -> str:
        kernel, clocks = build_kernels.kernel_of(self.way.entry), budget(self.way.bytes)
        share = min(100.0, 100.0 * clocks / self.clocks)
        each = [self.cost.issue, *(self.cost.pipes.get(name, 0) for name in COLUMNS)]
        counts = [f"{count / ELEMENTS_OF_A_THREAD:.1f}" for count in each]
        before = "/".join(map(str, self.way.before or ()))
        bounds = [before, f"{self.cost.issue}", f"{self.cost.alu}", f"{clocks:.0f}", f"{share:.0f} %"]
        return f"| {' | '.join([f'`{kernel}`', self.way.what, *counts, *bounds])} |"


def rows_of(tools: build_kernels.Tools, folder: pathlib.Path) -> list[Row]:
    codes: dict[str, str] = {}
    rows = []
    for way in ways():
        if way.entry not in codes:
            text = (folder / f"{build_kernels.kernel_of(way.entry)}.ptx").read_text(encoding="utf-8")
            codes[way.entry] = disassembled(tools, text, way.entry)
        rows.append(Row(way, cost(codes[way.entry], way)))
    return rows


# The table.

COLUMNS = ("ALU", "FP32", "memory", "branch", "uniform", "other")


def table(rows: list[Row]) -> str:
    heads = ["kernel", "of bfloat16", "instructions", *COLUMNS, "before", "issue", "ALU clocks", "budget", "at most"]
    ruler = ["---", "---", *["---:"] * (len(heads) - 2)]
    return "\n".join([*(f"| {' | '.join(cells)} |" for cells in (heads, ruler)), *map(str, rows)]) + "\n"


def recorded(page: str) -> tuple[str, dict[tuple[str, str], tuple[int, int]]]:
    """The table of a page, and the clocks of each of its rows."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise Failure(f"{PAGE} must have {BEGIN} and {END} once each: the table stands between them")
    found = page.split(BEGIN)[1].split(END)[0].strip() + "\n"
    clocks = {}
    for line in found.splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        clocks[(cells[0].strip("`"), cells[1])] = (int(cells[-4]), int(cells[-3]))
    return found, clocks


def problems(page: str, rows: list[Row]) -> list[str]:
    """What became worse since the page was written; or that it is not what was counted."""
    found, clocks = recorded(page)
    worse = []
    for row in rows:
        kernel = build_kernels.kernel_of(row.way.entry)
        before, now = clocks.get((kernel, row.way.what)), (row.cost.issue, row.cost.alu)
        if before and any(new > old for new, old in zip(now, before, strict=True)):
            clocks_now, clocks_before = (f"{issue} issue and {alu} ALU clocks" for issue, alu in (now, before))
            worse.append(f"{kernel}, {row.way.what}: became worse, {clocks_now} a tile after {clocks_before}")
    if worse:
        return [*worse, "where it has to be so, run python3 tools/kernel_cost.py"]
    beyond = [row for row in rows if row.way.most and row.clocks > row.way.most * budget(row.way.bytes)]
    if beyond:
        each = [f"{row.way.entry}, {row.way.what}: {row.clocks} clocks of {budget(row.way.bytes):.0f}" for row in beyond]
        return [*each, "more than `ways` in this tool allows (`most`)"]
    if found != table(rows):
        return [f"{PAGE} is not what was counted: run python3 tools/kernel_cost.py, and commit what it changes"]
    return []


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--check", action="store_true", help="write nothing, fail if a kernel became worse")
    arguments.add_argument("--self-test", action="store_true", help="count planted code, fail if a change is not found")
    arguments.add_argument("--kernels", type=pathlib.Path, default=ROOT / "kernels", metavar="DIR")
    arguments.add_argument("--venv", type=pathlib.Path, default=ROOT / "target" / "kernels-venv", metavar="DIR")
    given = arguments.parse_args()
    if given.self_test:
        self_test()
        return
    rows = rows_of(build_kernels.prepare(given.venv.absolute()), given.kernels / "ptx")
    print(table(rows), end="")
    page = PAGE.read_text(encoding="utf-8")
    if given.check:
        if wrong := problems(page, rows):
            raise Failure("\n".join(wrong))
        print(f"{len(rows)} rows: as in {PAGE}")
        return
    recorded(page)
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(rows)}\n{END}{after}", encoding="utf-8")


# Are changes found?

# A loop with a loop in it, a way around that one, and a call of what is rare.
PLANTED = """
        /*0000*/                   S2R R0, SR_TID.X ;
.L_x_0:
        /*0010*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0020*/               @P0 BRA `(.L_x_2) ;
.L_x_1:
        /*0030*/                   SHFL.DOWN PT, R9, R8, 0x10, 0x1f ;
        /*0040*/                   IADD3 R8, R8, R9, RZ ;
        /*0050*/               @P1 BRA `(.L_x_1) ;
.L_x_2:
        /*0060*/                   FADD R6, R4, R5 ;
        /*0070*/              @!P2 BRA `(.L_x_3) ;
        /*0080*/                   CALL.REL.NOINC `(count_odd) ;
        /*0090*/                   BRA `(.L_x_0) ;
.L_x_3:
        /*00a0*/                   ULDC.64 UR4, c[0x0][0x208] ;
        /*00b0*/               @P3 BRA `(.L_x_0) ;
        /*00c0*/                   EXIT ;
"""


def self_test() -> None:
    def counted(code: str, happens: dict[str, str]) -> Row:
        way = Way("planted_bfloat16", "three rounds", 4, happens)
        return Row(way, cost(code, way))

    def must(right: bool, what: str) -> None:
        if not right:
            raise Failure(f"a planted change is not found: {what}")

    row = counted(PLANTED, {"load": "1", "shuffle": "3"})
    pipes = {"ALU": 3, "FP32": 1, "memory": 4, "branch": 6, "uniform": 1}
    must(row.cost.pipes == pipes, f"the pipes, of {row.cost.pipes}")
    must((row.cost.issue, row.cost.alu) == (15, 6), f"the sums, of {row.cost}")
    must(counted(PLANTED, {"load": "1", "shuffle": "0"}).cost.issue == 6, "the way around the inner loop")
    must(counted(PLANTED, {"load": "1", "shuffle": "2+"}).cost.issue == 12, "two rounds of the inner loop")
    for impossible in ({"store": "1"}, {"load": "1", "shuffle": "1", "add": "1+"}):
        try:
            must(False, f"a way with {impossible}, of {counted(PLANTED, impossible)}")
        except Failure as failure:
            must("has no way" in str(failure), str(failure))
    page = f"before\n{BEGIN}\n\n{table([row])}\n{END}\nafter\n"
    must(problems(page, [row]) == [], "nothing, of the same page")
    line = "        /*00a0*/                   ULDC.64 UR4, c[0x0][0x208] ;\n"
    longer = counted(PLANTED.replace(line, line + line.replace("ULDC.64", "LOP3.LUT")), row.way.happens)
    reported = "became worse, 16 issue and 8 ALU clocks a tile after 15 issue and 6 ALU clocks"
    must(reported in problems(page, [longer])[0], "an instruction more")
    for most, fails in ((15.1 / budget(4), False), (14.9 / budget(4), True)):
        held = Row(dataclasses.replace(row.way, most=most), row.cost)
        must(bool(problems(page, [held])) == fails, f"15 clocks, of which {most:.4f} of the budget are allowed")
    shorter = counted(PLANTED.replace(line, ""), row.way.happens)
    must("is not what was counted" in problems(page, [shorter])[0], "an instruction less")
    print("planted changes found")


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(f"tools/kernel_cost.py: {failure}")
