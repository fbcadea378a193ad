"""Small pictures of stripes."""

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset, random_split


class Stripes(LightningDataModule):
    """Noisy pictures ``(1, 8, 8)`` of stripes; the classes are 0 for horizontal, 1 for vertical, 2 for diagonal."""

    def __init__(self, pictures: int = 600, noise: float = 1.5, batch_size: int = 32, workers: int = 0) -> None:
        super().__init__()
        self.pictures, self.noise, self.batch_size, self.workers = pictures, noise, batch_size, workers

    def setup(self, stage: str) -> None:
        generator = torch.Generator().manual_seed(0)  # the pictures do not depend on the seed of the run
        y = torch.arange(self.pictures) % 3
        row, column = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
        directions = torch.stack([row, column, row + column])
        phases = 3 * torch.rand(self.pictures, 1, 1, generator=generator)
        noise = self.noise * torch.randn(self.pictures, 8, 8, generator=generator)
        x = (torch.sin(1.6 * directions[y] + phases) + noise).unsqueeze(1)
        self.train, self.val, self.test = random_split(TensorDataset(x, y), [0.6, 0.2, 0.2], generator)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(self.train, self.batch_size, shuffle=True, num_workers=self.workers)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(self.val, 120)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(self.test, 120)
