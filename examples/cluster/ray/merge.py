"""Merges in parts by tasks of Ray, and puts the parts together.

    python merge.py [--cpus N] 4 CONFIG OUT [FLAGS OF merge...]

OUT and the models lie where all nodes see them, and `mergeforge` is on the path of each. RAY_ADDRESS names a cluster that is there;
without it Ray starts on this machine.
"""

import argparse
import ctypes
import os
import re
import signal
import subprocess
import sys
import time

import ray

# Where another attempt would end in the same way: wrong usage, config or input, and a mistake in the program. All else (the output, the
# device, the Hub, a signal) may go better.
FINAL = {1, 2, 3, 101}
ATTEMPTS = 12
# Between attempts. A part of a node that was lost is locked for as long as the file system takes to notice.
PAUSE_SECONDS = 10
PROGRAM = os.environ.get("MERGEFORGE", "mergeforge")
HERE = os.getcwd()

PR_SET_PDEATHSIG = 1


class Again(Exception):
    """A part that is to be tried again, perhaps on another node."""


class Refused(Exception):
    """A part for which another attempt would end in the same way."""


def ends_with_this():
    """What a child process does first so that the system ends it with this one, its worker. Left behind, it would hold the lock of a part
    that Ray gives to another worker. Recent versions of Ray end the children of lost workers too, while the node's raylet is there."""
    libc, worker = ctypes.CDLL(None), os.getpid()

    def first():
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != worker:
            os._exit(1)

    return first


# The tasks of a node that is lost, too, are tried again.
@ray.remote(scheduling_strategy="SPREAD", max_retries=ATTEMPTS - 1, retry_exceptions=[Again])
def part(number, parts, words):
    """Makes a part, and returns what was said of it."""
    command = [PROGRAM, "merge", *words, "--part", f"{number}/{parts}"]
    ended = subprocess.run(command, cwd=HERE, stderr=subprocess.PIPE, text=True, preexec_fn=ends_with_this())
    if ended.returncode:
        failure = Refused if ended.returncode in FINAL else Again
        if failure is Again:
            # Ray tries again at once.
            time.sleep(PAUSE_SECONDS)
        raise failure(f"part {number} of {parts}: exit code {ended.returncode}\n{ended.stderr}")
    return ended.stderr


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cpus = "processors of each part, and its threads where the flags say nothing of them; some nodes have to have so many [default: 1]"
    parser.add_argument("--cpus", type=int, default=1, help=cpus)
    parser.add_argument("parts", type=int)
    parser.add_argument("config")
    parser.add_argument("out")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="of mergeforge merge, the same for all parts")
    given = parser.parse_args()
    words = [given.config, given.out, *given.flags]
    if not any(re.match(r"-j|--(num-)?threads(=|$)", flag) for flag in given.flags):
        words += ["--threads", str(given.cpus)]
    # Configs and models are named as seen from here.
    ray.init(include_dashboard=False, log_to_driver=False)
    try:
        make = part.options(num_cpus=given.cpus)
        for said in ray.get([make.remote(number, given.parts, words) for number in range(1, given.parts + 1)]):
            print(said, end="", file=sys.stderr)
    finally:
        ray.shutdown()
    sys.exit(subprocess.run([PROGRAM, "finish", given.out]).returncode)


if __name__ == "__main__":
    main()
