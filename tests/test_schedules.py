"""Learning rates of many models over the epochs, against PyTorch's own schedulers."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, lr_scheduler

from linear_lab.stacked.schedules import AFFINE, PLATEAU_NUMBERS, AffineSchedule, PlateauSchedule

ARGUMENTS = {
    "StepLR": [{"step_size": 3}, {"step_size": 5, "gamma": 0.3}],
    "MultiStepLR": [{"milestones": [2, 7], "gamma": 0.2}],
    "ConstantLR": [{"factor": 0.25, "total_iters": 4}],
    "LinearLR": [{"start_factor": 0.1, "total_iters": 6}],
    "ExponentialLR": [{"gamma": 0.9}, {"gamma": 0.5}],
    "PolynomialLR": [{"total_iters": 8, "power": 2.0}],
    "CosineAnnealingLR": [{"T_max": 9, "eta_min": 0.01}, {"T_max": 4}],
    "CosineAnnealingWarmRestarts": [{"T_0": 3, "T_mult": 2, "eta_min": 0.001}],
}
RATES = [0.001, 0.1, 3.0]


def alone(name, lr, arguments):
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    return optimizer, getattr(lr_scheduler, name)(optimizer, **arguments)


def test_all_affine_schedulers_are_tried():
    assert {name.rpartition(".")[2] for name in AFFINE} == set(ARGUMENTS)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_rates_are_those_of_the_class(name):
    specs = [{"_target_": f"torch.optim.lr_scheduler.{name}", **arguments} for arguments in ARGUMENTS[name]]
    pairs = [(lr, which) for lr in RATES for which in range(len(specs))]
    base, which = torch.tensor([lr for lr, _ in pairs], dtype=torch.float64), torch.tensor([k for _, k in pairs])
    schedule = AffineSchedule(base, specs, which, 12)
    singles = [alone(name, lr, ARGUMENTS[name][k]) for lr, k in pairs]
    for epoch in range(12):
        wanted = torch.tensor([optimizer.param_groups[0]["lr"] for optimizer, _ in singles], dtype=torch.float64)
        torch.testing.assert_close(schedule.rates(epoch), wanted, rtol=1e-13, atol=1e-16)
        for optimizer, scheduler in singles:
            optimizer.step()
            scheduler.step()


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
def test_plateaus_are_those_of_the_class(mode, threshold_mode):
    generator = torch.Generator().manual_seed(0)
    jobs = 20
    numbers = {
        "factor": torch.rand(jobs, generator=generator), "patience": torch.arange(jobs) % 4,
        "threshold": torch.rand(jobs, generator=generator) / 5, "cooldown": torch.arange(jobs) % 3,
        "min_lr": torch.rand(jobs, generator=generator) / 100, "eps": torch.full((jobs,), 1e-8),
    }  # fmt: skip
    numbers = {name: values.double() for name, values in numbers.items()}
    assert numbers.keys() == PLATEAU_NUMBERS.keys()
    base, modes = torch.linspace(0.01, 1, jobs, dtype=torch.float64), {"mode": mode, "threshold_mode": threshold_mode}
    schedule = PlateauSchedule(base, numbers, modes, jobs)
    whole = ("patience", "cooldown")
    singles = [
        alone(
            "ReduceLROnPlateau",
            base[job].item(),
            modes | {name: int(v[job]) if name in whole else v[job].item() for name, v in numbers.items()},
        )
        for job in range(jobs)
    ]
    changes = 0
    for step in range(60):
        metric = torch.rand(jobs, generator=generator, dtype=torch.float64) + 10 / (step + 1)
        before = schedule.rates(step)
        schedule.after_validation(metric)
        for value, (_, scheduler) in zip(metric.tolist(), singles, strict=True):
            scheduler.step(value)
        wanted = torch.tensor([optimizer.param_groups[0]["lr"] for optimizer, _ in singles], dtype=torch.float64)
        torch.testing.assert_close(schedule.rates(step), wanted, rtol=1e-13, atol=0)
        changes += int((schedule.rates(step) != before).sum())
    assert changes > 50


def test_a_plateau_goes_on_from_its_state():
    numbers = {name: torch.tensor([value, value], dtype=torch.float64) for name, value in PLATEAU_NUMBERS.items()}
    numbers |= {"patience": torch.tensor([1.0, 2.0], dtype=torch.float64)}
    base, modes = torch.tensor([1.0, 2.0], dtype=torch.float64), {"mode": "min", "threshold_mode": "rel"}
    whole = PlateauSchedule(base, numbers, modes, 2)
    for _ in range(3):
        whole.after_validation(torch.tensor([1.0, 1.0]))
    resumed = PlateauSchedule(base, numbers, modes, 2)
    resumed.load_state_dict(whole.state_dict())
    for schedule in (whole, resumed):
        schedule.after_validation(torch.tensor([1.0, 1.0]))
    assert resumed.rates(0).tolist() == whole.rates(0).tolist() == [0.1, 0.2]
