"""Models that a run can train."""

from linear_lab.models.linear import LinearModule
from linear_lab.models.mlp import MLPModule
from linear_lab.models.supervised import SupervisedModule

__all__ = ["LinearModule", "MLPModule", "SupervisedModule"]
