"""Optuna chooses the weights of a merge, mergeforge merges them in memory and scores them.

    pip install optuna
    python examples/sweep/optuna_study.py

The study begins with what is in the folder `out/optuna` already, so that one that was interrupted goes on.
"""

import json
import os
import subprocess

import optuna

TRIALS, TOGETHER = 24, 4
MERGEFORGE = os.environ.get("MERGEFORGE", "mergeforge")
TEXTS = [f"examples/models/texts/{name}_valid.txt" for name in ("medical", "general")]

sweep = subprocess.Popen(
    [MERGEFORGE, "sweep", "examples/sweep/weights.yml", "out/optuna", "--serve", "--text", *TEXTS]
    + ["--lines", "--packed", "--frame", "--window", "96", "--weight", "general_valid=0.5"],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
)


def ask(question):
    print(json.dumps(question), file=sweep.stdin, flush=True)
    return answer()


def answer():
    line = sweep.stdout.readline()
    if not line:
        raise SystemExit(sweep.wait() or 1)
    return json.loads(line)


def distribution(knob):
    if knob["kind"] == "range":
        return optuna.distributions.FloatDistribution(knob["from"], knob["to"])
    return optuna.distributions.CategoricalDistribution(knob["values"])


first = answer()
space = {knob["name"]: distribution(knob) for knob in first["space"]}
optuna.logging.set_verbosity(optuna.logging.WARNING)
study = optuna.create_study(direction=first["direction"], sampler=optuna.samplers.TPESampler(seed=1))
for point in first["known"]:
    study.add_trial(
        optuna.trial.create_trial(params=point["values"], distributions=space, value=point["score"])
    )

while len(study.trials) < TRIALS:
    trials = [study.ask(space) for _ in range(TOGETHER)]
    for trial, point in zip(trials, ask({"points": [trial.params for trial in trials]})["points"]):
        if "error" in point:
            print(f"trial {trial.number} failed: {point['error']}")
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, point["score"])
    if any(trial.state == optuna.trial.TrialState.COMPLETE for trial in study.trials):
        print(f"{len(study.trials)} trials, the best {study.best_value:.4f} at {study.best_params}")

last = ask({"best": True})
if "error" in last:
    raise SystemExit(last["error"])
sweep.wait()
print(f"on all texts: {last['best']['all']['score']:.4f} at {last['best']['values']}")
print(last["merge"])
