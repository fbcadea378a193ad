"""Trains many models, one after the other, in plain PyTorch; writes no file.

Usage: ``plain_loop.py <jobs> <device>``.
"""

import json
import sys

import torch
from jobs import STEPS, X, numbers
from torch import nn


def main() -> None:
    """Train all models; print the mean of the losses at the last step."""
    jobs, device = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    x = torch.tensor(X, device=device)[:, None]
    y, loss_function, total = 2 * x, nn.MSELoss(), 0.0
    for rate, (weight, bias) in zip(*(values.tolist() for values in transposed(jobs)), strict=True):
        model = nn.Linear(1, 1, device=device)
        nn.init.constant_(model.weight, weight)
        nn.init.constant_(model.bias, bias)
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = loss_function(model(x), y)
            loss.backward()
            optimizer.step()
        total += loss.item()
    print(json.dumps({"loss": total / jobs}))


def transposed(jobs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the learning rate of each job, ``(J,)``, and its initial weight and bias, ``(J, 2)``."""
    rates, starts = numbers(jobs)
    return torch.from_numpy(rates), torch.from_numpy(starts.T)


if __name__ == "__main__":
    main()
