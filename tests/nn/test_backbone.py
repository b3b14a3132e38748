import torch
import torch.nn.functional as F

from semanticgan.nn import backbone
from semanticgan.nn.backbone import EfficientNetLite0, convert


def pattern():
    ys, xs = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    return torch.stack([torch.sin(7 * xs + 2 * ys), torch.cos(5 * ys * xs), torch.sin(9 * (xs.square() + ys.square()))])[None]


# Mean, deviation and two pixels of each map, from the published float32 weights with their batch norms unfolded.
GOLDEN = [
    (0.0957, 8.67, -4.6314, 5.4108), (-0.2381, 12.2875, 5.7878, 1.8997), (-0.056, 10.852, 1.406, 6.4394),
    (0.5821, 8.8189, -7.0439, 18.7048), (0.1803, 4.948, 1.1306, 7.7048),
]  # fmt: skip


@torch.no_grad()
def test_the_packaged_weights_give_the_published_networks_maps():
    maps = EfficientNetLite0().load_imagenet()(pattern())
    for x, golden in zip(maps, GOLDEN, strict=True):
        got = torch.stack([x.mean(), x.std(), x[0, 3, 1, 1], x[0, 7, -1, 0]])
        assert (got - torch.tensor(golden)).abs().max() < 0.015 * golden[
            1
        ]  # float16 storage moves a pixel by 1.1 % of the deviation


def test_maps_at_five_strides_and_grey_images():
    net = EfficientNetLite0()
    for side, channels in ((32, 1), (128, 3)):
        maps = net(torch.randn(2, channels, side, side))
        assert [tuple(x.shape) for x in maps] == [
            (2, width, side // stride, side // stride) for width, stride in zip(net.channels, (2, 4, 8, 16, 32), strict=True)
        ]


def test_frozen_blocks_learn_nothing_and_the_others_do():
    net = EfficientNetLite0(frozen=5).load_imagenet()
    net(pattern())[-1].square().mean().backward()
    for name, parameter in net.named_parameters():
        frozen = name.startswith("stem") or int(name.split(".")[1]) < 5
        assert parameter.requires_grad != frozen and (parameter.grad is None) == frozen, name
        assert frozen or parameter.grad.any(), name


def test_folding_equals_convolution_and_batch_norm():
    generator = torch.Generator().manual_seed(0)
    published = {}
    shapes = {name: p.shape for name, p in EfficientNetLite0().named_parameters() if name.endswith("weight")}
    for name, shape in shapes.items():
        layer = name.removesuffix(".weight").removeprefix("blocks.")
        if layer == "stem":
            conv, norm = "_conv_stem", "_bn0"
        else:
            number, kind = layer.split(".")
            prefix = f"_blocks.{number}."
            conv = prefix + {"expand": "_expand_conv", "depthwise": "_depthwise_conv", "project": "_project_conv"}[kind]
            norm = prefix + {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}[kind]
        published[f"{conv}.weight"] = torch.randn(shape, generator=generator)
        for statistic in ("weight", "bias", "running_mean", "running_var"):
            published[f"{norm}.{statistic}"] = torch.rand(shape[0], generator=generator) + 0.5
    ours = convert(published)
    assert set(ours) == set(EfficientNetLite0().state_dict())
    x = torch.randn(1, 3, 9, 9, generator=generator)
    plain = F.batch_norm(
        F.conv2d(x, published["_conv_stem.weight"]), published["_bn0.running_mean"], published["_bn0.running_var"],
        published["_bn0.weight"], published["_bn0.bias"], eps=1e-3,
    )  # fmt: skip
    folded = F.conv2d(x, ours["stem.weight"].float(), ours["stem.bias"].float())
    assert (plain - folded).abs().max() < 0.01 * plain.std()  # float16


def test_zeros_are_padded_as_tensorflow_does():
    conv = backbone.Conv(1, 1, 3, stride=2)
    conv.weight.data.fill_(1)
    ones = conv(torch.ones(1, 1, 4, 4))[0, 0]
    assert torch.equal(ones, torch.tensor([[9.0, 6.0], [6.0, 4.0]]))  # the first window lies whole inside, the last hangs over
