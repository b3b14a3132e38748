"""The authors' checkpoint layout (github.com/nv-tlabs/semanticGAN_code) -> ours."""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from semanticgan.errors import UserError, first_line
from semanticgan.nn.generator import Generator
from semanticgan.nn.layers import Undrawn, misfit

State = dict[str, Tensor]
W_AVG_SAMPLES = 10_000
MAX_CLASSES = 254  # as labels.LabelSpec


@dataclass(frozen=True)
class ReferenceSizes:
    """What the shapes in a checkpoint say about its generator: the constructor arguments of ours."""

    resolution: int
    num_classes: int  # background included
    img_channels: int
    z_dim: int
    w_dim: int
    mapping_layers: int
    widths: dict[int, int]

    def generator(self) -> Generator:
        return Generator(
            self.resolution, self.num_classes, self.img_channels, self.z_dim, self.w_dim, self.mapping_layers, self.widths
        )


def read_reference(path: str | Path) -> tuple[ReferenceSizes, State]:
    """Sizes and state dict, in our names and float32, of the averaged generator in an authors' checkpoint.

    `.safetensors` with the keys bare or below `g_ema.` or `g.`, or a `.pt`, of which nothing but tensors, plain
    containers and `argparse.Namespace` is read. One label channel s becomes two, (-s, s). They store no mean of W, so it is
    estimated from 10,000 z, always the same ones. Raises UserError naming the file and what is wrong with it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a checkpoint of the authors' code, .pt or .safetensors")
    state = _averaged_generator(_read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path), path)
    ours = _two_classes(_converted(state, path))
    sizes = _sizes(ours, path)
    ours["mapping.w_avg"] = torch.zeros(sizes.w_dim)
    _require_fit(sizes, ours, path)
    G = sizes.generator()
    G.load_state_dict(ours)
    with torch.no_grad():
        z = torch.randn(W_AVG_SAMPLES, sizes.z_dim, generator=torch.Generator().manual_seed(0))
        G.mapping.w_avg.copy_(G.mapping.w(z).mean(0))
    return sizes, G.state_dict()


def _require_fit(sizes: ReferenceSizes, state: State, path: Path) -> None:
    """Before any memory is taken for a generator of these sizes, which a single tensor's shape may make enormous."""
    with torch.device("meta"), Undrawn():
        wanted = sizes.generator().state_dict()
    if wrong := misfit({key: value.shape for key, value in state.items()}, wanted):
        raise UserError(f"{path}: the generator's tensors do not fit together: {wrong}")


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable .safetensors file ({error})") from None


def _read_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # foreign bytes: the unpickler can fail in any way; it never runs what they name
        reason = first_line(error)
        found = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        what = f"it asks to run {found[1]}, which is refused" if found else f"it cannot be read as plain tensors ({reason})"
        raise UserError(
            f"{path}: {what}; expected a .pt of tensors and argparse.Namespace alone, or save its g_ema as .safetensors"
        ) from None


def _averaged_generator(content: Any, path: Path) -> State:
    """The part of the file that is `g_ema`, checked to be finite float tensors that the file really holds."""
    if not isinstance(content, dict):
        raise UserError(f"{path}: got a {type(content).__name__}, expected a dict of networks with g_ema among them")
    state: Any = content.get("g_ema")
    for prefix in ("g_ema.", "g."):
        if state is None and any(isinstance(key, str) and key.startswith(prefix) for key in content):
            state = {
                key.removeprefix(prefix): value
                for key, value in content.items()
                if isinstance(key, str) and key.startswith(prefix)
            }
    state = content if state is None else state
    if not isinstance(state, dict) or "input.input" not in state:
        raise UserError(f"{path}: no generator of the authors' layout in it; expected g_ema with the key input.input")
    for key, value in state.items():
        if not (isinstance(key, str) and isinstance(value, Tensor) and value.layout == torch.strided):
            raise UserError(f"{path}: {key}: expected a dense tensor below a name")
        if not value.is_floating_point() or value.dim() == 0 or value.numel() == 0:
            raise UserError(f"{path}: {key}: got {value.dtype} {tuple(value.shape)}, expected floating-point numbers")
        if value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise UserError(f"{path}: {key}: the shape {tuple(value.shape)} claims more numbers than the file holds")
        if not value.isfinite().all():
            raise UserError(f"{path}: {key}: holds values that are not finite")
    return {key: value.float() for key, value in state.items()}


def _converted(state: State, path: Path) -> State:
    try:
        return convert_generator(state)
    except (KeyError, ValueError, IndexError, RuntimeError) as error:
        raise UserError(f"{path}: not the authors' generator layout: unexpected key or shape at {error}") from None


def _two_classes(state: State) -> State:
    """One label channel s -> background and class as (-s, s): the same arg max, and tanh(s) as the softmax difference."""
    out = dict(state)
    for key, value in state.items():
        if re.search(r"to_seg\.(weight|bias)$", key) and len(value) == 1:
            out[key] = torch.cat([-value, value])
    return out


def _sizes(state: State, path: Path) -> ReferenceSizes:
    layers = sum(bool(re.fullmatch(r"mapping\.layers\.\d+\.weight", key)) for key in state)
    blocks = 1 + max((int(m[1]) for key in state if (m := re.match(r"synthesis\.blocks\.(\d+)\.", key))), default=0)
    needed = ["synthesis.blocks.0.to_img.weight", "synthesis.blocks.0.to_seg.weight", "mapping.layers.0.weight"]
    needed += [f"synthesis.blocks.{k}.conv1.weight" for k in range(min(blocks, 9))]
    missing = [key for key in needed if key not in state]
    if missing or not 3 <= blocks <= 9:
        what = f"no {missing[0]} (in this package's names)" if missing else f"got {blocks} resolutions, expected 3 to 9"
        raise UserError(f"{path}: the generator is not whole: {what}")
    sizes = ReferenceSizes(
        resolution=4 << (blocks - 1),
        num_classes=len(state[needed[1]]),
        img_channels=len(state[needed[0]]),
        z_dim=state[needed[2]].shape[-1],
        w_dim=len(state[needed[2]]),
        mapping_layers=layers,
        widths={4 << k: len(state[f"synthesis.blocks.{k}.conv1.weight"]) for k in range(blocks)},
    )
    if sizes.img_channels not in (1, 3) or sizes.num_classes > MAX_CLASSES:
        raise UserError(
            f"{path}: got {sizes.img_channels} image channels and {sizes.num_classes} classes, "
            f"expected 1 or 3 and at most {MAX_CLASSES}"
        )
    return sizes


_STYLED = {
    "conv.weight": "weight",
    "conv.modulation.weight": "affine.weight",
    "conv.modulation.bias": "affine.bias",
    "noise.weight": "noise_strength",
    "activate.bias": "bias",
    "bias": "bias",
}


def convert_generator(state: State) -> State:
    """Their generator's state -> ours, without `mapping.w_avg`, which they do not store, and without their noise maps.

    Raises KeyError or ValueError for a key that is not theirs.
    """
    out: State = {}
    for key, value in state.items():
        head, _, rest = key.partition(".")
        number, _, tail = rest.partition(".")
        if head == "noises" or key.endswith(".kernel"):
            continue
        if key == "input.input":
            out["synthesis.const"] = value[0]
        elif head == "style":
            out[f"mapping.layers.{int(number) - 1}.{tail}"] = value
        elif head == "conv1":
            out[f"synthesis.blocks.0.conv1.{_STYLED[rest]}"] = value
        elif head == "convs":
            out[f"synthesis.blocks.{int(number) // 2 + 1}.conv{int(number) % 2}.{_STYLED[tail]}"] = value
        else:
            name = {"to_rgb": "to_img", "to_seg": "to_seg"}[head.rstrip("1s")]
            block, tail = (0, rest) if head.endswith("1") else (int(number) + 1, tail)
            out[f"synthesis.blocks.{block}.{name}.{_STYLED[tail]}"] = value
    return {key: _reshaped(key, value) for key, value in out.items()}


def _reshaped(key: str, value: Tensor) -> Tensor:
    """Without the dimensions of size one that their layers carry."""
    if key.endswith("noise_strength"):
        return value.reshape([])
    if re.search(r"to_(img|seg)\.(weight|bias)$", key):
        return value.reshape(value.shape[1:3] if key.endswith("weight") else -1)
    return value[0] if re.search(r"conv\d\.weight$", key) else value
