"""Online dictionary learning from a stream: statistics that decay.

References
----------
Mairal, Bach, Ponce and Sapiro (2009), Online dictionary learning for sparse coding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..lasso.coders import Coder
from ..missing import fill_missing, natural_reach, observed_residual
from .accumulation import ObjectiveSums, objective_sums
from .renewal import idle_rows, renew_atoms
from .statistics import Statistics
from .update import different_rows, normalise_atoms, update_dictionary

# Allowed distance of the codes of a mini-batch from their optimum, in units of alpha.
_ACCURACY = 1e-2
# An atom is renewed once this many rows per atom of the dictionary have gone by without using it.
_PATIENCE = 10
# Rows of a stream count in proportion to this power of the number of rows before them, less one.
_GROWTH = 5
# Sweeps over the atoms in each step; rows are not seen again, so atoms make the most of each step.
_SWEEPS = 2


@dataclass
class OnlineLearner:
    """Learning from rows that come once, from statistics that decay (Mairal et al. 2009).

    The dictionary is that of the end of the stream, so what early rows say about a bad dictionary
    is soon forgotten, but the statistics always cover a fixed share of all rows so far.

    Attributes
    ----------
    n_placed : int
        Number of atoms that come from rows, the first ones. The others wait for rows of further
        steps, and are not used before.
    n_rows : int
        Number of rows so far.
    known : Tensor of shape (n_known, n_features)
        Rows that came before, which further rows must differ from to become atoms.
    forget : float or None
        Share of the statistics that a step keeps; None: it follows from the number of rows.
    """

    dictionary: Tensor
    alpha: float
    coder: Coder
    positive_dict: bool
    generator: torch.Generator
    statistics: Statistics
    # Rows seen since each atom was last used.
    idle: Tensor
    n_placed: int
    known: Tensor
    n_rows: int = 0
    forget: float | None = None

    def step(self, X: Tensor) -> tuple[Tensor, ObjectiveSums]:
        """Code a mini-batch, then update the dictionary.

        Returns
        -------
        codes : Tensor of shape (n_rows, n_components)
            Codes of the rows under the dictionary before its update.
        objective : ObjectiveSums
            Objective of the rows at these codes, also before the update.
        """
        self._place(X)
        codes = self._codes(X)
        objective = objective_sums(X, codes, self.dictionary, self.alpha)
        self.statistics.scale(
            forgetting(self.n_rows, len(X)) if self.forget is None else self.forget
        )
        target = fill_missing(X, codes, self.dictionary, natural_reach(X))
        self.statistics.add(Statistics.change(target, None, codes))
        self.n_rows += len(X)
        self.idle = idle_rows(self.idle, codes)
        self._renew(X, codes)
        self.dictionary = update_dictionary(
            self.dictionary,
            self.statistics.code_gram,
            self.statistics.code_data,
            positive=self.positive_dict,
            n_sweeps=_SWEEPS,
        )
        return codes, objective

    def _place(self, X: Tensor) -> None:
        """Put rows that differ from all atoms in the place of atoms that wait for them."""
        n_waiting = len(self.dictionary) - self.n_placed
        if not n_waiting:
            return
        known = normalise_atoms(
            self.known.nan_to_num(), positive=self.positive_dict, generator=self.generator
        )
        atoms = different_rows(
            X,
            n_waiting,
            torch.cat([self.dictionary[: self.n_placed], known]),
            positive=self.positive_dict,
            generator=self.generator,
        )
        self.dictionary = self.dictionary.clone()
        self.dictionary[self.n_placed : self.n_placed + len(atoms)] = atoms
        self.n_placed += len(atoms)

    def _codes(self, X: Tensor) -> Tensor:
        n_waiting = len(self.dictionary) - self.n_placed
        if not n_waiting:
            return self.coder(X, self.dictionary, None, _ACCURACY)
        if not self.n_placed:
            return X.new_zeros(len(X), n_waiting)
        codes = self.coder(X, self.dictionary[: self.n_placed], None, _ACCURACY)
        return torch.nn.functional.pad(codes, (0, n_waiting))

    def _renew(self, X: Tensor, codes: Tensor) -> None:
        dead = self.idle >= _PATIENCE * len(self.dictionary)
        dead[self.n_placed :] = False
        if not dead.any():
            return
        self.statistics.clear(dead)
        self.idle = self.idle.masked_fill(dead, 0)
        self.dictionary = renew_atoms(
            self.dictionary,
            dead,
            observed_residual(X, codes, self.dictionary),
            positive=self.positive_dict,
            generator=self.generator,
        )


def forgetting(n_before: int, n_new: int) -> float:
    """Return the share of the statistics that is kept when rows are added.

    Rows count in proportion to a power of the number of rows before them: the share is small at
    first and tends to one.
    """
    return (n_before / (n_before + n_new)) ** _GROWTH
