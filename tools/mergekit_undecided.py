"""What a config means for one tensor: just enough of it to find elements that are left to chance."""

import dataclasses
import functools
import json
import math
import pathlib

import numpy as np

from mergekit_inputs import cached_checkpoint

# Differences up to this share of the scale are rounding in float32: a few operations of 2^-24 each.
TOLERANCE = 1e-6

# Vectors that have a smaller sine between them are parallel to mergeforge (RESOLUTION in src/method/geometry.rs).
PARALLEL_SINE = 2.0**-12

# Methods in which the task vectors elect a sign, element by element.
VOTING = ("ties", "dare_ties", "breadcrumbs_ties", "della")

# Weights of sce that add up to less are equal instead.
SCE_FLOOR = 1e-6


@dataclasses.dataclass
class Origin:
    """Where an output tensor comes from: (model, input tensor, the source's own parameters) in order, and its slice."""

    sources: list
    slice_parameters: dict
    position: float
    base: str | None


def origin(config, name):
    parts = name.split(".")
    layer = next((int(part) for part in parts if part.isdigit()), None)
    slices = config.get("slices") or [{"sources": whole_models(config)}]
    if layer is None:
        # Embeddings belong to the first slice, all that follows the layers to the last; both are at the start of a gradient.
        part = slices[0] if "embed" in name else slices[-1]
        return origin_in(config, part, name, 0, lambda one: name)
    first = 0
    for part in slices:
        count = part["sources"][0]["layer_range"][1] - part["sources"][0]["layer_range"][0]
        if layer < first + count:
            inside = layer - first
            position = inside / (count - 1) if count > 1 else 1
            moved = lambda one: name.replace(f".{layer}.", f".{one['layer_range'][0] + inside}.", 1)
            return origin_in(config, part, name, position, moved)
        first += count
    raise ValueError(f"{name} lies in no slice")


def origin_in(config, part, name, position, input_name):
    sources = []
    for one in part["sources"]:
        found = input_name(one)
        if found not in cached_checkpoint(one["model"]):
            assert found == "lm_head.weight", found
            found = "model.embed_tokens.weight"
        sources.append((one["model"], found, one.get("parameters", {})))
    base = part.get("base_model", config.get("base_model"))
    return Origin(sources, part.get("parameters", {}), position, base)


def whole_models(config):
    listed = config["models"]
    base = config.get("base_model")
    if base and all(one["model"] != base for one in listed):
        listed = [*listed, {"model": base}]
    return [one | {"layer_range": [0, layer_count(one["model"])]} for one in listed]


@functools.lru_cache(maxsize=None)
def layer_count(folder):
    settings = json.loads((pathlib.Path(folder) / "config.json").read_text())
    return next(settings[key] for key in ("num_hidden_layers", "n_layer", "encoder_layers") if key in settings)


def parameter(config, place, source_at, key, default):
    """The value of a number for one model and tensor: the innermost scope with an entry for this tensor wins."""
    _, name, own = place.sources[source_at]
    for scope in (own, place.slice_parameters, config.get("parameters", {})):
        if key in scope:
            for entry in entries(scope[key]):
                if entry.get("filter") in (None, "*") or entry["filter"] in name:
                    return interpolate(entry["value"], place.position)
    return default


def entries(setting):
    if isinstance(setting, list) and setting and isinstance(setting[0], dict):
        return setting
    return [setting] if isinstance(setting, dict) else [{"value": setting}]


def interpolate(value, position):
    if not isinstance(value, list):
        return value
    at = position * (len(value) - 1)
    low = math.trunc(at)
    high = min(low + 1, len(value) - 1)
    return value[low] + (at - low) * (value[high] - value[low])


def input_arrays(place):
    return [cached_checkpoint(folder)[name].float().numpy() for folder, name, _ in place.sources]


@dataclasses.dataclass
class TaskVector:
    """A model's difference to the base, in float32 as both tools compute it, and the model's own parameters."""

    delta: np.ndarray
    weight: float
    density: float
    gamma: float
    epsilon: float


def task_vectors(config, name):
    """Base, and the task vector of every other model."""
    place = origin(config, name)
    arrays = input_arrays(place)
    base_at = next(i for i, (folder, _, _) in enumerate(place.sources) if folder == place.base)
    defaults = {"weight": 1, "density": 1, "gamma": 0.01, "epsilon": 0.15}
    vectors = [
        TaskVector(
            delta=arrays[i] - arrays[base_at],
            **{key: parameter(config, place, i, key, default) for key, default in defaults.items()},
        )
        for i in range(len(arrays))
        if i != base_at
    ]
    return arrays[base_at], vectors


def base_and_other(config, name):
    """The base, and the only other model."""
    place = origin(config, name)
    arrays = {folder: array for (folder, _, _), array in zip(place.sources, input_arrays(place))}
    base = arrays.pop(place.base)
    (other,) = arrays.values()
    return base, other


def undecided(config, name):
    """Elements whose value is a free choice or hangs on a rounding; may have to be broadcast to the tensor's shape."""
    method = config["merge_method"]
    if method in ("ties", "breadcrumbs", "breadcrumbs_ties"):
        return trimmed_undecided(config, name)
    of_method = {"nuslerp": nuslerp_undecided, "sce": sce_undecided, "arcee_fusion": fusion_undecided}.get(method)
    return of_method(config, name) if of_method else np.array(False)


def nuslerp_undecided(config, name):
    """Vectors that are opposite: no way between them is the shortest. mergeforge adds them up, as both tools do where the
    cosine is -1; rounding decides whether mergekit finds that or turns one to the other by a right angle to both."""
    place = origin(config, name)
    arrays = dict(zip((folder for folder, _, _ in place.sources), input_arrays(place)))
    base = arrays.pop(place.base, 0)
    parameters = config["parameters"]
    axis = None if parameters.get("nuslerp_flatten", True) else 0 if parameters.get("nuslerp_row_wise") else -1
    length = functools.partial(np.linalg.norm, axis=axis, keepdims=True)
    a, b = ((x - base).astype(np.float64) for x in arrays.values())
    a, b = (x / np.maximum(length(x), 1e-7) for x in (a, b))
    cosine = (a * b).sum(axis=axis, keepdims=True)
    return (cosine < 0) & (length(b - cosine * a) <= PARALLEL_SINE)


def trimmed_undecided(config, name):
    """Elements of a magnitude of which only some are kept (which ones depends on the sort), and those whose vote is within
    rounding of zero."""
    method = config["merge_method"]
    base, vectors = task_vectors(config, name)
    undecided = np.zeros(base.shape, bool)
    votes = []
    for vector in vectors:
        kept, free = trim(vector, method)
        undecided |= free
        votes.append(np.where(kept, vector.weight * vector.delta.astype(np.float64), 0))
    return undecided | is_tie(np.stack(votes)) if method in VOTING else undecided


def is_tie(votes):
    total = np.abs(votes).sum(axis=0)
    return (total > 0) & (np.abs(votes.sum(axis=0)) <= TOLERANCE * total)


def trim(vector, method):
    """Which elements are kept, and of which of them that is a free choice: where an end of the band of magnitudes that is kept
    lies among equal ones."""
    magnitude = np.abs(vector.delta)
    size = magnitude.size
    nothing = np.zeros(magnitude.shape, bool)
    if vector.density >= 1:
        return ~nothing, nothing
    count = math.trunc(vector.density * size)
    if method == "ties" and vector.density > 0:
        count = max(1, count)
    if count == 0:
        return nothing, nothing
    dropped = 0 if method == "ties" else math.trunc(vector.gamma * size)
    first = max(0, size - count - dropped)
    end = first + count
    ordered = np.sort(magnitude, axis=None)
    low, high = ordered[first], ordered[end - 1]
    kept = (low <= magnitude) & (magnitude <= high)
    free = nothing
    if first > 0 and ordered[first - 1] == low:
        free = free | (magnitude == low)
    if end < size and ordered[end] == high:
        free = free | (magnitude == high)
    return kept, free & (magnitude > 0)


def sce_undecided(config, name):
    """Elements whose variance is within rounding of the smallest that is selected, or equal to it, if not all of them are
    selected; those whose vote is within rounding of zero; and those that depend on the models' weights, where these depend on
    which elements are selected."""
    base, vectors = task_vectors(config, name)
    deltas = np.stack([vector.delta for vector in vectors]).astype(np.float64)
    share = parameter(config, origin(config, name), 0, "select_topk", 1)
    selected, free, count = sce_selection(deltas, share)
    if count == 0:
        return np.array(False)
    # The models' squares with those of the free elements that make it least, and most.
    squares = np.square(deltas)
    sure = (squares * (selected & ~free)).sum(axis=tuple(range(1, deltas.ndim)))
    chosen = count - int((selected & ~free).sum())
    ordered = np.sort(squares[:, free], axis=1)
    least = sure + ordered[:, :chosen].sum(axis=1)
    most = sure + ordered[:, ordered.shape[1] - chosen :].sum(axis=1)
    if least.sum() < SCE_FLOOR * base.size <= most.sum():
        return np.array(True)
    leeway = 0 if most.sum() < SCE_FLOOR * base.size else ((most - least) / np.maximum(least, 1e-30)).max()
    # Of agreeing models, the weights matter as far as they do not agree in size.
    votes = deltas * selected
    agreeing = np.sign(votes) == np.where(votes.sum(axis=0) >= 0, 1, -1)
    largest = np.where(agreeing, np.abs(deltas), 0).max(axis=0)
    smallest = np.where(agreeing, np.abs(deltas), np.inf).min(axis=0)
    apart = np.where(agreeing.any(axis=0), largest - smallest, 0)
    return free | is_tie(votes) | (leeway * apart > TOLERANCE / 2 * np.abs(base))


def sce_selection(deltas, share):
    """Which elements can be selected, of which of them that is a free choice or a matter of rounding, and how many are."""
    all_of_them = np.ones(deltas.shape[1:], bool)
    if share >= 1:
        return all_of_them, ~all_of_them, all_of_them.size
    deviation = deltas.std(axis=0)
    with_variance = np.count_nonzero(np.square(deviation).astype(np.float32))
    # A product of float32 numbers in both tools.
    count = int(np.float32(with_variance) * np.float32(share)) if share > 0 else 0
    if count == 0:
        return ~all_of_them, ~all_of_them, 0
    cut = np.partition(deviation, deviation.size - count, axis=None)[deviation.size - count]
    close = np.abs(deviation - cut) <= TOLERANCE * np.abs(deltas).max(axis=0)
    selected = close | (deviation > cut)
    return selected, close & (selected.sum() > count), count


def fusion_undecided(config, name):
    """Elements whose importance is within rounding of the threshold."""
    importance, threshold, unsure = fusion(config, name)
    return np.abs(importance - threshold) <= unsure


def fusion(config, name):
    """By arcee_fusion's definition: the importance of each element, the threshold, and how near to it rounding may decide."""
    base, x = (array.astype(np.float64) for array in base_and_other(config, name))
    change = np.abs(x - base)
    p, q = softmax(x) + 1e-8, softmax(base) + 1e-8
    # The sum of P·ln(P/Q), in a form in which nothing cancels: P and Q add up to the same.
    divergence = np.maximum((p * np.log1p((p - q) / q) - (p - q)).sum(axis=-1, keepdims=True), 0)
    importance = change * divergence
    ordered = np.sort(importance, axis=None)
    first, median, third = (ordered[quarters * (ordered.size - 1) // 4] for quarters in (1, 2, 3))
    threshold = median + 1.5 * (third - first)
    # A divergence of float64 numbers near 1 is not exact either, as mergekit adds it up.
    unsure = TOLERANCE * (importance + median + 1.5 * (first + third)) + 1e-15 * change
    # Between equal quartiles the median is the threshold, without a rounding.
    return importance, threshold, np.where((first == third) & (importance == median), -1, unsure)


def softmax(rows):
    powers = np.exp(rows - rows.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def probabilities(config, vector):
    """How likely each element of a task vector is kept; of equal magnitudes, on average."""
    probability = np.full(vector.delta.shape, float(vector.density))
    if not config["merge_method"].startswith("della") or not 0 < vector.density < 1:
        return probability
    return probability + vector.epsilon * (2 * ranks(vector.delta) - 1)


def ranks(delta):
    """The rank of each magnitude in its row, from 0 for the smallest to 1; of equal ones, their mean."""
    rows = np.abs(delta).reshape(-1, delta.shape[-1]) if delta.ndim else np.abs(delta).reshape(1, 1)
    if rows.shape[1] == 1:
        return np.full(delta.shape, 0.5)
    ranked = np.empty(rows.shape)
    for row, into in zip(rows, ranked):
        _, which, counts = np.unique(row, return_inverse=True, return_counts=True)
        into[:] = (np.cumsum(counts) - (counts + 1) / 2)[which]
    return (ranked / (rows.shape[1] - 1)).reshape(delta.shape)
