"""Where x and y come from, in which units, and the batches that training takes from them."""

from linear_lab.data.batches import Batches, Part
from linear_lab.data.generated import SyntheticData, ToyClasses, ToyData
from linear_lab.data.schema import Schema
from linear_lab.data.source import LinearData, split

__all__ = ["Batches", "LinearData", "Part", "Schema", "SyntheticData", "ToyClasses", "ToyData", "split"]
