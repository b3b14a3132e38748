"""Objects instead of pixels: COCO's JSON (polygons, run lengths) and CVAT's XML (polygons, run lengths), and back to COCO."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np

from semanticgan.data.dataset import MAX_PIXELS, raise_problems
from semanticgan.errors import UserError
from semanticgan.formats.sets import (
    MAX_JSON,
    ImageSet,
    Item,
    Options,
    distinct,
    item_name,
    named_labels,
    place_image,
    read_items,
    read_json,
    require_counted,
    safe_name,
    write_json,
)
from semanticgan.formats.shapes import mask_to_rle, outlines, pack_counts, polygon_mask, rle_to_mask, unpack_counts
from semanticgan.labels import IGNORE_INDEX

Shape = Callable[[int, int], np.ndarray]  # height, width -> bool mask


@dataclass
class Objects:
    """An image as an annotation file tells of it; objects are drawn from first to last."""

    file: str
    size: tuple[int, int]  # height, width
    shapes: list[tuple[str, Shape]] = field(default_factory=list)  # class name, mask
    boxes: set[Shape] = field(default_factory=set)  # those of the shapes that are a box around an unknown outline: ignored


def _size(height: Any, width: Any) -> tuple[int, int]:
    if not (type(height) is type(width) is int and height > 0 < width and height * width <= MAX_PIXELS):
        raise ValueError(f"got the size {width}x{height}, expected at most {MAX_PIXELS // 10**6} million pixels")
    return height, width


def _build(source: Path, found: Sequence[Objects], folders: Sequence[Path], classes: Sequence[Any], options: Options) -> ImageSet:
    """The set of these images, looked for in each of the folders; those without objects are unlabelled."""
    labels, ids, notes = named_labels(classes, options)
    items, problems = [], []
    names = distinct([item_name(Path(image.file)) for image in found])
    for name, image in zip(names, found, strict=True):
        path = next((folder / image.file for folder in folders if (folder / image.file).is_file()), None)
        if path is None:
            problems.append(f"{source}: {image.file}: no such image in {', '.join(map(str, folders))}; say where with --images")
        else:
            items.append(Item(name, path, _drawn(source, image, ids) if image.shapes else None))
    raise_problems(problems)
    if not items:
        raise UserError(f"{source}: no images, expected some; correct the file")
    empty = sum(not image.shapes for image in found)
    notes += (f"without objects, and so counted as unlabelled: {empty}",) if empty else ()
    return ImageSet(tuple(items), labels, notes=notes)


def _drawn(source: Path, image: Objects, ids: Mapping[str, int]) -> Callable[[], np.ndarray]:
    def label() -> np.ndarray:
        out = np.zeros(image.size, np.uint8)
        for name, shape in image.shapes:
            try:
                k = ids[name]
                if k or shape not in image.boxes:
                    out[shape(*image.size)] = IGNORE_INDEX if shape in image.boxes else k
            except (ValueError, TypeError, OverflowError) as error:
                raise UserError(f"{source}: {image.file}: an object of class {name}: {error}; mend it") from None
        return out

    return label


def _coco_shape(segmentation: Any) -> Shape:
    """The mask of a COCO segmentation: a list of polygons, or run lengths, compressed or not."""
    if isinstance(segmentation, list):

        def union(height: int, width: int) -> np.ndarray:
            masks = (polygon_mask(points, height, width) for points in segmentation)
            return sum(masks, np.zeros((height, width), bool))

        return union

    def runs(height: int, width: int) -> np.ndarray:
        counts = segmentation["counts"]
        if segmentation.get("size") != [height, width]:
            raise ValueError(f"got run lengths of size {segmentation.get('size')}, expected the image's {[height, width]}")
        return rle_to_mask(unpack_counts(counts) if isinstance(counts, str) else counts, height, width)

    if not isinstance(segmentation, dict) or not isinstance(segmentation.get("counts"), str | list):
        raise ValueError("expected polygons or run lengths as segmentation")
    return runs


def _coco_box(box: Any) -> Shape:
    """The pixels that a box x, y, width, height touches."""
    x, y, w, h = (float(value) for value in box)
    if not all(map(math.isfinite, (x, y, w, h))):
        raise ValueError("expected finite numbers x, y, width, height as bbox")

    def filled(height: int, width: int) -> np.ndarray:
        out = np.zeros((height, width), bool)
        out[max(0, math.floor(y)) : max(0, math.ceil(y + h)), max(0, math.floor(x)) : max(0, math.ceil(x + w))] = True
        return out

    return filled


def coco_content(path: Path) -> Any | None:
    """What a COCO file holds, None for any other file. Raises UserError for JSON that cannot be read."""
    content = read_json(path) if path.suffix.lower() == ".json" else None
    keys = ("images", "annotations", "categories")
    return content if isinstance(content, dict) and all(isinstance(content.get(key), list) for key in keys) else None


def find_coco(source: Path) -> tuple[Path, Any] | None:
    """The annotation file of a COCO set with its content: the source, or the one below it (of several that called instances*).

    Raises UserError where several are left.
    """
    below = [path for folder in (source, source / "annotations") for path in sorted(folder.glob("[!.]*.json"))]
    files = [path for path in below if path.name.startswith("instances")] or below if source.is_dir() else [source]
    found: list[tuple[Path, Any]] = []
    for path in files:
        content = coco_content(path)
        if content is not None:
            found.append((path, content))
        if len(found) > 1:
            raise UserError(f"{source}: got several COCO files: {found[0][0]} and {path}; give one of them instead")
    return found[0] if found else None


def read_coco(source: Path, options: Options) -> ImageSet:
    """COCO's instances: large objects are drawn first, so that small ones stay visible; classes are in order of their ids.

    Where an object has a box and no outline, the box is ignored. Raises UserError where no object has an outline.
    """
    coco = find_coco(source)
    if coco is None:
        raise UserError(f"{source}: no COCO file, expected JSON with images, annotations and categories; give that file")
    path, content = coco
    where = "its form"
    try:
        categories = {c["id"]: str(c["name"]) for c in sorted(content["categories"], key=lambda c: c["id"])}
        found = {}
        for image in content["images"]:
            where = f"image {image['id']!r}"
            found[image["id"]] = Objects(safe_name(image["file_name"], str(path)), _size(image["height"], image["width"]))
        areas: list[tuple[float, int, Objects, tuple[str, Shape]]] = []
        for annotation in content["annotations"]:
            where = f"annotation {annotation.get('id')!r}"
            outlined = bool(annotation.get("segmentation"))
            if outlined or annotation.get("bbox"):
                shape = _coco_shape(annotation["segmentation"]) if outlined else _coco_box(annotation["bbox"])
                image, name = found[annotation["image_id"]], categories[annotation["category_id"]]
                area = float(annotation.get("area", 0) if outlined else annotation["bbox"][2] * annotation["bbox"][3])
                areas.append((-area, len(areas), image, (name, shape)))
                if not outlined:
                    image.boxes.add(shape)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: {where}: {type(error).__name__} {error}; mend the file") from None
    for _, _, image, named in sorted(areas, key=lambda entry: entry[:2]):
        image.shapes.append(named)
    boxes = sum(len(image.boxes) for image in found.values())
    if content["annotations"] and boxes == len(areas):
        got = f"got {len(content['annotations'])} objects without one outline"
        raise UserError(f"{path}: {got}, expected polygons or run lengths as segmentation; draw or export them")
    root = path.parent
    split = path.stem.rpartition("_")[2]
    beside = [root / "images", root, root / split]
    usual = [*beside, root.parent / "images", root.parent / "images" / split, root.parent / split, root.parent]
    given = options.folder(source if source.is_dir() else root, "images")
    folders = [given] if given else [folder for folder in usual if folder.is_dir()]
    built = _build(path, list(found.values()), folders, [(name, None) for name in categories.values()], options)
    note = (f"{boxes} objects have a box and no outline: their boxes are ignored",) if boxes else ()
    return replace(built, notes=built.notes + note)


def write_coco(content: ImageSet, out: Path, polygons: bool = False) -> None:
    """images/ and annotations.json: an object per class and image, as compressed run lengths; no colours.

    With `polygons` as polygons along the pixels' borders, or, where a class has holes, as plain run lengths. Ignored
    pixels are an object of the category "ignore". Raises UserError for a class of such a name.
    """
    require_counted(content.labels.names[1:])
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for item, pixels, label in read_items(content.items):
        height, width = pixels.shape[:2]
        suffix = Path(place_image(item, pixels, out / "images" / item.name)).suffix
        images.append({"id": len(images) + 1, "file_name": f"{item.name}{suffix}", "width": width, "height": height})
        for k in [] if label is None else [k for k in np.unique(label).tolist() if k > 0]:
            mask = label == k
            y, x = np.nonzero(mask)
            box = [int(x.min()), int(y.min()), int(x.max() - x.min()) + 1, int(y.max() - y.min()) + 1]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": len(images), "category_id": k, "iscrowd": 0, "area": len(x), "bbox": box}
                | {"segmentation": _segmentation(mask, polygons)}
            )
    categories = [{"id": k, "name": name} for k, name in enumerate(content.labels.names) if k > 0]
    if any(a["category_id"] == IGNORE_INDEX for a in annotations):
        categories.append({"id": IGNORE_INDEX, "name": "ignore"})
    write_json(out / "annotations.json", {"images": images, "annotations": annotations, "categories": categories})


def _segmentation(mask: np.ndarray, polygons: bool) -> Any:
    drawn = outlines(mask) if polygons else None
    counts = mask_to_rle(mask)
    return drawn or {"size": list(mask.shape), "counts": counts if polygons else pack_counts(counts)}


class _CvatXml:
    """Reads CVAT's `annotations.xml` as a stream; a document type, and with it every entity, is refused."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.images: list[Objects] = []
        self.classes: list[tuple[str, tuple[int, int, int] | None]] = []
        self.others: dict[str, int] = {}
        self._open: list[str] = []
        self._text = ""
        self._orders: list[int] = []

    def read(self) -> "_CvatXml":
        parser = expat.ParserCreate()
        parser.StartDoctypeDeclHandler = self._refuse
        parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = self._start, self._end, self._data
        try:
            if self.path.stat().st_size > MAX_JSON:
                raise ValueError("enormous file")
            with self.path.open("rb") as file:
                parser.ParseFile(file)
        except (expat.ExpatError, OSError, ValueError, LookupError, OverflowError) as error:
            raise UserError(f"{self.path}: {type(error).__name__} {error}; expected the XML of 'CVAT for images 1.1'") from None
        return self

    def _refuse(self, *_: object) -> None:
        raise ValueError("got a document type declaration, which CVAT never writes")

    def _data(self, text: str) -> None:
        self._text = (self._text + text)[:1000]

    def _start(self, tag: str, values: dict[str, str]) -> None:
        self._open.append(tag)
        self._text = ""
        if tag == "track":
            raise ValueError("got tracks of a video")
        if tag == "image":
            size = _size(int(values["height"]), int(values["width"]))
            self.images.append(Objects(safe_name(values["name"], str(self.path)), size))
            self._orders = []
        elif self._open[-2:-1] == ["image"] and tag in ("polygon", "mask"):
            order = int(values.get("z_order", 0))
            place = sum(other <= order for other in self._orders)
            self._orders.insert(place, order)
            self.images[-1].shapes.insert(place, (values["label"], _cvat_shape(tag, values)))
        elif self._open[-2:-1] == ["image"] and tag != "tag":
            self.others[tag] = self.others.get(tag, 0) + 1

    def _end(self, tag: str) -> None:
        if self._open[-2:] == ["label", "name"]:
            self.classes.append((self._text.strip(), None))
        elif self._open[-2:] == ["label", "color"] and self.classes:
            r, g, b = bytes.fromhex(self._text.strip().removeprefix("#"))
            self.classes[-1] = (self.classes[-1][0], (r, g, b))
        self._open.pop()


def _cvat_shape(tag: str, values: dict[str, str]) -> Shape:
    if tag == "polygon":
        points = [float(v) for pair in values["points"].split(";") for v in pair.split(",")]
        return lambda height, width: polygon_mask(points, height, width)
    runs = [int(v) for v in values["rle"].split(",")]
    left, top, w, h = (int(values[k]) for k in ("left", "top", "width", "height"))

    def box(height: int, width: int) -> np.ndarray:
        if not (0 <= left <= left + w <= width and 0 <= top <= top + h <= height):
            raise ValueError("got a mask that reaches beyond the image")
        out = np.zeros((height, width), bool)
        out[top : top + h, left : left + w] = rle_to_mask(runs, w, h).T  # CVAT's runs go along the rows
        return out

    return box


def read_cvat(source: Path, options: Options) -> ImageSet:
    """CVAT for images: polygons and masks by z_order; boxes, points and the like are counted and left out.

    Raises UserError where there are none but such.
    """
    path = source if source.is_file() else source / "annotations.xml"
    xml = _CvatXml(path).read()
    named = {name for name, _ in xml.classes}
    used = dict.fromkeys(name for image in xml.images for name, _ in image.shapes)
    given = options.folder(path.parent, "images")
    folders = [given] if given else [folder for folder in (path.parent / "images", path.parent) if folder.is_dir()]
    classes = list(dict(xml.classes + [(name, None) for name in used if name not in named]).items())
    content = _build(path, xml.images, folders, classes, options)
    if xml.others and not content.num_labeled:
        got = f"got {sum(xml.others.values())} objects ({', '.join(xml.others)}) without one outline"
        raise UserError(f"{path}: {got}, expected polygons or masks; draw them")
    left_out = tuple(f"{count} objects of kind {tag} are left out" for tag, count in xml.others.items())
    return ImageSet(content.items, content.labels, notes=content.notes + left_out)
