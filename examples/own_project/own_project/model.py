"""A small convolutional network."""

from collections.abc import Callable, Iterable

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics.classification import MulticlassF1Score

BuildOptimizer = Callable[[Iterable[Tensor]], Optimizer]


class StripesCNN(LightningModule):
    """Classifies the direction of stripes; logs the macro F1 score as ``val/f1`` and ``test/f1``."""

    def __init__(self, optimizer: BuildOptimizer, channels: int = 8, dropout: float = 0.2) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer"])
        self.optimizer = optimizer
        self.network = nn.Sequential(
            nn.Conv2d(1, channels, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(dropout),
            nn.Linear(9 * channels, 3),
        )  # fmt: skip
        self.f1 = nn.ModuleDict({part: MulticlassF1Score(3) for part in ("val", "test")})

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.network(batch[0]), batch[1])
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.measure("val", *batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.measure("test", *batch)

    def measure(self, part: str, x: Tensor, y: Tensor) -> None:
        logits = self.network(x)
        self.log(f"{part}/loss", nn.functional.cross_entropy(logits, y))
        self.f1[part].update(logits, y)
        self.log(f"{part}/f1", self.f1[part], prog_bar=True)

    def configure_optimizers(self) -> Optimizer:
        return self.optimizer(self.parameters())
