"""Runs the examples of examples/cluster/ on this machine: with the real Slurm and the real Ray, and what Kubernetes does by hand. Each
has to end with the bytes of one merge, also where a worker is killed on the way.

    python tests/cluster/check.py --mergeforge target/debug/mergeforge --work DIR slurm ray kubernetes skypilot

Slurm's daemons and munge are those of the system (apt-get install slurm-wlm munge), and run as root in DIR, without systemd. Python needs
ray, kubernetes-validate, jsonschema and, without what it depends on, skypilot (`pip install --no-deps`).
"""

import argparse
import contextlib
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import scale  # noqa: E402

CLUSTER = ROOT / "examples/cluster"
# 25 tensors of 1 MB in files of 3 MB: the parts have 2, 2, 2 and 3 files, and the last file is smaller.
TENSORS, ELEMENTS, SHARD_BYTES = 25, 500_000, 3_000_000
FLAGS = ["--out-shard-size", str(SHARD_BYTES), "--chunk-tiles", "1", "--seed", "7"]
PARTS = 4

# Ends with SIGKILL what makes some parts, each once, when some of the part is there: the program, or it and then the worker that it makes
# the part for ("both"), or the worker alone. The program of a worker that is killed alone stands still, so that it ends with it or not at
# all. What went wrong stands in the marker.
KILLER = r"""
import os, signal, subprocess, sys, time
program, markers, parts, victims, *words = sys.argv[1:]
number = os.environ.get("SLURM_ARRAY_TASK_ID") or (words[words.index("--part") + 1].split("/")[0] if "--part" in words else "")
whom, marker = dict(victim.split(":") for victim in victims.split(",")).get(number), f"{markers}.{number}"
if whom is None or words[0] == "finish" or os.path.exists(marker):
    os.execv(program, [program, *words])


def mark(what=""):
    with open(marker, "w") as file:
        file.write(what)


def begun():
    return os.path.exists(parts.replace("NUMBER", number) + "/.journal")


def is_there(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


if whom != "worker":
    child = subprocess.Popen([program, *words])
    while not begun() and child.poll() is None:
        time.sleep(0.0005)
    child.kill()
    mark("" if child.wait() == -signal.SIGKILL else "it was over before it was killed")
    if whom == "both":
        os.kill(os.getppid(), signal.SIGKILL)
    sys.exit(137)

worker, merge = os.getppid(), os.getpid()
watches = os.fork() == 0
# In sessions of their own: the system wakes and hangs up what stands still in one that loses its parent.
os.setsid()
if not watches:
    os.execv(program, [program, *words])
while not begun() and is_there(merge):
    time.sleep(0.0005)
if not is_there(merge):
    sys.exit("it was over before its worker was killed")
os.kill(merge, signal.SIGSTOP)
mark()
os.kill(worker, signal.SIGKILL)
end = time.monotonic() + 20
while is_there(merge):
    if time.monotonic() > end:
        mark("its program outlived the worker")
        os.kill(merge, signal.SIGKILL)
        break
    time.sleep(0.1)
"""


def fail(what):
    sys.exit(f"FAIL: {what}")


def exit_codes():
    """Those after which docs/cluster.md says to try again, and those after which it says not to."""
    section = (ROOT / "docs/cluster.md").read_text().partition("## Exit codes\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("|")][2:]
    again, final = ({int(code) for cell in column for code in re.findall(r"\d+", cell.partition(":")[0])} for column in zip(*rows))
    return again, final


def write_model(folder, seed, tensors, elements):
    """A model of bfloat16 numbers between -2 and 2."""
    folder.mkdir(parents=True)
    values = random.Random(seed)
    header, data = {}, []
    for number in range(tensors):
        words = values.randbytes(2 * elements)
        # Bit 14 away: no number is large, infinite or none.
        data.append((int.from_bytes(words, "little") & int.from_bytes(b"\xff\xbf" * elements, "little")).to_bytes(2 * elements, "little"))
        offset = 2 * elements * number
        header[f"model.layers.{number}.w.weight"] = {"dtype": "BF16", "shape": [elements], "data_offsets": [offset, offset + 2 * elements]}
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(data))
    config = {"architectures": ["X"], "model_type": "x", "num_hidden_layers": tensors, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Checks:
    def __init__(self, mergeforge, work):
        self.mergeforge, self.work = mergeforge, work
        self.again, self.final = exit_codes()
        os.environ.update(MERGEFORGE=mergeforge, MERGEFORGE_CACHE="")
        for seed, name in enumerate(["base", "a", "b"]):
            write_model(work / name, seed, TENSORS, ELEMENTS)
        self.config = work / "config.yml"
        models = "".join(f"- {{model: {work / name}, parameters: {{weight: 0.5, density: 0.5}}}}\n" for name in "ab")
        self.config.write_text(f"merge_method: dare_ties\nbase_model: {work / 'base'}\nmodels:\n{models}")
        # A card is called like its folder.
        self.run("merge", self.config, work / "one/out", *FLAGS)
        self.whole = files(work / "one/out")

    def run(self, *words, code=0, **more):
        ended = subprocess.run([self.mergeforge, *map(str, words)], stderr=subprocess.PIPE, text=True, cwd=ROOT, **more)
        if ended.returncode != code:
            fail(f"{words}: exit code {ended.returncode}, not {code}: {ended.stderr}")
        return ended.stderr

    def same(self, out, what):
        found = files(out)
        if found != self.whole:
            differ = sorted(str(name) for name in found.keys() | self.whole.keys() if found.get(name) != self.whole.get(name))
            fail(f"{what}: {differ} are not as in one merge")
        left = [path.name for path in out.parent.iterdir() if path.name.startswith(out.name) and path != out]
        if left:
            fail(f"{what}: {left} are left")
        print(f"{what}: {len(found)} files as in one merge")

    def final_codes(self, file, pattern):
        """Fails where an example does not end for good after the exit codes of docs/cluster.md."""
        found = {int(code) for code in re.findall(r"\d+", re.search(pattern, (CLUSTER / file).read_text())[1])}
        if found != self.final:
            fail(f"{file} ends for good after {sorted(found)}, docs/cluster.md after {sorted(self.final)}")

    def moved(self, out, logs):
        """Fails where parts have not read and written the bytes that tools/scale.py says."""
        predicted = scale.moved(scale.Merge("a base and two models", 2 * TENSORS * ELEMENTS, 3), PARTS, SHARD_BYTES)
        whole = json.loads((out / "mergeforge.json").read_text())
        for number, (log, bytes_of_part) in enumerate(zip(logs, predicted, strict=True), 1):
            text = log.read_text()
            made, _ = json.JSONDecoder().raw_decode(text, re.search(r"^\{$", text, re.MULTILINE).start())
            stages = {stage["stage"]: stage["bytes"] for stage in made["run"]["stages"]}
            found = stages["read"], stages["write"]
            on_disk = sum((out / name).stat().st_size - whole["files"][name]["header_bytes"] for name in made["files"])
            if found != bytes_of_part or on_disk != found[1]:
                fail(f"part {number} has read and written {found} bytes, of which {on_disk} lie there; tools/scale.py says {bytes_of_part}")
        print(f"bytes read and written by {len(predicted)} parts: as tools/scale.py says")

    def killer(self, name, out, **victims):
        """A program that stands for mergeforge, and is killed once for each of these parts; and what tells how many were, or fails."""
        script, markers = self.work / f"{name}.sh", self.work / f"{name}.killed"
        (self.work / "killer.py").write_text(KILLER)
        parts = f"{out}.parts/NUMBER-of-{PARTS}.partial"
        reported = ",".join(f"{part.removeprefix('part')}:{whom}" for part, whom in victims.items())
        words = [sys.executable, self.work / "killer.py", self.mergeforge, markers, parts, reported]
        script.write_text("#!/bin/sh\nexec " + " ".join(f"'{word}'" for word in words) + ' "$@"\n')
        script.chmod(0o755)

        def all_killed():
            found = {path.name: path.read_text() for path in self.work.glob(f"{name}.killed.*")}
            wrong = {marker: what for marker, what in found.items() if what}
            if wrong or len(found) != len(victims):
                fail(f"{name}: not all were killed: {sorted(found)}, {wrong}")

        return script, all_killed

    def slurm(self):
        self.final_codes("slurm/merge.sbatch", r"0 \| ([\d| ]+)\) break")
        with slurm_running(self.work / "slurm") as jobs:
            submit = [CLUSTER / "slurm/submit.sh", str(PARTS), self.config]

            def started(*words, program=self.mergeforge):
                """The numbers of the jobs that a command prints."""
                environment = {**os.environ, "MERGEFORGE": str(program)}
                return subprocess.run(words, cwd=jobs, env=environment, capture_output=True, text=True, check=True).stdout.split()

            out = self.work / "by-slurm/out"
            merge, finish = started(*submit, out, *FLAGS, "--json")
            ended(jobs, merge, finish)
            self.same(out, f"Slurm, {PARTS} tasks")
            self.moved(out, [jobs / f"slurm-{merge}_{number}.out" for number in range(1, PARTS + 1)])

            out = self.work / "by-slurm/killed/out"
            program, all_killed = self.killer("slurm", out, part2="program", part3="both")
            ended(jobs, *started(*submit, out, *FLAGS, program=program), good=False)
            all_killed()
            if out.exists():
                fail("Slurm: a task was not missed")
            self.run("finish", out, code=7)
            # As merge.sbatch says.
            sbatch = ["sbatch", "--parsable"]
            [merge] = started(*sbatch, "--array=3", f"--export=ALL,PARTS={PARTS}", CLUSTER / "slurm/merge.sbatch", self.config, out, *FLAGS)
            after = [f"--dependency=afterok:{merge}", "--kill-on-invalid-dep=yes"]
            ended(jobs, merge, *started(*sbatch, *after, CLUSTER / "slurm/finish.sbatch", out))
            self.same(out, "Slurm, a program killed and tried again, a task killed and run again")

    def ray(self):
        def run(out, program, before=(), after=()):
            environment = {**os.environ, "MERGEFORGE": str(program), "RAY_memory_monitor_refresh_ms": "0"}
            words = [sys.executable, CLUSTER / "ray/merge.py", *before, str(PARTS), self.config, out, *FLAGS, *after]
            subprocess.run(words, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120)

        self.final_codes("ray/merge.py", r"FINAL = \{(.*)\}")
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        start = ["--head", f"--num-cpus={PARTS}", "--include-dashboard=false", "--disable-usage-stats", "--object-store-memory=100000000"]
        ray = Path(sys.executable).parent / "ray"
        subprocess.run([ray, "start", *start, f"--temp-dir={self.work / 'ray'}"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            os.environ["RAY_ADDRESS"] = "auto"
            out = self.work / "by-ray/out"
            run(out, self.mergeforge, before=["--cpus", "2"])
            self.same(out, f"Ray, {PARTS} parts, with two processors each")
            out = self.work / "by-ray/killed/out"
            program, all_killed = self.killer("ray", out, part2="program", part3="worker")
            run(out, program, after=["--threads", "1"])
            all_killed()
            self.same(out, "Ray, a program and a worker killed, and their tasks run again")
        finally:
            del os.environ["RAY_ADDRESS"]
            subprocess.run([ray, "stop", "--force"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kubernetes(self):
        import kubernetes_validate
        import yaml

        jobs = {name: yaml.safe_load((CLUSTER / f"kubernetes/{name}.yml").read_text()) for name in ["merge", "finish"]}
        for name, job in jobs.items():
            for version in ["1.31", "1.37"]:
                kubernetes_validate.validate(job, version, strict=True)
                planted = json.loads(json.dumps(job))
                planted["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["operater"] = "In"
                try:
                    kubernetes_validate.validate(planted, version, strict=True)
                except kubernetes_validate.ValidationError:
                    continue
                fail("Kubernetes: a misspelt key is not found")
            print(f"Kubernetes: {name}.yml is as the API's schemas say")
            self.final_codes(f"kubernetes/{name}.yml", r"operator: In\n *values: \[(.*)\]")

        def container(name, out, index=None):
            """What the container of a Job is started with."""
            [container] = jobs[name]["spec"]["template"]["spec"]["containers"]
            places = {"mergeforge": self.mergeforge, "/models/config.yml": str(self.config), "/models/out": str(out)}
            words = [places.get(word, word) for word in [*container["command"], *container["args"]]]
            if name == "merge":
                words += FLAGS
            environment = {"MERGEFORGE_CACHE": ""}
            environment.update({variable["name"]: variable["value"] for variable in container.get("env", [])})
            if index is not None:
                environment["JOB_COMPLETION_INDEX"] = str(index)
            return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT)

        def action(name, code):
            """What becomes of a pod by the policy of its Job."""
            for rule in jobs[name]["spec"]["podFailurePolicy"]["rules"]:
                if code in rule.get("onExitCodes", {}).get("values", []):
                    return rule["action"]
            return "Succeeded" if code == 0 else "Count"

        def pod(name, out, index=None, code=0):
            process = container(name, out, index)
            said = process.communicate()[1]
            if process.returncode != code:
                fail(f"Kubernetes: {name} {index}: exit code {process.returncode}, not {code}: {said}")

        for name in jobs:
            actions = {code: action(name, code) for code in [*self.again, *self.final]}
            if actions != {**dict.fromkeys(self.again, "Count"), **dict.fromkeys(self.final, "FailJob")}:
                fail(f"Kubernetes: {name}: {actions}")
        completions = jobs["merge"]["spec"]["completions"]
        out = self.work / "by-kubernetes/out"
        pod("finish", out, code=7)
        # One is asked to end, and started again.
        process = container("merge", out, 1)
        partial = out.with_name("out.parts") / f"2-of-{completions}.partial/.journal"
        while not partial.exists() and process.poll() is None:
            time.sleep(0.0005)
        process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        said = process.communicate()[1]
        grace = jobs["merge"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        if process.returncode != 130 or time.monotonic() - asked > grace:
            fail(f"Kubernetes: exit code {process.returncode} after SIGTERM: {said}")
        for index in reversed(range(completions)):
            pod("merge", out, index)
            if index > 0:
                pod("finish", out, code=7)
        pod("merge", out, 0)
        pod("finish", out)
        pod("finish", out)
        self.same(out, "Kubernetes, a pod asked to end, and started again")
        self.config.rename(self.work / "away")
        pod("merge", self.work / "by-kubernetes/other", 0, code=2)
        (self.work / "away").rename(self.config)
        self.goes_on_after_sigterm()

    def goes_on_after_sigterm(self):
        """So much is finished that it stays."""
        write_model(self.work / "large", 9, 36, 3_300_000)
        config, out = self.work / "large.yml", self.work / "by-kubernetes/large/out"
        config.write_text(f"merge_method: passthrough\nmodels: [{{model: {self.work / 'large'}, parameters: {{scale: 0.5}}}}]\n")
        words = [self.mergeforge, "merge", config, out, "--part", "1/2", "-j1", "--chunk-tiles", "1", "--out-shard-size", "20MB"]
        process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        journal = out.with_name("out.parts") / "1-of-2.partial/.journal"
        while process.poll() is None and not (journal.exists() and len(journal.read_bytes().splitlines()) > 12):
            time.sleep(0.0005)
        process.send_signal(signal.SIGTERM)
        said = process.communicate()[1]
        if process.returncode != 130 or "the same command goes on from there" not in said:
            fail(f"after SIGTERM: exit code {process.returncode}: {said}")
        said = self.run(*words[1:])
        if "this merge goes on from there" not in said:
            fail(f"it does not go on: {said}")
        self.run("merge", config, out, "--part", "2/2", "--out-shard-size", "20MB")
        self.run("finish", out, "--verify")
        self.run("verify", out, stdout=subprocess.DEVNULL)
        print("SIGTERM: what was finished stays, and the next pod goes on with it")

    def skypilot(self):
        import importlib.metadata
        from unittest.mock import MagicMock

        import jsonschema
        import yaml

        # Its schemas alone: what else it imports is for clouds.
        [package] = {path.locate().parents[1] for path in importlib.metadata.files("skypilot") if str(path) == "sky/utils/schemas.py"}
        sky = types.ModuleType("sky")
        sky.__path__, sky.__version__ = [str(package)], importlib.metadata.version("skypilot")
        autostop = MagicMock()
        autostop.AutostopWaitFor.supported_modes.return_value = []
        sys.modules.update({"sky": sky, "sky.skylet.autostop_lib": autostop, "sky.server.daemons": MagicMock(INTERNAL_REQUEST_DAEMONS=[])})
        from sky.utils import schemas

        task = yaml.safe_load((CLUSTER / "skypilot/merge.yml").read_text())
        jsonschema.validate(task, schemas.get_task_schema())
        try:
            jsonschema.validate({**task, "nodes": 4}, schemas.get_task_schema())
        except jsonschema.ValidationError:
            pass
        else:
            fail("SkyPilot: a misspelt key is not found")
        self.final_codes("skypilot/merge.yml", r"case \$1 in ([\d| ]+)\)")

        def machine(rank, out, config=self.config, **variables):
            """What a machine runs, with the program and the paths of here."""
            script, here = task["run"], {f"mergeforge {word}": f"{self.mergeforge} {word}" for word in ["merge", "finish"]}
            here |= {"/models/config.yml": str(config), "/models/out": str(out)}
            here |= {" --part": f" {' '.join(FLAGS)} --part", "sleep 30": "sleep 1"}
            for there, place in here.items():
                if there not in script:
                    fail(f"SkyPilot: its task has no {there!r}")
                script = script.replace(there, place)
            ranks = {"SKYPILOT_NODE_RANK": str(rank), "SKYPILOT_NUM_NODES": str(task["num_nodes"])}
            environment = {**os.environ, **task["envs"], **ranks, **variables}
            return subprocess.Popen(["bash", "-c", script], env=environment, stderr=subprocess.DEVNULL, cwd=ROOT)

        def codes(*machines):
            try:
                return [machine.wait(timeout=120) for machine in machines]
            except subprocess.TimeoutExpired as expired:
                for machine in machines:
                    machine.kill()
                fail(f"SkyPilot: {expired}")

        (self.work / "by-skypilot").mkdir()
        out = self.work / "by-skypilot/out"
        first = machine(0, out)
        until(lambda: out.with_name("out.parts").joinpath(f"1-of-{PARTS}").exists(), "SkyPilot: the first machine has made its part")
        if any(found := codes(*(machine(rank, out) for rank in range(1, task["num_nodes"])), first)):
            fail(f"SkyPilot: exit codes {found}")
        self.same(out, "SkyPilot's task, as its machines run it")
        out = self.work / "by-skypilot/failed/out"
        last = task["num_nodes"] - 1
        found = codes(machine(0, out, WAIT_SECONDS="2"), machine(last, out, config=self.work / "no.yml"))
        if found != [7, 2]:
            fail(f"SkyPilot, a wrong config on one machine: exit codes {found}")
        print("SkyPilot: a machine with a wrong config fails, and the first one does not wait for ever")


@contextlib.contextmanager
def slurm_running(work):
    """Slurm on this machine, with as many processors as it takes; the folder from which jobs are started."""
    for folder in ["state", "spool", "jobs"]:
        (work / folder).mkdir(parents=True)
    host = socket.gethostname().split(".")[0]
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    (work / "slurm.conf").write_text(f"""\
ClusterName=check
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={work}/munge.socket
CredType=cred/munge
StateSaveLocation={work}/state
SlurmdSpoolDir={work}/spool
SlurmctldPidFile={work}/slurmctld.pid
SlurmdPidFile={work}/slurmd.pid
SlurmctldLogFile={work}/slurmctld.log
SlurmdLogFile={work}/slurmd.log
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1
ReturnToService=2
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs={PARTS} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
""")
    os.environ["SLURM_CONF"] = str(work / "slurm.conf")
    key = work / "munge.key"
    key.touch(0o600)
    key.write_bytes(os.urandom(128))
    munge = ["munged", "--force", "--foreground", f"--socket={work}/munge.socket", f"--key-file={key}", f"--pid-file={work}/munged.pid"]
    munge += [f"--log-file={work}/munged.log", f"--seed-file={work}/munge.seed"]
    log = open(work / "daemons.log", "w")
    daemons = [subprocess.Popen(words, stdout=log, stderr=log) for words in [munge, ["slurmctld", "-D"], ["slurmd", "-D"]]]
    try:
        until(lambda: "idle" in subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True).stdout, "Slurm is up", log.name)
        yield work / "jobs"
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()


def until(is_so, what, log=None, seconds=60):
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            fail(f"{what}: not after {seconds} s" + (f"\n{Path(log).read_text()}" if log else ""))
        time.sleep(0.1)


def ended(folder, *jobs, good=True):
    """Waits until jobs of Slurm have ended, all of them well or not."""
    until(lambda: not subprocess.run(["squeue", "--noheader", f"--jobs={','.join(jobs)}"], capture_output=True, text=True).stdout.strip(), f"jobs {jobs}")
    states = subprocess.run(["scontrol", "show", "job", "--oneliner"], capture_output=True, text=True, check=True).stdout.splitlines()
    states = [line for line in states if any(f"JobId={job} " in line or f"ArrayJobId={job} " in line for job in jobs)]
    if not states or all("JobState=COMPLETED" in line for line in states) != good:
        said = "".join(path.read_text() for path in folder.glob("slurm-*.out"))
        fail(f"jobs {jobs}: {states}\n{said}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergeforge", required=True)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("checks", nargs="+", choices=["slurm", "ray", "kubernetes", "skypilot"])
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True)
    checks = Checks(str(Path(arguments.mergeforge).resolve()), work)
    for name in arguments.checks:
        began = time.monotonic()
        getattr(checks, name)()
        print(f"{name}: {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
