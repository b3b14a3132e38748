import math

import pytest
import torch

from semanticgan import inversion
from semanticgan.config import InversionConfig
from semanticgan.errors import UserError
from semanticgan.inversion import fixed_batch, in_fixed_batches, invert, learning_rate, noise_autocorrelation, whitening
from semanticgan.nn.encoder import Encoder
from semanticgan.nn.generator import Generator
from semanticgan.nn.perceptual import LPIPS

RESOLUTION = 32


@pytest.fixture(scope="module")
def G():
    torch.manual_seed(0)
    G = Generator(RESOLUTION, 2, 3, 16, 24, 2, {4: 16, 8: 16, 16: 16, 32: 8}).eval()
    with torch.no_grad():
        for p in G.synthesis.parameters():
            if p.dim() < 2:
                p.add_(torch.randn_like(p), alpha=0.1)  # biases and noise strengths start at one value
        G.mapping.w_avg.copy_(G.mapping.w(torch.randn(1000, 16)).mean(0))
    return G.to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def lpips():
    return LPIPS("alex")


@pytest.fixture(scope="module")
def problem(G):
    """Images that G can make, and starts that are not their codes."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        img, _ = G(torch.randn(5, 16, generator=generator), noise="none")
        ws = G.mapping(torch.randn(5, 16, generator=generator))
    return (img / img.abs().amax()).contiguous(memory_format=torch.channels_last), ws.clone()


@pytest.fixture
def quick(monkeypatch):
    """LPIPS on the images as they are: a sixteenth of the work."""
    monkeypatch.setattr(inversion, "PERCEPTUAL_SIDE", RESOLUTION)


# ---------------------------------------------------------------- batch mates


@pytest.mark.parametrize(("threads", "size"), [(1, 8), (2, 8), (3, 12), (4, 8), (6, 12), (7, 28), (16, 8), (24, 8), (11, 1)])
def test_fixed_batch_lets_threads_share_samples_evenly(monkeypatch, threads, size):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert fixed_batch(torch.device("cpu")) == size


def test_in_fixed_batches_is_the_function_on_every_sample():
    sizes = []

    def f(x, y):
        sizes.append(len(x))
        return x + y, x * y

    x, y = torch.arange(19.0)[:, None], torch.arange(19.0)[:, None] + 3
    total, product = in_fixed_batches(f, x, y)
    assert total.equal(x + y) and product.equal(x * y)
    assert set(sizes) == {fixed_batch(torch.device("cpu"))}


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("trunk", ["residual", "efficientnet-lite0"])
def test_networks_give_each_sample_the_same_bits_in_any_company(G, lpips, precision, trunk):
    torch.manual_seed(0)
    block = G.synthesis.sides.index(RESOLUTION // 4)
    width = G.synthesis.blocks[block].conv1.weight.shape[0]
    E = Encoder(RESOLUTION, 3, G.num_ws, G.w_dim, (16, 24), trunk, feature_width=width).eval()
    torch.nn.init.normal_(E.features.conv1.weight, std=0.02)
    if trunk == "residual":
        torch.nn.init.normal_(E.trunk.stages[1][1].norm1.weight)
    else:
        E.trunk.load_imagenet()
    img = torch.randn(11, 3, RESOLUTION, RESOLUTION)

    def everything(img):
        ws, features = E(img)
        out, seg_logits = G.synthesis(ws, "none", features)
        return ws, features, out, seg_logits, lpips(out, img)

    with torch.no_grad(), inversion.autocast(img.device, precision):
        whole = in_fixed_batches(everything, img)
        for order in (torch.randperm(11), torch.tensor([7]), torch.tensor([3, 3, 9])):
            for full, part in zip(whole, in_fixed_batches(everything, img[order]), strict=True):
                assert part.equal(full[order])


@pytest.mark.parametrize("rows", [None, (6, 8)])
def test_features_stay_as_they_are(G, lpips, problem, quick, rows):
    """Step 0 is G's picture with them; and whether the blocks that add them run once or at every step is all the same."""
    img, ws0 = problem
    features = torch.randn(len(img), 16, RESOLUTION // 4, RESOLUTION // 4) * 0.1
    start = invert(G, lpips, img, ws0, InversionConfig(rows=rows), 0, features=[features], precision="fp32")
    with torch.no_grad():
        out, seg_logits = G.synthesis(ws0, "none", features)
        assert not torch.allclose(out, G.synthesis(ws0, "none")[0], atol=1e-2)
    torch.testing.assert_close(start.img, out, atol=1e-4, rtol=1e-4)  # another order of summation
    torch.testing.assert_close(start.seg_logits, seg_logits, atol=1e-4, rtol=1e-4)
    later = invert(G, lpips, img, ws0, InversionConfig(rows=rows), 4, features=[features], precision="fp32")
    assert (later.loss <= start.loss).all() and (later.loss < start.loss).any()


@pytest.mark.parametrize("config", [InversionConfig(patience=2), InversionConfig(rows=(4, 8)), InversionConfig(noise=True)])
def test_inversion_gives_each_image_the_same_bits_in_any_company(G, lpips, problem, config, quick):
    img, ws0 = problem
    prior = whitening(G, 500)
    whole = invert(G, lpips, img, ws0, config, 4, prior)
    for order in (torch.tensor([4, 0, 2]), torch.tensor([1])):
        part = invert(G, lpips, img[order], ws0[order], config, 4, prior)
        for name in ("ws", "img", "seg_logits", "loss", "steps_used"):
            assert getattr(part, name).equal(getattr(whole, name)[order]), name
        for a, b in zip(part.noise or (), whole.noise or (), strict=True):
            assert a.equal(b[order])


# ---------------------------------------------------------------- what it finds


def test_loss_falls_and_the_label_map_belongs_to_the_code(G, lpips, problem, quick):
    img, ws0 = problem
    start = invert(G, lpips, img, ws0, InversionConfig(), 0, precision="fp32")
    found = invert(G, lpips, img, ws0, InversionConfig(), 25, precision="fp32")
    assert start.ws.equal(ws0) and start.steps_used.tolist() == [0] * 5
    assert (found.loss < 0.5 * start.loss).all()
    with torch.no_grad():
        out, seg_logits = G.synthesis(found.ws, "none")
    # Another batch size, so another order of summation in float32.
    torch.testing.assert_close(found.img, out, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.seg_logits, seg_logits, atol=1e-4, rtol=1e-4)


def test_never_worse_than_the_start(G, lpips, problem, quick):
    img, ws0 = problem
    start = invert(G, lpips, img, ws0, InversionConfig(), 0)
    wild = invert(G, lpips, img, ws0, InversionConfig(lr=50), 3)
    assert (wild.loss <= start.loss).all()


def test_loss_is_its_definition(G, lpips, problem):
    img, ws0 = problem
    config, prior = InversionConfig(lpips=2, mse=3, prior=0.5), whitening(G, 500)
    with torch.no_grad():
        out, _ = G.synthesis(ws0, "none")
        large, target = (torch.nn.functional.interpolate(x, size=(128, 128), mode="bilinear") for x in (out, img))
        expected = 2 * lpips(large, target) + 3 * (out - img).square().mean((1, 2, 3))
        expected += 0.5 * prior.whiten(ws0).square().mean((1, 2))
    loss = invert(G, lpips, img, ws0, config, 0, prior, precision="fp32").loss
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-4)


def test_the_prior_keeps_codes_near_the_mapping_networks(G, lpips, problem, quick):
    img, ws0 = problem
    prior = whitening(G, 2000)
    free = invert(G, lpips, img, ws0, InversionConfig(prior=0), 15, prior)
    kept = invert(G, lpips, img, ws0, InversionConfig(prior=1), 15, prior)
    assert prior.whiten(kept.ws).square().mean() < prior.whiten(free.ws).square().mean()


@pytest.mark.parametrize("rows", [(0, 3), (3, 5), (6, 8), (7, 8)])
def test_only_the_chosen_rows_move_and_skipped_blocks_change_nothing(G, lpips, problem, rows, quick):
    img, ws0 = problem
    found = invert(G, lpips, img, ws0, InversionConfig(rows=rows), 6, precision="fp32")
    moved = (found.ws != ws0).any(2).any(0)
    assert moved.tolist() == [rows[0] <= k < rows[1] for k in range(8)]
    with torch.no_grad():
        out, _ = G.synthesis(found.ws, "none")
    torch.testing.assert_close(found.img, out, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rows", [(3, 3), (0, 9), (-1, 4)])
def test_rows_that_do_not_exist(G, lpips, problem, rows):
    with pytest.raises(UserError, match=r"inversion.rows: got .*expected 0 <= first < last <= 8"):
        invert(G, lpips, *problem, InversionConfig(rows=rows), 1)


def test_an_image_stops_when_its_loss_does_not_fall(G, lpips, problem, quick):
    found = invert(G, lpips, *problem, InversionConfig(lr=1e-9, patience=3), 10)
    assert found.steps_used.tolist() == [3] * 5
    assert invert(G, lpips, *problem, InversionConfig(patience=10), 6).steps_used.tolist() == [6] * 5


def test_noise_maps_are_optimised_and_stay_noise(G, lpips, problem, quick):
    found = invert(G, lpips, *problem, InversionConfig(noise=True), 4)
    first = G.noise_maps(1, torch.Generator().manual_seed(0))
    assert [m.shape for m in found.noise] == [(5, *m.shape[1:]) for m in first]
    for noise, start in zip(found.noise, first, strict=True):
        assert not noise.equal(start.expand_as(noise))
        # float32 sums over up to 1024 pixels
        torch.testing.assert_close(noise.mean((1, 2, 3)), torch.zeros(5), atol=1e-5, rtol=0)
        torch.testing.assert_close(noise.square().mean((1, 2, 3)), torch.ones(5), atol=1e-4, rtol=0)


def test_who_watches_computes_in_a_precision_of_their_own(G, lpips, problem, quick):
    img, ws = problem
    watched = []
    config = InversionConfig(noise=False)
    invert(G, lpips, img, ws, config, 1, precision="bf16", watch=lambda *_: watched.append(torch.is_autocast_enabled("cpu")))
    assert watched == [False, False]


def test_nothing_outside_changes(G, lpips, problem, quick):
    before = {k: v.clone() for k, v in G.state_dict().items()}
    state, ws0 = torch.get_rng_state(), problem[1].clone()
    invert(G, lpips, *problem, InversionConfig(noise=True), 2)
    assert all(v.equal(before[k]) for k, v in G.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in G.parameters())
    assert torch.get_rng_state().equal(state) and problem[1].equal(ws0)


# ---------------------------------------------------------------- the pieces


def test_adam_is_adam():
    torch.manual_seed(0)
    target, x = torch.randn(6, 4), torch.zeros(6, 4, requires_grad=True)
    theirs = torch.optim.Adam([x], lr=0.1, betas=(0.9, 0.999))
    ours, value = inversion._Adam([torch.zeros(6, 4)]), torch.zeros(6, 4)
    everyone = torch.arange(6)
    for step in range(20):
        theirs.zero_grad()
        (x - target).square().sum().backward()
        theirs.step()
        value = ours.step(0, everyone, value, 2 * (value - target), 0.1, step)
    torch.testing.assert_close(value, x.detach(), atol=1e-6, rtol=1e-5)  # the same formula in another order


def test_learning_rate_ramps():
    rates = [learning_rate(k, 100) for k in range(100)]
    assert rates[0] == pytest.approx(0.2) and rates[4:75] == pytest.approx([1] * 71)
    assert rates[87] == pytest.approx(0.5 - 0.5 * math.cos(math.pi * 0.52)) and 0 < rates[99] < 0.01
    assert learning_rate(0, 1) == 1


def test_whitened_codes_are_white(G):
    prior = whitening(G, 4000)
    with torch.no_grad():
        v = prior.whiten(G.mapping(torch.randn(4000, 16, generator=torch.Generator().manual_seed(5))))[:, 0]
    assert v.mean(0).abs().max() < 0.1  # 4000 draws: standard error .016, of the axes' estimate as much again
    covariance = torch.cov(v.T)
    # w has 24 numbers made from 16: what lies beyond the axes that vary is held at zero
    assert (covariance - torch.diag(covariance.diag())).abs().max() < 0.15
    assert covariance.diag().max() < 1.2 and (covariance.diag() > 0.8).sum() >= 14
    again = whitening(G, 4000)
    assert again.mean.equal(prior.mean) and again.matrix.equal(prior.matrix)


def test_noise_autocorrelation_tells_noise_from_signal():
    white = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    assert noise_autocorrelation([white]).max() < 0.1  # its 8 px level alone: twice 1/64 on average
    constant = torch.ones(1, 1, 8, 8)
    assert noise_autocorrelation([constant]).tolist() == [2]  # both directions, one scale


def test_a_loss_that_falls_slowly_still_falls():
    """By a hundredth a step; one that falls by a tenth of a thousandth has settled."""
    search, shares = inversion._Search(2, torch.device("cpu"), patience=5), torch.tensor([0.99, 0.9999])
    for step in range(9):
        active = search.active()
        loss = shares[active] ** step
        search.record(active, step, loss, [loss])
    assert search.active().tolist() == [0] and search.steps.tolist() == [8, 5]


def test_noise_has_its_weight_in_the_loss(G, lpips, problem, quick):
    config = InversionConfig(noise=True, lpips=0, mse=0, prior=0)
    maps = [m.repeat(5, 1, 1, 1) for m in G.noise_maps(1, torch.Generator().manual_seed(0))]
    torch.testing.assert_close(invert(G, lpips, *problem, config, 0).loss, 100 * noise_autocorrelation(maps))


def test_noise_autocorrelation_keeps_the_variance_from_scale_to_scale():
    assert noise_autocorrelation([torch.ones(1, 1, 16, 16)]).tolist() == [2 + 2 * 4**2]  # values of 2 below, their product 4


def test_the_activation_is_undone():
    x = torch.randn(100, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(inversion._before_activation(torch.nn.functional.leaky_relu(x, 0.2)), x)


def test_axes_that_hardly_vary_count_as_if_by_3_per_cent(G):
    """w has 24 numbers made from 16, so that eight axes do not vary at all."""
    with torch.no_grad():
        w = G.mapping.w(torch.randn(4000, 16, generator=torch.Generator().manual_seed(0)))
    mean_variance = inversion._before_activation(w).var(0).mean()
    largest = whitening(G, 4000).matrix.norm(dim=0).max()
    torch.testing.assert_close(largest, 1 / (1e-3 * mean_variance).sqrt(), rtol=1e-3, atol=0)
