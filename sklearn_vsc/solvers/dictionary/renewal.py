"""Dead atoms: one rule for which atoms are dead, and for what replaces them.

An atom is dead when the last ``patience`` rows have not used it. Its codes are all zero, so no
update and no gradient would ever change it; it is replaced by the residual of a row that is badly
reconstructed, which does not change the objective as long as its codes stay zero. Learners differ
in their patience, and in whether they draw the rows or take the worst ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .update import normalise_atoms


def idle_rows(idle: Tensor, codes: Tensor) -> Tensor:
    """Return for how many rows each atom has been idle, after further rows.

    Parameters
    ----------
    idle : Tensor of shape (n_components,)
        Rows since each atom was last used.
    codes : Tensor of shape (n_rows, n_components)
        Codes of the further rows.

    Returns
    -------
    idle : Tensor of shape (n_components,)
        A new tensor: zero where one of the rows uses the atom.
    """
    return torch.where((codes != 0).any(0), 0, idle + len(codes))


def worst_rows(residual: Tensor, n_rows: int) -> Tensor:
    """Return the residuals with the largest energy, the largest first; fewer if there are fewer."""
    worst = residual.square().sum(1).topk(min(n_rows, len(residual))).indices
    return residual[worst]


def renew_atoms(
    dictionary: Tensor,
    dead: Tensor,
    residual: Tensor,
    *,
    positive: bool = False,
    generator: torch.Generator,
) -> Tensor:
    """Point unused atoms at badly reconstructed rows.

    As long as the codes of these atoms are zero, the objective does not change.

    Parameters
    ----------
    dictionary : Tensor of shape (n_components, n_features)
        Unit-norm atoms; not modified.
    dead : Tensor of shape (n_components,), bool
        Atoms to renew.
    residual : Tensor of shape (n_rows, n_features)
        Residual of the rows. Rows are drawn with probability proportional to the energy of their
        residual.
    positive : bool, default=False
        Whether atoms must be non-negative.
    generator : torch.Generator
        Source of randomness, on the CPU.

    Returns
    -------
    dictionary : Tensor of shape (n_components, n_features)
        Unit-norm atoms.
    """
    if positive:
        residual = residual.clamp_min(0)
    peak = residual.abs().amax().clamp_min(torch.finfo(residual.dtype).tiny)
    energy = (residual / peak).square().sum(1).cpu()
    n_drawn = min(int(dead.sum()), int(energy.count_nonzero()))
    atoms = dictionary.new_zeros(int(dead.sum()), dictionary.shape[1])
    if n_drawn:
        rows = torch.multinomial(energy, n_drawn, generator=generator)
        atoms[:n_drawn] = residual[rows.to(residual.device)]
    dictionary = dictionary.clone()
    dictionary[dead] = normalise_atoms(atoms, positive=positive, generator=generator)
    return dictionary
