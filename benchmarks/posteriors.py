"""Compare posteriors of simulation-based inference: NPE of sbi with its own density estimators and with ours.

`python benchmarks/posteriors.py` needs sbi, sbibm and scikit-learn. For each task of the sbi benchmark it draws
10,000 simulations from the prior, trains NPE once for each side with the defaults of `train()` (Adam, batches of 200,
10 % to stop early), draws 10,000 samples for each of the ten reference observations, and prints a Markdown table of
C2ST: the accuracy, in five folds, of an MLP that tells them from the reference posterior's, 0.5 at best. All sides have
the same simulations, split and seed. `--only SIDE --task TASK` prints one fit's figures as a JSON line, and
`--lines FILE ...` makes the table of these. The seconds of a fit are of CPU time, on one thread.

Reference: Lueckmann et al. 2021, "Benchmarking simulation-based inference", whose simulators, observations and C2ST
these are; its NPE (a spline flow) has 0.606 on two moons, 0.901 on SLCP and 0.552 on the linear Gaussian.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TASKS = ("two_moons", "slcp", "gaussian_linear")
SIDES = ("sbi nsf", "sbi maf", "loglik flow", "loglik mixture")
OBSERVATIONS = range(1, 11)


def c2st(x: Any, y: Any) -> float:
    """Return the accuracy of a classifier between two samples, standardised by the first."""
    import numpy as np
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    mean, std = x.mean(0), x.std(0)
    rows = np.concatenate([((sample - mean) / std).numpy() for sample in (x, y)])
    labels = np.concatenate([np.zeros(len(x)), np.ones(len(y))])
    width = 10 * x.shape[1]
    network = MLPClassifier(hidden_layer_sizes=(width, width), max_iter=10_000, random_state=1)
    folds = KFold(5, shuffle=True, random_state=1)
    return float(cross_val_score(network, rows, labels, cv=folds, scoring="accuracy").mean())


def fit(side: str, task_name: str, simulations: int, draws: int, seed: int) -> dict[str, Any]:
    """Train one side on one task and return its figures."""
    import sbibm
    import torch
    from sbi.inference import NPE

    torch.set_num_threads(1)
    task = sbibm.get_task(task_name)
    prior = task.get_prior_dist()
    torch.manual_seed(seed)
    theta = prior.sample((simulations,))
    x = task.get_simulator()(theta).reshape(simulations, -1)
    library, _, model = side.partition(" ")
    if library == "loglik":
        from loglik.adapters import sbi_builder

        estimator: Any = sbi_builder(model)
    else:
        estimator = model
    torch.manual_seed(seed + 1)
    start = time.process_time()
    inference = NPE(prior, density_estimator=estimator, show_progress_bars=False)
    inference.append_simulations(theta, x).train()
    seconds = time.process_time() - start
    posterior = inference.build_posterior()
    scores = []
    for number in OBSERVATIONS:
        observed = task.get_observation(number).reshape(1, -1)
        own = posterior.sample((draws,), x=observed, show_progress_bars=False)
        scores.append(c2st(task.get_reference_posterior_samples(number)[:draws], own))
    return {
        "side": side,
        "task": task_name,
        "seed": seed,
        "simulations": simulations,
        "draws": draws,
        "c2st": scores,
        "validation_nats": -float(inference.summary["best_validation_loss"][-1]),
        "epochs": int(inference.summary["epochs_trained"][-1]),
        "seconds": seconds,
    }


def report(lines: list[dict[str, Any]]) -> str:
    """Return the figures as a Markdown table."""
    text = [
        "| task | density estimator | C2ST, mean of 10 | lowest to highest | validation nats | epochs | CPU seconds |",
        "|" + "---|" * 7,
    ]
    for task in TASKS:
        for side in SIDES:
            for line in (line for line in lines if (line["task"], line["side"]) == (task, side)):
                scores = line["c2st"]
                text.append(
                    f"| {task} | {side} | {sum(scores) / len(scores):.3f} | {min(scores):.3f} to {max(scores):.3f} | "
                    f"{line['validation_nats']:.3f} | {line['epochs']} | {line['seconds']:.0f} |"
                )
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SIDES, help="run one side, as JSON lines")
    parser.add_argument("--task", choices=TASKS, help="run one task")
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lines", type=Path, nargs="+", help="files of JSON lines, to make the table of")
    arguments = parser.parse_args()
    if arguments.lines:
        texts = [file.read_text(encoding="utf-8") for file in arguments.lines]
        print(report([json.loads(line) for text in texts for line in text.splitlines() if line.startswith("{")]))
        return
    tasks = [arguments.task] if arguments.task else TASKS
    if arguments.only:
        for task in tasks:
            found = fit(arguments.only, task, arguments.simulations, arguments.draws, arguments.seed)
            print(json.dumps(found), flush=True)
        return
    lines: list[dict[str, Any]] = []
    for side in SIDES:
        for task in tasks:
            command = [sys.executable, __file__, "--only", side, "--task", task]
            for name in ("simulations", "draws", "seed"):
                command += [f"--{name}", str(getattr(arguments, name))]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            lines += [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    print(report(lines))


if __name__ == "__main__":
    main()
