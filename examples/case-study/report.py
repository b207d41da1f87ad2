"""What a run found: the four tables of the case study, its observations with their verdicts, plots, and all numbers as JSON."""

import dataclasses
import hashlib
import json
import math
import platform
import shutil
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("svg")
import matplotlib.pyplot as plt

from steps import Json, write_json

# A difference counts where it is more than two standard errors away from none.
SURE = 2.0

# The limits of `mergeforge analyze`: cosines from which on weights are collinear, and up to which task vectors are orthogonal; the
# share of changes that is little interference; the multiple up to which two norms are alike.
COLLINEAR, ORTHOGONAL, LITTLE, ALIKE = 0.98, 0.1, 0.05, 2.0

# Losses that are this near to each other are the same, in nats a token: 1 % of a perplexity.
SAME_LOSS = 0.01

CONFIRMED, REFUTED, OPEN = "confirmed", "not confirmed", "not testable here"
UNDECIDED = "not confirmed (within the error)"

MEDICAL, GENERAL, TECHNICAL = "medical", "general", "technical"
TITLES = {
    "medical_text": "medical text",
    "medical_qa": "medical Q&A",
    "medical_abstract": "medical abstract",
    "general_text": "general text",
    "general_qa": "general Q&A",
    "general_abstract": "general abstract",
    "technical_abstract": "technical abstract",
    "technical_qa": "technical Q&A",
    "technical_text": "technical text",
}


def digest_of(tensors: Json) -> str:
    return hashlib.sha256(json.dumps(tensors, sort_keys=True).encode()).hexdigest()


def processor() -> str:
    """The processor's name where Linux says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.machine())


class Scores:
    """Losses of all models of a run. Differences are paired: the same items are behind both numbers."""

    def __init__(self, scores: Json) -> None:
        self.scores = scores

    def sets(self, model: str, domain: str) -> list[str]:
        return [name for name in self.scores[model]["sets"] if name.startswith(domain)]

    def loss(self, model: str, domain: str) -> float:
        """The mean over the domain's sets, in nats a token."""
        names = self.sets(model, domain)
        return sum(self.scores[model]["sets"][name]["loss"] for name in names) / len(names)

    def difference(self, one: str, other: str, domain: str) -> tuple[float, float]:
        """How much more loss `one` has than `other`, and the standard error of that."""
        return self.contrast({one: 1.0, other: -1.0}, domain)

    def contrast(self, weights: dict[str, float], domain: str) -> tuple[float, float]:
        """A weighted sum of models' losses on a domain, with its standard error over items."""
        names = self.sets(next(iter(weights)), domain)
        total = variance = 0.0
        for name in names:
            columns = [[(weight * nll, count) for nll, count in self.scores[model]["sets"][name]["items"]] for model, weight in weights.items()]
            combined = [(sum(nll for nll, _ in row), row[0][1]) for row in zip(*columns, strict=True)]
            tokens = sum(count for _, count in combined)
            mean = sum(nll for nll, _ in combined) / tokens
            total += mean
            items = len(combined)
            squares = sum((nll - mean * count) ** 2 for nll, count in combined)
            variance += squares / tokens**2 * items / max(1, items - 1)
        return total / len(names), math.sqrt(variance) / len(names)


def words(difference: tuple[float, float]) -> str:
    return f"{difference[0]:+.4f} ± {difference[1]:.4f}"


def objective(scores: Json, sets: list[str]) -> float:
    """The mean of a model's losses on sets, in nats a token."""
    return sum(scores["sets"][name]["loss"] for name in sets) / len(sets)


def distinct(predictions: Json, scores: Json) -> list[str]:
    """The merges, each once: that of the last checkpoint may be that of the final model."""
    return list({scores[merge]["tensors"]: merge for merge in predictions}.values())


def rank_correlations(predictions: Json, scores: Json) -> dict[str, float]:
    """Spearman's correlation of the predicted and the measured losses of merges, for each set."""
    merges = distinct(predictions, scores)
    sets = predictions[merges[0]]
    columns = {name: [[predictions[merge][name] for merge in merges], [scores[merge]["sets"][name]["loss"] for merge in merges]] for name in sets}
    return {name: float(np.corrcoef(np.argsort(np.argsort(column)))[0, 1]) for name, column in columns.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def score_table(scores: Json, models: list[tuple[str, str]], domains: list[str], title: str) -> str:
    """A model a line with the perplexity of each set of the domains, and what lm-eval says; the best of each column is bold."""
    present = [(label, name) for label, name in models if name in scores]
    sets = [name for domain in domains for name in scores[present[0][1]]["sets"] if name.startswith(domain)]
    tasks = list(scores[present[0][1]]["lm_eval"])
    columns = [[scores[name]["sets"][one]["perplexity"] for _, name in present] for one in sets]
    columns += [[scores[name]["lm_eval"][task]["value"] for _, name in present] for task in tasks]
    best = [min(column) for column in columns[: len(sets)]] + [max(column) for column in columns[len(sets) :]]
    rows = []
    for i, (label, name) in enumerate(present):
        cells = [f"{column[i]:.2f}" for column in columns[: len(sets)]]
        for task, column in zip(tasks, columns[len(sets) :], strict=True):
            error = scores[name]["lm_eval"][task]["error"]
            cells.append(f"{100 * column[i]:.1f}" + (f" ± {100 * error:.1f}" if error is not None else ""))
        marked = [f"**{cell}**" if column[i] == top else cell for cell, column, top in zip(cells, columns, best, strict=True)]
        rows.append([label, *marked])
    return table([title, *(TITLES[one] for one in sets), *tasks], rows)


def checkpoint_names(scores: Json) -> list[str]:
    return [name.removesuffix(" linear") for name in scores if name.startswith("medical ") and name.endswith("k linear")]


def final_name(scores: Json) -> str:
    """The medical model that is merged: the one that was given, or the last checkpoint."""
    return "medical final" if "medical final" in scores else checkpoint_names(scores)[-1]


METHODS = (("Linear", "linear"), ("SLERP", "slerp"), ("DARE-TIES", "dare_ties"), ("TIES", "ties"))


def tables(scores: Json) -> list[tuple[str, str]]:
    """Titles and tables, in the order of the case study."""
    checkpoints, final = checkpoint_names(scores), final_name(scores)
    of_checkpoints = [("base", "base")]
    of_checkpoints += [(f"after {name.split()[1]} tokens", name) for name in checkpoints]
    of_checkpoints += [("mean of the checkpoints", "medical average"), ("final", "medical final")]
    merged = [(f"{name.split()[1]} tokens, merged", f"{name} linear") for name in checkpoints]
    merged += [("final, merged", "medical linear")] if final == "medical final" else []
    medical = [("chat", "chat"), ("medical", final), *((label, f"medical {name}") for label, name in METHODS)]
    others = [("linear, 0.5 medical + 0.5 chat", "medical linear 0.5"), ("linear, 0.3 medical + 0.7 chat", "medical linear 0.3")]
    others += [("task arithmetic, weights by sweep (below)", "medical sweep"), ("TIES, density 0.8 (above)", "medical ties")]
    for domain, chat in ((1.0, 1.0), (0.5, 0.5), (0.2, 0.2), (0.2, 0.8), (0.8, 0.2)):
        others.append((f"TIES, density {domain} of medical, {chat} of chat", f"medical ties {domain} {chat}"))
    domains = [MEDICAL, GENERAL]
    found = [
        ("Medical and general sets by checkpoint", score_table(scores, of_checkpoints, domains, "checkpoint")),
        ("The same checkpoints, 0.7 of each merged with 0.3 of the chat model", score_table(scores, merged, domains, "checkpoint")),
        ("Merge methods, medical", score_table(scores, medical, domains, "model")),
        ("More merges of the same two models", score_table(scores, others, domains, "merge")),
    ]
    if "technical instruct" in scores:
        models = [("base", "base"), ("chat", "chat"), ("technical, pre-trained", "technical base"), ("technical, instruct", "technical instruct")]
        merges = [(f"chat + technical instruct, {label}", f"technical {name}") for label, name in METHODS]
        merges += [("chat + technical instruct, linear 0.5 + 0.5", "technical linear 0.5")]
        found += [
            ("Models of the technical domain", score_table(scores, models, [TECHNICAL, GENERAL], "model")),
            ("Merge methods, technical", score_table(scores, merges, [TECHNICAL, GENERAL], "merge")),
        ]
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Observations


@dataclasses.dataclass(frozen=True)
class Observation:
    claim: str
    verdict: str
    evidence: str


def observations(found: Json) -> list[Observation]:
    """Each observation of the case study beside this run's numbers. Losses are in nats a token, with standard errors."""
    scores = Scores(found["scores"])
    said = [*of_checkpoints(scores), *of_methods(scores, found["geometry"][MEDICAL], MEDICAL, final_name(found["scores"]))]
    if found["sweep"]:
        said.append(of_surroundings(scores, found["sweep"], final_name(found["scores"])))
    said += of_densities(scores)
    if TECHNICAL in found["geometry"]:
        said += of_methods(scores, found["geometry"][TECHNICAL], TECHNICAL, "technical instruct")
        said += of_second_ties(scores, found["geometry"])
    return said


def of_checkpoints(scores: Scores) -> list[Observation]:
    names = checkpoint_names(scores.scores)
    if "medical final" in scores.scores:
        names.append("medical final")
    merged = ["medical linear" if name == "medical final" else f"{name} linear" for name in names]
    own, after = scores.difference(names[-1], names[0], MEDICAL), scores.difference(merged[-1], merged[0], MEDICAL)
    better = own[0] < -SURE * own[1]
    holds = better and after[0] < -SURE * after[1]
    text = f"From the first checkpoint to the last, the medical loss changes by {words(own)}; that of their merges with chat by {words(after)}."
    forgotten, kept = scores.difference(names[-1], "base", GENERAL), scores.difference("medical linear", names[-1], GENERAL)
    balance = kept[0] < SURE * kept[1]
    both = f"General loss of the medical model against the base: {words(forgotten)}; of its merge with chat against the medical model: {words(kept)}."
    return [
        Observation("Better checkpoints of continued pre-training give better merges.", CONFIRMED if holds else REFUTED if better else OPEN, text),
        Observation(
            "Settings and the quality of data decide how good a checkpoint is.",
            OPEN,
            "Every model here was trained once, with one set of settings and one set of texts.",
        ),
        Observation("Merging keeps the balance of general and domain knowledge.", CONFIRMED if balance else REFUTED, both),
    ]


def of_methods(scores: Scores, shape: Json, domain: str, model: str) -> list[Observation]:
    said = [of_region(scores, domain, model)]
    apart = scores.difference(f"{domain} slerp", f"{domain} linear", domain)
    distance = scores.scores[f"{domain} slerp"]["distance_to_linear"]
    cosine = shape["weights_cosine"]
    near = abs(apart[0]) < SAME_LOSS and cosine > COLLINEAR
    said.append(
        Observation(
            f"{domain.capitalize()}: SLERP and linear are the same, because the weights are collinear.",
            CONFIRMED if near else REFUTED,
            f"Cosine of the weights {cosine:.5f}, the least of a tensor {shape['weights_cosine_least_of_a_tensor']:.4f}. "
            f"SLERP lies {100 * distance:.2g} % of its task vector away from linear, its loss differs by {words(apart)}.",
        )
    )
    if domain == MEDICAL:
        said += [of_best(scores), *of_ties(scores, shape)]
    return said


def of_region(scores: Scores, domain: str, model: str) -> Observation:
    """No barrier: on the line, losses are no higher than those of the ends in proportion."""
    points = [(0.3, f"{domain} linear 0.3"), (0.5, f"{domain} linear 0.5"), (0.7, f"{domain} linear")]
    texts, holds = [], True
    for weight, name in points:
        if name in scores.scores:
            excess = scores.contrast({name: 1.0, model: -weight, "chat": weight - 1.0}, domain)
            holds &= excess[0] < SURE * excess[1]
            texts.append(f"{words(excess)} with {weight} of it")
    return Observation(
        f"{domain.capitalize()}: the region between the models is filled with models of low loss.",
        CONFIRMED if holds else REFUTED,
        f"Loss of merges above the mean of the parents' losses in the same proportion (negative: below): {', '.join(texts)}.",
    )


def of_surroundings(scores: Scores, sweep: Path, model: str) -> Observation:
    """Beside the line: the best of the plane through base and both models, held against the same mean."""
    domain, chat = best_weights(sweep)
    share = domain / (domain + chat)
    excess = scores.contrast({"medical sweep": 1.0, model: -share, "chat": share - 1.0}, MEDICAL)
    return Observation(
        "Medical: so is the region around them.",
        CONFIRMED if excess[0] < SURE * excess[1] else REFUTED,
        f"Loss of {domain:.3f} medical + {chat:.3f} chat as task vectors, the best that was found, above the mean of the parents' losses in the same "
        f"proportion: {words(excess)}; less that of 0.7 + 0.3: medical {words(scores.difference('medical sweep', 'medical linear', MEDICAL))}, "
        f"general {words(scores.difference('medical sweep', 'medical linear', GENERAL))}.",
    )


def best_weights(sweep: Path) -> list[float]:
    found = json.loads((sweep / "sweep.json").read_text(encoding="utf-8"))
    return list(found["points"][found["best"]]["values"].values())


def of_best(scores: Scores) -> Observation:
    losses = {label: scores.loss(f"{MEDICAL} {name}", MEDICAL) for label, name in METHODS}
    ranked = sorted(losses, key=losses.get)
    listed = ", ".join(f"{label} {losses[label]:.4f}" for label in ranked)
    against = {label: scores.difference("medical linear", f"medical {name}", MEDICAL) for label, name in METHODS if name != "linear"}
    beaten = any(difference[0] > SURE * difference[1] for difference in against.values())
    # SLERP may be the same merge.
    first = ranked[0] == "Linear" or (ranked[0] == "SLERP" and ranked[1] == "Linear")
    worse = ", ".join(f"{label} {words(difference)}" for label, difference in against.items())
    return Observation(
        "Medical: linear works best.",
        REFUTED if beaten else CONFIRMED if first else UNDECIDED,
        f"Medical losses: {listed}. Linear's loss less that of the others (negative: linear is better): {worse}.",
    )


def of_ties(scores: Scores, shape: Json) -> list[Observation]:
    cosine, conflicts, discarded = (shape[key] for key in ("task_vectors_cosine", "conflicts_among_changed", "smaller_side_of_conflicts"))
    edge = scores.difference("medical ties", "medical linear", MEDICAL)
    ratio = shape["domain_norm"] / shape["chat_norm"]
    larger = shape["domain_larger_in_conflicts"]
    return [
        Observation(
            "Medical: the task vectors are mostly orthogonal.",
            CONFIRMED if abs(cosine) < ORTHOGONAL else REFUTED,
            f"Their cosine is {cosine:+.4f}.",
        ),
        Observation(
            "Medical: so there is little interference to resolve.",
            CONFIRMED if discarded < LITTLE else REFUTED,
            f"Signs differ at {100 * conflicts:.1f} % of the elements that both models changed; the smaller side of these is "
            f"{100 * discarded:.1f} % of all changes by magnitude. Orthogonal vectors differ at half of their elements.",
        ),
        Observation(
            "Medical: TIES has no edge over linear.",
            CONFIRMED if edge[0] > -SURE * edge[1] else REFUTED,
            f"Medical loss of TIES less that of linear: {words(edge)}.",
        ),
        Observation(
            "Medical: in conflicts the domain model wins, because its changes are larger.",
            CONFIRMED if larger > 0.5 else REFUTED,
            f"The domain's task vector is {ratio:.2f} times as long as chat's, and is the larger one in {100 * larger:.1f} % of conflicts.",
        ),
    ]


def of_densities(scores: Scores) -> list[Observation]:
    """The case study lowered the threshold of trimming, so that more of the task vectors was kept."""
    kept = [("1.0", "medical ties 1.0 1.0"), ("0.8", "medical ties"), ("0.5", "medical ties 0.5 0.5"), ("0.2", "medical ties 0.2 0.2")]
    against = [scores.difference("medical ties 1.0 1.0", name, MEDICAL) for _, name in kept[1:]]
    more = against[-1]
    beaten = any(difference[0] > SURE * difference[1] for difference in against)
    listed = ", ".join(f"{density}: {scores.loss(name, MEDICAL):.4f}" for density, name in kept)
    domain = scores.difference("medical ties 0.2 0.8", "medical ties", MEDICAL)
    chat = scores.difference("medical ties 0.8 0.2", "medical ties", MEDICAL)
    return [
        Observation(
            "Medical: TIES gets better where less is trimmed.",
            CONFIRMED if more[0] < -SURE * more[1] and not beaten else REFUTED,
            f"Medical loss by density: {listed}; at 1.0 less that at 0.2: {words(more)}.",
        ),
        Observation(
            "Medical: above all where the domain's task vector is trimmed less.",
            CONFIRMED if domain[0] - chat[0] > SURE * math.hypot(domain[1], chat[1]) else REFUTED,
            f"Density 0.2 in place of 0.8 for the domain alone costs {words(domain)}, for chat alone {words(chat)}.",
        ),
        Observation(
            "Medical: what trimming takes of the domain model is not made up for by the chat model.",
            CONFIRMED if domain[0] > SURE * domain[1] else REFUTED,
            f"With density 0.8 of chat, density 0.2 in place of 0.8 of the domain costs {words(domain)}.",
        ),
        Observation(
            "Medical: because the two models are far apart, and their weights differ in distribution.",
            OPEN,
            "One pair of models says nothing of how that changes with their distance.",
        ),
    ]


def of_second_ties(scores: Scores, geometry: Json) -> list[Observation]:
    edge = scores.difference("technical ties", "technical linear", TECHNICAL)
    medical = scores.difference("medical ties", "medical linear", MEDICAL)
    ratios = {name: shape["domain_norm"] / shape["chat_norm"] for name, shape in geometry.items()}
    alike = {name: max(ratio, 1 / ratio) < ALIKE for name, ratio in ratios.items()}
    better = edge[0] < -SURE * edge[1]
    return [
        Observation(
            "Technical: here TIES makes a difference for the better.",
            CONFIRMED if better else REFUTED,
            f"Technical loss of TIES less that of linear: {words(edge)} (medical: {words(medical)}).",
        ),
        Observation(
            "Technical: because both models are as far from the base as each other.",
            OPEN if not better else CONFIRMED if alike[TECHNICAL] and not alike[MEDICAL] else REFUTED,
            f"Length of the domain's task vector over that of chat's: {ratios[TECHNICAL]:.2f} technical, {ratios[MEDICAL]:.2f} medical.",
        ),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Plots


def plots(found: Json, out: Path) -> list[tuple[str, str]]:
    """Writes the plots, and returns their files with what they show."""
    # The same numbers give the same bytes.
    plt.rcParams |= {"svg.hashsalt": "case-study", "svg.fonttype": "none", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}
    scores = Scores(found["scores"])
    drawn = [
        ("checkpoints.svg", "Loss by tokens of pre-training, of checkpoints and of their merges with the chat model", plot_checkpoints),
        ("line.svg", "Loss on the line from the chat model to the domain model; dashed: the parents' losses in proportion", plot_line),
        ("balance.svg", "Every model of the medical study: loss on the domain against general loss, both better to the lower left", plot_balance),
    ]
    for name, _, draw in drawn:
        figure = draw(scores)
        figure.savefig(out / name, metadata={"Date": None}, bbox_inches="tight")
        plt.close(figure)
    return [(name, shown) for name, shown, _ in drawn]


def plot_checkpoints(scores: Scores) -> plt.Figure:
    names = checkpoint_names(scores.scores)
    tokens = [float(name.split()[1].removesuffix("k")) for name in names]
    figure, axes = plt.subplots(1, 2, figsize=(7, 2.6))
    for axis, domain in zip(axes, (MEDICAL, GENERAL), strict=True):
        axis.plot([0, *tokens], [scores.loss(name, domain) for name in ["base", *names]], "o-", label="checkpoint")
        axis.plot(tokens, [scores.loss(f"{name} linear", domain) for name in names], "s--", label="0.7 of it + 0.3 chat")
        axis.set(title=f"{domain} sets", xlabel="thousand tokens", ylabel="loss, nats a token")
    axes[0].legend()
    figure.tight_layout()
    return figure


def plot_line(scores: Scores) -> plt.Figure:
    model = final_name(scores.scores)
    names = {0.0: "chat", 0.3: "medical linear 0.3", 0.5: "medical linear 0.5", 0.7: "medical linear", 1.0: model}
    figure, axis = plt.subplots(figsize=(5, 3))
    for i, domain in enumerate((MEDICAL, GENERAL)):
        losses = [scores.loss(name, domain) for name in names.values()]
        axis.plot(list(names), losses, "o-", color=f"C{i}", label=f"{domain} sets")
        axis.plot([0, 1], [losses[0], losses[-1]], "--", color=f"C{i}", linewidth=0.8)
    axis.set(xlabel="weight of the medical model (0: chat, 1: medical)", ylabel="loss, nats a token")
    axis.legend()
    return figure


def plot_balance(scores: Scores) -> plt.Figure:
    figure, axis = plt.subplots(figsize=(7, 3.8))
    final = final_name(scores.scores)
    parents = {"base": "base", "chat": "chat", final: "medical"}
    merges = {f"medical {name}": label for label, name in METHODS}
    merges |= {"medical sweep": "weights by sweep"} if "medical sweep" in scores.scores else {}
    merges |= {"medical linear 0.5": "linear 0.5 + 0.5", "medical linear 0.3": "linear 0.3 + 0.7", "medical average": "mean of checkpoints"}
    densities = sorted(name for name in scores.scores if name.startswith("medical ties "))
    merges |= {name: "TIES, densities {} and {}".format(*name.split()[2:]) for name in densities}
    for i, (name, label) in enumerate((parents | merges).items()):
        marker = "*" if name in parents else "osD^vPX<>"[i % 9]
        place = scores.loss(name, GENERAL), scores.loss(name, MEDICAL)
        axis.plot(*place, marker, color=f"C{i % 10}", markersize=11 if name in parents else 6, label=label, alpha=0.8)
    axis.set(xlabel="general loss, nats a token", ylabel="medical loss, nats a token")
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


# ---------------------------------------------------------------------------------------------------------------------


def write(found: Json, out: Path) -> None:
    """results.md, results.json and the plots. The folder is replaced once all is there."""
    partial, old = out.with_name(out.name + ".partial"), out.with_name(out.name + ".old")
    partial.mkdir()
    said = observations(found)
    parts = [f"# Results\n\n{introduction(found)}"]
    parts += [f"## {i}. {title}\n\n{text}" for i, (title, text) in enumerate(tables(found["scores"]), 1)]
    lines = [[entry.claim, entry.verdict, entry.evidence] for entry in said]
    head = "| observation | verdict | numbers |\n| --- | --- | --- |\n"
    parts.append("## Observations\n\n" + head + "\n".join("| " + " | ".join(line) + " |" for line in lines))
    parts += [f"![{shown}]({name})\n\n*{shown}.*" for name, shown in plots(found, partial)]
    for study, shape in found["geometry"].items():
        if shape["analysis"]:
            parts.append(f"## What mergeforge analyze says: {study}\n\n{analysed(study, shape['analysis'], partial)}")
    if found["predictions"]:
        parts.append(f"## Predicted and measured\n\n{predicted(found['predictions'], found['scores'])}")
    if found["sweep"]:
        parts.append(f"## Weights by mergeforge sweep\n\n{swept(found['sweep'], found['scores'], partial)}")
    if found["checks"]:
        parts.append(f"## Checked against mergeforge eval\n\n{checked(found['checks'])}")
    parts.append("## Sources\n\n" + "\n".join(f"- {domain}: {'; '.join(origins)}" for domain, origins in found["sources"].items()))
    (partial / "results.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    write_json(partial / "results.json", found | {"observations": [dataclasses.asdict(entry) for entry in said]})
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def analysed(study: str, folder: Path, out: Path) -> str:
    """The findings, with the whole page and its numbers beside the report."""
    for name in ("analysis.html", "analysis.json"):
        shutil.copy(folder / name, out / f"{study}-{name}")
    analysis = json.loads((folder / "analysis.json").read_text(encoding="utf-8"))
    listed = "\n".join(f"- {finding['text']}" for finding in analysis["findings"])
    # By their part in the study: folders of checkpoints have names that say little.
    for entry, name in zip(analysis["models"], (study, "chat", "base"), strict=True):
        listed = listed.replace(entry["short"], name)
    return f"{listed}\n\nBy layer and module, with pictures: [{study}-analysis.html]({study}-analysis.html)."


def called(name: str) -> str:
    """What a merge that is a weighted sum is called beside its prediction."""
    known = {"medical linear": "0.7 medical + 0.3 chat", "medical sweep": "weights by sweep (below)", "medical average": "mean of the checkpoints"}
    if name in known:
        return known[name]
    first, second = name.split()[1:]
    return f"{second} medical + {1 - float(second):.1f} chat" if first == "linear" else f"0.7 after {first} tokens + 0.3 chat"


def predicted(predictions: Json, scores: Json) -> str:
    """Losses that were expected from the parents' logits, beside those of the merges."""
    ranks = rank_correlations(predictions, scores)
    rows = []
    for merge in distinct(predictions, scores):
        rows.append([called(merge), *(f"{predictions[merge][name]:.4f} / {scores[merge]['sets'][name]['loss']:.4f}" for name in ranks)])
    rows.append(["rank correlation", *(f"{value:.2f}" for value in ranks.values())])
    said = "Losses in nats a token: what `mergeforge predict` says without merging / what was measured of the merge."
    return f"{said}\n\n{table(['merge', *(TITLES[name] for name in ranks)], rows)}"


def swept(folder: Path, scores: Json, out: Path) -> str:
    """The candidates that were measured, the best first, and its merge beside the weights of the case study."""
    shutil.copy(folder / "sweep.html", out / "sweep.html")
    found = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    best = found["points"][found["best"]]
    rows = []
    for point in sorted(found["points"], key=lambda point: (point is not best, not point["all"], (point["all"] or point["try"])["score"])):
        losses = [f"{point[read]['score']:.4f}" if point[read] else "" for read in ("try", "all")]
        rows.append([*(f"{value:.3f}" for value in point["values"].values()), f"{point['predicted']:.4f}", *losses])
    mine, given = (objective(scores[name], found["sets"]) for name in ("medical sweep", "medical linear"))
    return (
        f"The mean loss on {', '.join(TITLES[name] for name in found['sets'])}, in nats a token, of {len(found['points'])} merges in memory.\n\n"
        + table(["weight of medical", "weight of chat", "predicted of a part of the texts", "measured of that part", "measured of all"], rows)
        + f"\n\nThe first one, merged and scored like the others: {mine:.4f} by torch; 0.7 medical + 0.3 chat: {given:.4f}. "
        "More on the page: [sweep.html](sweep.html)."
    )


def checked(checks: Json) -> str:
    rows = []
    for model, sets in checks.items():
        for name, one in sets.items():
            apart = abs(one["mergeforge"] / one["torch"] - 1)
            rows.append([model, TITLES[name], str(one["tokens"]), f"{one['torch']:.6f}", f"{one['mergeforge']:.6f}", f"{apart:.0e}"])
    head = ["model", "set", "tokens", "loss by torch", "by mergeforge", "apart"]
    return "The first items of each set, in nats a token.\n\n" + table(head, rows)


def introduction(found: Json) -> str:
    machine, sizes = found["machine"], found["sizes"]
    versions = ", ".join(f"{name} {version.removeprefix('mergeforge ')}" for name, version in found["versions"].items())
    return (
        f"{found['date']}, {machine['processor']}, {machine['cores']} cores, device {machine['device']}, seed {found['seed']}; {versions}.\n"
        f"Base: {found['models']['base']}; chat: {found['models']['chat'] or 'the base tuned on trivia'}. Medical pre-training: checkpoints "
        f"after {', '.join(str(step) for step in sizes['checkpoints'])} updates of {sizes['batch']} tokens, {100 * sizes['replay']:.0f} % of "
        f"them general text; the other trainings: {sizes['expert']} updates. All steps took {found['seconds'] / 60:.1f} minutes, and "
        f"{found['cpu_seconds'] / 60:.1f} minutes of processor time, mergeforge's not counted. Numbers are "
        "perplexities per token, lower is better (of Q&A and abstracts: of the answer alone, the rest masked); those of lm-eval are "
        "per cent, higher is better."
        + ("" if TECHNICAL in found["geometry"] else "\n\n**Without the technical domain**: two of the four tables are missing.")
    )
