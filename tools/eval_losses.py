"""Records what transformers makes of the example models' texts, cut in every way that `mergeforge eval` knows.

    python3 tools/eval_losses.py > tests/all/eval_losses.json

Needs torch and transformers. The cutting is written here once more, from its description in docs/eval.md alone.
"""

import json
import re
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

MODELS = Path(__file__).resolve().parent.parent / "examples" / "models"
ASKING = 32

CASES = [
    dict(name="a file", model="base", file="medical_valid.txt", form="text", texts=1, window=128, stride=128),
    dict(name="a file, overlapping", model="base", file="medical_valid.txt", form="text", texts=1, window=128, stride=48),
    dict(name="lines", model="medical", file="medical_valid.txt", form="text", texts=60, window=64, stride=64, by_line=True),
    dict(name="lines framed", model="medical", file="medical_valid.txt", form="text", texts=60, window=64, stride=32, by_line=True, framed=True),
    dict(name="lines packed", model="chat", file="general_valid.txt", form="text", texts=80, window=96, stride=96, by_line=True, packed=True, framed=True),
    dict(name="answers", model="chat", file="medqa_valid.jsonl", form="qa", texts=60, window=512, stride=512),
    dict(name="answers, shortened", model="chat", file="medqa_valid.jsonl", form="qa", texts=60, window=48, stride=48),
    dict(
        name="answers, own prompt", model="chat", file="medqa_valid.jsonl", form="qa", texts=60, window=512, stride=512,
        prompt="<|user|>{question}<|assistant|>{answer}",
    ),
]


def tokens_of(tokenizer, text):
    """Numbers of tokens, and for each the bytes and words of the text that came with it."""
    encoded = tokenizer(text, add_special_tokens=True, return_offsets_mapping=True)
    starts = [match.start() for match in re.finditer(r"\S+", text)]
    done, out = 0, []
    for number, (_, end) in zip(encoded["input_ids"], encoded["offset_mapping"]):
        end = max(done, end)
        out.append([number, len(text[done:end].encode()), sum(done <= start < end for start in starts)])
        done = end
    last = max(i for i, token in enumerate(out) if token[1])
    out[last][1] += len(text[done:].encode())
    out[last][2] += sum(done <= start for start in starts)
    return out


def slide(tokens, window, stride):
    done, first = 0, 0
    while first < len(tokens):
        end = min(len(tokens), first + window)
        yield tokens[first:end], max(done, first + 1) - first
        done, first = end, first + stride
        if end == len(tokens):
            return


def pair(tokenizer, before, counts, window):
    tokens = tokens_of(tokenizer, before + counts)
    size, counts_from = 0, 0
    for token in tokens:
        size += token[1]
        if size > len(before.encode()):
            break
        counts_from += 1
    seen = sum(token[1] for token in tokens[:counts_from])
    tokens[counts_from][1] -= len(before.encode()) - seen
    if len(tokens) > window:
        asking = min(ASKING, counts_from, window // 2)
        head = min(max(0, window - asking - (len(tokens) - counts_from)), counts_from - asking)
        tokens = tokens[:head] + tokens[counts_from - asking :]
        tokens, counts_from = tokens[:window], head + asking
    return tokens, max(counts_from, 1)


def windows_of(case, tokenizer):
    path = MODELS / "texts" / case["file"]
    if case["form"] == "text":
        text = path.read_text()
        texts = text.splitlines() if case["by_line"] else [text]
        framed = [tokens_of(tokenizer, text) for text in texts[: case["texts"]]]
        if case["framed"]:
            begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
            framed = [[[begin, 0, 0], *tokens, [end, 0, 0]] for tokens in framed]
        if case["packed"]:
            framed = [[token for tokens in framed for token in tokens]]
        return [window for tokens in framed for window in slide(tokens, case["window"], case["stride"])]
    rows = [json.loads(line) for line in path.read_text().splitlines()][: case["texts"]]
    prompt = case["prompt"] or "Question: {question}\nAnswer: {answer}"
    before = prompt.removesuffix("{answer}")
    return [pair(tokenizer, before.format(**row), row["answer"], case["window"]) for row in rows]


@torch.no_grad()
def main():
    torch.set_num_threads(2)
    out = []
    for case in CASES:
        case = dict(by_line=False, packed=False, framed=False, chat=False, prompt=None) | case
        folder = MODELS / case["model"]
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        losses, words, size, windows = [], 0, 0, 0
        for tokens, counts_from in windows_of(case, tokenizer):
            if counts_from >= len(tokens):
                continue
            numbers = torch.tensor([[token[0] for token in tokens]])
            logits = model(numbers).logits[0].double().log_softmax(-1)
            losses += [-logits[i - 1, numbers[0, i]].item() for i in range(counts_from, len(tokens))]
            words += sum(token[2] for token in tokens[counts_from:])
            size += sum(token[1] for token in tokens[counts_from:])
            windows += 1
        case |= dict(windows=windows, counted=len(losses), loss=sum(losses) / len(losses), words=words, bytes=size)
        out.append(case)
    print(json.dumps(out, indent=1))


main()
