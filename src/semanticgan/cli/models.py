"""`semanticgan sample` and `semanticgan import`."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from semanticgan import __version__
from semanticgan.cli.output import require_new, write_text
from semanticgan.config import DataConfig, ModelConfig, NetworkConfig, build_config
from semanticgan.labels import LabelSpec
from semanticgan.model import SemanticGAN
from semanticgan.reference_weights import read_reference
from semanticgan.visuals import grid, save_label_png, save_png, to_rgb

GRID_PAIRS, GRID_COLUMNS = 64, 8
IMPORTED_STEPS = 200  # in the middle of the paper's 100 to 500; without an encoder there is no sensible answer at 0
Say = Callable[[str], None]


def write_samples(name: str, num: int, out: Path, *, seed: int, truncation_psi: float, device: str, say: Say) -> None:
    """Write images/, masks/ and classes.json, which make a data folder with `--unlabeled images`, and grid.png."""
    require_new(out, "--out")
    model = SemanticGAN.load(name, device=device)
    digits = max(5, len(str(num - 1)))
    pairs = []
    for k, (img, label) in enumerate(model.sample(num, seed, truncation_psi)):
        save_png(out / "images" / f"{k:0{digits}d}.png", img)
        save_label_png(out / "masks" / f"{k:0{digits}d}.png", label, model.labels)
        if k < GRID_PAIRS:
            pairs.append(np.concatenate([to_rgb(img), model.labels.to_colour(label)]))
        if (k + 1) % 500 == 0:
            say(f"{k + 1} of {num} pairs")
    write_text(out / "classes.json", json.dumps(model.labels.classes_file()) + "\n")
    save_png(out / "grid.png", grid(pairs, GRID_COLUMNS))
    say(f"{num} images with their label maps: {out}/images, {out}/masks; the first ones at a glance: {out}/grid.png")


def import_reference(checkpoint: Path, out: Path, *, say: Say) -> None:
    """Write the authors' averaged generator as a model folder; it has no encoder, so segmenting means inversion."""
    require_new(out, "--out")
    sizes, state = read_reference(checkpoint)
    G = sizes.generator()
    G.load_state_dict(state)
    config = ModelConfig(
        labels=LabelSpec.unnamed(sizes.num_classes),
        # Which flips and turns leave their images what they are, the file does not say.
        data=DataConfig(resolution=sizes.resolution, channels=sizes.img_channels, symmetry="none"),
        networks=NetworkConfig(z_dim=sizes.z_dim, w_dim=sizes.w_dim, mapping_layers=sizes.mapping_layers, widths=sizes.widths),
        inversion=build_config("paper256").inversion,
        has_encoder=False,
        views=False,
        steps=IMPORTED_STEPS,
        versions={"semanticgan": __version__},
    )
    SemanticGAN(config, G).save(out, _imported_card(checkpoint.name, out.name, config))
    say(f"{out}: {sizes.resolution} px, {sizes.img_channels} channels; classes {', '.join(config.labels.names)}")
    say(f"it has no encoder: segmenting starts at w_avg and takes {IMPORTED_STEPS} steps unless --steps says otherwise")


def _imported_card(checkpoint: str, name: str, config: ModelConfig) -> str:
    return f"""---
library_name: semanticgan
pipeline_tag: image-segmentation
---
# {name}

The averaged generator of the checkpoint `{checkpoint}`, which was made with the SemanticGAN authors' code; its licence
and its data's licence go with it. {config.data.resolution} px, {config.labels.num_classes} classes.

It has no encoder: segmenting an image means optimising its latent code from the mean of W.

    semanticgan segment {name} IMAGES --steps {config.steps} --out DIR
"""
