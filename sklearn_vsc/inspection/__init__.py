"""Pictures of what was learned, in the convention of scikit-learn's displays."""

from ._codes import CodeDisplay
from ._dictionary import DictionaryDisplay
from ._training import TrainingDisplay
from ._traversal import LatentTraversalDisplay

__all__ = ["CodeDisplay", "DictionaryDisplay", "LatentTraversalDisplay", "TrainingDisplay"]
