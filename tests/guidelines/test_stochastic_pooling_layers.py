"""The layers of stochastic pooling: which elements they average, with which weight, and the moments that follow."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rewriter.passes.stochastic_pooling import (
    StochasticAdaptiveAvgPool1d,
    StochasticAdaptiveAvgPool2d,
    StochasticAvgPool1d,
    StochasticAvgPool2d,
    StochasticMean,
)
from rewriter.passes.stochastic_pooling.layers import StochasticFunction
from rewriter.passes.stochastic_pooling.sampling import kept_count

pytestmark = pytest.mark.slow

SURE = 5.0
"""Standard errors that a measured moment may be off: by chance one run in 1.7 million would fail."""


class Form(NamedTuple):
    """A stochastic layer, the pooling it stands for, the shape it is tested on and the dimension of the channels."""

    make: Callable[..., nn.Module]
    plain: Callable[[torch.Tensor], torch.Tensor]
    shape: tuple[int, ...]
    channels: int = 1

    def input(self) -> torch.Tensor:
        return torch.randn(self.shape)


class StochasticFunctionOf(StochasticFunction):
    """A stochastic function with its arguments, as a layer."""

    def __init__(self, function: str, kernel_size: Any, keep_prob: float, scale: str = "sqrt", **options: Any) -> None:
        super().__init__(function, keep_prob=keep_prob, scale=scale)
        self.kernel_size, self.options = kernel_size, options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x, self.kernel_size, **self.options)


FORMS = {
    "global": Form(StochasticAvgPool2d, nn.AdaptiveAvgPool2d(1), (3, 4, 7, 6)),
    "local": Form(lambda **k: StochasticAvgPool2d(2, **k), nn.AvgPool2d(2), (3, 4, 8, 6)),
    "local with a rest": Form(lambda **k: StochasticAvgPool2d((3, 2), **k), nn.AvgPool2d((3, 2)), (3, 4, 8, 7)),
    "one dimension": Form(lambda **k: StochasticAvgPool1d(5, **k), nn.AvgPool1d(5), (3, 4, 18)),
    "overlapping windows": Form(
        lambda **k: StochasticFunctionOf("avg_pool2d", 3, stride=2, **k), nn.AvgPool2d(3, 2), (3, 4, 8, 7)
    ),
    "windows cut off": Form(
        lambda **k: StochasticFunctionOf("avg_pool2d", (2, 3), ceil_mode=True, **k),
        nn.AvgPool2d((2, 3), ceil_mode=True),
        (3, 4, 7, 7),
    ),
    "even bins": Form(lambda **k: StochasticAdaptiveAvgPool2d(3, **k), nn.AdaptiveAvgPool2d(3), (3, 4, 6, 9)),
    "overlapping bins": Form(lambda **k: StochasticAdaptiveAvgPool2d(3, **k), nn.AdaptiveAvgPool2d(3), (3, 4, 7, 8)),
    "bins of one side": Form(
        lambda **k: StochasticAdaptiveAvgPool2d((2, None), **k), nn.AdaptiveAvgPool2d((2, None)), (3, 4, 9, 3)
    ),
    "bins of a sequence": Form(lambda **k: StochasticAdaptiveAvgPool1d(4, **k), nn.AdaptiveAvgPool1d(4), (3, 4, 11)),
    "tokens": Form(lambda **k: StochasticMean(1, **k), lambda x: x.mean(1), (3, 11, 4), 2),
    "channels last": Form(
        lambda **k: StochasticMean((1, 2), keepdim=True, **k), lambda x: x.mean((1, 2), True), (3, 5, 6, 4), 3
    ),
}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Form:
    return FORMS[request.param]


def weights_of(pool: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The derivative of each output of one draw by each input: ``(outputs, inputs)``."""

    def run(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return pool(x)

    return torch.autograd.functional.jacobian(run, x).reshape(-1, x.numel())


def elements_read(pool: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Which elements of ``x`` one draw averages."""
    x = x.detach().requires_grad_()
    pool(x).sum().backward()
    assert x.grad is not None
    return x.grad != 0


def test_evaluation_is_the_plain_pooling_bit_for_bit(form: Form) -> None:
    x = form.input()
    assert torch.equal(form.make(keep_prob=0.3).eval()(x), form.plain(x))


def test_keeping_everything_is_the_plain_pooling_bit_for_bit(form: Form) -> None:
    x = form.input()
    assert torch.equal(form.make(keep_prob=1).train()(x), form.plain(x))


def assert_averages_subsets(pool: nn.Module, plain: Callable[..., torch.Tensor], x: torch.Tensor) -> None:
    """Every output is the average of the right number of elements of its own window, with one weight for all."""
    for drawn, window in zip(weights_of(pool, x), weights_of(plain, x), strict=True):
        elements = int((window != 0).sum())
        kept = kept_count(elements, pool.keep_prob)
        assert not (drawn[window == 0] != 0).any(), "an element outside the window was averaged"
        assert int((drawn != 0).sum()) == kept
        factor = math.sqrt(kept / elements) if pool.scale == "sqrt" else 1.0
        assert torch.allclose(drawn[drawn != 0], torch.tensor(factor / kept))


@pytest.mark.parametrize("scale", ["sqrt", "none"])
def test_each_output_averages_a_subset_of_its_window(form: Form, scale: str) -> None:
    assert_averages_subsets(form.make(keep_prob=0.45, scale=scale), form.plain, form.input()[:2])


@settings(deadline=None, max_examples=40)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    bins=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    keep_prob=st.floats(0.01, 1.0),
    scale=st.sampled_from(["sqrt", "none"]),
)
def test_bins_of_any_size(size: tuple[int, int], bins: tuple[int, int], keep_prob: float, scale: str) -> None:
    x = torch.randn(2, 2, *size)
    pool = StochasticAdaptiveAvgPool2d(bins, keep_prob=keep_prob, scale=scale)
    assert_averages_subsets(pool, nn.AdaptiveAvgPool2d(bins), x)


def test_channels_share_a_subset_and_samples_do_not(form: Form) -> None:
    read = elements_read(form.make(keep_prob=0.5), form.input()).movedim(form.channels, 0)
    assert all(torch.equal(read[0], channel) for channel in read[1:])
    assert not all(torch.equal(read[0, 0], sample) for sample in read[0, 1:])


def test_every_element_of_a_window_is_kept_equally_often(form: Form) -> None:
    draws = 2000
    x = form.input()[:1].narrow(form.channels, 0, 1)
    often = elements_read(form.make(keep_prob=0.5), x.expand(draws, *x.shape[1:])).double().mean(0).flatten()
    read_by = weights_of(form.plain, x).ne(0)
    alone = read_by.sum(0) == 1  # an element of two windows may be kept by either
    for window in read_by:
        expected = kept_count(int(window.sum()), 0.5) / int(window.sum())
        error = math.sqrt(expected * (1 - expected) / draws)
        assert ((often[window & alone] - expected).abs() <= SURE * error).all()
    assert not often[~read_by.any(0)].any()


def test_one_dimension_as_published() -> None:
    """A subset of the whole sequence in its order, averaged in windows of ``keep_prob * kernel_size``."""
    x = torch.randn(3, 4, 26)
    pool = StochasticAvgPool1d(8, keep_prob=0.5)
    y = pool(x)
    assert y.shape == F.avg_pool1d(x, 8).shape
    read = elements_read(pool, x)
    assert (read.sum(-1) == 12).all() and not read[..., 24:].any()
    torch.manual_seed(3)
    y = pool(x)
    torch.manual_seed(3)
    kept = elements_read(pool, x)
    for sample in range(3):
        sequence = x[sample][kept[sample]].view(4, 12)
        assert torch.allclose(y[sample], math.sqrt(0.5) * F.avg_pool1d(sequence, 4))


class TestMoments:
    """Where the published factor is exact, and where it is not: 49 elements, 40 000 maps, 5 standard errors."""

    maps, elements = 40_000, 49

    def pooled(self, field: torch.Tensor, keep_prob: float, scale: str) -> torch.Tensor:
        return StochasticMean(1, keep_prob=keep_prob, scale=scale).train()(field.unsqueeze(-1)).flatten().double()

    @staticmethod
    def assert_near(values: torch.Tensor, expected: float) -> None:
        error = float(values.std()) / math.sqrt(values.numel())
        assert abs(float(values.mean()) - expected) < SURE * error

    @pytest.mark.parametrize("keep_prob", [0.3, 0.5, 0.7])
    def test_zero_mean_input_keeps_its_variance_under_sqrt(self, keep_prob: float) -> None:
        field = torch.randn(self.maps, self.elements)
        kept = kept_count(self.elements, keep_prob)
        self.assert_near(field.double().mean(1).square(), 1 / self.elements)
        self.assert_near(self.pooled(field, keep_prob, "sqrt").square(), 1 / self.elements)
        self.assert_near(self.pooled(field, keep_prob, "none").square(), 1 / kept)

    @pytest.mark.parametrize("keep_prob", [0.3, 0.5, 0.7])
    def test_relu_input_keeps_its_mean_without_a_factor_only(self, keep_prob: float) -> None:
        field = torch.randn(self.maps, self.elements).relu()
        kept = kept_count(self.elements, keep_prob)
        mean, variance = 1 / math.sqrt(2 * math.pi), 0.5 - 0.5 / math.pi
        self.assert_near(field.double().mean(1), mean)
        shrunk = math.sqrt(kept / self.elements)
        self.assert_near(self.pooled(field, keep_prob, "sqrt"), shrunk * mean)
        self.assert_near(self.pooled(field, keep_prob, "sqrt").square(), shrunk**2 * (mean**2 + variance / kept))
        self.assert_near(self.pooled(field, keep_prob, "none"), mean)
        self.assert_near(self.pooled(field, keep_prob, "none").square(), mean**2 + variance / kept)

    def test_correlated_input_loses_variance_under_sqrt(self) -> None:
        common = torch.randn(self.maps, 1)
        field = math.sqrt(0.5) * common + math.sqrt(0.5) * torch.randn(self.maps, self.elements)
        kept = kept_count(self.elements, 0.5)
        self.assert_near(field.double().mean(1).square(), 0.5 + 0.5 / self.elements)
        self.assert_near(self.pooled(field, 0.5, "sqrt").square(), kept / self.elements * (0.5 + 0.5 / kept))
        self.assert_near(self.pooled(field, 0.5, "none").square(), 0.5 + 0.5 / kept)

    def test_local_windows_keep_the_variance_of_zero_mean_input(self) -> None:
        x = torch.randn(400, 1, 40, 40)
        self.assert_near(StochasticAvgPool2d(4, keep_prob=0.5)(x).double().square().flatten(), 1 / 16)

    def test_a_fixed_map_is_averaged_without_bias(self) -> None:
        x = torch.rand(1, 1, 5, 5).expand(self.maps, 1, 5, 5)
        pooled = StochasticAvgPool2d(keep_prob=0.4, scale="none")(x).double().flatten()
        self.assert_near(pooled, float(x[0].double().mean()))
        law = float(x[0].double().var()) / 10 * (1 - 10 / 25)  # sampling without replacement
        self.assert_near((pooled - x[0].double().mean()).square(), law)


def test_settings_can_be_changed_and_are_checked() -> None:
    pool = StochasticAvgPool2d(keep_prob=0.5)
    pool.keep_prob, pool.scale = 0.25, "none"
    assert int(elements_read(pool, torch.randn(1, 1, 4, 4)).sum()) == 4
    assert "keep_prob=0.25, scale=none" in repr(pool)
    for value in (0, -0.1, 1.5, math.nan, True, "0.5", None):
        with pytest.raises(ValueError, match="expected 0 < keep_prob <= 1, found"):
            pool.keep_prob = value
        with pytest.raises(ValueError, match="expected 0 < keep_prob <= 1, found"):
            StochasticMean(1, keep_prob=value)
    with pytest.raises(ValueError, match="scale: expected one of 'sqrt', 'none', found 'linear'"):
        pool.scale = "linear"
    for size in (0.5, 0, -1, (2, 0), True):
        with pytest.raises(ValueError, match="kernel_size: expected positive ints, found"):
            StochasticAvgPool2d(size)
    with pytest.raises(ValueError, match="function: expected one of"):
        StochasticFunction("max_pool2d")
    assert pool.keep_prob == 0.25 and pool.scale == "none"


def test_an_empty_map_is_refused_with_its_shape() -> None:
    for pool in (StochasticAvgPool2d(), StochasticAdaptiveAvgPool2d(2), StochasticMean((2, 3))):
        with pytest.raises(ValueError, match=r"at least one position to average, found shape \(2, 3, 0, 4\)"):
            pool(torch.zeros(2, 3, 0, 4))


def test_a_batch_of_no_samples(form: Form) -> None:
    x = form.input()[:0]
    assert form.make(keep_prob=0.5)(x).shape == form.plain(x).shape


def test_maps_without_a_batch() -> None:
    x = torch.randn(4, 7, 7)
    for pool in (StochasticAvgPool2d(), StochasticAvgPool2d(2), StochasticAdaptiveAvgPool2d(2)):
        assert pool(x).shape == copy.deepcopy(pool).eval()(x).shape
    read = elements_read(StochasticAvgPool2d(), x)
    assert all(torch.equal(read[0], channel) for channel in read[1:])


def test_what_is_left_out_cannot_poison_the_average() -> None:
    x = torch.ones(64, 1, 2, 2)
    x[:, :, 0, 0] = math.inf
    y = StochasticAvgPool2d(scale="none")(x).flatten()
    assert y.isinf().any() and not y.isnan().any() and (y[~y.isinf()] == 1).all()


def test_one_seed_one_result(form: Form) -> None:
    x, pool = form.input(), form.make(keep_prob=0.5)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(pool(x))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_data_types(form: Form, dtype: torch.dtype) -> None:
    x, pool = form.input().to(dtype), form.make(keep_prob=0.5)
    torch.manual_seed(1)
    y = pool(x)
    torch.manual_seed(1)
    reference = pool(x.double())
    assert y.dtype == dtype
    assert torch.allclose(y.double(), reference, rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)


def test_autocast(form: Form) -> None:
    x, pool = form.input(), form.make(keep_prob=0.5)
    torch.manual_seed(1)
    reference = pool(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(1)
        y = pool(x)
    assert y.dtype == torch.float32 and torch.equal(y, reference), "float32 features are averaged in float32"


def test_on_meta_tensors(form: Form) -> None:
    """Sweeps and plans run models without memory, with a backward pass too."""
    x = form.input().to("meta").requires_grad_()
    y = form.make(keep_prob=0.5)(x)
    y.sum().backward()
    assert y.is_meta and y.shape == form.plain(form.input()).shape and x.grad is not None


def test_channels_last_memory() -> None:
    x = torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last)
    for pool in (StochasticAvgPool2d(2), StochasticAdaptiveAvgPool2d(2)):
        torch.manual_seed(1)
        y = pool(x)
        assert y.stride() == pool.eval()(x).stride()
        torch.manual_seed(1)
        assert torch.allclose(y, pool.train()(x.contiguous()), atol=1e-6)


def test_double_backward(form: Form) -> None:
    x = form.input()[:1].double().requires_grad_()
    pool = form.make(keep_prob=0.5)

    def run(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return pool(x.tanh())

    assert torch.autograd.gradcheck(run, x) and torch.autograd.gradgradcheck(run, x)


def test_compiles_as_one_graph(form: Form) -> None:
    torch._dynamo.reset()
    pool = form.make(keep_prob=0.5)
    compiled = torch.compile(pool, fullgraph=True, backend="aot_eager")
    first = form.input()
    for x in (first, torch.cat([first, first]), torch.cat([first, first], dim=2 if form.channels == 1 else 1)):
        for training in (True, False):
            pool.train(training)
            torch.manual_seed(1)
            expected = pool(x)
            torch.manual_seed(1)
            assert torch.equal(compiled(x), expected)


def test_exports(form: Form) -> None:
    x, pool = form.input(), form.make(keep_prob=0.5).eval()
    assert torch.equal(torch.export.export(pool, (x,)).module()(x), form.plain(x))


def test_ranks_of_a_data_parallel_run_draw_subsets_of_their_own(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_train_rank, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert not torch.equal(first["read"], second["read"])
    assert torch.equal(first["gradient"], second["gradient"]), "gradients are averaged over ranks"


def _train_rank(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 1), StochasticAvgPool2d(), nn.Flatten(), nn.Linear(2, 1))
    parallel = nn.parallel.DistributedDataParallel(model)
    torch.manual_seed(rank)  # as training scripts seed their ranks, for dropout and augmentation too
    x = torch.arange(1.0, 17.0).view(1, 1, 4, 4).requires_grad_()
    parallel(x).sum().backward()
    torch.save({"read": x.grad != 0, "gradient": model[3].weight.grad}, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_the_gpu(form: Form) -> None:
    pool = form.make(keep_prob=0.5)
    x = form.input().cuda()
    assert_averages_subsets(pool, form.plain, x[:2].double())
    compiled = torch.compile(pool, fullgraph=True)
    assert compiled(x).shape == form.plain(x).shape
    with torch.autocast("cuda", torch.float16):
        assert pool(x).dtype == torch.float32
