"""What works where nothing but the package is installed; run by the Python of a new virtual environment, in the repository."""

import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import mergeforge


def main() -> None:
    assert not {"numpy", "torch"} & set(sys.modules), "nothing else is imported"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        assert len(mergeforge.plan("examples/ties.yml", out=out).tensors) == 39
        merged = mergeforge.merge("examples/ties.yml", out)
        assert len(merged.manifest["tensors"]) == 39 and (out / "config.json").is_file()
        assert "ties" in mergeforge.methods()
        try:
            mergeforge.merge("examples/ties.yml", out)
        except mergeforge.ConfigError as error:
            assert error.hint is not None
        else:
            raise AssertionError("the folder is in use")
        try:
            mergeforge.merge_state_dicts("examples/ties.yml", {"examples/models/chat": {"x": [1, 2]}})
        except mergeforge.ConfigError as error:
            assert "is list, not a tensor" in error.message
        else:
            raise AssertionError("there are no such tensors")
        programs = Path(sysconfig.get_path("scripts"))
        words = [str(programs / "mergeforge-mergekit-yaml"), "examples/ties.yml", str(Path(folder) / "again"), "--cuda"]
        subprocess.run(words, check=True, stderr=subprocess.DEVNULL)
        again = (Path(folder) / "again" / "model.safetensors").read_bytes()
        assert again == (out / "model.safetensors").read_bytes()
        subprocess.run([str(programs / "mergeforge"), "--version"], check=True)


if __name__ == "__main__":
    main()
