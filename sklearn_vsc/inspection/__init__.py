"""Plots of what was learned, following the conventions of scikit-learn's displays."""

from ._codes import CodeDisplay
from ._dictionary import DictionaryDisplay
from ._training import TrainingDisplay
from ._traversal import LatentTraversalDisplay

__all__ = ["CodeDisplay", "DictionaryDisplay", "LatentTraversalDisplay", "TrainingDisplay"]
