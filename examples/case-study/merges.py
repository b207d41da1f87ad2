"""Merges by mergeforge: configs of `configs/` with the folders of this run filled in."""

import json
import shutil
import string
import subprocess
from pathlib import Path

from steps import Failed, Json

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent

# Numbers of mergeforge and of torch may differ by this share.
AGREEMENT = 1e-3

# With less rank correlation, predictions are of something else than what was measured.
RANKED = 0.5


def program(named: str | None) -> Path:
    """The mergeforge that is named, or on the path, or the fastest one that was built here."""
    built = [REPOSITORY / "target" / profile / "mergeforge" for profile in ("ship", "release", "debug")]
    candidates = [named] if named else [shutil.which("mergeforge"), *(str(path) for path in built if path.is_file())]
    for candidate in candidates:
        if candidate and shutil.which(candidate):
            return Path(shutil.which(candidate)).resolve()
    raise Failed(f"{named or 'mergeforge'}: there is no such program\nhint: cargo build --release, or name it with --mergeforge")


def version(mergeforge: Path) -> str:
    return subprocess.run([mergeforge, "--version"], capture_output=True, text=True, check=True).stdout.strip()


def commands(mergeforge: Path) -> set[str]:
    """The subcommands that this mergeforge has."""
    text = subprocess.run([mergeforge, "--help"], capture_output=True, text=True, check=True).stdout
    listed = text.partition("Commands:")[2].partition("Options:")[0]
    return {line.split()[0] for line in listed.splitlines() if line[:2] == "  " and line[2:3].isalpha()}


def filled(config: str, values: Json) -> str:
    """The text of configs/CONFIG.yml with its placeholders replaced. Every one needs a value."""
    text = (HERE / "configs" / f"{config}.yml").read_text(encoding="utf-8")
    # Folders stand between double quotes, where YAML knows the escapes of JSON.
    quoted = {key: json.dumps(str(value), ensure_ascii=False)[1:-1] for key, value in values.items()}
    try:
        return string.Template(text).substitute(quoted)
    except KeyError as error:
        raise Failed(f"configs/{config}.yml: there is no value for the placeholder {error}") from None


def merge(mergeforge: Path, text: str, seed: int, device: str, out: Path) -> Json:
    """Merges into the folder `out`, and returns the manifest."""
    config = out.with_name(out.name + ".yml")
    config.write_text(text, encoding="utf-8")
    command = [mergeforge, "merge", config, out, "--json", "--quiet", "--random-seed", str(seed), "--device", device]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"{config}: mergeforge failed (exit code {done.returncode}):\n  " + "\n  ".join(done.stderr.strip().splitlines()[-4:]))
    return json.loads(done.stdout)


def analyze(mergeforge: Path, text: str, out: Path) -> None:
    """Writes analysis.json and analysis.html into the folder `out`."""
    config = out / "config.yml"
    config.write_text(text, encoding="utf-8")
    done = subprocess.run([mergeforge, "analyze", config, "--json", "--quiet", "--out", out / "analysis.html"], capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"{config}: mergeforge analyze failed (exit code {done.returncode}):\n{done.stderr.strip()}")
    (out / "analysis.json").write_text(done.stdout, encoding="utf-8")


def disagreements(analysis: Json, shape: Json) -> list[str]:
    """Where `mergeforge analyze` measured something else than torch did."""
    whole = analysis["whole"]
    theirs = {
        "weights_cosine": whole["pairs"][0]["cosine"],
        "task_vectors_cosine": whole["task_vector_pairs"][0]["cosine"],
        "domain_norm": whole["task_vectors"][0]["norm"],
        "chat_norm": whole["task_vectors"][1]["norm"],
        "conflicts": whole["task_vector_pairs"][0]["signs_differ"],
        # The smaller side of a conflict is what two equally weighted models lose in the vote.
        "smaller_side_of_conflicts": whole["vote"]["outvoted"],
    }
    apart = {key: value for key, value in theirs.items() if abs(value - shape[key]) > AGREEMENT * max(abs(shape[key]), 0.01)}
    return [f"{key} is {value:.6f} by mergeforge analyze, and {shape[key]:.6f} by torch" for key, value in apart.items()]
