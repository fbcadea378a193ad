"""Data sources, the names and units of their columns, and batches."""

from linear_lab.data.batches import Batches, Part
from linear_lab.data.datamodule import LinearData, split
from linear_lab.data.schema import Schema
from linear_lab.data.synthetic import SyntheticData
from linear_lab.data.toy import ToyClasses, ToyData

__all__ = ["Batches", "LinearData", "Part", "Schema", "SyntheticData", "ToyClasses", "ToyData", "split"]
