#!/usr/bin/env python3
"""Does mergeforge give what mergekit 0.1.5 gives for the configs that people write?

The configs are in `mergekit_cases.py`, of our own making, the models in `mergekit_inputs.py`. Each is merged by both tools and
compared tensor by tensor: names, shapes, types, values. At `dtype: float32` both tools compute in float32, so what is left to
differ is rounding; anything more is a bug, or intended, and then the case says why.

    python tools/mergekit_agreement.py --mergeforge target/release/mergeforge --work DIR [--out benches/results/NAME.md] \\
        [--only PART_OF_A_NAME]

with the Python of an environment that has mergekit. The exit code is 1 if any case disagrees.

The scale of a difference is the largest of |out| (of both) and |input| at that element: the rounding of a sum is relative
to what was added up. Equal are elements that differ by at most 1e-6 of it, or not at all where 16 bits are stored. Two shares
of them are given: of all, and of those that are decided, whose value does not hang on a free choice or a rounding (see
`mergekit_undecided.py`); the differences are those of decided elements. Random masks are compared by what they leave: how many
elements, those of DELLA by the rank of their magnitude too, and how much of |delta|.

Cases with different tokenizers, adapters, modules and several stages (`mergekit_vocabularies.py`, `mergekit_adapters.py`,
`mergekit_stages.py`) are compared with mergekit's result at `dtype: float64`, tokens with their definition too; mixtures of
experts (`mergekit_mixtures.py`) with mergekit's own.

mergekit computes the importance that arcee_fusion selects by in the tensors' type, and mergeforge in float64. What is compared
there is mergekit's result at `dtype: float64`; the verdict says in how many elements its result at float32 differs from that.
"""

import argparse
import contextlib
import dataclasses
import datetime
import io
import json
import math
import os
import pathlib
import shutil
import sys
import traceback
from importlib import metadata

import numpy as np
import torch
import transformers
import yaml

import any_config_judge
from any_config import widened
from measuring import MERGEKIT_ENVIRONMENT, cores, processor, run, succeed, table
from mergekit_adapters import adapter_cases, make_adapter_inputs
from mergekit_cases import ANGLES, Case, all_cases
from mergekit_inputs import load_checkpoint, make_inputs
from mergekit_mixtures import make_mixture_inputs, mixture_cases
from mergekit_stages import make_stage_inputs, stage_cases
from mergekit_vocabularies import (
    check_definition,
    check_token_settings,
    compare_templates,
    compare_tokenizers,
    make_token_inputs,
    token_cases,
)
from mergekit_undecided import (
    TOLERANCE,
    base_and_other,
    fusion,
    input_arrays,
    origin,
    probabilities,
    ranks,
    task_vectors,
    undecided,
)

# For methods that solve for angles: mergekit takes these from lengths and dot products in float32, and a float32 norm of torch
# may be off by 1e-5; ours are solved in float64. So mergekit merges such cases once more at `dtype: float64`. From that result,
# ours may differ by TOLERANCE; mergekit's own in float32 differs by up to 3.4e-5 of the scale on these models.
ANGLE_TOLERANCE = 1e-4

# One unit in the last place of a stored value, relative to it: two correct results may round to neighbours.
STORED_ULP = {torch.float64: 0.0, torch.float32: 0.0, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}

# Neighbours are allowed to be rare only: a tool that truncates would differ by an ulp in half of the elements.
ROUNDED_APART = 0.001

# Counts of random elements may be so many standard deviations from what is expected.
DEVIATIONS = 5

# Ranks of magnitudes are counted in so many parts.
PARTS = 10


# ---------------------------------------------------------------------------------------------------------------------
# Comparing


@dataclasses.dataclass
class Result:
    """One line of the table. `problems` is empty where the tools agree."""

    case: Case
    distances: dict = dataclasses.field(default_factory=dict)
    elements: int = 0
    equal_all: float | None = None
    equal_decided: float | None = None
    problems: list = dataclasses.field(default_factory=list)
    note: str = ""

    def add(self, pair, distances):
        """Distances between two outputs, as shares of the scale."""
        worst, total, count = self.distances.get(pair, (0.0, 0.0, 0))
        worst = max(worst, float(distances.max(initial=0)))
        self.distances[pair] = worst, total + float(distances.sum()), count + distances.size

    def verdict(self):
        if self.problems:
            more = f" (and {len(self.problems) - 3} more)" if len(self.problems) > 3 else ""
            return "DISAGREE: " + "; ".join(self.problems[:3]) + more
        if self.note:
            return self.note
        return f"differs on purpose ({self.case.why})" if self.case.why else "agree"


def judge(case, ours, theirs, ours_error, theirs_error):
    """`ours` and `theirs` are the output folders; an error is a tool's last words, or None where it succeeded."""
    result = Result(case)
    if ours_error and "panicked" in ours_error:
        result.problems.append(f"mergeforge panicked: {ours_error}")
    elif case.kind in ("refused", "ours_refuses"):
        judge_refusal(result, ours, ours_error, theirs_error)
    elif case.kind == "theirs_refuses":
        result.problems += [f"mergeforge refused: {ours_error}"] if ours_error else outputs_amiss(case.config, ours)
        result.problems += [] if theirs_error else ["mergekit accepted it"]
    elif ours_error or theirs_error:
        result.problems += [f"mergeforge refused: {ours_error}"] if ours_error else []
        result.problems += [f"mergekit refused: {theirs_error}"] if theirs_error else []
    elif case.kind in ("exact", "tokens", "mixture"):
        judge_exact(result, ours, theirs)
    else:
        judge_outputs(result, ours, theirs)
    return result


def judge_exact(result, ours, theirs):
    """Everything that is in the two folders, by mergekit's result at float64."""
    case = result.case
    exact = theirs.parent / "float64"
    if case.kind == "mixture":
        judgement = any_config_judge.judge_mixture(ours, theirs, case.config)
    else:
        methods = [document["merge_method"] for document in (*case.stages, case.config)]
        several = case.stages or "modules" in case.config
        config = None if several else case.config | {"parameters": case.config.get("parameters", {})}
        judgement = any_config_judge.judge(ours, exact, config, methods)
    problems = judgement.problems
    if case.kind == "tokens":
        problems += compare_tokenizers(ours, theirs) + check_token_settings(ours)
        if case.config["merge_method"] in ("linear", "task_arithmetic"):
            problems += check_definition(case.config, ours)
            # Where mergekit is off too, it is the definition here that is wrong.
            problems += [f"mergekit: {problem}" for problem in check_definition(case.config, exact)]
        if "chat_template" in case.config:
            problems += compare_templates(ours, theirs)
    result.problems += [problem for problem in problems if not problem.startswith(case.exempt)]
    result.elements = judgement.elements
    result.distances["ours, theirs"] = judgement.worst, 0.0, 0
    if not result.problems and judgement.notes:
        purpose = f"differs on purpose ({case.why})" if case.why else "agree"
        result.note = "; ".join([purpose, *judgement.notes])


def judge_refusal(result, ours, ours_error, theirs_error):
    if not ours_error:
        result.problems.append("mergeforge accepted it")
    if list(pathlib.Path(ours).glob("*.safetensors")):
        result.problems.append("mergeforge left tensors behind")
    if result.case.kind == "refused" and not theirs_error:
        result.problems.append("mergekit accepted it")
    if not result.problems and theirs_error:
        result.note = "agree (both refuse)"


def outputs_amiss(config, ours):
    """Where there is nothing to compare with: what is equal in all models must come out so, and random masks must be right."""
    amiss = []
    for name, out in load_checkpoint(ours).items():
        first, *others = input_arrays(origin(config, name))
        if all((first == other).all() for other in others) and (out.numpy() != first).any():
            amiss.append(f"{name} is equal in all models, and merged it is another")
        if config["merge_method"].startswith("della"):
            base, (vector,) = task_vectors(config, name)
            amiss += check_one_mask(config, name, "mergeforge", base, vector, out.numpy())
    return amiss


def judge_outputs(result, ours, theirs):
    compare_configs(result, ours, theirs)
    exact = load_checkpoint(theirs.parent / "float64")
    ours, theirs = load_checkpoint(ours), load_checkpoint(theirs)
    if not ours or ours.keys() != theirs.keys():
        apart = sorted(ours.keys() ^ theirs.keys())
        result.problems.append(f"{len(apart)} tensors only on one side: {', '.join(apart[:3])}")
        return
    if result.case.kind == "types":
        compare_types(result, ours, theirs)
        return
    if result.case.kind == "theirs_nan":
        compare_finite(result, ours, theirs)
        return
    if result.case.kind == "float64":
        compare_fusion(result, ours, theirs, exact)
        theirs = {name: tensor.to(theirs[name].dtype) for name, tensor in exact.items()}
    for name in sorted(ours):
        a, b = ours[name], theirs[name]
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            result.problems.append(f"{name} is {describe(a)}, not {describe(b)}")
    if not result.problems:
        compare_random(result, ours, theirs) if result.case.kind == "random" else compare_values(result, ours, theirs, exact)


def compare_types(result, ours, theirs):
    """mergekit writes float32 whatever the config asks for."""
    asked = result.case.config["dtype"]
    for name in sorted(ours):
        a, b = describe(ours[name]), describe(theirs[name])
        if not a.startswith(f"{asked} ") or not b.startswith("float32 ") or ours[name].shape != theirs[name].shape:
            result.problems.append(f"{name}: {a} and {b}")


def compare_finite(result, ours, theirs):
    for name in sorted(ours):
        if not torch.isfinite(ours[name]).all():
            result.problems.append(f"{name}: mergeforge wrote NaN or infinity")
    if all(torch.isfinite(tensor).all() for tensor in theirs.values()):
        result.problems.append("mergekit wrote numbers")


def compare_fusion(result, ours, theirs, exact):
    """arcee_fusion: how many elements of the other model are taken over, by mergekit in float32 too. What mergekit selects by a
    sample of the importances is compared with the definition."""
    taken, elements, apart = [0, 0, 0], 0, 0
    for name in sorted(ours):
        base, x = base_and_other(result.case.config, name)
        stored = torch.from_numpy(base).to(ours[name].dtype)
        moved = [(tensor != stored).numpy() & (x != base) for tensor in (ours[name], theirs[name], exact[name])]
        taken = [count + int(mask.sum()) for count, mask in zip(taken, moved)]
        apart += int((moved[1] != moved[2]).sum())
        elements += base.size
        if name in result.case.exempt:
            importance, threshold, unsure = fusion(result.case.config, name)
            decided = (np.abs(importance - threshold) > unsure) & (x != base)
            if ((moved[0] != (importance >= threshold)) & decided).any():
                result.problems.append(f"{name}: mergeforge does not take over what the definition says")
    if not apart:
        result.note = "agree"
    elif not result.problems:
        ours, float32, float64 = (f"{100 * count / elements:.3f} %" for count in taken)
        result.note = (
            f"differs on purpose ({result.case.why}; mergeforge takes over {ours} of the elements, mergekit at float64 "
            f"{float64}, at float32 {float32}, others in {apart:,} of {elements:,} places)"
        )


def describe(tensor):
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def compare_configs(result, ours, theirs):
    """The keys that say how to read the tensors."""
    ours, theirs = (json.loads((pathlib.Path(folder) / "config.json").read_text()) for folder in (ours, theirs))
    for settings in (ours, theirs):
        settings["dtype"] = settings.get("dtype", settings.get("torch_dtype"))
    for key in ("num_hidden_layers", "vocab_size", "hidden_size", "tie_word_embeddings", "dtype"):
        if ours.get(key) != theirs.get(key) and key not in result.case.exempt:
            result.problems.append(f"config.json: {key} is {ours.get(key)}, not {theirs.get(key)}")


def compare_values(result, ours, theirs, exact):
    case = result.case
    tolerance = ANGLE_TOLERANCE if case.config["merge_method"] in ANGLES else TOLERANCE
    equal = decided_equal = count = decided_count = 0
    for name in sorted(ours.keys() - set(case.exempt)):
        a, b = ours[name].double().numpy(), theirs[name].double().numpy()
        inputs = input_arrays(origin(case.config, name))
        relative = relative_difference(a, b, inputs)
        decided = ~np.broadcast_to(undecided(case.config, name), a.shape)
        if case.kind == "angles":
            ours_off, theirs_off = (relative_difference(x, exact[name].numpy(), inputs)[decided] for x in (a, b))
            result.add("ours, exact", ours_off)
            result.add("theirs, exact", theirs_off)
            if ours_off.max(initial=0) > TOLERANCE:
                result.problems.append(f"{name}: off by up to {ours_off.max():.2g} from mergekit's float64")
        # What is stored in 16 bits is equal when its bits are: rounding has hidden anything less.
        ulp = STORED_ULP[ours[name].dtype]
        same = (a == b) if ulp else relative <= TOLERANCE
        neighbours = ulp * np.maximum(np.abs(a), np.abs(b)).clip(torch.finfo(ours[name].dtype).smallest_normal)
        near = np.abs(a - b) <= neighbours if ulp else relative <= tolerance
        far = decided & ~near
        if far.any():
            result.problems.append(f"{name}: {int(far.sum())} of {far.size} differ, by up to {relative[far].max():.2g}")
        equal += int(same.sum())
        count += same.size
        decided_equal += int((same & decided).sum())
        decided_count += int(decided.sum())
        result.add("ours, theirs", relative[decided])
        compare_kept(result, name, a, b)
    result.elements = count
    result.equal_all, result.equal_decided = equal / count, decided_equal / decided_count
    # In 16 bits, elements an ulp apart passed above; here they may be but few.
    rounded = any(STORED_ULP[tensor.dtype] for tensor in ours.values())
    if rounded and result.equal_decided < 1 - ROUNDED_APART:
        result.problems.append(f"{1 - result.equal_decided:.2%} of the elements differ")
    if decided_count < count / 2:
        result.problems.append("more than half of the elements are undecided: this case tests nothing")


def relative_difference(a, b, inputs):
    scale = np.maximum(np.abs(a), np.abs(b))
    for array in inputs:
        scale = np.maximum(scale, np.abs(array))
    difference = np.abs(a - b)
    relative = np.divide(difference, scale, out=np.zeros_like(a), where=difference != 0)
    # NaN against a number must not pass as "not greater than".
    return np.where(np.isnan(a) & np.isnan(b), 0, np.where(np.isnan(relative), np.inf, relative))


def compare_kept(result, name, a, b):
    """With one task vector, and in sce, what was kept can be counted in the output: ties must not change how many are kept."""
    if result.case.kind != "ties":
        return
    base, vectors = task_vectors(result.case.config, name)
    if len(vectors) == 1 or result.case.config["merge_method"] == "sce":
        kept = [int((out != base).sum()) for out in (a, b)]
        if kept[0] != kept[1]:
            result.problems.append(f"{name}: {kept[0]} elements kept, not {kept[1]}")


def compare_random(result, ours, theirs):
    """DARE and DELLA: the masks differ, so what is compared is what they leave: how many elements, how much of |delta|."""
    totals = {"mergeforge": [0, 0, 0.0], "mergekit": [0, 0, 0.0]}
    by_rank = {tool: np.zeros((4, PARTS)) for tool in totals}
    config = result.case.config
    for name in sorted(ours):
        base, vectors = task_vectors(config, name)
        moved = np.any([vector.delta != 0 for vector in vectors], axis=0)
        for tool, out in (("mergeforge", ours[name].numpy()), ("mergekit", theirs[name].numpy())):
            if not np.isfinite(out).all():
                result.problems.append(f"{name}: {tool} wrote NaN or infinity")
            if len(vectors) == 1:
                result.problems += check_one_mask(config, name, tool, base, vectors[0], out)
                by_rank[tool] += count_by_rank(config, vectors[0], out != base)
            totals[tool][0] += int((out != base).sum())
            totals[tool][1] += int(moved.sum())
            totals[tool][2] += float(np.abs(out.astype(np.float64) - base).sum())
    compare_totals(result, *totals.values())
    if config["merge_method"].startswith("della") and by_rank["mergekit"].any():
        compare_ranks(result, by_rank)


def count_by_rank(config, vector, kept):
    """By the ranks of the magnitudes in their rows: how many elements moved, are kept, should be, and the variance of that."""
    moved = vector.delta != 0
    part = np.minimum((ranks(vector.delta)[moved] * PARTS).astype(int), PARTS - 1)
    probability = probabilities(config, vector)[moved]
    amounts = (np.ones(part.size), kept[moved], probability, probability * (1 - probability))
    return np.stack([np.bincount(part, weights=amount, minlength=PARTS) for amount in amounts])


def compare_ranks(result, by_rank):
    shares = []
    for tool, (moved, kept, expected, variance) in by_rank.items():
        for part in np.flatnonzero(np.abs(kept - expected) > DEVIATIONS * np.sqrt(variance) + 1):
            result.problems.append(f"{tool} kept {kept[part]:.0f} of rank {part}/{PARTS}, not {expected[part]:.0f}")
        first, last = (kept / moved)[[0, -1]]
        shares.append(f"{first:.4f} and {last:.4f}")
    if not result.problems:
        of = f"of the lowest and highest of {PARTS} classes of ranks {shares[0]}, mergekit {shares[1]}"
        result.note = f"{result.note.removesuffix(')')}; {of})"


def compare_totals(result, ours, theirs):
    (ours_kept, moved, ours_sum), (theirs_kept, _, theirs_sum) = ours, theirs
    # Two binomial counts: the deviation of their difference, at the widest.
    if abs(ours_kept - theirs_kept) > DEVIATIONS * math.sqrt(moved / 2):
        result.problems.append(f"{ours_kept / moved:.4f} of the elements kept, not {theirs_kept / moved:.4f}")
    if abs(ours_sum / theirs_sum - 1) > 0.01:
        result.problems.append(f"the sum of |delta| is {ours_sum / theirs_sum:.4f} times mergekit's")
    if not result.problems:
        result.note = (
            f"differs on purpose ({result.case.why}; kept {ours_kept / moved:.4f} and {theirs_kept / moved:.4f}, "
            f"ratio of Σ abs(delta) {ours_sum / theirs_sum:.4f})"
        )


def check_one_mask(config, name, tool, base, vector, out):
    """With one task vector the mask is visible: its share, one scale for all that is kept, and the sum of |delta|."""
    parameters = config.get("parameters", {})
    delta = vector.delta.astype(np.float64)
    step = out.astype(np.float64) - base
    kept, moved = out != base, delta != 0
    if (kept & ~moved).any():
        return [f"{name}: {tool} moved an element that has no delta"]
    # A weight that normalises itself away leaves 1, as in a vote of one.
    normalize = parameters.get("normalize", config["merge_method"] == "della")
    weight = (1 if normalize else vector.weight) * parameters.get("lambda", 1)
    problems = []
    probability = probabilities(config, vector)[moved]
    deviation = math.sqrt((probability * (1 - probability)).sum())
    if abs(int(kept.sum()) - probability.sum()) > DEVIATIONS * deviation + 1:
        problems.append(f"{name}: {tool} kept {kept.sum() / moved.sum():.4f}, not {probability.mean():.4f}")
    if not kept.any():
        return problems
    scale = np.abs(step).sum() / np.abs(delta[kept]).sum() * math.copysign(1, weight)
    expected = np.where(kept, scale * delta, 0)
    if (np.abs(step - expected) > 4 * TOLERANCE * (np.abs(base) + np.abs(expected))).any():
        problems.append(f"{name}: {tool} scaled elements by different factors")
    if parameters.get("rescale", True) and vector.density < 1:
        share = np.abs(step).sum() / (abs(weight) * np.abs(delta).sum())
        if abs(share - 1) > 1e-4:
            problems.append(f"{name}: {tool} left {share:.5f} of the sum of |delta|")
    elif abs(scale - weight) > 1e-4 * abs(weight):
        problems.append(f"{name}: {tool} rescaled by {scale / weight:.5f}")
    return problems


# ---------------------------------------------------------------------------------------------------------------------
# Running


def run_mergeforge(binary, config, out, verb="merge", flags=()):
    ran = run([binary, verb, *flags, config, out], limit_s=600)
    (out.parent / "mergeforge.log").write_text(ran.out + ran.err)
    # A signal or Rust's own exit code for panics is no refusal.
    crash = "panicked, " if ran.code < 0 or ran.code == 101 else ""
    errors = [line for line in ran.err.splitlines() if line.startswith("error")]
    return f"{crash}exit {ran.code}: {errors[0] if errors else last_line(ran.err)}"[:300] if ran.code else None


def run_mergekit(config, out, flags=()):
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions
    from mergekit.scripts.moe import main as run_mixture
    from mergekit.scripts.multimerge import main as run_stages

    words = io.StringIO()
    documents = list(yaml.safe_load_all(config.read_text()))
    adapted = out.with_name(f"{out.name}-adapted")
    options = {flag.removeprefix("--").replace("-", "_"): True for flag in flags}
    options |= {"quiet": True, "random_seed": 1, "write_model_card": False, "lora_merge_cache": str(adapted)}
    try:
        with contextlib.redirect_stdout(words), contextlib.redirect_stderr(words):
            if "experts" in documents[0]:
                run_mixture([str(config), str(out), "--quiet", "--random-seed", "1"], standalone_mode=False)
            elif len(documents) > 1:
                between = out.with_name(f"{out.name}-stages")
                command = [config, "--out-path", out, "-I", between, "--quiet", "--random-seed", 1, "--no-write-model-card"]
                run_stages(list(map(str, command)), standalone_mode=False)
            else:
                settings = MergeConfiguration.model_validate(documents[0])
                run_merge(settings, str(out), options=MergeOptions(**options))
        return None
    except (Exception, SystemExit) as error:
        words.write(traceback.format_exc())
        return f"{type(error).__name__}: {last_line(str(error))}"
    finally:
        out.with_suffix(".log").write_text(words.getvalue())


def last_line(text):
    return (text.strip().splitlines() or ["no message"])[-1][:200]


def run_case(case, args):
    folder = args.work / "runs" / "".join(c if c.isalnum() else "-" for c in case.name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config, exact = folder / "config.yml", folder / "config-float64.yml"
    documents = [*case.stages, case.config]
    config.write_text(yaml.safe_dump_all(documents, sort_keys=False))
    theirs_error = run_mergekit(config, folder / "mergekit", case.flags)
    if case.kind in ("angles", "float64", "exact", "tokens") and not theirs_error:
        # A type of its own, in between or in the end, is a part of the config.
        wide = [document | {"dtype": "float64"} if "out_dtype" in document else widened(document) for document in documents]
        exact.write_text(yaml.safe_dump_all(wide, sort_keys=False))
        theirs_error = run_mergekit(exact, folder / "float64", case.flags)
    verb = "moe" if "experts" in case.config else "merge"
    ours_error = run_mergeforge(args.mergeforge, config, folder / "mergeforge", verb, case.flags)
    return judge(case, folder / "mergeforge", folder / "mergekit", ours_error, theirs_error)


# ---------------------------------------------------------------------------------------------------------------------
# Report


HEAD = ["case", "max abs(diff) / scale", "mean", "equal, all elements", "equal, decided elements", "verdict"]


def report(results, args):
    version = succeed([args.mergeforge, "--version"]).out.strip()
    lines = [
        "# Agreement with mergekit",
        "",
        f"{datetime.date.today()}, {processor()}, {cores()} threads; {version}, mergekit {metadata.version('mergekit')}, "
        f"torch {torch.__version__}; inputs: `examples/models` and variants of them. Made by `tools/mergekit_agreement.py`, "
        "which says what the columns mean.",
        "",
        table([HEAD, *map(row, results)]),
        "",
        summary(results),
        "",
        *by_method(results),
    ]
    return "\n".join(lines)


def row(result):
    worst, mean = shown(result.distances.get("ours, theirs"))
    return [result.case.name, worst, mean, percent(result.equal_all), percent(result.equal_decided), result.verdict()]


def shown(distances):
    if not distances:
        return "–", "–"
    worst, total, count = distances
    return f"{worst:.1e}", f"{total / count:.1e}" if count else "–"


def by_method(results):
    """The largest and the mean distance between the two tools, and of each from mergekit's result in float64."""
    pairs = {"ours, theirs": "between the tools", "ours, exact": "mergeforge, float64", "theirs, exact": "mergekit, float64"}
    columns = [f"{pair}: {figure}" for pair in pairs.values() for figure in ("max", "mean")]
    rows = [["method", "cases", "elements", "left out", *columns]]
    compared = [result for result in results if result.case.kind == "angles" and result.elements]
    for method in ANGLES:
        of = [result for result in compared if result.case.config["merge_method"] == method]
        if not of:
            continue
        cells = []
        for pair in pairs:
            worst, total, count = zip(*(result.distances[pair] for result in of))
            cells += shown((max(worst), sum(total), sum(count)))
        elements = sum(result.elements for result in of)
        rows.append([method, str(len(of)), f"{elements:,}", f"{elements - sum(count):,}", *cells])
    return ["## Methods that solve for angles", "", table(rows), ""] if len(rows) > 1 else []


def percent(share):
    """Rounded down: 100 % means all."""
    return "–" if share is None else f"{math.floor(share * 1e6) / 1e4:.4f} %".replace("100.0000", "100")


def summary(results):
    disagree = sum(bool(result.problems) for result in results)
    purpose = sum(result.verdict().startswith("differs on purpose") for result in results)
    return f"{len(results)} cases: {len(results) - disagree - purpose} agree, {purpose} differ on purpose, {disagree} disagree."


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mergeforge", required=True, help="the binary")
    parser.add_argument("--models", type=pathlib.Path, default=pathlib.Path("examples/models"))
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for inputs, outputs and logs")
    parser.add_argument("--out", type=pathlib.Path, help="file to save the table to")
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    # No merge may profit from the one before.
    os.environ |= MERGEKIT_ENVIRONMENT | {"MERGEFORGE_CACHE": ""}
    args = parser.parse_args()
    # The binary and the configs are used from other folders.
    args.work = args.work.resolve()
    args.mergeforge = shutil.which(args.mergeforge) or sys.exit(f"no program {args.mergeforge}")
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()

    everything = all_cases(make_inputs(args.models, args.work / "inputs"))
    everything += token_cases(make_token_inputs(args.work / "token-inputs"))
    everything += adapter_cases(make_adapter_inputs(args.work / "adapter-inputs"))
    everything += mixture_cases(make_mixture_inputs(args.work / "mixture-inputs"))
    everything += stage_cases(make_stage_inputs(args.work / "stage-inputs"))
    cases = [case for case in everything if args.only in case.name]
    results = []
    for case in cases:
        results.append(run_case(case, args))
        print(f"{case.name}: {results[-1].verdict()}", file=sys.stderr)
    table = report(results, args)
    print(table)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(table)
    sys.exit(any(result.problems for result in results) or not results)


if __name__ == "__main__":
    main()
