"""Training on a CPU or one GPU: continued pre-training with replay and checkpoints, and tuning on questions with answers."""

import dataclasses
import math
import random
from collections.abc import Iterator
from pathlib import Path

import torch

from models import load, save
from scoring import Prompts, rounded
from steps import Failed, Json, say

# Labels that transformers takes no loss of.
IGNORED = -100

# Tokens of a batch that are in memory together, with all activations of a part.
PART_TOKENS = 8192

Example = tuple[list[int], list[int]]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model is trained. A step is an update with about `batch_tokens` tokens."""

    steps: tuple[int, ...]  # The updates after which a checkpoint is written; the last one is the end.
    learning_rate: float
    batch_tokens: int
    window: int
    replay: float  # The share of sequences of general text.
    seed: int


def windows(texts: list[str], tokenizer, window: int, count: int) -> list[Example]:
    """As many sequences of `window` tokens, cut out of the texts one after the other; texts start over when they end."""
    stream: list[int] = []
    if count and not any(texts):
        raise Failed("there is no text to train on")
    while len(stream) < count * window:
        for text in texts:
            stream += [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
            if len(stream) >= count * window:
                break
    pieces = [stream[i * window : (i + 1) * window] for i in range(count)]
    return [(piece, piece) for piece in pieces]


def pretraining_examples(domain: list[str], general: list[str], tokenizer, recipe: Recipe) -> list[Example]:
    """Windows of the domain with a share of general ones, mixed by the seed."""
    count = math.ceil(recipe.steps[-1] * recipe.batch_tokens / recipe.window)
    replayed = round(count * recipe.replay)
    mixed = windows(domain, tokenizer, recipe.window, count - replayed) + windows(general, tokenizer, recipe.window, replayed)
    random.Random(recipe.seed).shuffle(mixed)
    return mixed


def instruction_examples(pairs: list[tuple[str, str]], tokenizer, prompts: Prompts, window: int) -> list[Example]:
    """Questions with answers in the chat template; only the answer and the end of the turn are learnt."""
    examples = []
    for question, answer in pairs:
        prompt, target = prompts.encode(question, answer)
        target = [*target, tokenizer.eos_token_id]
        labels = [IGNORED] * len(prompt) + target
        examples.append(((prompt + target)[:window], labels[:window]))
    return examples


def batches(examples: list[Example], recipe: Recipe) -> Iterator[list[Example]]:
    """One batch an update: examples in order until they have enough tokens; they start over when they end."""
    given = 0
    for _ in range(recipe.steps[-1]):
        batch: list[Example] = []
        longest = 0
        while True:
            example = examples[given % len(examples)]
            longest = max(longest, rounded(len(example[0])))
            if batch and (len(batch) + 1) * longest > recipe.batch_tokens:
                break
            batch.append(example)
            given += 1
        yield batch


def parts(batch: list[Example]) -> Iterator[list[Example]]:
    """What of a batch is in memory together; gradients of the parts are added up."""
    longest = rounded(max(len(ids) for ids, _ in batch))
    size = max(1, PART_TOKENS // longest)
    return (batch[i : i + size] for i in range(0, len(batch), size))


def learnt(labels: list[int]) -> int:
    """The tokens of a sequence that have a loss: nothing predicts the first."""
    return sum(label != IGNORED for label in labels[1:])


def padded(batch: list[Example], device: str) -> Json:
    longest = rounded(max(len(ids) for ids, _ in batch))
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in batch], device=device)
    labels = torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in batch], device=device)
    # Causal attention from the left sees no padding, and padding has no loss: no mask is needed.
    return {"input_ids": ids, "labels": labels}


def rate(step: int, recipe: Recipe) -> float:
    """Warmed up over the first tenth of the updates, then down to a tenth along a cosine (Gupta et al. 2023)."""
    warm = max(1, recipe.steps[-1] // 10)
    if step < warm:
        return recipe.learning_rate * (step + 1) / warm
    done = (step - warm) / max(1, recipe.steps[-1] - warm)
    return recipe.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


def train(start: Path, examples: list[Example], recipe: Recipe, out: Path, device: str, dtype: str) -> None:
    """Writes `step-N` into `out` for every checkpoint. Weights and optimiser are float32, products bfloat16."""
    if not examples:
        raise Failed(f"{out.name}: there is nothing to train on")
    torch.manual_seed(recipe.seed)
    net = load(start, device)
    net.train()
    if device != "cpu":
        net.gradient_checkpointing_enable()
    optimiser = torch.optim.AdamW(net.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    losses, tokens = [], 0
    for step, batch in enumerate(batches(examples, recipe)):
        for group in optimiser.param_groups:
            group["lr"] = rate(step, recipe)
        losses.append(0.0)
        counted = sum(learnt(labels) for _, labels in batch)
        for part in parts(batch):
            with torch.autocast(device.split(":")[0], torch.bfloat16):
                loss = net(**padded(part, device)).loss
            share = sum(learnt(labels) for _, labels in part) / counted
            (loss * share).backward()
            losses[-1] += loss.item() * share
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if not math.isfinite(losses[-1]):
            raise Failed(f"{out.name}: the loss is {losses[-1]} at update {step + 1}\nhint: a smaller --learning-rate")
        tokens += sum(len(ids) for ids, _ in batch)
        if (step + 1) % max(1, recipe.steps[-1] // 8) == 0:
            say(f"  update {step + 1} of {recipe.steps[-1]}, {tokens} tokens, loss {sum(losses[-8:]) / len(losses[-8:]):.3f}")
        if step + 1 in recipe.steps:
            folder = out / f"step-{step + 1:06}"
            save(net, folder, dtype, start)
            # The name of a checkpoint says updates; the tables want tokens.
            (folder / "tokens.txt").write_text(f"{tokens}\n", encoding="utf-8")
