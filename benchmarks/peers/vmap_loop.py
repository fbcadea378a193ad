"""Trains many models at once: torch.func.vmap of the gradient, and Adam's rule; writes no file.

It runs eagerly, without torch.compile, in one thread, as linear_lab does: two threads took longer. Usage:
``vmap_loop.py <jobs> <device>``.
"""

import json
import sys
import time

import torch
from jobs import STEPS, X, numbers
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.nn import functional

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


def main() -> None:
    """Train all models; print the seconds, and the mean of the losses at the last step."""
    jobs, device = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    rates, starts = (torch.from_numpy(values).to(device) for values in numbers(jobs))
    x = torch.tensor(X, device=device)[:, None]
    y = 2 * x

    def loss_of(parameters: dict[str, Tensor]) -> Tensor:
        return functional.mse_loss(functional.linear(x, parameters["weight"], parameters["bias"]), y)

    started = time.perf_counter()
    step = vmap(grad_and_value(loss_of))
    parameters = {"weight": starts[0, :, None, None], "bias": starts[1, :, None]}
    means = {name: torch.zeros_like(values) for name, values in parameters.items()}
    squares = {name: torch.zeros_like(values) for name, values in parameters.items()}
    for t in range(1, STEPS + 1):
        gradients, losses = step(parameters)
        for name, gradient in gradients.items():
            means[name] = means[name].lerp(gradient, 1 - BETA1)
            squares[name] = squares[name].mul(BETA2).addcmul(gradient, gradient, value=1 - BETA2)
            denominator = (squares[name] / (1 - BETA2**t)).sqrt() + EPS
            rate = (rates / (1 - BETA1**t)).view(-1, *[1] * (gradient.ndim - 1))
            parameters[name] = parameters[name] - rate * means[name] / denominator
    print(json.dumps({"loss": losses.mean().item(), "train": time.perf_counter() - started}))


if __name__ == "__main__":
    main()
