"""The shape of the package: who may import whom, how long files and functions are, and what loads without torch."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "src" / "semanticgan"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__") or "__init__": path
    for path in sorted(PACKAGE.rglob("*.py"))
}
# Module or folder -> what of the package it may import, besides `errors` and its own folder where that is listed.
# The longest entry counts. "*" is everything but cli.
MAY_IMPORT = {
    "__init__": {"model", "errors"},
    "__main__": {"cli"},
    "errors": set(),
    "files": set(),
    "memory": set(),
    "labels": set(),
    "config": {"labels"},
    "visuals": {"labels"},
    "nn.ops": set(),
    "nn.layers": {"nn.ops"},
    "nn": {"nn.ops", "nn.layers"},
    "nn.download": set(),
    "nn.perceptual": {"nn.download"},
    "nn.backbone": {"nn.ops", "nn.download"},
    "nn.encoder": {"nn.backbone"},
    "nn.unet": {"nn.backbone"},
    "nn.projected": {"nn.backbone", "nn.layers"},
    "losses": {"labels"},
    "ema": set(),
    "metrics": {"labels", "metrics"},
    "data": {"config", "labels", "data"},
    "data.check": {"labels", "data", "visuals"},
    "formats": {"labels", "data", "formats"},
    "precision": {"config"},
    "inversion": {"config", "losses", "nn", "precision"},
    "predict": {"config", "labels", "data.pieces", "data.transforms", "inversion", "nn", "precision"},
    "evaluation": {"config", "labels", "data", "metrics", "predict", "visuals"},
    "reference_weights": {"labels", "nn"},
    "model": {"config", "labels", "data", "nn", "inversion", "predict", "metrics", "visuals", "evaluation"},
    "charts": set(),
    "page": {"charts"},
    "scores": set(),
    "report": {"charts", "config", "data", "labels", "metrics", "model", "page", "scores", "visuals"},
    "figures": {"charts", "data", "inversion", "model", "scores", "visuals"},
    "export": {"__init__", "model"},
    "suggest": {"data", "inversion", "model", "precision", "predict"},
    "web": {"data", "inversion", "labels", "model", "precision", "predict", "suggest", "visuals", "web"},
    "training.run": {"training.checkpoint", "training.distributed"},
    "training.checkpoint": set(),
    "training.distributed": {"training.checkpoint"},
    "training": {
        "config", "labels", "data", "nn", "losses", "ema", "metrics", "visuals", "inversion", "predict", "evaluation",
        "memory", "model", "precision", "report", "training", "__init__",
    },
    "demo": {"*"},
    "cli": {
        "__init__", "cli", "config", "data", "demo", "evaluation", "export", "figures", "formats", "labels", "model",
        "reference_weights", "report", "scores", "suggest", "web",
        "training.distill", "training.distributed", "training.plan", "training.run", "training.stages", "visuals",
    },
}  # fmt: skip
# Third-party packages and the import names under which pyproject.toml's dependencies are known.
IMPORT_NAMES = {"pillow": "PIL", "pyyaml": "yaml"}
EXTRAS = {"web": {"fastapi", "starlette", "uvicorn"}}  # what a folder may import that comes with an extra
NO_TORCH = (
    "errors",
    "labels",
    "config",
    "visuals",
    "data.sources",
    "data.check",
    "cli.main",
    "cli.inputs",
    "cli.output",
    "cli.convert",
    "cli.distill",
    "cli.export",
    "cli.options",
    "cli.plot",
    "cli.report",
    "cli.serve",
    "cli.suggest",
    "formats",
)


def imported(path):
    """Full names of what a file imports anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_modules(path):
    """Modules of this package that a file imports."""
    for name in imported(path):
        if name.split(".")[0] == "semanticgan":
            parts = name.split(".")[1:]
            while parts and ".".join(parts) not in MODULES:
                parts.pop()
            yield ".".join(parts) or "__init__"


def below(module, folders):
    return "*" in folders or any(module == f or module.startswith(f + ".") for f in folders)


@pytest.mark.parametrize("module", MODULES)
def test_who_imports_whom(module):
    rules = [name for name in MAY_IMPORT if below(module, {name})]
    assert rules, f"{module}: say in MAY_IMPORT what it may import"
    allowed = MAY_IMPORT[max(rules, key=len)] | {"errors", "files"}
    for other in own_modules(MODULES[module]):
        assert below(other, allowed) and (module.split(".")[0] in ("cli", "__main__") or not below(other, {"cli"})), (
            f"{module} imports {other}; it may import {sorted(allowed)}"
        )


def test_no_circles():
    graph = {module: set(own_modules(path)) - {module} for module, path in MODULES.items() if module not in ("__init__",)}
    done = {"__init__"}
    while graph:
        free = {module for module, others in graph.items() if others <= done}
        assert free, f"these modules import each other in a circle: {sorted(graph)}"
        done |= free
        graph = {module: others for module, others in graph.items() if module not in free}


def test_only_declared_dependencies():
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[(.*?)^\]", text, re.M | re.S)[1]
    names = re.findall(r'"([A-Za-z0-9_-]+)', block)
    allowed = {"semanticgan", *sys.stdlib_module_names, *(IMPORT_NAMES.get(n.lower(), n) for n in names)}
    for module, path in MODULES.items():
        foreign = {name.split(".")[0] for name in imported(path)} - allowed - EXTRAS.get(module.split(".")[0], set())
        assert not foreign, f"{module} imports {sorted(foreign)}, which pyproject.toml does not list"


@pytest.mark.parametrize("module", MODULES)
def test_length_and_folders(module):
    path = MODULES[module]
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400, f"{module} has over 400 lines"
    assert module.count(".") <= 1, f"{module} lies more than one folder deep"
    assert not set(re.split(r"[._]", module)) & {"utils", "util", "helpers", "misc", "common"}, module
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{module}: {node.name} has {length} lines"


@pytest.mark.parametrize("module", MODULES)
def test_annotations_stay_checkable(module):
    """jaxtyping needs evaluated annotations, and an `except:` hides defects."""
    text = MODULES[module].read_text(encoding="utf-8")
    assert "from __future__ import annotations" not in text
    assert not re.search(r"^\s*except:", text, re.M), f"{module}: bare except"


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def loaded_by(code):
    """Names of the modules."""
    done = python(code)
    assert done.returncode == 0, done.stderr
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


@pytest.mark.parametrize(
    "code",
    [
        "import semanticgan",
        f"import {', '.join(f'semanticgan.{module}' for module in NO_TORCH)}",
        "from semanticgan.cli.main import run; run(['train', '--help'])",
        "from semanticgan.cli.main import run; run(['segment', 'model', 'no such image', '--out', 'no such folder'])",
    ],
)
def test_loads_without_torch(code):
    loaded = loaded_by(code)
    assert "semanticgan" in loaded
    assert not {"torch", "huggingface_hub"} & loaded


@pytest.mark.parametrize("model", ["skin-64", "skin-64-student"])
def test_a_model_answers_without_torchs_compiler(model):
    """It takes 1.7 seconds to load, which every first image would wait for."""
    load = f"import numpy, semanticgan; model = semanticgan.SemanticGAN.load({str(REPOSITORY / 'models' / model)!r})"
    loaded = loaded_by(f"{load}; list(model.find([numpy.zeros((64, 64, 3), numpy.uint8)], steps=0))")
    assert "torch" in loaded
    assert "torch._dynamo" not in loaded


def test_help_is_quick():
    """Processor time of the quickest of a few runs, so that other work on the machine does not count."""

    def seconds():
        before = os.times()
        done = subprocess.run([sys.executable, "-m", "semanticgan", "--help"], capture_output=True, text=True, check=True)
        after = os.times()
        assert "Usage: semanticgan" in done.stdout
        return after.children_user + after.children_system - before.children_user - before.children_system

    seconds()  # compiles and warms the file cache
    assert min(seconds() for _ in range(4)) < 0.6
