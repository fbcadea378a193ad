"""Measures the metrics of a model on all parts of its data."""

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from omegaconf import DictConfig, OmegaConf

from linear_lab.fitting.checks import user_errors
from linear_lab.fitting.seeding import seed_all
from linear_lab.models import SupervisedModule


def measure(cfg: DictConfig, data: LightningDataModule, model: LightningModule) -> dict[str, float]:
    """Measure with Lightning's loops on one device, so that run and evaluate get the same numbers.

    The test of a `SupervisedModule` on `LinearData` measures all parts. Other modules are validated too.
    """
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
    metrics: dict[str, float] = {}
    if can_validate(data, model) and not (isinstance(model, SupervisedModule) and getattr(data, "by_part", False)):
        seed_all(cfg.seed)
        trainer.validate(model, data, verbose=False)
        metrics = measured(trainer)
    if is_overridden("test_step", model) and is_overridden("test_dataloader", data):
        seed_all(cfg.seed)
        trainer.test(model, data, verbose=False)
        metrics |= measured(trainer)
    return metrics


def can_validate(data: LightningDataModule, model: LightningModule) -> bool:
    """Tell whether the model has a validation step and the data have a validation loader."""
    return is_overridden("validation_step", model) and is_overridden("val_dataloader", data)


def measured(trainer: Trainer) -> dict[str, float]:
    """Return the metrics that the trainer measured last."""
    return {name: value.item() for name, value in trainer.callback_metrics.items() if name != "step"}
