import pytest
import torch

from sklearn_vsc.solvers.dictionary import sparse_codes
from sklearn_vsc.solvers.dictionary.sparse_codes import SparseCodes


@pytest.mark.parametrize("stretch", [1, 7, 2**19])
def test_stored_codes_are_returned_unchanged(monkeypatch, stretch):
    """This holds for any size of a stretch of memory, over many visits and copies."""
    monkeypatch.setattr(sparse_codes, "_STRETCH", stretch)
    generator = torch.Generator().manual_seed(0)
    blocks = list(torch.randperm(10, generator=generator).split(3))

    def draw():
        codes = torch.randn(10, 4, generator=generator)
        return codes * (torch.rand(10, 4, generator=generator) < 0.4)

    expected = draw()
    kept = SparseCodes.of(expected, blocks)
    for _ in range(5):
        before, old = kept.copy(), expected.clone()
        new = draw()
        for block in torch.randperm(len(blocks), generator=generator).tolist():
            kept[block] = new[blocks[block]]
            expected[blocks[block]] = new[blocks[block]]
            for rows, codes in kept:
                assert torch.equal(codes, expected[rows])
        for rows, codes in before:
            assert torch.equal(codes, old[rows])
