#!/usr/bin/env python3
"""Do mergeforge, the Hub's own client and the tests' Hub agree? Needs huggingface_hub, safetensors, numpy, torch and transformers.

    python tools/hub_agreement.py --server target/debug/examples/hub_server --mergeforge target/debug/mergeforge

The Hub of the tests (tools/hub_server.rs) is faithful if the client takes it for the Hub: downloads by branch, tag, commit and pull
request, with pages, redirects, tokens and faults, and has the bytes in the end. The cache that mergeforge fills is the client's if
the client finds everything in it offline, completes what mergeforge left half done, and the other way round; the server counts the
bytes. Nothing is asked of any other server. The exit code is 1 if anything is wrong.
"""

import argparse
import contextlib
import functools
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

for name in [name for name in os.environ if name.startswith("HF_") or name.lower().endswith("_proxy")]:
    del os.environ[name]
# Where nobody listens: whoever forgets to say which Hub is meant fails at once.
os.environ |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

import huggingface_hub
import numpy as np
from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._shared_blobs import is_shared_blobs_dir, publish_blob_to_shared_store
from safetensors.numpy import save_file

from measuring import Failed, succeed

MODELS = pathlib.Path(__file__).resolve().parent.parent / "examples" / "models"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# What is read of a file before anything is downloaded: its header, with what comes along.
HEADER_BYTES = 128 << 10

# What the large models have together, at least.
LARGE_BYTES = 40_000_000

# How fast their shards go while a program is to be killed, but for the first, which is to arrive.
SLOW_BYTES_A_SECOND = 500_000

Json = dict[str, Any]


class Wrong(Exception):
    """What does not agree."""


def check(holds: bool, message: str) -> None:
    if not holds:
        raise Wrong(message)


# ---------------------------------------------------------------------------------------------------------------------
# The server, the models and the programs


class Server:
    """tools/hub_server.rs, which does what a line says."""

    def __init__(self, program: pathlib.Path, folder: pathlib.Path) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([program, folder], text=True, **pipes)
        self.endpoint = self.line()

    def line(self) -> str:
        line = self.process.stdout.readline().strip()
        if not line:
            raise Failed("the server has ended")
        return line

    def ask(self, *words: object) -> Json:
        print(*words, file=self.process.stdin, flush=True)
        answer = json.loads(self.line())
        check("error" not in answer, f"the server to {words}: {answer.get('error')}")
        return answer

    def sent(self, repository: str = "") -> dict[str, int]:
        """Bytes that went out of each file."""
        return {name: sent for name, sent in self.ask("counts")["files"].items() if name.startswith(repository)}

    def end(self, by_signal: bool) -> Json:
        """Ends it, and returns its last counts."""
        if by_signal:
            self.process.send_signal(signal.SIGTERM)
        else:
            self.process.stdin.close()
        counts = json.loads(self.line())
        check(self.process.wait(10) == 0, f"the server ends with {self.process.returncode}")
        return counts


@contextlib.contextmanager
def quiet(server: Server, what: str) -> Iterator[None]:
    """Nothing may be asked of the server."""
    server.ask("forget")
    yield
    asked = [f"{request['method']} {request['target']}" for request in server.ask("counts")["requests"]]
    check(not asked, f"{what} asked the Hub: {asked[:3]}")


def make_models(served: pathlib.Path) -> None:
    """`org/base`, `org/medical`, `org/chat` of the examples, and `org/large-1`, `-2` with 20 MB each in four shards."""
    for name in ("base", "medical", "chat"):
        shutil.copytree(MODELS / name, served / "org" / name)
    config = json.loads((MODELS / "base" / "config.json").read_text())
    width, inner, vocabulary, layers = 512, 1024, config["vocab_size"], 4
    config |= {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "dtype": "float16"}
    config |= {"head_dim": 128, "num_attention_heads": 4, "num_key_value_heads": 4}
    shapes = {"model.embed_tokens.weight": (vocabulary, width), "lm_head.weight": (vocabulary, width), "model.norm.weight": (width,)}
    for layer in range(layers):
        start = f"model.layers.{layer}"
        shapes |= {f"{start}.self_attn.{kind}_proj.weight": (width, width) for kind in "qkvo"}
        shapes |= {f"{start}.mlp.{kind}_proj.weight": (inner, width) for kind in ("gate", "up")}
        shapes[f"{start}.mlp.down_proj.weight"] = (width, inner)
        shapes |= {f"{start}.{kind}_layernorm.weight": (width,) for kind in ("input", "post_attention")}
    for number in (1, 2):
        folder = served / "org" / f"large-{number}"
        shutil.copytree(MODELS / "base", folder, ignore=shutil.ignore_patterns(WEIGHTS))
        (folder / "config.json").write_text(json.dumps(config))
        random = np.random.default_rng(number)
        tensors = {name: (random.standard_normal(shape) * 0.02).astype(np.float16) for name, shape in shapes.items()}
        shard_of = {name: f"model-0000{1 + place * 4 // len(shapes)}-of-00004.safetensors" for place, name in enumerate(shapes)}
        for shard in sorted(set(shard_of.values())):
            part = {name: tensor for name, tensor in tensors.items() if shard_of[name] == shard}
            save_file(part, folder / shard, metadata={"format": "pt"})
        total = sum(tensor.nbytes for tensor in tensors.values())
        (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": shard_of}))


def files_of(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def same_files(found: pathlib.Path, expected: pathlib.Path, what: str, names: set[str] | None = None) -> None:
    """All files, or those of these names, with the same bytes."""
    here, there = files_of(found), files_of(expected)
    names = names or set(there)
    check(set(here) == names, f"{what}: {sorted(here)}, not {sorted(names)}")
    for name in names:
        check(here[name].read_bytes() == there[name].read_bytes(), f"{what}: {name} has other bytes")


def blob_name(path: pathlib.Path) -> str:
    """What git or LFS calls a file, counted here."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def folder_of(cache: pathlib.Path, repository: str) -> pathlib.Path:
    return cache / f"models--{repository.replace('/', '--')}"


def clean(cache: pathlib.Path, partial: bool = False) -> None:
    """The client finds nothing amiss in a cache, and nothing half done unless that may be."""
    scanned = scan_cache_dir(cache)
    check(not scanned.warnings, f"{cache}: {[str(warning) for warning in scanned.warnings]}")
    left = sorted(file.file_path.name for file in scanned.incomplete_files)
    check(partial or not left, f"{cache}: left half done: {left}")


class Bench:
    """What every check needs: the server, mergeforge, and folders."""

    def __init__(self, server: Server, mergeforge: pathlib.Path, served: pathlib.Path, work: pathlib.Path) -> None:
        self.server, self.mergeforge, self.served, self.work = server, mergeforge, served, work
        self.snapshot = functools.partial(snapshot_download, endpoint=server.endpoint, token=False)
        self.file = functools.partial(hf_hub_download, endpoint=server.endpoint, token=False)

    def folder(self, name: str) -> pathlib.Path:
        """A new folder."""
        return pathlib.Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.work))

    def environment(self, cache: pathlib.Path, **more: str) -> dict[str, str]:
        # Nothing that mergeforge knows from earlier runs, and nobody's token.
        ours = {"MERGEFORGE_CACHE": str(self.folder("known")), "HF_HOME": str(self.folder("home"))}
        return {"HF_ENDPOINT": self.server.endpoint, "HF_HUB_CACHE": str(cache)} | ours | more

    def config(self, models: list[str]) -> pathlib.Path:
        """Their average."""
        weighted = [{"model": model, "parameters": {"weight": 1 / len(models)}} for model in models]
        path = self.folder("config") / "config.yml"
        path.write_text(json.dumps({"merge_method": "linear", "models": weighted, "dtype": "float16"}))
        return path

    def command(self, models: list[str], *flags: str) -> tuple[list[Any], pathlib.Path]:
        out = self.folder("out") / "merged"
        return [self.mergeforge, "merge", "--quiet", "--device", "cpu", self.config(models), out, *flags], out

    def merge(self, models: list[str], cache: pathlib.Path, *flags: str, **environment: str) -> dict[str, bytes]:
        """The weights of their average, by file."""
        command, out = self.command(models, *flags)
        succeed(command, limit_s=120, environment=self.environment(cache, **environment))
        return {name: path.read_bytes() for name, path in files_of(out).items() if name.endswith(".safetensors")}

    @functools.cache
    def expected(self, *models: str) -> dict[str, bytes]:
        """The same from folders."""
        return self.merge([str(self.served / model) for model in models], self.folder("no-cache"))


SMALL = ("org/medical", "org/chat")
LARGE = ("org/large-1", "org/large-2")

# ---------------------------------------------------------------------------------------------------------------------
# The server, as the client sees it


def every_revision_is_downloaded(bench: Bench) -> None:
    expected = {revision: bench.served / "org/medical" for revision in ("main", "v1")}
    other = bench.served / "org/chat"
    expected["refs/pr/7"] = other
    bench.server.ask("publish org/medical refs/pr/7", other)
    commit = bench.server.ask("tag org/medical v1 main")["commit"]
    expected[commit] = bench.served / "org/medical"
    for pages in (1000, 2):
        bench.server.ask("pages", pages)
        for revision, folder in expected.items():
            cache = bench.folder("client")
            found = pathlib.Path(bench.snapshot("org/medical", revision=revision, cache_dir=cache))
            same_files(found, folder, f"the snapshot of {revision}")
            for name, path in files_of(folder).items():
                blob = (found / name).readlink().name
                check(blob == blob_name(path), f"{name} is called {blob}, and not {blob_name(path)}")
            clean(cache)
    bench.server.ask("pages 1000")
    for revision, folder in expected.items():
        for name in ("config.json", WEIGHTS):
            path = bench.file("org/medical", name, revision=revision, cache_dir=bench.folder("client"))
            check(pathlib.Path(path).read_bytes() == (folder / name).read_bytes(), f"{name} of {revision}")
    bench.server.ask("rename org/base org/renamed")
    found = bench.snapshot("org/base", cache_dir=bench.folder("client"))
    same_files(pathlib.Path(found), bench.served / "org/base", "the old name")


def a_moved_branch_is_followed(bench: Bench) -> None:
    cache = bench.folder("client")
    for source in ("org/base", "org/chat"):
        bench.server.ask("publish org/moving main", bench.served / source)
        found = bench.snapshot("org/moving", cache_dir=cache)
        same_files(pathlib.Path(found), bench.served / source, f"the branch after it moved to {source}")


def refusals_are_understood(bench: Bench) -> None:
    server = bench.server
    for access in ("private", "gated", "disabled"):
        server.ask(f"publish org/{access} main", bench.served / "org/medical")
        server.ask(f"limit org/{access} {access}")
    server.ask("token hf_member member")
    server.ask("token hf_stranger stranger")
    for repository, file, token, error in (
        # The client sees a refusal without a code only as such where the address begins with https.
        ("org/none", "config.json", False, HfHubHTTPError),
        ("org/none", "config.json", "hf_stranger", RepositoryNotFoundError),
        ("org/private", WEIGHTS, "hf_stranger", RepositoryNotFoundError),
        ("org/gated", WEIGHTS, False, GatedRepoError),
        ("org/gated", WEIGHTS, "hf_stranger", GatedRepoError),
        ("org/disabled", "config.json", "hf_member", (DisabledRepoError, LocalEntryNotFoundError)),
        ("org/medical", "none.json", False, RemoteEntryNotFoundError),
    ):
        try:
            bench.file(repository, file, token=token, cache_dir=bench.folder("client"))
        except error:
            continue
        except Exception as other:
            raise Wrong(f"{file} of {repository} as {token}: {other!r}") from other
        raise Wrong(f"{file} of {repository} can be had as {token}")
    try:
        bench.snapshot("org/medical", revision="none", cache_dir=bench.folder("client"))
        raise Wrong("a branch that is not there can be had")
    except RevisionNotFoundError:
        pass
    for repository in ("org/private", "org/gated"):
        found = bench.snapshot(repository, token="hf_member", cache_dir=bench.folder("client"))
        same_files(pathlib.Path(found), bench.served / "org/medical", repository)
    check(server.ask("counts")["tokens_at_cdn"] == 0, "the client sends its token to the CDN")


def faults_are_survived(bench: Bench) -> None:
    """What the client repairs: it tries again, and goes on where it was."""
    for fault in ("cut 300000", "longer 1000", "rate-limited 0", "retry-after 0", "status 503"):
        bench.server.ask(f"fault {WEIGHTS} 1 {fault}")
        found = bench.snapshot("org/medical", cache_dir=bench.folder("client"))
        same_files(pathlib.Path(found), bench.served / "org/medical", fault)
        check(bench.server.ask("counts")["faults_left"] == 0, f"{fault} has not happened")


# ---------------------------------------------------------------------------------------------------------------------
# mergeforge's cache, as the client sees it


def what_mergeforge_downloads_is_found(bench: Bench) -> None:
    cache = bench.folder("ours")
    bench.server.ask("forget")
    merged = bench.merge(list(SMALL), cache)
    check(merged == bench.expected(*SMALL), "a merge from the Hub has other bytes than one of folders")
    clean(cache)
    theirs = bench.folder("theirs")
    for repository in SMALL:
        folder = bench.served / repository
        counted = bench.server.sent(f"{repository}/")
        most = (folder / WEIGHTS).stat().st_size + HEADER_BYTES
        check(counted.get(f"{repository}/{WEIGHTS}", 0) <= most, f"{repository}: fetched twice: {counted}")
        client = pathlib.Path(bench.snapshot(repository, cache_dir=theirs))
        ours = folder_of(cache, repository) / "snapshots" / client.name
        names = set(files_of(ours))
        check({"config.json", WEIGHTS, "tokenizer.json"} <= names, f"{repository}: {sorted(names)}")
        same_files(ours, folder, f"our snapshot of {repository}", names)
        for name in names:
            link, other = (ours / name).readlink(), (client / name).readlink()
            check(link == other, f"{name} is a link to {link}, and the client's to {other}")
        references = [files_of(folder_of(where, repository) / "refs") for where in (cache, theirs)]
        ours_and_theirs = [{name: path.read_text() for name, path in files.items()} for files in references]
        check(ours_and_theirs[0] == ours_and_theirs[1], f"{repository}: references {ours_and_theirs}")
    with quiet(bench.server, "the client, offline"):
        for repository in SMALL:
            found = pathlib.Path(bench.snapshot(repository, cache_dir=cache, local_files_only=True))
            check((found / WEIGHTS).is_file(), f"{repository}: no {WEIGHTS} in {found}")
            bench.file(repository, "config.json", cache_dir=cache, local_files_only=True)
        command, out = bench.command(list(SMALL), "--offline")
        succeed(command, limit_s=120, environment=bench.environment(cache))
        check(files_of(out)[WEIGHTS].read_bytes() == merged[WEIGHTS], "other bytes offline")
        check(bench.merge(list(SMALL), cache, HF_HUB_OFFLINE="1") == merged, "other bytes with HF_HUB_OFFLINE")
        load = (
            "import sys, transformers\n"
            "for name in sys.argv[1:]:\n"
            "    model = transformers.AutoModelForCausalLM.from_pretrained(name)\n"
            "    transformers.AutoTokenizer.from_pretrained(name)\n"
            "    print(model.num_parameters())"
        )
        environment = {"HF_ENDPOINT": bench.server.endpoint, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
        loaded = succeed([sys.executable, "-c", load, *SMALL, str(out)], environment=environment).out.split()
        check(loaded == ["602976"] * 3, f"transformers finds {loaded} parameters")
    # The client fetches no file a second time.
    bench.server.ask("forget")
    for repository in SMALL:
        same_files(pathlib.Path(bench.snapshot(repository, cache_dir=cache)), bench.served / repository, repository)
    again = {name for name in bench.server.sent() if name.endswith((WEIGHTS, "tokenizer.json", "/config.json"))}
    check(not again, f"the client fetches {sorted(again)} again")


def merged_from_the_cache(bench: Bench, cache: pathlib.Path) -> None:
    """What is in the cache is merged, offline and online, and nothing of it is fetched."""
    with quiet(bench.server, "mergeforge --offline"):
        check(bench.merge(list(SMALL), cache, "--offline") == bench.expected(*SMALL), "other bytes")
    bench.server.ask("forget")
    check(bench.merge(list(SMALL), cache) == bench.expected(*SMALL), "other bytes online")
    check(not bench.server.sent(), f"fetched though it is there: {bench.server.sent()}")
    clean(cache)


def what_the_client_downloads_is_merged(bench: Bench) -> None:
    cache = bench.folder("theirs")
    for repository in SMALL:
        bench.snapshot(repository, cache_dir=cache)
    merged_from_the_cache(bench, cache)


def revisions_and_tokens_are_minded(bench: Bench) -> None:
    """`org/name@REVISION` as the client names it; what is private, with a token that goes to the Hub alone."""
    commit = bench.server.ask("tag org/medical v1 main")["commit"]
    bench.server.ask("publish org/medical refs/pr/7", bench.served / "org/chat")
    cache = bench.folder("ours")
    for revision, source in ((commit, "org/medical"), ("v1", "org/medical"), ("refs/pr/7", "org/chat")):
        expected = bench.expected(source, "org/base")
        check(bench.merge([f"org/medical@{revision}", "org/base"], cache) == expected, f"other bytes at {revision}")
        found = bench.snapshot("org/medical", revision=revision, cache_dir=cache, local_files_only=True)
        check((pathlib.Path(found) / WEIGHTS).is_file(), f"the client does not find {revision}")
    bench.server.ask("publish org/private main", bench.served / "org/medical")
    bench.server.ask("limit org/private private")
    bench.server.ask("token hf_member member")
    bench.server.ask("forget")
    merged = bench.merge(["org/private", "org/chat"], bench.folder("ours"), HF_TOKEN="hf_member")
    check(merged == bench.expected("org/medical", "org/chat"), "other bytes of what is private")
    check(bench.server.ask("counts")["tokens_at_cdn"] == 0, "mergeforge sends its token to the CDN")
    clean(cache)


def what_the_client_left_half_done_is_completed(bench: Bench) -> None:
    cache = bench.folder("theirs")
    first, second, third = (f"model-0000{number}-of-00004.safetensors" for number in (1, 2, 3))
    some = ["config.json", INDEX, first]
    bench.snapshot("org/large-1", cache_dir=cache, allow_patterns=some)
    source, blobs = bench.served / "org/large-1", folder_of(cache, "org/large-1") / "blobs"
    half = (source / second).stat().st_size // 2
    # As clients before version 1 leave it, and as later ones do, which never go on with it.
    (blobs / f"{blob_name(source / second)}.incomplete").write_bytes((source / second).read_bytes()[:half])
    (blobs / f"{blob_name(source / third)}.0123abcd.incomplete").write_bytes((source / third).read_bytes()[:1000])
    bench.server.ask("forget")
    check(bench.merge(list(LARGE), cache) == bench.expected(*LARGE), "other bytes")
    sent = bench.server.sent("org/large-1/")
    sizes = {name: (source / name).stat().st_size for name in (second, third)}
    for name, missing in ((first, 0), (second, sizes[second] - half), (third, sizes[third])):
        counted = sent.get(f"org/large-1/{name}", 0)
        most = missing + HEADER_BYTES if missing else 0
        check(missing <= counted <= most, f"{name}: {counted} bytes were fetched, and {missing} were missing")
    for name in ("config.json", INDEX):
        check(f"org/large-1/{name}" not in sent, f"{name} was fetched again")
    clean(cache, partial=True)
    left = {file.file_path.name for file in scan_cache_dir(cache).incomplete_files}
    check(left <= {f"{blob_name(source / third)}.0123abcd.incomplete"}, f"left half done: {left}")


def killed(bench: Bench, cache: pathlib.Path) -> int:
    """Kills mergeforge in the middle of its downloads. The bytes of large files that the cache has then."""
    for shards, bytes_a_second in (("of-00004", SLOW_BYTES_A_SECOND), ("00001-of-00004", 8 * SLOW_BYTES_A_SECOND)):
        bench.server.ask(f"fault {shards} 1000000 slow {bytes_a_second}")
    command, _ = bench.command(list(LARGE))
    environment = os.environ | bench.environment(cache)
    process = subprocess.Popen([str(word) for word in command], env=environment, stderr=subprocess.DEVNULL)

    def kept() -> int:
        large = {blob_name(path) for name in LARGE for path in (bench.served / name).glob("*.safetensors")}
        blobs = [path for name in LARGE for path in (folder_of(cache, name) / "blobs").glob("*")]
        return sum(path.stat().st_size for path in blobs if path.name.split(".")[0] in large)

    try:
        deadline = time.monotonic() + 60
        while kept() < LARGE_BYTES // 10:
            check(process.poll() is None, f"mergeforge ended by itself, with {process.returncode}")
            check(time.monotonic() < deadline, f"only {kept()} bytes in a minute")
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    bench.server.ask("heal")
    # What is under way to a program that is no more.
    time.sleep(0.5)
    return kept()


def what_mergeforge_left_half_done_is_completed(bench: Bench) -> None:
    cache = bench.folder("ours")
    killed(bench, cache)
    clean(cache, partial=True)
    for repository in LARGE:
        found = bench.snapshot(repository, cache_dir=cache)
        same_files(pathlib.Path(found), bench.served / repository, f"{repository}, completed by the client")
    clean(cache, partial=True)
    with quiet(bench.server, "mergeforge --offline"):
        check(bench.merge(list(LARGE), cache, "--offline") == bench.expected(*LARGE), "other bytes")


def only_what_is_missing_is_fetched_after_a_kill(bench: Bench) -> None:
    cache = bench.folder("ours")
    kept = killed(bench, cache)
    bench.server.ask("forget")
    check(bench.merge(list(LARGE), cache) == bench.expected(*LARGE), "other bytes")
    counted = sum(sent for name, sent in bench.server.sent("org/large").items() if name.endswith(".safetensors"))
    paths = [path for name in LARGE for path in (bench.served / name).glob("*.safetensors")]
    missing = sum(path.stat().st_size for path in paths) - kept
    most = missing + len(paths) * HEADER_BYTES
    check(missing <= counted <= most, f"{counted} bytes were fetched, and {missing} were missing")
    clean(cache)


def shared_blobs_are_read(bench: Bench) -> None:
    """Clients of version 2 and later may keep large files in one store for all repositories."""
    cache = bench.folder("theirs")
    for number, repository in enumerate(SMALL):
        found = pathlib.Path(bench.snapshot(repository, cache_dir=cache))
        blob = folder_of(cache, repository) / "blobs" / (found / WEIGHTS).readlink().name
        size, xet_hash = blob.stat().st_size, hashlib.sha256(b"%d" % number).hexdigest()
        shared = publish_blob_to_shared_store(blob_path=str(blob), xet_hash=xet_hash, cache_dir=cache, expected_size=size)
        check(shared and blob.is_symlink() and is_shared_blobs_dir(cache / "blobs"), "the client has not shared it")
    merged_from_the_cache(bench, cache)


def a_stream_keeps_nothing_large(bench: Bench) -> None:
    cache = bench.folder("ours")
    check(bench.merge(list(LARGE), cache, "--stream") == bench.expected(*LARGE), "other bytes")
    sizes = {name: path.stat().st_size for name, path in files_of(cache).items()}
    large = [name for name, size in sizes.items() if name.endswith(".safetensors") or size > 1_000_000]
    check(not large, f"kept: {large}")
    clean(cache)


CHECKS: tuple[Callable[[Bench], None], ...] = (
    every_revision_is_downloaded,
    a_moved_branch_is_followed,
    refusals_are_understood,
    faults_are_survived,
    what_mergeforge_downloads_is_found,
    what_the_client_downloads_is_merged,
    revisions_and_tokens_are_minded,
    what_the_client_left_half_done_is_completed,
    what_mergeforge_left_half_done_is_completed,
    only_what_is_missing_is_fetched_after_a_kill,
    shared_blobs_are_read,
    a_stream_keeps_nothing_large,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", type=pathlib.Path, required=True, help="tools/hub_server.rs, built")
    parser.add_argument("--mergeforge", type=pathlib.Path, required=True)
    parser.add_argument("--only", default="", help="the checks with this in their names")
    arguments = parser.parse_args()
    print(f"huggingface_hub {huggingface_hub.__version__}")
    wrong = 0
    with tempfile.TemporaryDirectory() as work:
        served = pathlib.Path(work) / "served"
        make_models(served)
        for number, agrees in enumerate(each for each in CHECKS if arguments.only in each.__name__):
            server = Server(arguments.server, served)
            name, start = agrees.__name__.replace("_", " "), time.monotonic()
            try:
                agrees(Bench(server, arguments.mergeforge, served, pathlib.Path(work)))
                # Both ways of ending it are used.
                counts = server.end(by_signal=number % 2 == 1)
                check(counts["tokens_at_cdn"] == 0, "a token came to the CDN")
                print(f"ok     {name} ({time.monotonic() - start:.1f} s)", flush=True)
            except (Wrong, Failed, OSError, HfHubHTTPError, subprocess.SubprocessError) as error:
                print(f"WRONG  {name}: {error}", flush=True)
                wrong += 1
            finally:
                server.process.kill()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
