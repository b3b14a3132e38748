"""Which images the arguments of `semanticgan segment` mean, and under which names their results go. No torch here."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from semanticgan.cli.output import require_writable
from semanticgan.data.sources import SUFFIXES, list_images
from semanticgan.errors import UserError


@dataclass(frozen=True)
class Input:
    """An image as it was named, and the name of its results below masks/ and the others, without the suffix."""

    path: Path
    name: str


@dataclass
class Inputs:
    images: list[Input]
    problems: dict[str, str] = field(default_factory=dict)  # file -> what is wrong with it


def find_inputs(arguments: Sequence[Path], out: Path) -> Inputs:
    """The images that files and folders stand for, each once, without anything below `out`.

    Raises UserError when there is no image at all or `out` cannot be written.
    """
    require_writable(out, "--out")
    if (out / "masks").is_dir() and not (out / "overlays").is_dir():  # no masks of `segment`
        raise UserError(f"--out {out}: holds masks that `segment` did not write and would write over; name another folder")
    problems: dict[str, str] = {}
    found: dict[Path, int] = {}  # absolute path -> how many of its last parts name it relative to the argument
    written = Path(os.path.abspath(out))
    for argument in arguments:
        root = Path(os.path.abspath(argument))
        if root.is_dir():
            try:
                images = [Path(os.path.abspath(root / image)) for image in list_images(root, str(root))]
            except UserError as error:
                problems[str(argument)] = str(error)
                continue
            for image in images:
                if written not in image.parents:
                    found.setdefault(image, len(image.relative_to(root).parts) if image.is_relative_to(root) else 1)
        elif root.exists():
            found.setdefault(root, 1)
        else:
            problems[str(argument)] = f"{argument}: no such file or folder; correct the path"
    if not found:
        lines = problems.values() or [f"{', '.join(map(str, arguments))}: no images but those below --out {out}"]
        raise UserError("\n".join(lines))
    names = distinct_names([(path, parts) for path, parts in found.items()])
    return Inputs([Input(path, name) for path, name in zip(found, names, strict=True)], problems)


def distinct_names(files: Sequence[tuple[Path, int]]) -> list[str]:
    """A name for every file: its last parts without the suffix; with the suffix, then with more parts, where names meet.

    So a.jpg beside a.png become a.jpg and a.png, and x/a.jpg and y/a.jpg of two folders become x/a and y/a.
    Upper and lower case count as the same, as on some file systems they are.
    """
    levels = [0] * len(files)

    def name(k: int) -> str:
        path, count = files[k]
        parts = path.parts[1:][-(count + levels[k] // 2) :]
        joined = PurePosixPath(*parts)
        return str(joined if levels[k] % 2 else joined.with_suffix("") if joined.suffix.lower() in SUFFIXES else joined)

    while True:
        names = [name(k) for k in range(len(files))]
        groups: dict[str, list[int]] = {}
        for k, text in enumerate(names):
            groups.setdefault(text.casefold(), []).append(k)
        meeting = [k for group in groups.values() if _meet(group, names, files) for k in group]
        if not meeting:
            return names
        for k in meeting:
            levels[k] += 1


def _meet(group: Sequence[int], names: Sequence[str], files: Sequence[tuple[Path, int]]) -> bool:
    """Whether results would overwrite each other; not where the files' own paths differ in case alone."""
    if len(group) == 1:
        return False
    return len({names[k] for k in group}) < len(group) or len({str(files[k][0]).casefold() for k in group}) > 1
