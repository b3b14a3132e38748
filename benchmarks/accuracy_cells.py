"""What is compared: the tasks, the methods, the cells of the tables, and in which order they are worth computing."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from speed import ROOT

from semanticgan.errors import UserError

SPLITS = ROOT / "benchmarks" / "splits"
RESULTS = ROOT / "benchmarks" / "results" / "accuracy"
SEEDS = (0, 1, 2)  # draws of the labelled images; seeds of the training where there is one list


@dataclass(frozen=True)
class Task:
    """Where a task's images are, and how long a network trains on them."""

    name: str
    unlabeled: tuple[str, ...]  # lists of images; masks are not read
    sets: dict[str, str]  # what is scored -> list below SPLITS, or folder of the data; the first are in the training's domain
    titles: dict[str, str]
    kimg: dict[str, float]  # labelled images shown in training, in thousands, by number of labels; the same for every method
    channels: int
    symmetry: str
    metric: str  # of the tables: "iou" or "dice"

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.kimg)


TASKS = {
    "skin": Task(
        "skin",
        unlabeled=("train_all.txt", "ham10000.txt"),
        sets={
            "val": "val.txt",
            "test": "test.txt",
            "ph2": "ph2/images",
            "dermis": "dermis/images",
            "dermquest": "dermquest/images",
        },
        titles={"val": "validation", "test": "ISIC test", "ph2": "PH2", "dermis": "DermIS", "dermquest": "DermQuest"},
        kimg={"40": 16, "200": 24, "all": 40},
        channels=3,
        symmetry="all",
        metric="iou",
    ),
    "cxr": Task(
        "cxr",
        unlabeled=("train_all.txt", "nih.txt"),
        sets={"val": "val.txt", "test": "test.txt", "montgomery": "montgomery/images"},
        titles={"val": "validation", "test": "Shenzhen test", "montgomery": "Montgomery"},
        kimg={"9": 12, "35": 16, "175": 24},
        channels=1,
        symmetry="flip",
        metric="dice",
    ),
}


@dataclass(frozen=True)
class Entry:
    """A row of the tables."""

    title: str
    network: str | None = None  # of baselines.networks; None: ours
    method: str = "supervised"  # module of baselines
    imagenet: bool = False  # are weights from ImageNet in it
    settings: dict[str, float] = field(default_factory=dict)  # of the baseline, where not the usual ones
    paper: str | None = None  # its row in the paper's tables


SEMI = "unet-small"  # the network of the semi-supervised methods: at 64 px it sees full resolution, for a third of the cost
METHODS = {
    "unet": Entry("U-Net, ResNet-34", "unet", paper="U-Net"),
    "deeplab": Entry("DeepLabV3+, ResNet-34", "deeplab", paper="DeepLab"),
    "unet-small": Entry("small U-Net", "unet-small"),
    "unet-imagenet": Entry("U-Net, EfficientNet-lite0", "unet-imagenet", imagenet=True),
    "unet-student": Entry(
        "the student's U-Net, no teacher", "unet-student", imagenet=True, settings={"far": 0.3, "texture": 0.5}
    ),
    "mean-teacher": Entry("Mean Teacher, small U-Net", SEMI, "mean_teacher", paper="MT"),
    "advssl": Entry("AdvSSL, small U-Net", SEMI, "advssl", paper="AdvSSL"),
    "gct": Entry("GCT, two small U-Nets", SEMI, "gct", paper="GCT"),
    "unimatch": Entry("UniMatch, small U-Net", SEMI, "unimatch"),
    "mean-teacher-imagenet": Entry(
        "Mean Teacher, the student's U-Net", "unet-student", "mean_teacher", True, {"far": 0.3, "texture": 0.5}
    ),
    "unimatch-imagenet": Entry("UniMatch, U-Net, EfficientNet-lite0", "unet-imagenet", "unimatch", imagenet=True),
    "semanticgan-encoder": Entry("SemanticGAN, encoder only", imagenet=True, paper="Ours-NO"),
    "semanticgan": Entry("SemanticGAN", imagenet=True, paper="Ours"),
    "encoder-projected": Entry("SemanticGAN, encoder only, projected D_img", imagenet=True),
    "student": Entry("SemanticGAN's student", imagenet=True),
    "student-of-two": Entry("SemanticGAN's student, and a plain student's", imagenet=True),
    "student-of-three": Entry("SemanticGAN's student, of both encoders and a plain student", imagenet=True),
    "encoder-taught": Entry("SemanticGAN, encoder that a plain student taught", imagenet=True),
    "student-taught": Entry("SemanticGAN's student, from that encoder", imagenet=True),
    "self-taught": Entry("the student's U-Net, taught by itself", imagenet=True),  # what a student is without the joint model
}
OURS = tuple(name for name, entry in METHODS.items() if entry.network is None)  # by the package's commands
STUDENTS = ("student", "student-of-two", "student-of-three", "student-taught", "self-taught")
BASELINES = tuple(name for name in METHODS if name not in OURS)
SMALLEST = (  # worth their time where labels are fewest, no more
    "mean-teacher-imagenet", "unimatch-imagenet", "encoder-projected", "student-of-two", "student-of-three", "encoder-taught",
    "student-taught", "self-taught",
)  # fmt: skip
UNLABELED = ("1000", "3000")  # the second table, beside all


@dataclass(frozen=True)
class Cell:
    """One training and its scores."""

    task: str
    method: str
    labels: str
    seed: int
    unlabeled: str = "all"  # number of unlabelled images

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise UserError(f"--task {self.task}: no such task; expected {', '.join(TASKS)}")
        if self.method not in METHODS:
            raise UserError(f"--method {self.method}: no such method; expected {', '.join(METHODS)}")
        if self.labels not in TASKS[self.task].labels:
            raise UserError(
                f"--labels {self.labels}: no such budget of {self.task}; expected {', '.join(TASKS[self.task].labels)}"
            )

    @cached_property
    def name(self) -> str:
        few = "" if self.unlabeled == "all" else f"-unlabeled{self.unlabeled}"
        return f"{self.task}-{self.method}-{self.labels}-seed{self.seed}{few}"

    @property
    def labeled_list(self) -> Path:
        """The draw of that seed; where all are labelled there is one list, and the seed is the training's alone."""
        name = "train_all.txt" if self.labels == "all" else f"train_{self.labels}_seed{self.seed}.txt"
        return SPLITS / self.task / name

    def words(self) -> list[str]:
        """The options that name this cell."""
        few = [] if self.unlabeled == "all" else ["--unlabeled", self.unlabeled]
        return ["--task", self.task, "--method", self.method, "--labels", self.labels, "--seed", str(self.seed), *few]


def paths(file: Path) -> list[str]:
    """The lines of a list. Raises UserError where it is missing."""
    try:
        return file.read_text(encoding="utf-8").split()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); expected a list of images") from None


def queue() -> list[Cell]:
    """Every cell of both tables, the most telling ones first."""

    def cells(task: str, methods: tuple[str, ...], labels: tuple[str, ...], seeds: tuple[int, ...] = SEEDS) -> Iterator[Cell]:
        yield from (Cell(task, m, k, seed) for k in labels for m in methods for seed in seeds)

    plain = ("unet", "unet-imagenet", "unet-student")
    others = tuple(m for m in BASELINES if m not in plain)
    ours, quick = (tuple(m for m in methods if m not in SMALLEST) for methods in (OURS, others))
    parts = [
        cells("skin", plain, ("40", "all")),
        cells("skin", OURS, ("40",)),
        cells("cxr", (*plain, *OURS), ("9",)),
        cells("skin", plain, ("200",)),
        cells("skin", ours, ("200", "all")),
        cells("cxr", (*plain, *ours), ("35", "175")),
        cells("skin", others, ("40",)),
        cells("cxr", others, ("9",)),
        cells("skin", quick, ("all", "200")),
        cells("cxr", quick, ("175", "35")),
        (replace(c, unlabeled=n) for n in UNLABELED for c in cells("skin", ("semanticgan",), ("40", "200", "all"), (0,))),
    ]
    return [cell for part in parts for cell in part]


# ---------------------------------------------------------------- how long they take

RATES = RESULTS / "rates.json"  # images a second in training and in scoring, one thread: accuracy.py --rates
# Guesses until there are results, of the part that no other row shares.
OURS_MINUTES = {
    "semanticgan-encoder": 25.0, "semanticgan": 10.0, "student": 45.0, "student-of-two": 25.0, "encoder-taught": 25.0,
    "student-taught": 20.0, "self-taught": 15.0, "encoder-projected": 25.0, "student-of-three": 50.0,
}  # fmt: skip


def is_own(cell: Cell, part: str) -> bool:
    """Is that part of a result's seconds the cell's own? Of our rows others share the image GAN, and the run of a draw."""
    if cell.method in STUDENTS:
        return part == "scoring" or part.endswith("-student")
    if cell.method == "semanticgan" and cell.unlabeled == "all":
        return part == "scoring"
    return not part.startswith("image-gan")


def minutes(cell: Cell, known: dict[str, dict], scored: int) -> float:
    """What the cell will take: as long as another of its row, a baseline's with other labels in proportion to what it is shown,
    else by the measured rates. `scored`: images of all sets.

    Of our own rows the first of a draw is the one that trains; the first of all trains the image GAN too.
    """
    row = (cell.task, cell.method, cell.labels, cell.unlabeled)
    alike = [r["seconds"] for r in known.values() if (r["task"], r["method"], r["labels"], r["unlabeled"]) == row]
    if alike:
        return sum(seconds for s in alike for part, seconds in s.items() if is_own(cell, part)) / len(alike) / 60
    if cell.method in OURS:
        return OURS_MINUTES[cell.method if cell.unlabeled == "all" else "semanticgan-encoder"]
    kimg = TASKS[cell.task].kimg
    if others := [r for r in known.values() if (r["task"], r["method"]) == row[:2]]:
        longer = [(r["seconds"], kimg[cell.labels] / kimg[r["labels"]]) for r in others]
        times = [seconds["training"] * ratio + seconds["scoring"] for seconds, ratio in longer]
        return sum(times) / len(times) / 60
    rates = json.loads(RATES.read_text(encoding="utf-8"))["rates"] if RATES.is_file() else {}
    rate = rates.get(cell.method, {"training": 10.0, "scoring": 4.0})
    views = 17 if TASKS[cell.task].symmetry == "all" else 5
    return (kimg[cell.labels] * 1000 / rate["training"] + scored * views / rate["scoring"]) / 60
