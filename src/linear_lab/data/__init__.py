"""Where x and y come from, in which units, and the batches that training takes from them."""

from linear_lab.data.batches import Batches, Part
from linear_lab.data.datamodule import LinearData, split
from linear_lab.data.schema import Schema
from linear_lab.data.toy import SyntheticData, ToyClasses, ToyData

__all__ = ["Batches", "LinearData", "Part", "Schema", "SyntheticData", "ToyClasses", "ToyData", "split"]
