"""The results as tables in Markdown."""

from typing import Any

from semanticgan.errors import UserError


def markers(command: str) -> tuple[str, str]:
    """Between which lines of a page the tables stand that a command makes."""
    return f"<!-- tables: python benchmarks/{command} -->", "<!-- end of tables -->"


BEGIN, END = markers("speed.py --table FILE.json")
NAMES = {
    "data": "real images and pairs alone",
    "draw": "draw: real images and pairs, G's pass (none in the plain design)",
    "D_img": "D_img's update",
    "D_seg": "D_seg's update",
    "G": "G's update",
    "averages": "averages (EMA)",
    "whole": "a step without regularisation",
    "training step": "**training step, regularisation as often as it is due**",
    "encoder step": "**encoder's training step**",
    "inversion step": "**a step of inversion**, LPIPS of both on the image enlarged to 128 px",
    "encoder alone": "**encoder alone**: E and G, one view, networks only",
}


def number(value: float | None, digits: int = 3) -> str:
    """Three digits, without an exponent."""
    if value is None:
        return "-"
    decimals = max(0, digits - len(str(int(abs(value))))) if abs(value) >= 1 else digits
    return f"{value:.{decimals}f}"


def percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def stages_table(stages: dict[str, Any]) -> str:
    head = ["stage", "ours: ms an image", "images/s", "peak MB", "plain: ms an image", "images/s", "peak MB", "**ours / plain**",
            "GFLOP an image", "share of the limit", "convolutions alone", "the rest"]  # fmt: skip
    rows = []
    for name, stage in stages.items():
        ours, plain = stage["ours"], stage.get("plain")
        cells = [NAMES.get(name, name)]
        for side in (ours, plain):
            each = (side["ms"] / side["images"], side["images_per_second"], side["peak_mb"]) if side else (None,) * 3
            cells += [number(value) for value in each]
        cells.append(f"**{number(stage['ratio'])}**" if "ratio" in stage else "-")
        shares = (ours["share_of_limit"], ours["share_alone"], 1 - ours["share_alone"])
        rows.append([*cells, number(ours["gflop_per_image"]), *map(percent, shares)])
    return table(head, rows)


def limit_table(name: str, limit: dict[str, Any], products: dict[str, float]) -> str:
    names = {p: name for p, name in (("bf16", "bfloat16"), ("fp32", "float32")) if f"product_{p}" in products}
    rows = [["matrix product, 2048 x 2048 x 2048", *(number(products[f"product_{p}"]) for p in names)]]
    for direction in ("forward", "forward_backward"):
        keys = [f"convolution_{precision}_{direction}" for precision in names]
        what = direction.replace("_", " + ")
        rows.append([f"3x3 convolutions at {name}'s shapes, {what}, all sides", *(number(limit[key]) for key in keys)])
        for side in limit[keys[0] + "_by_side"]:
            rows.append([f"the same at {side} px", *(number(limit[key + "_by_side"][side]) for key in keys)])
    return table(["billion operations a second", *names.values()], rows)


def resolution_table(rows: list[dict[str, float]]) -> str:
    first, lines = rows[0], []
    for row in rows:
        growth = [row[key] / first[key] for key in ("ms_per_image", "gflop_per_image")]
        values = [number(row[key]) for key in ("ms_per_image", "gflop_per_image", "gflop_per_second")]
        lines.append([f"{row['side']:.0f} px", *values, *(f"x {number(value)}" for value in growth)])
    return table(["side", "ms an image", "GFLOP an image", "GFLOP/s", "time", "operations"], lines)


def outside_table(results: dict[str, Any]) -> str:
    rows = []
    if "packing" in results:
        p = results["packing"]
        rows.append([f"packing {p['images']} drawn images of 64 px, images a second", number(p["images_per_second"])])
        rows.append(["anonymous memory at its peak meanwhile, MB", number(p["anonymous_mb"])])
    if "first_step" in results:
        f = results["first_step"]
        rows.append([f"`semanticgan train` to its first step done, {f['images']} images packed, seconds", number(f["seconds"])])
    if results.get("processes"):
        p = results["processes"]
        rows += [[f"GAN training, {name.replace('_', ' ')}, images a second", number(p[name])]
                 for name in ("one_thread", "two_threads", "two_processes", "two_processes_twice_the_batch")]  # fmt: skip
        rows.append(["two processes of one thread / one process of one thread", number(p["scaling_one_to_two_processes"])])
        rows.append(["the same, with a whole batch for each process", number(p["scaling_with_the_batch"])])
        rows.append(["two processes of one thread / one process of two threads", number(p["two_processes_over_two_threads"])])
    return table(["what", "figure"], rows) if rows else ""


def counted_table(counted: dict[str, Any]) -> str:
    names = list(next(iter(counted.values()))["gflop_per_image"])
    rows = [[NAMES.get(n, n).replace("*", ""), *(number(c["gflop_per_image"][n]) for c in counted.values())] for n in names]
    for net in ("G", "D_img", "D_seg", "E"):
        rows.append([f"parameters of {net}, millions", *(number(c["parameters"][net] / 1e6) for c in counted.values())])
    return table(["GFLOP an image", *counted], rows)


def render(results: dict[str, Any]) -> str:
    """All tables of one JSON file."""
    machine, versions = results["machine"], results["versions"]
    text = (
        f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['bf16']) or 'no bfloat16 instructions'}), "
        f"{results['threads']} threads; torch {versions['torch']}, Python {versions['python']}, revision {results['git']}, "
        f"{results['date']}; `{results['command']}`\n"
    )
    for name, preset in results.get("presets", {}).items():
        text += f"\n### {name}, batch {preset['batch']}\n\n{limit_table(name, preset['limit'], results['limit'])}"
        if preset["stages"]:
            text += f"\n{stages_table(preset['stages'])}\nThe plain inversion's VGG has {preset['vgg_weights']} weights.\n"
    if results.get("resolution"):
        text += f"\n### Cost against resolution\n\n{resolution_table(results['resolution'])}"
    outside = outside_table(results)
    if outside:
        text += f"\n### As a user meets it\n\n{outside}"
    if results.get("counted"):
        text += f"\n### Counted operations\n\n{counted_table(results['counted'])}"
    return text


def put_between(page: str, text: str, begin: str = BEGIN, end: str = END, name: str = "speed.md") -> str:
    """The page with `text` between its two markers. Raises UserError where a marker is missing."""
    before, found_begin, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise UserError(f"docs/{name}: got no pair of markers, expected {begin} and {end}")
    return f"{before}{begin}\n\n{text}\n{end}{after}"
