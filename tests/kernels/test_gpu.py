"""The Triton kernels against the reference and the CPU's bits: on a GPU where there is one, else in the interpreter."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm_hpc.errors import ConfigError, MergeError
from swarm_hpc.kernels import cpu, reference
from swarm_hpc.kernels.arena import DTYPES
from tests.kernels.drawn import weights_of

gpu = pytest.importorskip("swarm_hpc.kernels.gpu", exc_type=ConfigError)

# numpy, in the interpreter, warns of what a GPU does silently
pytestmark = [pytest.mark.filterwarnings("ignore::RuntimeWarning"), pytest.mark.slow]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FLOATS = {
    torch.float64: ("F64", 1e-8),
    torch.float32: ("F32", 1e-6),
    torch.float16: ("F16", 1.5e-3),
    torch.bfloat16: ("BF16", 1.2e-2),
}
"""The code of each dtype, and how far a result may be off, relative to the largest value."""
METHODS = ("mean", "coord_median", "trimmed_mean", "geometric_median")
SIZES = (1, 300, 1024, 1030)
"""Around the kernels' blocks of 256 to 1024."""
CASES = [(torch.float32, num_peers) for num_peers in (1, 2, 4, 5, 8)]
SETTINGS = {"trimmed_mean": {"trim": 0.2}}


def peers(num_peers: int, size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=chance, dtype=torch.float64).to(dtype) for _ in range(num_peers)]


def merged(method: str, rows: list[torch.Tensor], weights: list[float], **settings: float) -> torch.Tensor:
    settings = SETTINGS.get(method, {}) | settings
    there = [row.to(DEVICE) for row in rows]
    out = torch.full_like(there[0], 77)
    getattr(gpu, method)(there, weights, out, **settings)
    return out.cpu()


def expected(method: str, rows: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    stack = torch.stack([row.double() for row in rows])
    return getattr(reference, method)(stack, torch.tensor(weights, dtype=torch.float64), **SETTINGS.get(method, {}))


def assert_close(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype, scale: float = 4.0) -> None:
    tolerance = FLOATS[dtype][1]
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


@pytest.mark.parametrize("kind", ["equal", "unequal", "one zero"])
@pytest.mark.parametrize(("dtype", "num_peers"), [*CASES, *((dtype, 3) for dtype in FLOATS)])
@pytest.mark.parametrize("method", METHODS)
def test_it_agrees_with_the_reference(method, dtype, num_peers, kind):
    weights = weights_of(num_peers, kind)
    size = SIZES[(num_peers + len(kind)) % len(SIZES)]
    rows = peers(num_peers, size, dtype)
    assert_close(merged(method, rows, weights), expected(method, rows, weights), dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("method", "num_peers"),
    [
        (method, num_peers)
        for method in METHODS
        for num_peers in (1, 2, 7, 8, 16, 17, 33)
        # more are refused
        if method != "trimmed_mean" or num_peers <= gpu.NETWORK_PEERS
    ],
)
def test_many_peers_agree_with_the_reference(method, dtype, num_peers):
    for kind in ("equal", "unequal"):
        weights = weights_of(num_peers, kind)
        rows = peers(num_peers, 300, dtype)
        assert_close(merged(method, rows, weights), expected(method, rows, weights), dtype)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [*SIZES, 2047])
def test_every_size_agrees_with_the_reference(method, size):
    rows = peers(3, size)
    for weights in ([1, 1, 1], [3, 2, 4]):
        assert_close(merged(method, rows, weights), expected(method, rows, weights), torch.float32)


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_model_is_merged(method):
    assert len(merged(method, peers(3, 0), [1, 1, 1])) == 0


@pytest.mark.parametrize("method", METHODS)
def test_rows_that_start_anywhere_are_merged(method):
    long = peers(3, 1031)
    there = [row.to(DEVICE)[1:] for row in long]
    out = torch.full((1032,), 77.0, device=DEVICE)
    getattr(gpu, method)(there, [1, 2, 3], out[1:-1], **SETTINGS.get(method, {}))
    assert_close(out[1:-1].cpu(), expected(method, [row[1:] for row in long], [1, 2, 3]), torch.float32)
    assert out[0] == out[-1] == 77


def as_numpy(row: torch.Tensor) -> np.ndarray:
    code = FLOATS[row.dtype][0]
    width = row.element_size()
    return row.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[width]).numpy().view(DTYPES[code])


def bits(row: torch.Tensor) -> bytes:
    return as_numpy(row).tobytes()


def on_cpu(method: str, rows: list[torch.Tensor], weights: list[float]) -> bytes:
    out = np.empty_like(as_numpy(rows[0]))
    getattr(cpu, method)([as_numpy(row) for row in rows], weights, out, **SETTINGS.get(method, {}))
    return out.tobytes()


@pytest.mark.parametrize("kind", ["equal", "unequal"])
@pytest.mark.parametrize(
    ("dtype", "num_peers"),
    [*CASES, *((dtype, num_peers) for num_peers in (3, 16) for dtype in FLOATS)],
)
@pytest.mark.parametrize("method", ["mean", "coord_median", "trimmed_mean"])
def test_what_is_done_element_by_element_has_the_bits_of_the_cpu(method, dtype, num_peers, kind):
    rows, weights = peers(num_peers, 1030, dtype), weights_of(num_peers, kind)
    if dtype is torch.bfloat16 and DEVICE == "cpu":
        pytest.skip("Triton's interpreter rounds bfloat16 in its own way")
    assert bits(merged(method, rows, weights)) == on_cpu(method, rows, weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_denormal_numbers_are_no_zeros(dtype):
    least = torch.finfo(dtype).smallest_normal
    rows = [row * least for row in peers(3, 1030, dtype)]
    assert bits(merged("mean", rows, [1, 2, 3])) == on_cpu("mean", rows, [1, 2, 3])
    middle = torch.stack(rows).median(0).values
    assert bits(merged("coord_median", rows, [1, 1, 1])) == bits(middle + 0.0)


values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, 1e30, -1e30, math.inf, -math.inf, math.nan])
drawn_peers = st.lists(st.tuples(values, values, st.integers(0, 3)), min_size=1, max_size=9).filter(
    lambda drawn: any(weight for *_, weight in drawn)
)


@pytest.mark.parametrize("method", ["mean", "coord_median", "trimmed_mean"])
def test_ties_zeros_infinities_and_nan_agree(method):
    @settings(max_examples=15 if DEVICE == "cpu" else 300, deadline=None)
    @given(drawn_peers)
    def agree(drawn):
        rows = [torch.tensor(row[:2], dtype=torch.float32) for row in drawn]
        weights = [float(row[2]) for row in drawn]
        found, wanted = merged(method, rows, weights), expected(method, rows, weights)
        # what cancels may leave a rounding error of 1e30
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=0 if method == "coord_median" else 1e24)
        if method == "coord_median":
            assert not np.signbit(found.numpy()[found.numpy() == 0]).any()

    agree()


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_nan_has_the_same_bits(dtype):
    rows = peers(2, 4, dtype)
    patterns = {torch.float64: -0xFFFFFFFFFFEDD, torch.float32: -0x7FFEDD, torch.float16: -0x3EE, torch.bfloat16: -0x6E}
    width = rows[0].element_size()
    rows[1].view({2: torch.int16, 4: torch.int32, 8: torch.int64}[width])[0] = patterns[dtype]
    rows[0][1], rows[1][1] = math.inf, -math.inf
    assert rows[1][0].isnan()
    found = merged("mean", rows, [1, 1])
    canonical = np.array([math.nan], as_numpy(rows[0]).dtype).tobytes()
    assert [bits(found[:1]), bits(found[1:2])] == [canonical, canonical]
    assert found[2:].isfinite().all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_geometric_median_ignores_a_peer_that_is_not_finite(dtype):
    rows = peers(4, 100, dtype)
    without = merged("geometric_median", [rows[0], rows[2], rows[3]], [1, 3, 4])
    for bad in (math.nan, math.inf, -math.inf):
        broken = [row.clone() for row in rows]
        broken[1][99] = bad
        assert_close(merged("geometric_median", broken, [1, 2, 3, 4]), without.double(), dtype)
    for row in rows:
        row[5] = math.nan
    with pytest.raises(MergeError, match="no peer's parameters are finite"):
        merged("geometric_median", rows, [1, 1, 1, 1])


@pytest.mark.parametrize("exponent", [4, 8, 20, 37])
def test_one_peer_however_far_away_does_not_move_the_geometric_median_far(exponent):
    rows = peers(5, 300)
    honest = merged("geometric_median", rows, [1] * 5)
    rows[2] = rows[2] * 10.0**exponent
    found = merged("geometric_median", rows, [1] * 5)
    assert_close(found, expected("geometric_median", rows, [1] * 5), torch.float32)
    assert (found - honest).norm() < (rows[0] - honest).norm()


def test_peers_that_are_close_together_and_far_from_zero_are_still_told_apart():
    rows = [1000 + row * 1e-3 for row in peers(5, 2001)]
    rows[4] = rows[4] + 0.5
    wanted = expected("geometric_median", rows, [1] * 5)
    assert_close(merged("geometric_median", rows, [1] * 5), wanted, torch.float32, 1000)


def test_models_of_very_small_values_are_still_told_apart():
    rows = [row * 1e-30 for row in peers(5, 300)]
    wanted = expected("geometric_median", rows, [1] * 5)
    torch.testing.assert_close(merged("geometric_median", rows, [1] * 5).double(), wanted, rtol=1e-5, atol=1e-36)


@pytest.mark.parametrize("method", METHODS)
def test_only_the_ratios_of_the_weights_count_and_the_same_bits_come_again(method):
    rows = peers(4, 257)
    few, many = [1.0, 2.0, 3.0, 4.0], [peer * 2.0**1020 for peer in (1, 2, 3, 4)]
    assert bits(merged(method, rows, few)) == bits(merged(method, rows, many)) == bits(merged(method, rows, few))


ROBUST = {
    "krum": {"num_byzantine": 1},
    "multi_krum": {"num_byzantine": 2, "num_selected": 3},
    "centred_clipping": {"radius": 0.7, "iterations": 5},
}


@pytest.mark.parametrize("bad", [0.0, 1e6, math.nan])
@pytest.mark.parametrize("method", ROBUST)
def test_mixtures_of_models_agree_with_the_reference(method, bad):
    rows, weights = peers(6, 300), weights_of(6, "unequal")
    rows[2] = rows[2] + bad
    found = merged(method, rows, weights, **ROBUST[method])
    stack, weight_K = torch.stack(rows).double(), torch.tensor(weights, dtype=torch.float64)
    assert_close(found, getattr(reference, method)(stack, weight_K, **ROBUST[method]), torch.float32)


@pytest.mark.parametrize("trim", [0.0, 0.1, 0.25, 0.49])
def test_a_trimmed_mean_of_equal_peers_is_the_mean_of_the_middle_ones(trim):
    rows = peers(4, 300)
    found = merged("trimmed_mean", rows, [1] * 4, trim=trim).double()
    ordered = torch.stack(rows).double().sort(0).values
    kept = torch.tensor([max(0.0, 0.25 - trim), min(0.25, 0.5 - trim), min(0.25, 0.5 - trim), max(0.0, 0.25 - trim)])
    torch.testing.assert_close(found, (ordered * kept[:, None]).sum(0) / kept.sum(), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_merged_is_refused_with_the_reason():
    rows = [row.to(DEVICE) for row in peers(2, 5)]
    out = torch.empty(5, device=DEVICE)
    for bad, weights, message in (
        ([rows[0], rows[1][:4]], [1, 1], r"row 1 of 2 \+ 1 is torch.float32 \[4\]"),
        ([rows[0], rows[1].half()], [1, 1], "row 1 of 2"),
        (rows, [1], "2 peers, but 1 weights"),
        (rows, [0, 0], "each must be finite"),
        ([rows[0]] * 65, [1] * 65, "at most 64"),
    ):
        with pytest.raises(MergeError, match=message):
            gpu.mean(bad, weights, out)
    with pytest.raises(MergeError, match=r"torch\.int64 cannot be merged"):
        gpu.mean([out.long()], [1], out.long())
    with pytest.raises(MergeError, match="at most 16"):
        gpu.trimmed_mean([rows[0]] * 17, [1] * 17, out, trim=0.1)


def test_tensors_on_the_cpu_are_refused(monkeypatch):
    monkeypatch.setattr(gpu.triton.knobs.runtime, "interpret", False)
    with pytest.raises(ConfigError, match=r"on cpu: use kernels\.cpu"):
        gpu.mean(peers(2, 5), [1, 1], torch.empty(5))


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_peers", [3, 8, 16])
def test_a_large_model_agrees_with_the_reference(method, num_peers):
    rows, weights = peers(num_peers, 1_000_003), weights_of(num_peers, "unequal")
    found = merged(method, rows, weights)
    assert_close(found, expected(method, rows, weights), torch.float32)
    if method != "geometric_median":
        assert bits(found) == on_cpu(method, rows, weights)
