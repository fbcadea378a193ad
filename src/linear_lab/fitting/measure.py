"""Metrics of a model on all parts of its data."""

from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf

from linear_lab.data import LinearData
from linear_lab.fitting.checks import user_errors
from linear_lab.models import SupervisedModule


def measure(cfg: DictConfig, data: LinearData, model: SupervisedModule) -> dict[str, float]:
    """Measure by Lightning's test loop on one device: run and evaluate get the same numbers."""
    devices = cfg.trainer.devices
    with user_errors("trainer"):
        trainer = Trainer(
            accelerator=cfg.trainer.accelerator or "auto",
            devices=list(devices[:1]) if OmegaConf.is_list(devices) else 1,
            precision=cfg.trainer.precision,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    trainer.test(model, data, verbose=False)
    return measured(trainer)


def measured(trainer: Trainer) -> dict[str, float]:
    """Return what the trainer measured last."""
    return {name: value.item() for name, value in trainer.callback_metrics.items() if name != "step"}
