"""Counted operations against closed forms and PyTorch's own counter."""

import pytest
import torch
from counting import Alone, Convolution, Counting, Product, best_seconds, convolution_limits, operations, product_limits
from recording import Memory, Record, Timer, count, measure, resident
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from semanticgan.nn import ops
from semanticgan.precision import has_bf16

N, C, D, H = 2, 6, 10, 8
FORWARD = 2 * N * C * D * H * H * 9  # of a 3x3 convolution that keeps the size


def counted(f, *inputs):
    with Counting() as counting:
        f(*inputs)
    return operations(counting.calls)


def inputs(*shapes):
    return [torch.randn(*shape, requires_grad=True) for shape in shapes]


def test_convolution_forward_and_backward():
    x, weight = inputs((N, C, H, H), (D, C, 3, 3))
    assert counted(lambda: functional.conv2d(x, weight, padding=1)) == FORWARD
    assert counted(lambda: functional.conv2d(x, weight, padding=1).sum().backward()) == 3 * FORWARD
    assert counted(lambda: functional.conv2d(x.detach(), weight, padding=1).sum().backward()) == 2 * FORWARD


def test_strided_and_transposed_convolutions():
    x, weight = inputs((N, C, H, H), (D, C, 3, 3))
    assert counted(lambda: functional.conv2d(x, weight, stride=2, padding=1).sum().backward()) == 3 * FORWARD // 4
    transposed = lambda: functional.conv_transpose2d(x, weight.transpose(0, 1), stride=2)  # noqa: E731
    assert counted(lambda: transposed().sum().backward()) == 3 * FORWARD  # every input pixel meets every weight


def test_groups_share_nothing():
    """A filter per sample in one grouped convolution does exactly the work of one shared filter."""
    x, weight = inputs((1, N * C, H, H), (N * D, C, 3, 3))
    assert counted(lambda: functional.conv2d(x, weight, padding=1, groups=N).sum().backward()) == 3 * FORWARD


def test_autocast_and_layout_change_nothing_but_the_precision():
    x, weight = inputs((N, C, H, H), (D, C, 3, 3))
    with torch.autocast("cpu", torch.bfloat16), Counting() as counting:
        functional.conv2d(x.contiguous(memory_format=torch.channels_last), weight, padding=1).sum().backward()
    assert operations(counting.calls) == 3 * FORWARD
    assert {op.dtype for op in counting.calls} == {torch.bfloat16}


def test_second_derivatives_count():
    """R1 of one layer: forward, gradient to x, and that one's gradients to the weight and to what came from above."""
    x, weight = inputs((N, C, H, H), (D, C, 3, 3))

    def penalty():
        (grad,) = torch.autograd.grad(functional.conv2d(x, weight, padding=1).sum(), x, create_graph=True)
        grad.square().sum().backward()

    assert counted(penalty) == 4 * FORWARD


def test_products():
    a, b, batch = torch.randn(3, 4), torch.randn(4, 5), torch.randn(7, 3, 4)
    assert counted(lambda: a @ b) == 2 * 3 * 4 * 5
    assert counted(lambda: functional.linear(a, b.t(), torch.zeros(5))) == 2 * 3 * 4 * 5
    assert counted(lambda: batch @ b[None].expand(7, -1, -1)) == 7 * 2 * 3 * 4 * 5


def test_blurs_are_left_out():
    x = torch.randn(N, C, H, H)
    with Counting() as counting:
        ops.blur(x, ops.binomial_kernel(), padding=1)
    assert sum(op.operations for op in counting.calls) == 2 * N * C * (H - 1) ** 2 * 16
    assert operations(counting.calls) == 0


def test_agrees_with_pytorchs_counter_where_nothing_is_grouped(small_config):
    from semanticgan.training.gan import new_gan_state

    state = new_gan_state(small_config(), 4, 3, "cpu")
    img, onehot = torch.randn(4, 3, 16, 16), torch.randn(4, 4, 16, 16)

    def loss():
        return sum(scale[-1].sum() for scale in state.D_seg(img, onehot)).backward()

    with FlopCounterMode(display=False) as theirs:
        loss()
    assert counted(loss) == theirs.get_total_flops()


def test_one_shape_alone_takes_time_once():
    op = Convolution(
        (1, 4, 8, 8), (4, 4, 3, 3), (1, 4, 8, 8), (1, 1), (1, 1), (1, 1), False, (0, 0), 1, torch.float32, (True, True)
    )
    assert op.operations == 2 * 2 * 4 * 4 * 9 * 64
    alone = Alone()
    first = alone.seconds({op: 2.0, Product((4, 5), (5, 6), torch.bfloat16): 1.0})
    assert first > 0
    assert alone.seconds({op: 2.0, Product((4, 5), (5, 6), torch.bfloat16): 1.0}) == first


def test_limits_are_rates(small_config):
    limits = product_limits(side=64) | convolution_limits(small_config())
    for name in ("bf16", "fp32") if has_bf16("cpu") else ("fp32",):
        assert {f"product_{name}", f"convolution_{name}_forward", f"convolution_{name}_forward_backward"} <= set(limits)
        assert set(limits[f"convolution_{name}_forward_by_side"]) == {"4", "8", "16"}
    assert has_bf16("cpu") == ("product_bf16" in limits)
    assert all(rate > 0 for rate in limits.values() if isinstance(rate, float))


def test_records_add_up():
    op = Product((2, 3), (3, 4), torch.float32)
    both, one = Record(3.0, 10, {op: 2.0}), Record(1.0, 20, {op: 1.0})
    assert both - one == Record(2.0, 10, {op: 1.0})
    assert both + one * 0.5 == Record(3.5, 20, {op: 2.5})
    assert operations((both + one * 0.5).calls) == 2.5 * 2 * 2 * 3 * 4


def test_parts_of_a_step():
    def step(part):
        with part("outer"), part("inner"):
            torch.ones(2, 3) @ torch.ones(3, 4)

    assert {name: operations(calls) for name, calls in count(step).items()} == {"outer": 48, "inner": 48}
    records = measure({"ours": step, "plain": step}, {"ours": 4, "plain": 2})
    assert records["ours"]["outer"].seconds >= records["ours"]["inner"].seconds > 0


def test_designs_take_turns():
    runs = []
    steps = {name: lambda part, name=name: runs.append(name) for name in ("ours", "plain")}
    measure(steps, {"ours": 4, "plain": 2})
    assert runs[4:] == ["ours", "ours", "plain", "ours", "ours", "plain"]  # the first four warm up


def test_times_and_memory():
    timer, memory = Timer(), Memory()
    with timer.part("a"), memory.part("a"):
        big = torch.ones(16 * 2**20)  # 64 MiB
        del big
    assert timer.seconds["a"][0] > 0
    if memory.peaks:  # Linux
        assert 64e6 < memory.peaks["a"] < 90e6
        assert resident("VmRSS") > 1e7


def test_best_of_several():
    calls = []
    assert best_seconds(lambda: calls.append(1)) < 0.01
    assert len(calls) > 5


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_calls_can_be_repeated_alone(layout):
    x, weight = inputs((N, C, H, H), (D, C, 3, 3))
    with Counting() as counting:
        functional.conv_transpose2d(x, weight.transpose(0, 1), stride=2).sum().backward()
    for op in counting.calls:
        op.call(layout)()
