"""A model, encoder with generator or student, as the content of one file for other programs: ONNX, or torch.export's."""

import copy
import importlib
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from semanticgan import __version__
from semanticgan.errors import UserError
from semanticgan.model import SemanticGAN

OUTPUTS = ("probs", "label", "reconstruction")  # a student has no reconstruction


class EncoderWithGenerator(nn.Module):
    """E, then G without noise, as one network: what `segment` computes of the plain view, at G's resolution in float32.

    Neither this nor `Student` does what the model's `one_object` and `convex` say.
    """

    def __init__(self, model: SemanticGAN) -> None:
        super().__init__()
        if model.E is None:
            raise UserError(
                "this model has no encoder, and inversion is no fixed graph; train one: semanticgan train --from MODEL ..."
            )
        self.E, self.synthesis, self.temperature = model.E, model.G.synthesis, model.config.temperature

    def forward(
        self, img: Float[Tensor, "n c r r"]
    ) -> tuple[Float[Tensor, "n k r r"], UInt8[Tensor, "n r r"], Float[Tensor, "n c r r"]]:
        """Images in -1..1 -> class probabilities, class ids, and the reconstruction in -1..1."""
        ws, *features = self.E(img)
        reconstruction, seg_logits = self.synthesis(ws, "none", *features)
        probs = (seg_logits / self.temperature).softmax(1)
        return probs, probs.argmax(1).to(torch.uint8), reconstruction.clamp(-1, 1)


class Student(nn.Module):
    """A student as one network: what `segment` computes of the plain view, at the student's resolution in float32."""

    def __init__(self, model: SemanticGAN) -> None:
        super().__init__()
        assert model.S is not None
        self.S, self.temperature = model.S, model.config.temperature

    def forward(self, img: Float[Tensor, "n c r r"]) -> tuple[Float[Tensor, "n k r r"], UInt8[Tensor, "n r r"]]:
        """Images in -1..1 -> class probabilities and class ids."""
        probs = (self.S(img) / self.temperature).softmax(1)
        return probs, probs.argmax(1).to(torch.uint8)


def outputs(model: SemanticGAN) -> tuple[str, ...]:
    """Names of what the file's network gives."""
    return OUTPUTS if model.S is None else OUTPUTS[:2]


def to_onnx(model: SemanticGAN) -> bytes:
    """Input `img`, outputs `outputs`, any number of images at once; `metadata` in the model's metadata_props.

    Raises UserError for a model without encoder, and where the packages of the extra `onnx` are missing.
    """
    for package in ("onnx", "onnxscript"):
        _require(package)
    net, example, shapes = _traced(model)
    with _quiet():
        program = torch.onnx.export(
            net, example, dynamic_shapes=shapes, dynamo=True, input_names=["img"], output_names=outputs(model), verbose=False
        )
    assert program is not None  # with dynamo=True it never is
    program.model.metadata_props.update(metadata(model))
    return program.model_proto.SerializeToString()


def to_torch(model: SemanticGAN) -> bytes:
    """The same as torch.export.load reads it from a `.pt2` file; `metadata` as its extra file metadata.json."""
    net, example, shapes = _traced(model)
    content = io.BytesIO()
    with _quiet():
        program = torch.export.export(net, example, dynamic_shapes=shapes, strict=False)
        torch.export.save(program, content, extra_files={"metadata.json": json.dumps(metadata(model))})
    return content.getvalue()


def _traced(model: SemanticGAN) -> tuple[nn.Module, tuple[Tensor], tuple[dict[int, Any]]]:
    """The network, an example of its input, and which of the input's sizes is free."""
    data = model.config.data
    example = torch.zeros(2, data.num_channels, data.resolution, data.resolution)
    whole = EncoderWithGenerator(model) if model.S is None else Student(model)
    net = copy.deepcopy(whole).cpu().eval()  # a copy: the model stays on its device
    return net, (example,), ({0: torch.export.Dim("n")},)


def metadata(model: SemanticGAN) -> dict[str, str]:
    """What a program that runs the file must know; lists are JSON."""
    data, labels = model.config.data, model.labels
    return {
        "classes": json.dumps(labels.names),
        "palette": json.dumps(labels.palette),
        "resolution": str(data.resolution),
        "channels": f"{data.num_channels}",
        "normalisation": "img = uint8 / 127.5 - 1; channels first, RGB or grey",
        "fit": data.fit,
        "temperature": f"{model.config.temperature:g}",
        "licence": licence(model.card),
        "version": f"semanticgan {__version__}",
    }


def licence(card: str) -> str:
    """What the card's front matter says."""
    found = dict(re.findall(r"^(license|license_name): *(.+)$", card.split("\n---", 1)[0], re.M))
    return found.get("license_name") or found.get("license") or "not stated; the terms of the training data apply"


def _require(package: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError:
        raise UserError(f"{package} is not installed, but ONNX files need it; pip install 'semanticgan[onnx]'") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters' warnings speak of their own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
