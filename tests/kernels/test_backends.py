"""Every backend gives the bits of numpy's: for all dtypes, peers, odd sizes and odd values; and sums are right."""

import math
from fractions import Fraction
from importlib.machinery import EXTENSION_SUFFIXES

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from swarm_hpc.errors import MergeError
from swarm_hpc.kernels import cpu, native
from swarm_hpc.kernels.arena import DTYPES
from swarm_hpc.kernels.native import Native, sets
from swarm_hpc.kernels.plain import BLOCK, TILE, Measure, Order, Plain, _fused
from swarm_hpc.kernels.robust import trim_bounds
from swarm_hpc.kernels.weights import bounds, quanta, shares
from tests.conftest import cannot_run

PLAIN, *OTHERS = cpu.backends()
SPECIAL = [0.0, -0.0, 1.0, -1.0, 2.5, 6e-8, 65504.0, 1e-42, -1e-42, 3e38, -3e38, np.inf, -np.inf, np.nan]
FLOATS = ("F64", "F32", "F16", "BF16")
SIZES = (1, 15, 17, TILE, 2 * TILE + 77)


def rows_of(num_peers, size, dtype, chance, share_special=0.5):
    values = chance.standard_normal((num_peers, size))
    special = chance.random(values.shape) < share_special
    values[special] = chance.choice(SPECIAL, special.sum())
    with np.errstate(all="ignore"):
        return [row.astype(DTYPES[dtype]) for row in values]


def weights_of(num_peers):
    yield [1.0] * num_peers
    yield [float(1 + (7 * peer) % 5) for peer in range(num_peers)]
    # one that hardly counts: less than the rounding of the weights
    yield [1e-9 if peer == 1 else 1.0 for peer in range(num_peers)]


def elementwise(backend, rows, weights):
    """The results of all functions that work element by element, and what they are called."""
    parts = shares(weights, len(rows))
    counts = quanta(parts)
    out = np.full_like(rows[0], 77)
    backend.mean(rows, parts, out)
    yield "mean", out.tobytes()
    backend.median(rows, Order(counts, *bounds(counts)), out)
    yield "median", out.tobytes()
    for trim in (0.0, 0.3):
        low, high = trim_bounds(counts, trim)
        backend.trimmed_mean(rows, Order(counts, low, high, 1 / (high - low)), out)
        yield f"trimmed mean {trim}", out.tobytes()


def same(found, wanted):
    """Of the sums above the diagonal: equal, or neither is finite (of a NaN the sign does not matter)."""
    above = np.triu_indices(found.shape[1], 1)
    found, wanted = (table[:, above[0], above[1]] for table in (found, wanted))
    return bool(((found == wanted) | (~np.isfinite(found) & ~np.isfinite(wanted))).all())


def test_there_is_more_than_numpy_where_a_compiler_is():
    assert isinstance(PLAIN, Plain)
    if not OTHERS:
        cannot_run("native.c was not compiled: no C compiler at `make setup`")
    assert [backend.name for backend in OTHERS] == [f"native ({name})" for name in sets()]


def test_instructions_that_are_not_here_are_refused():
    with pytest.raises(MergeError, match="no kernels for sse9 here"):
        Native("sse9")


@pytest.mark.slow
@pytest.mark.parametrize("num_peers", [1, 2, 3, 4, 7, 8, 9, 16, 17])
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_backend_has_the_bits_of_numpy(dtype, num_peers):
    chance = np.random.default_rng(num_peers)
    for size in SIZES:
        for share_special in (0, 0.5):
            rows = rows_of(num_peers, size, dtype, chance, share_special)
            for weights in weights_of(num_peers):
                wanted = dict(elementwise(PLAIN, rows, weights))
                for backend in OTHERS:
                    for name, found in elementwise(backend, rows, weights):
                        assert found == wanted[name], (backend.name, name, size, weights)
            bounded = PLAIN.bounded(rows, 2.0**480)
            assert bounded == [bool(np.isfinite(row.astype(float)).all()) for row in rows]
            for backend in OTHERS:
                assert backend.bounded(rows, 2.0**480) == bounded
                for measure in Measure:
                    found, wanted_sums = (one.sums(rows, measure, num_peers // 2) for one in (backend, PLAIN))
                    assert same(found, wanted_sums), (backend.name, measure, size)


@pytest.mark.parametrize("num_peers", range(2, 18))
def test_a_median_has_the_bits_of_numpy_however_far_the_weights_are_apart(num_peers):
    chance = np.random.default_rng(num_peers)
    # nearly equal ones leave a few places in the middle, one that outweighs all others leaves every place
    weightings = [[1.0 + step * peer for peer in range(num_peers)] for step in (1e-3, 0.05, 0.3, 1.0, 5.0)]
    weightings += [[1.5**peer for peer in range(num_peers)], [1e-6] * (num_peers - 1) + [1.0]]
    weightings += [list(chance.random(num_peers) + 0.01) for _ in range(3)]
    for share_special in (0, 0.7):
        rows = rows_of(num_peers, TILE + 9, "F32", chance, share_special)
        for weights in weightings:
            counts = quanta(shares(weights, num_peers))
            found, wanted = np.empty_like(rows[0]), np.empty_like(rows[0])
            PLAIN.median(rows, Order(counts, *bounds(counts)), wanted)
            for backend in OTHERS:
                backend.median(rows, Order(counts, *bounds(counts)), found)
                assert found.tobytes() == wanted.tobytes(), (backend.name, weights)


@pytest.mark.parametrize("num_peers", range(1, 18))
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_mean_has_the_bits_of_numpy_wherever_the_result_begins_and_ends(dtype, num_peers):
    chance = np.random.default_rng(num_peers)
    parts = shares([float(1 + peer % 3) for peer in range(num_peers)], num_peers)
    for size in (1, 31, 32, 33, 64, 100, 2 * TILE):
        rows = rows_of(num_peers, size, dtype, chance)
        for offset in (0, 1, 3, 16, 31):
            found, wanted = (np.full(size + 64, 77).astype(DTYPES[dtype]) for _ in range(2))
            PLAIN.mean(rows, parts, wanted[offset : offset + size])
            for backend in OTHERS:
                backend.mean(rows, parts, found[offset : offset + size])
                assert found.tobytes() == wanted.tobytes(), (backend.name, size, offset)


@pytest.mark.parametrize("num_peers", [9, 17])
def test_a_mean_of_many_peers_has_the_bits_of_numpy_beyond_what_is_added_up_in_the_cache(num_peers):
    rows = rows_of(num_peers, (1 << 16) + 77, "F32", np.random.default_rng(0))
    parts = shares([1.0] * num_peers, num_peers)
    found, wanted = np.empty_like(rows[0]), np.empty_like(rows[0])
    PLAIN.mean(rows, parts, wanted)
    for backend in OTHERS:
        backend.mean(rows, parts, found)
        assert found.tobytes() == wanted.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("backend", cpu.backends(), ids=lambda backend: backend.name)
@pytest.mark.parametrize("num_peers", range(1, 18))
def test_sums_of_products_with_the_centre_are_0_and_the_others_those_of_numpy(backend, num_peers):
    rows = rows_of(num_peers, 3 * TILE + 7, "F32", np.random.default_rng(num_peers), share_special=0)
    rows[num_peers // 2][5] = np.inf
    for centre in (0, num_peers - 1):
        for measure in (Measure.GRAM, Measure.PRODUCTS):
            table, wanted = (one.sums(rows, measure, centre) for one in (backend, PLAIN))
            assert not table[:, centre].any() and not table[:, :, centre].any()
            assert same(table, wanted)
            assert np.array_equal(*(np.nan_to_num(one.diagonal(axis1=1, axis2=2)) for one in (table, wanted)))


value = st.sampled_from(SPECIAL)


@given(
    st.lists(st.tuples(value, value, st.integers(1, 3)), min_size=1, max_size=18),
    st.sampled_from(FLOATS),
)
def test_ties_zeros_infinities_and_denormal_values_have_the_bits_of_numpy(drawn, dtype):
    with np.errstate(all="ignore"):
        rows = [np.array(row[:2]).astype(DTYPES[dtype]) for row in drawn]
    weights = [float(row[2]) for row in drawn]
    wanted = dict(elementwise(PLAIN, rows, weights))
    for backend in OTHERS:
        assert dict(elementwise(backend, rows, weights)) == wanted


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize("backend", OTHERS, ids=lambda backend: backend.name)
def test_every_half_float_there_is_is_read_and_written_as_numpy_does(backend, dtype):
    every = np.arange(1 << 16, dtype=np.uint16).view(DTYPES[dtype])
    # sums of two of them need rounding, from every kind of value
    others = np.roll(every, 12345)
    for weights in ([1.0], [0.3, 0.7]):
        found, wanted = np.empty_like(every), np.empty_like(every)
        for one, out in ((backend, found), (PLAIN, wanted)):
            one.mean([every, others][: len(weights)], weights, out)
        assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("backend", cpu.backends(), ids=lambda backend: backend.name)
def test_rows_that_do_not_lie_where_the_dtype_wants_them_are_merged_all_the_same(backend):
    data = bytearray(4 * 1000 + 1)
    odd = np.frombuffer(memoryview(data)[1:], np.float32)
    assert not odd.flags.aligned
    odd[:] = np.arange(1000)
    for out in (np.empty(1000, np.float32), np.frombuffer(memoryview(bytearray(4 * 1000 + 2))[2:], np.float32)):
        backend.mean([odd, odd], [0.5, 0.5], out)
        assert np.array_equal(out, np.arange(1000))
        out[:] = 0
        backend.median([odd, odd], Order([1, 1], 1, 2), out)
        assert np.array_equal(out, np.arange(1000))


def test_what_this_python_has_compiled_counts_more_than_what_another_one_has(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    monkeypatch.setattr(native.ctypes, "CDLL", lambda path: path)
    for suffix in (".aaa.so", ".zzz.so", EXTENSION_SUFFIXES[0]):
        (tmp_path / f"_native{suffix}").touch()
    assert native._library.__wrapped__() == str(tmp_path / f"_native{EXTENSION_SUFFIXES[0]}")


@pytest.mark.parametrize("backend", cpu.backends(), ids=lambda backend: backend.name)
@pytest.mark.parametrize("dtype", FLOATS)
def test_sums_are_those_of_the_differences_block_by_block(backend, dtype):
    chance = np.random.default_rng(1)
    rows = rows_of(3, BLOCK + 1234, dtype, chance, share_special=0)
    wide = np.array([row.astype(np.float64) for row in rows])
    for measure in Measure:
        table = backend.sums(rows, measure, 1)
        assert table.shape == (2, 3, 3)
        for number, block in enumerate((wide[:, :BLOCK], wide[:, BLOCK:])):
            away = block - block[1]
            for a, b in ((0, 1), (0, 2), (1, 2)):
                squares = ((block[a] - block[b]) ** 2).sum()
                wanted = squares if measure is Measure.SQUARES else (away[a] * away[b]).sum()
                assert table[number, a, b] == pytest.approx(wanted, rel=1e-5, abs=0.5)


FACTORS = (8390624.0, 16773185.0)
"""Their product is 2^47 and so little more that float64 loses it beside 2^71."""
ODD_FLOATS = st.one_of(
    st.floats(width=32, allow_nan=False),
    # about the size of a term's middle bits, so that products and sums meet
    st.builds(lambda bits, power: math.ldexp(bits, power), st.integers(-(2**24), 2**24), st.integers(-40, 10)),
    st.builds(lambda bits: math.ldexp(bits, -149), st.integers(-(2**24), 2**24)),
)


def rounded(exact):
    """The float32 next to a fraction; of two, the even one."""
    exponent = max(math.frexp(float(exact))[1] - 24, -149)
    value = math.ldexp(round(exact / Fraction(2) ** exponent), exponent)
    return value if abs(value) < 2.0**128 else math.copysign(math.inf, value)


@given(st.tuples(ODD_FLOATS, ODD_FLOATS, ODD_FLOATS))
@example((FACTORS[0], FACTORS[1], 2.0**71))
@example((2.0**64, 2.0**64, 0.0))
@example((2.0**64 - 2.0**40, 2.0**64, 0.0))
@example((2.0**-75, 2.0**-75, 2.0**-149))
def test_product_and_sum_are_rounded_once(numbers):
    left, right, total = (np.float32(number) for number in numbers)
    assume(np.isfinite([left, right, total]).all())
    exact = Fraction(float(left)) * Fraction(float(right)) + Fraction(float(total))
    with np.errstate(all="ignore"):
        [found] = _fused(*(np.array([number], np.float32) for number in (left, right, total)))
    assert found == rounded(exact)


@pytest.mark.parametrize("backend", cpu.backends(), ids=lambda backend: backend.name)
def test_a_sum_that_float64_would_round_to_a_middle_is_rounded_once(backend):
    rows = [np.zeros(TILE, np.float32) for _ in range(9)]
    rows[1][0] = rows[2][0] = 2.0**35
    rows[1][0] *= 2
    rows[1][16], rows[2][16] = FACTORS
    for row in rows[3:]:
        row[:] = rows[1]
    table = backend.sums(rows, Measure.GRAM, 0)
    assert table[0, 1, 2] == 2.0**71 + 2.0**48
    # and of few peers
    assert backend.sums(rows[:3], Measure.GRAM, 0)[0, 1, 2] == 2.0**71 + 2.0**48
