"""Are the tensors of a merge those of the exact result? For `any_config.py`.

The exact result is mergekit's at `dtype: float64`, which it computes by other code, with other libraries, from the same files. A
stored value may differ from it by its own rounding and a few roundings of float32. Elements that hang on a free choice or a
rounding are left out (`mergekit_undecided.py`). Random masks are judged by how many elements they leave.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from mergekit_cases import ANGLES
from mergekit_inputs import cached_checkpoint, load_checkpoint
from mergekit_rows import is_of_tokens, vocabulary, with_aligned
from mergekit_undecided import input_arrays, origin, probabilities, task_vectors, undecided

# Of the largest value of a tensor: what a few roundings in float32 may change; more for methods that solve for angles.
ROUNDINGS = 2e-6
ROUNDINGS_OF_ANGLES = 2e-5

# The models' values are of this size; where they cancel out, the rounding of a sum is still relative to them.
SIZE = 0.3

# Half a unit in the last place, relative to a value and absolute.
HALF_ULP = {
    torch.float64: (0.0, 0.0),
    torch.float32: (2.0**-24, 0.0),
    torch.bfloat16: (2.0**-8, 0.0),
    torch.float16: (2.0**-11, 2.0**-25),
}

# What the rounding of a stage may change, of the largest value of a tensor.
STAGE_LEEWAY = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-11}

# Methods whose masks are random.
RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")

# Methods that treat each element by itself: the same whether experts are one tensor or many.
ELEMENTWISE = ("linear", "task_arithmetic", "passthrough")

DEVIATIONS = 5

# A config says more than `mergekit_undecided.py` reads, or its models are not where it says.
UNREAD = (AssertionError, IndexError, KeyError, OSError, StopIteration, TypeError, ValueError)

# Routers of mixtures, and the least cosine of two that are made of the same prompts.
GATE = re.compile(r"\.(gate|shared_expert_gate)\.weight$")
ALIKE = 0.999

# So far from 1 may be the ratio of two deviations, of a thousand random numbers each.
SPREAD = 0.15


@dataclasses.dataclass
class Judgement:
    tensors: int = 0
    elements: int = 0
    left_out: int = 0
    worst: float = 0.0
    # Of the largest value of a tensor.
    leeway: float = ROUNDINGS
    problems: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def verdict(self) -> str:
        if self.problems:
            more = f" (and {len(self.problems) - 2} more)" if len(self.problems) > 2 else ""
            return "DIFFER: " + "; ".join(self.problems[:2]) + more
        words = f"{self.tensors} as exact" + (f", {self.left_out} elements undecided" if self.left_out else "")
        return "; ".join([words, *self.notes])


def judge(
    out: pathlib.Path,
    exact: pathlib.Path,
    settings: dict[str, Any] | None,
    methods: Sequence[str],
    stage_type: str = "float32",
) -> Judgement:
    """`settings` is the config with folders for the names of models, where it is one merge; `methods` are those of all its
    merges; `stage_type` is what earlier merges of the config are stored in, which the exact result is not."""
    angles = any(method in ANGLES for method in methods)
    judgement = Judgement(leeway=STAGE_LEEWAY[stage_type] + (ROUNDINGS_OF_ANGLES if angles else ROUNDINGS))
    ours, theirs = load_checkpoint(out), load_checkpoint(exact)
    theirs = theirs if same_layout(ours) else split_experts(theirs)
    compare_names(judgement, ours, theirs, out)
    rows = token_rows(judgement, out, exact)
    compare_config(judgement, ours, out, exact)
    decisions = Decisions(settings, out)
    compared = sorted(ours.keys() & theirs.keys())
    if any(method in RANDOM for method in methods):
        compared = judge_masks(judgement, decisions, ours, theirs, compared, rows)
    for name in compared:
        if "experts" in name and not same_layout(ours) and settings and settings.get("merge_method") not in ELEMENTWISE:
            continue
        compare_tensor(judgement, decisions, name, ours[name], theirs[name], rows)
    cached_checkpoint.cache_clear()
    return judgement


def judge_mixture(out: pathlib.Path, exact: pathlib.Path, config: dict[str, Any]) -> Judgement:
    """A mixture of experts by mergekit's, in the same type. Routers that are drawn at random have nothing to agree in; those
    made of prompts agree in their direction, since mergekit computes hidden states in 16 bits. Experts with noise have as much
    of it."""
    gate_mode = str(config.get("gate_mode", "hidden"))
    noisy = tuple(
        f".experts.{number}." for number, expert in enumerate(config["experts"]) if float(expert.get("noise_scale") or 0)
    )
    judgement = Judgement()
    ours, theirs = load_checkpoint(out), load_checkpoint(exact)
    ours, theirs = (tensors if same_layout(theirs) == same_layout(ours) else split_experts(tensors) for tensors in (ours, theirs))
    compare_names(judgement, ours, theirs, out)
    compare_config(judgement, ours, out, exact)
    for name in sorted(ours.keys() & theirs.keys()):
        if any(part in name for part in noisy):
            spread = float(ours[name].double().std() / theirs[name].double().std())
            if not abs(spread - 1) < SPREAD:
                judgement.problems.append(f"{name}: spread {spread:.3f} times as far as mergekit's")
        elif not GATE.search(name):
            # What is copied is the same; what is computed was rounded twice.
            compare_tensor(judgement, Decisions(None, out), name, ours[name], theirs[name], None)
        elif ours[name].shape != theirs[name].shape:
            judgement.problems.append(f"{name}: shape {list(ours[name].shape)}, not {list(theirs[name].shape)}")
        elif "random" not in gate_mode:
            cosine = torch.nn.functional.cosine_similarity(ours[name].double(), theirs[name].double(), dim=-1)
            nothing = (ours[name] == 0).all(-1)
            if bool(nothing.any()):
                # mergekit brings what 16 bits leave of the difference to length 1.
                judgement.notes.append(f"{name}: prompts and negative prompts have the same states")
                cosine[nothing] = 1
            if not float(cosine.min()) > ALIKE:
                judgement.problems.append(f"{name}: the cosine of a router's row is {float(cosine.min()):.4f}")
    return judgement


# ---------------------------------------------------------------------------------------------------------------------
# Names and files


def same_layout(ours: dict[str, torch.Tensor]) -> bool:
    """Whether experts, if there are any, are one tensor each."""
    return not any(re.search(r"\.experts\.\d+\.", name) for name in ours)


# A fused tensor of experts, the names of its parts in one expert, and the block that holds the experts.
FUSED = re.compile(r"^(.*)\.mlp\.experts\.(gate_up_proj|down_proj)$")


def split_experts(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """mergekit writes Mixtral's experts as one tensor under other names than the checkpoints have; Qwen's too."""
    split = {}
    for name, tensor in tensors.items():
        if not (found := FUSED.match(name)):
            split[name] = tensor
            continue
        layer, kind = found.groups()
        for number, expert in enumerate(tensor):
            half = expert.shape[0] // 2
            parts = {"gate_up_proj": (("gate_proj", expert[:half]), ("up_proj", expert[half:]))}
            for part, values in parts.get(kind, (("down_proj", expert),)):
                split[f"{layer}.mlp.experts.{number}.{part}.weight"] = values
    mixtral = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
    for name in list(split):
        if found := re.match(r"^(.*)\.mlp\.experts\.(\d+)\.(\w+)\.weight$", name):
            layer, number, part = found.groups()
            split[f"{layer}.block_sparse_moe.experts.{number}.{mixtral[part]}.weight"] = split[name]
        elif name.endswith(".mlp.gate.weight"):
            split[name.replace(".mlp.", ".block_sparse_moe.")] = split[name]
    return split


def compare_names(judgement: Judgement, ours: dict, theirs: dict, out: pathlib.Path) -> None:
    tied = json.loads((out / "config.json").read_text()).get("tie_word_embeddings")
    missing = [name for name in theirs.keys() - ours.keys() if not (tied and name.endswith("lm_head.weight"))]
    if not same_layout(ours):
        missing = [name for name in missing if ".mlp." not in name and ".block_sparse_moe." not in name]
        judgement.notes.append("experts stay apart, as in the inputs")
    if missing:
        judgement.problems.append(f"{len(missing)} tensors are missing: {', '.join(sorted(missing)[:3])}")
    if more := sorted(ours.keys() - theirs.keys()):
        judgement.notes.append(f"{len(more)} tensors that mergekit leaves out ({more[0]})")


def compare_config(judgement: Judgement, ours: dict, out: pathlib.Path, exact: pathlib.Path) -> None:
    a, b = (json.loads((folder / "config.json").read_text()) for folder in (out, exact))
    for key in ("vocab_size", "num_hidden_layers", "model_type", "architectures"):
        if a.get(key) != b.get(key):
            judgement.problems.append(f"config.json: {key} is {a.get(key)}, not {b.get(key)}")
    rows = [tensor.shape[0] for name, tensor in ours.items() if "embed_tokens" in name or name.endswith("word_embeddings.weight")]
    if "vocab_size" in a and rows and rows[0] != a["vocab_size"]:
        judgement.problems.append(f"config.json: vocab_size is {a['vocab_size']}, and there are {rows[0]} rows")


def token_rows(judgement: Judgement, out: pathlib.Path, exact: pathlib.Path) -> tuple[np.ndarray, np.ndarray] | None:
    """The rows of the same tokens in both, where the two tokenizers number them in different orders."""
    vocabularies = [vocabulary(folder / "tokenizer.json") for folder in (out, exact)]
    a, b = vocabularies
    if a is None or b is None or a == b:
        return None
    if a.keys() != b.keys():
        apart = sorted(a.keys() ^ b.keys())
        judgement.problems.append(f"{len(apart)} tokens only on one side: {', '.join(apart[:3])}")
    else:
        judgement.notes.append("tokens in another order")
    common = sorted(a.keys() & b.keys(), key=a.get)
    return np.array([a[token] for token in common]), np.array([b[token] for token in common])


# ---------------------------------------------------------------------------------------------------------------------
# Values


class Decisions:
    """What a config leaves open, for each tensor: needs the models, and for rows that were moved, models with such rows."""

    def __init__(self, settings: dict[str, Any] | None, out: pathlib.Path):
        self.settings = settings
        numbers = vocabulary(out / "tokenizer.json") or {}
        self.tokens = sorted(numbers, key=numbers.get)

    @contextlib.contextmanager
    def config_for(self, name: str, shape: tuple[int, ...]) -> Iterator[dict[str, Any] | None]:
        """The config, of models whose tensor has the shape that it has in the output; none if that cannot be had."""
        if self.settings is None:
            yield None
            return
        with tempfile.TemporaryDirectory() as folder:
            try:
                settings = self.settings
                if any(array.shape != shape for array in input_arrays(origin(settings, name))) and is_of_tokens(name):
                    settings = with_aligned(settings, name, self.tokens, shape[0], pathlib.Path(folder))
            except UNREAD:
                settings = None
            yield settings

    def left_open(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Elements that either tool may choose."""
        with self.config_for(name, shape) as settings:
            try:
                return np.broadcast_to(undecided(settings, name), shape) if settings else np.zeros(shape, bool)
            except UNREAD:
                return np.zeros(shape, bool)


def compare_tensor(
    judgement: Judgement,
    decisions: Decisions,
    name: str,
    ours: torch.Tensor,
    theirs: torch.Tensor,
    rows: tuple[np.ndarray, np.ndarray] | None,
) -> None:
    a, b = ours.double().numpy(), theirs.double().numpy()
    a, b = by_token(name, a, b, rows)
    if a.shape != b.shape:
        judgement.problems.append(f"{name}: shape {list(a.shape)}, not {list(b.shape)}")
        return
    judgement.tensors += 1
    judgement.elements += a.size
    relative, absolute = HALF_ULP.get(ours.dtype, (0.0, 0.0))
    size = max(np.abs(b).max(initial=0), SIZE)
    allowed = relative * np.abs(b) + absolute + size * judgement.leeway
    difference = np.where(np.isnan(a) & np.isnan(b), 0, np.abs(a - b))
    far = ~(difference <= allowed)
    if far.any():
        left_out = far & decisions.left_open(name, a.shape)
        judgement.left_out += int(left_out.sum())
        far &= ~left_out
    if far.any():
        judgement.problems.append(f"{name}: {int(far.sum())} of {far.size} differ, by up to {difference[far].max():.2g}")
    judgement.worst = max(judgement.worst, float((difference / size)[~far].max(initial=0)))


def by_token(name: str, a: np.ndarray, b: np.ndarray, rows: tuple[np.ndarray, np.ndarray] | None) -> tuple:
    return (a[rows[0]], b[rows[1]]) if rows and a.ndim and is_of_tokens(name) else (a, b)


def judge_masks(
    judgement: Judgement,
    decisions: Decisions,
    ours: dict[str, torch.Tensor],
    theirs: dict[str, torch.Tensor],
    names: list[str],
    rows: tuple[np.ndarray, np.ndarray] | None,
) -> list[str]:
    """How many elements random masks leave, of both tools; returns the tensors that have nothing random."""
    exact, kept, expected, variance, lengths = [], [0, 0], 0.0, 0.0, [0.0, 0.0]
    skipped = 0
    for name in names:
        outs = by_token(name, *(tensor[name].double().numpy() for tensor in (ours, theirs)), rows)
        with decisions.config_for(name, outs[0].shape) as settings:
            try:
                base, vectors = task_vectors(settings or {}, name)
                chances = [probabilities(settings, vector) * (vector.delta != 0) for vector in vectors if vector.weight != 0]
            except UNREAD:
                skipped += 1
                continue
        if all(vector.density >= 1 for vector in vectors):
            exact.append(name)
            continue
        if any(out.shape != base.shape for out in outs):
            judgement.problems.append(f"{name}: shapes {[out.shape for out in outs]} of a base with {base.shape}")
            continue
        chance = 1 - np.prod([1 - one for one in chances], axis=0)
        expected += float(chance.sum())
        variance += float((chance * (1 - chance)).sum())
        judgement.tensors += 1
        judgement.elements += base.size
        for tool, out in enumerate(outs):
            # An aligned base was rounded to float32.
            kept[tool] += int((np.abs(out - base) > 1e-7 * np.abs(base)).sum())
            lengths[tool] += float(np.abs(out - base).sum())
    if skipped:
        judgement.notes.append(f"{skipped} tensors with random masks not judged")
    for tool, count in zip(("mergeforge", "mergekit"), kept, strict=True):
        if abs(count - expected) > DEVIATIONS * math.sqrt(variance) + 1:
            judgement.problems.append(f"{tool} kept {count} elements, not {expected:.0f}")
    if lengths[1] and abs(lengths[0] / lengths[1] - 1) > 0.02:
        judgement.problems.append(f"the sum of |delta| is {lengths[0] / lengths[1]:.4f} times mergekit's")
    if expected:
        judgement.notes.append(f"random masks kept {kept[0]} and {kept[1]} of {expected:.0f} expected")
    return exact
