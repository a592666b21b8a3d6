"""Codes of bitsandbytes and torchao: tables, nearest codes, scales."""

import pytest

torch = pytest.importorskip("torch")
forge = pytest.importorskip("forge_optim")
hypothesis = pytest.importorskip("hypothesis")

from forge_optim import block_codes  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

# ---- Codes ---------------------------------------------------------------------------------------------------------

numbers = st.floats(width=32, min_value=-(2.0**100), max_value=2.0**100)
blocks = st.lists(numbers, min_size=1, max_size=600).map(torch.tensor)


@hypothesis.given(blocks, st.booleans())
@hypothesis.settings(deadline=None, derandomize=True)
def test_a_code_is_the_nearest_and_what_was_decoded_has_it_again(x, signed):
    table = block_codes.dynamic_map(signed)
    x = x if signed else x.abs()
    codes, scale = block_codes.encode(x, table)
    y = block_codes.decode(codes, table, scale)
    for i, s in enumerate(scale):
        part, found = x[256 * i : 256 * (i + 1)], y[256 * i : 256 * (i + 1)]
        assert part.abs().max() * (1 - 2**-22) <= s <= part.abs().max() / 0.9929
        nearest = (part.double().unsqueeze(1) - table.double() * s.double()).abs().amin(1)
        # Rounded: the quotient, the product, and the denormal numbers' last place.
        slack = 2**-22 * part.double().abs() + 2**-148
        assert ((found.double() - part.double()).abs() <= nearest + slack).all()
    again, scale_again = block_codes.encode(y, table)
    normal = (scale > 2**-100).repeat_interleave(256)[: len(x)]
    assert torch.equal(again[normal], codes[normal])
    torch.testing.assert_close(scale_again, scale, rtol=2**-22, atol=2**-100)


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_bitsandbytes_own_away_from_ties(signed):
    """Its encoder for the CPU looks numbers up in steps of 2⁻¹⁵, so nearer to a tie than that it takes either side."""
    functional = pytest.importorskip("bitsandbytes").functional
    table = functional.create_dynamic_map(signed)
    x = torch.randn(400, 256, generator=torch.Generator().manual_seed(0)) * torch.logspace(-8, 3, 400).unsqueeze(1)
    x = x if signed else x.square()
    x[:, 0] = x.abs().amax(1) * 1.25  # a positive maximum, for which there is a code
    codes, scale = block_codes.encode(x, table)
    theirs, their_state = functional.quantize_blockwise(x, code=table, blocksize=256)
    assert torch.equal(scale, their_state.absmax)
    from_tie = (x / scale.unsqueeze(1)).unsqueeze(2).sub((table[1:] + table[:-1]) / 2).abs().amin(2)
    away = from_tie > 2**-15
    assert torch.equal(codes[away], theirs[away]) and away.float().mean() > 0.5
    ours_off, theirs_off = ((table[c.long()] * scale.unsqueeze(1) - x).abs() for c in (codes, theirs))
    assert (ours_off <= theirs_off * (1 + 2**-20)).all()
    assert torch.equal(
        block_codes.decode(codes, table, scale),
        functional.dequantize_blockwise(codes, their_state.clone() if hasattr(their_state, "clone") else their_state),
    )


@pytest.mark.parametrize("signed", [True, False])
def test_a_block_of_zeros_has_the_code_of_zero(signed):
    table = block_codes.dynamic_map(signed)
    codes, scale = block_codes.encode(torch.zeros(300), table)
    assert not table[codes.long()].any() and not scale.any()


def test_a_negative_maximum_does_not_shrink_by_being_carried():
    table = block_codes.dynamic_map(signed=True)
    x = torch.zeros(256)
    x[3], x[4], x[5] = -1.0, 0.5, 1e-9
    for _ in range(3):
        codes, scale = block_codes.encode(x, table)
        x = block_codes.decode(codes, table, scale)
    assert x[3] == -1 and abs(x[4] - 0.5) < 0.0071 and x[5] == 0 and codes[0] == 127
