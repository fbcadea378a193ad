"""The checkpoints of a stack's runs: as Lightning writes them of one run alone."""

import io
from typing import Any

import torch

from linear_lab.callbacks import Checkpoint
from linear_lab.stacked import pickling
from linear_lab.stacked.measured import ways
from linear_lab.stacked.optimizers import own_state
from linear_lab.stacked.snapshot import Snapshot
from linear_lab.stacked.training import StackedRun, Trained


class Checkpoints:
    """Makes checkpoints that single training goes on from.

    Args:
        runs: in the order of the stack.
        trained: what training has left.
    """

    def __init__(self, runs: list[StackedRun], trained: Trained) -> None:
        self.runs, self.trained = runs, trained
        pickling.Pickler.templates.clear()  # of other stacks
        self.ways = ways(trained)
        self.best_key = Checkpoint("best", trained.metric, runs[0].config["mode"]).state_key
        self.last_key = Checkpoint("last").state_key

    def content(self, job: int, snapshot: Snapshot, record: dict[str, Any]) -> bytes:
        """Return a checkpoint of one model, as Lightning would write it of that model alone."""
        step = int(snapshot.step[job])
        config, data = self.runs[job].config, self.trained.data
        own = self.trained.own[job]
        own_values = snapshot.of_model(job)
        state = {f"network.{name}": own_values.pop(name) for name in ("weight", "bias") if name in own_values}
        tensors = [{name: own_values[f"{k}.{name}"] for name in kept} for k, kept in enumerate(snapshot.tensors)]
        if snapshot.rates:
            own.param_groups[0]["lr"] = snapshot.rates[job]
        checkpoint = {
            **self.trained.recorder.loops[step],
            "state_dict": state,
            "callbacks": self._callback_states(job, snapshot, record),
            "optimizer_states": [own_state(own, step, tensors)],
            "lr_schedulers": snapshot.schedulers[job : job + 1],
            "hparams_name": "kwargs",
            "hyper_parameters": dict(self.trained.template.hparams)
            | {name: config["model"][name] for name in ("weight", "bias") if name in config["model"]}
            | {name: config[name] or None for name in ("loss", "optimizer", "scheduler")},
            type(data).__qualname__: data.state_dict(),
        }
        content = io.BytesIO()
        torch.save(checkpoint, content, pickle_module=pickling)
        return content.getvalue()

    def _callback_states(self, job: int, snapshot: Snapshot, record: dict[str, Any]) -> dict[str, Any]:
        """Return what the callbacks of single training would keep in the checkpoint."""
        recorder, step = self.trained.recorder, int(snapshot.step[job])
        scored = recorder.best is not None and bool(recorder.best.step[job] >= 0)
        score = recorder.score[job].clone().to(self.trained.model.dtype) if scored else None
        bound = None if recorder.bound is None else recorder.bound[job].item()
        states: dict[str, Any] = {
            "StopOnDivergence": {"bound": bound},
            "FirstSteps": {"recorded": record.get("first_step")},
            self.best_key: {"best_model_score": score},
            self.last_key: {"best_model_score": None},
        }
        if recorder.events:
            kept = recorder.dashboard if snapshot is recorder.last else recorder.dashboard_of_best
            small, gone = int(kept["small_at"][job]), job in recorder.diverged and step == recorder.diverged[job][2]
            logged = [frame["step"] for frame in recorder.frames if frame["step"] < step + (not gone)]
            states["Dashboard"] = {
                "first": kept["first"][job].item(), "best": kept["best"][job].item(),
                "small_at": None if small < 0 else small,
                "path": self.ways[job][self.ways[job][:, 0] < step + (not gone)],
                "logged": max(logged, default=-1), "drawn": -1, "lr": kept["lr"][job].item(),
            }  # fmt: skip
        return states
