#!/usr/bin/env python3
"""Compares the losses of a run in TensorBoard and MLflow with its metrics.jsonl.

usage: check_trackers.py RUN        (pip install mlflow-skinny tensorboard)

A step that was made again after a resume counts once, as the later line has it.
"""

import json
import os
import pathlib
import sys

os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"


def logged(run):
    """Loss by step; a torn line is none."""
    losses = {}
    for text in (run / "metrics.jsonl").read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if "from_step" in line:
            losses = {step: loss for step, loss in losses.items() if step <= line["from_step"]}
        if "loss" in line:
            losses[line["step"]] = line["loss"]
    return losses


def from_mlflow(run):
    import mlflow
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(run / "mlruns").resolve().as_uri())
    ids = [one.experiment_id for one in client.search_experiments()]
    (found,) = client.search_runs(ids)
    assert found.data.params["train.steps"], "no settings"
    history = client.get_metric_history(found.info.run_id, "train/loss")
    return mlflow.__version__, [(one.step, one.value) for one in history]


def from_tensorboard(run):
    import tensorboard
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return tensorboard.__version__, [(one.step, one.value) for one in events.Scalars("train/loss")]


def main():
    run = pathlib.Path(sys.argv[1])
    losses = logged(run)
    wrong = 0
    for name, read in [("mlflow", from_mlflow), ("tensorboard", from_tensorboard)]:
        version, found = read(run)
        # TensorBoard holds single precision.
        close = [step for step, loss in found if abs(losses[step] - loss) <= 1e-6 * abs(loss)]
        whole = sorted(close) == sorted(losses)
        print(f"{name} {version}: {len(close)} of {len(losses)} losses, {'equal' if whole else 'WRONG'}")
        wrong += not whole
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
