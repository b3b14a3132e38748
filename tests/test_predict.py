import math

import numpy as np
import pytest
import torch
from torch import nn

from semanticgan import inversion
from semanticgan import predict as module
from semanticgan.config import InversionConfig
from semanticgan.data.transforms import fit_image, to_float, unview, view, with_contrast
from semanticgan.errors import UserError
from semanticgan.nn.encoder import Encoder
from semanticgan.nn.generator import Generator
from semanticgan.nn.perceptual import LPIPS
from semanticgan.predict import Found, GeneratorPredictor, NetworkPredictor, Prediction, predict, zoom_box

RESOLUTION = 32


def network(num_classes=2):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1, stride=2), nn.GroupNorm(4, 16), nn.GELU(), nn.Flatten()]
    layers += [nn.Linear(16 * 256, 64), nn.Unflatten(1, (4, 4, 4)), nn.Upsample(scale_factor=8, mode="bilinear")]
    return nn.Sequential(*layers, nn.Conv2d(4, num_classes, 3, padding=1)).requires_grad_(False)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    G = Generator(RESOLUTION, 2, 3, 16, 24, 2, {4: 16, 8: 16, 16: 16, 32: 8}).eval()
    E = Encoder(RESOLUTION, 3, G.num_ws, G.w_dim, (16, 24), feature_width=16).eval()
    torch.nn.init.normal_(E.rows.weight, std=0.05)
    torch.nn.init.normal_(E.features.conv1.weight, std=0.002)
    return G, E, LPIPS("alex")


class Brightness:
    """Foreground is what is bright; counts what it was asked."""

    refines = False

    def __init__(self, num_classes=2):
        self.asked, self.num_classes = [], num_classes

    def __call__(self, img, refine=True):
        self.asked.append((len(img), refine))
        bright = torch.sigmoid(20 * img.mean(1, keepdim=True))
        rest = [torch.zeros_like(bright)] * (self.num_classes - 2)
        return Prediction(torch.cat([1 - bright, bright, *rest], 1))


def images(count, seed=0):
    """Noise of many sizes with a bright disc each."""
    random, out = np.random.default_rng(seed), []
    for _ in range(count):
        h, w = (int(s) for s in random.integers(20, 90, 2))
        y, x, r = random.uniform(0.3, 0.7) * h, random.uniform(0.3, 0.7) * w, random.uniform(0.1, 0.3) * min(h, w)
        disc = (np.arange(h)[:, None] - y) ** 2 + (np.arange(w) - x) ** 2 < r * r
        out.append((random.integers(0, 90, (h, w, 3)) + 150 * disc[:, :, None]).astype(np.uint8))
    return out


def same(a: Found, b: Found):
    return all(np.array_equal(x, y) for x, y in zip(a.maps(), b.maps(), strict=True)) and (
        a.distance == b.distance and (a.reconstruction is None or np.array_equal(a.reconstruction, b.reconstruction))
    )


# ---------------------------------------------------------------- company and order


@pytest.mark.parametrize("fit", ["squash", "pad"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_company_order_and_batch_change_no_bit_of_a_network(fit, precision):
    pictures, net = images(13), network()
    options = {"resolution": RESOLUTION, "fit": fit, "symmetry": "all", "zoom": True}

    def answers(indices, **more):
        return list(predict(NetworkPredictor(net, precision=precision), (pictures[i] for i in indices), **options, **more))

    whole = answers(range(13))
    order = np.random.default_rng(1).permutation(13)
    assert all(same(whole[i], found) for i, found in zip(order, answers(order, batch=5), strict=True))
    assert all(same(whole[i], answers([i])[0]) for i in (0, 12))


@pytest.mark.parametrize("steps", [0, 2])
def test_company_and_order_change_no_bit_of_a_model(model, steps, monkeypatch):
    monkeypatch.setattr(inversion, "PERCEPTUAL_SIDE", RESOLUTION)
    pictures, predictor = images(5), GeneratorPredictor(*model, InversionConfig(), steps)
    options = {"resolution": RESOLUTION, "symmetry": "flip", "zoom": True}
    whole = list(predict(predictor, pictures, **options))
    for order in ([3, 0, 4], [1]):
        part = predict(predictor, [pictures[i] for i in order], **options, batch=2)
        assert all(same(whole[i], found) for i, found in zip(order, part, strict=True))


def test_images_are_taken_as_they_are_needed(monkeypatch):
    taken = []

    def stream():
        for k, img in enumerate(images(10)):
            taken.append(k)
            yield img

    options = {"resolution": RESOLUTION, "batch": 3}
    answers = predict(Brightness(), stream(), **options)
    assert taken == []
    next(answers)
    assert len(taken) <= 4  # a batch, and the image that did not fit in
    assert len(list(answers)) == 9

    monkeypatch.setattr(module, "HELD_BYTES", 1)
    taken.clear()
    predictor = Brightness()
    next(predict(predictor, stream(), **options))
    assert len(taken) <= 2 and predictor.asked == [(1, True)]


def test_no_images():
    assert list(predict(Brightness(), [], resolution=RESOLUTION)) == []


# ---------------------------------------------------------------- views


@pytest.mark.parametrize("contrast", [1.0, 1.4])
def test_views_are_averaged_and_turned_back(contrast):
    img, net = images(1)[0], NetworkPredictor(network(3), precision="fp32")
    found = next(predict(net, [img], resolution=RESOLUTION, symmetry="all", contrast=contrast))
    x = with_contrast(to_float(torch.from_numpy(fit_image(img, RESOLUTION, "squash"))[None]), contrast)
    expected = torch.stack([unview(net(view(x, k)).probs, k) for k in range(8)]).mean(0)[0]
    torch.testing.assert_close(found.log_probs.exp(), expected, atol=1e-6, rtol=1e-5)  # another order of summation


def test_a_turned_image_gets_a_turned_label_map():
    img, net = images(1)[0][:32, :32], NetworkPredictor(network(), precision="fp32")
    turned = np.ascontiguousarray(np.rot90(img))
    a, b = (next(predict(net, [x], resolution=RESOLUTION, symmetry="all")) for x in (img, turned))
    np.testing.assert_allclose(np.rot90(a.maps()[1], axes=(1, 2)), b.maps()[1], atol=1e-5)


def test_a_mirrored_image_gets_a_mirrored_label_map():
    img, net = images(1)[0][:32, :32], NetworkPredictor(network(), precision="fp32")
    options = {"resolution": RESOLUTION, "symmetry": "flip", "contrast": 1.4}
    a, b = (next(predict(net, [x], **options)) for x in (img, img[:, ::-1].copy()))
    np.testing.assert_allclose(a.maps()[1][:, :, ::-1], b.maps()[1], atol=1e-5)


def test_without_symmetries_the_image_is_seen_as_it_is():
    img, net = images(1)[0], NetworkPredictor(network(), precision="fp32")
    found = next(predict(net, [img], resolution=RESOLUTION, symmetry="none"))
    plain = net(to_float(torch.from_numpy(fit_image(img, RESOLUTION, "squash"))[None])).probs[0]
    torch.testing.assert_close(found.log_probs.exp(), plain, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("contrast", "passes"), [(1.0, 8 + 8), (1.4, 9 + 8)])
def test_the_image_is_looked_at_by_itself_only_where_that_is_more(contrast, passes):
    """Its reconstruction is asked for in its own contrast; a second look has none."""
    img, asked = np.zeros((64, 64, 3), np.uint8), Brightness()
    img[20:40, 20:40] = 255
    found = next(predict(asked, [img], resolution=RESOLUTION, symmetry="all", zoom=True, contrast=contrast))
    assert found.crop is not None and len(asked.asked) == passes and sum(refine for _, refine in asked.asked) == 1


def test_a_refined_image_counts_as_much_as_its_views():
    class Refiner:
        refines = True

        def __call__(self, img, refine=True):
            share = torch.full_like(img[:, :1], 0.9 if refine else 0.5)
            return Prediction(torch.cat([1 - share, share], 1))

    found = next(predict(Refiner(), images(1), resolution=RESOLUTION, symmetry="all"))
    torch.testing.assert_close(found.log_probs[1].exp(), torch.full((32, 32), 0.7))


# ---------------------------------------------------------------- the second look


@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_zoom_sharpens_a_small_object(fit):
    img = np.zeros((300, 500, 3), np.uint8)
    img[100:140, 320:345] = 255
    truth = img[:, :, 0] > 0

    def iou(zoom):
        label = next(predict(Brightness(), [img], resolution=RESOLUTION, fit=fit, symmetry="all", zoom=zoom)).label()
        assert label.shape == (300, 500)
        return (truth & (label == 1)).sum() / (truth | (label == 1)).sum()

    assert iou(True) > 0.88 and iou(True) > iou(False) + 0.05


def test_zoom_looks_at_the_image_itself():
    """A pattern too fine for the whole image at the predictor's side appears in the crop."""
    img = np.zeros((512, 512, 3), np.uint8)
    img[224:288, 224:288] = 255
    img[252:260, 252:260] = 0
    options = {"resolution": RESOLUTION, "symmetry": "none"}
    assert next(predict(Brightness(), [img], zoom=False, **options)).label()[256, 256] == 1
    assert next(predict(Brightness(), [img], zoom=True, **options)).label()[256, 256] == 0


class Looks:
    """Sure to .9 of a square in the first look, to `second` of one at `place` in the second."""

    refines = False

    def __init__(self, second, place=slice(12, 20)):
        self.answers = iter([(0.9, slice(12, 20)), (second, place)])

    def __call__(self, img, refine=True):
        sure, place = next(self.answers)
        share = torch.zeros_like(img[:, :1])
        share[:, :, place, place] = sure
        return Prediction(torch.cat([1 - share, share], 1))


@pytest.mark.parametrize(("second", "kept"), [(0.6, False), (0.95, True), (0.1, False)])
def test_the_surer_look_counts(second, kept):
    """One of .1 finds nothing."""
    found = next(predict(Looks(second), images(1), resolution=RESOLUTION, zoom=True))
    assert (found.crop is not None) == kept


def test_zoom_is_for_one_object():
    three = Brightness(3)
    assert next(predict(three, images(1), resolution=RESOLUTION, zoom=True)).crop is None and len(three.asked) == 1
    assert next(predict(Brightness(), [np.zeros((40, 40, 3), np.uint8)], resolution=RESOLUTION, zoom=True)).crop is None


@pytest.mark.parametrize("zoom", [False, True])
def test_one_object_is_the_larger_one_and_zoom_looks_there(zoom):
    img = np.zeros((128, 128, 3), np.uint8)
    img[10:40, 10:40] = img[100:112, 100:112] = 255
    options = {"resolution": RESOLUTION, "symmetry": "flip", "zoom": zoom}
    both, one = (next(predict(Brightness(), [img], one_object=alone, **options)) for alone in (False, True))
    assert both.label()[106, 106] == 1 and one.label()[106, 106] == 0
    assert one.label()[25, 25] == 1 and one.maps()[1][1, 106, 106] < 0.5
    if zoom:
        (top, left, bottom, right), _ = one.crop
        assert (top + bottom) / 2 == pytest.approx(25, abs=8) == (left + right) / 2


def test_a_convex_object_has_no_dents():
    img = np.zeros((64, 64, 3), np.uint8)
    img[10:50, 10:50] = 255
    img[20:40, 30:50] = 0
    options = {"resolution": RESOLUTION, "one_object": True}
    dented, whole = (next(predict(Brightness(), [img], convex=convex, **options)) for convex in (False, True))
    assert dented.label()[30, 44] == 0 and whole.label()[30, 44] == 1
    assert whole.label()[30, 54] == 0 and whole.maps()[1][1, 30, 44] > 0.5


def test_several_classes_keep_all_their_pieces():
    img = np.zeros((64, 64, 3), np.uint8)
    img[4:20, 4:20] = img[50:60, 50:60] = 255
    label = next(predict(Brightness(3), [img], resolution=RESOLUTION, one_object=True)).label()
    assert label[10, 10] == label[55, 55] == 1


@pytest.mark.parametrize(
    ("size", "fit", "rows", "columns", "expected"),
    [
        ((32, 32), "squash", (8, 12), (8, 12), (6, 6, 14, 14)),  # 16 pixels: side 8, centre 10
        ((320, 640), "squash", (8, 12), (8, 12), (60, 120, 140, 280)),  # the frame's own proportions
        ((32, 32), "squash", (0, 4), (28, 32), (0, 24, 8, 32)),  # moved into the frame
        ((32, 32), "squash", (15, 17), (15, 17), (12, 12, 20, 20)),  # at least a quarter of the frame
        ((32, 32), "squash", (0, 16), (0, 16), None),  # the whole frame
        ((16, 32), "pad", (14, 18), (8, 12), (4, 6, 12, 14)),  # a square, rows counted without the padding above
        ((16, 32), "pad", (8, 24), (8, 12), (0, 2, 16, 18)),  # no higher than the image
    ],
)
def test_zoom_box(size, fit, rows, columns, expected):
    log_probs = torch.zeros(2, 32, 32)
    log_probs[1] = -1
    log_probs[1, slice(*rows), slice(*columns)] = 1
    assert zoom_box(log_probs, size, fit) == expected


# ---------------------------------------------------------------- what comes out


@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_maps_have_the_images_own_size(fit):
    pictures = images(6)
    for img, found in zip(pictures, predict(NetworkPredictor(network(3)), pictures, resolution=RESOLUTION, fit=fit), strict=True):
        label, probs, uncertainty = found.maps()
        assert label.shape == uncertainty.shape == img.shape[:2] and probs.shape == (3, *img.shape[:2])
        assert label.dtype == np.uint8 and probs.dtype == uncertainty.dtype == np.float32
        np.testing.assert_array_equal(label, found.label())
        np.testing.assert_allclose(probs.sum(0), 1, atol=1e-6)
        entropy = -(probs.astype(np.float64) * np.log(probs)).sum(0) / math.log(3)
        np.testing.assert_allclose(uncertainty, entropy, atol=1e-5)


def test_padding_is_cut_off():
    img = np.full((10, 40, 3), 255, np.uint8)
    img[:, 20:] = 0
    label = next(predict(Brightness(), [img], resolution=RESOLUTION, fit="pad")).label()
    np.testing.assert_array_equal(label, np.broadcast_to(np.arange(40) < 20, (10, 40)))


def test_temperature_changes_confidence_and_no_label():
    img, net, options = images(1), NetworkPredictor(network()), {"resolution": RESOLUTION}
    sharp, flat = (next(predict(net, img, **options, temperature=t)).maps() for t in (0.2, 20.0))
    np.testing.assert_array_equal(sharp[0], flat[0])
    assert sharp[2].mean() < flat[2].mean() and flat[2].mean() > 0.99
    one = next(predict(net, img, **options, temperature=2.5))
    torch.testing.assert_close(torch.from_numpy(one.maps()[1]), (one.logits() / 2.5).softmax(0))


def test_a_model_gives_reconstruction_and_distance(model):
    G, E, lpips = model
    img = images(1)[0]
    found = next(predict(GeneratorPredictor(G, E, lpips, InversionConfig(), precision="fp32"), [img], resolution=RESOLUTION))
    x = to_float(torch.from_numpy(fit_image(img, RESOLUTION, "squash"))[None])
    with torch.no_grad():
        ws, *features = E(x)
        out, seg_logits = G.synthesis(ws, "none", *features)
        distance = lpips(out.clamp(-1, 1), x)
    # Another batch size, so another order of summation in float32; a byte may round the other way.
    torch.testing.assert_close(found.log_probs, seg_logits.log_softmax(1)[0], atol=1e-3, rtol=1e-3)
    assert found.distance == pytest.approx(distance.item(), rel=1e-3)
    expected = ((out[0].permute(1, 2, 0) + 1) * 127.5).clamp(0, 255).numpy()
    assert np.abs(found.reconstruction - expected).max() < 1


def test_distance_below_the_least_side_of_alexnet(model):
    img = torch.rand(2, 3, 16, 16) * 2 - 1
    assert module.reconstruction_distance(model[2], img, img).tolist() == [0, 0]
    assert (module.reconstruction_distance(model[2], img, -img) > 0).all()


def test_without_an_encoder_inversion_starts_at_w_avg(model, monkeypatch):
    monkeypatch.setattr(inversion, "PERCEPTUAL_SIDE", RESOLUTION)
    starts = []

    def spy(G, lpips, img, ws0, *args, **kwargs):
        starts.append(ws0)
        return inversion.invert(G, lpips, img, ws0, *args, **kwargs)

    monkeypatch.setattr(module, "invert", spy)
    G, _, lpips = model
    next(predict(GeneratorPredictor(G, None, lpips, InversionConfig(), 1), images(1), resolution=RESOLUTION, symmetry="flip"))
    assert len(starts) == 3 and all((ws == G.mapping.w_avg).all() for ws in starts)


def test_bad_input(model):
    G, _, lpips = model
    with pytest.raises(UserError, match="steps: got 0, but this model has no encoder"):
        GeneratorPredictor(G, None, lpips, InversionConfig(), 0)
    with pytest.raises(UserError, match="batch: got 0"):
        next(predict(Brightness(), images(1), resolution=RESOLUTION, batch=0))


def test_sureness_is_that_of_the_object_alone():
    """A crop holds more of the object than the frame does: the mean over all pixels would always speak for it."""
    assert next(predict(Looks(0.6, slice(4, 28)), images(1), resolution=RESOLUTION, zoom=True)).crop is None


def test_the_second_look_is_refined_and_in_contrast_as_the_first():
    class Asked(Brightness):
        refines = True

        def __call__(self, img, refine=True):
            seen.append((refine, float(img.amax() - img.amin())))
            return super().__call__(img, refine)

    seen, img = [], np.full((64, 64, 3), 110, np.uint8)
    img[20:40, 20:40] = 160
    next(predict(Asked(), [img], resolution=RESOLUTION, symmetry="flip", zoom=True, contrast=1.4))
    assert [refine for refine, _ in seen] == 2 * [True, False, False]
    ranges = [spread for _, spread in seen]
    assert ranges[1] / ranges[0] == pytest.approx(1.4, rel=1e-5) and ranges[4] / ranges[3] == pytest.approx(1.4, rel=1e-5)


def test_inversion_gets_the_prior_and_the_encoders_features(model, monkeypatch):
    given = []

    def spy(G, lpips, img, ws0, config, steps, prior, *, features, precision):
        given.append((prior, features))
        return inversion.invert(G, lpips, img, ws0, config, 0, precision=precision)

    monkeypatch.setattr(inversion, "PERCEPTUAL_SIDE", RESOLUTION)
    monkeypatch.setattr(module, "invert", spy)
    G, E, lpips = model
    predictor, img = GeneratorPredictor(G, E, lpips, InversionConfig(), 1, precision="fp32"), torch.zeros(2, 3, 32, 32)
    predictor(img)
    ((prior, features),) = given
    assert prior is predictor.prior is not None
    (offset,) = features
    with torch.no_grad():
        torch.testing.assert_close(offset, E(img)[1], atol=1e-5, rtol=1e-4)  # another batch size
