"""One HTML file that needs nothing else: text is escaped, pictures lie inside, no script, light and dark."""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from semanticgan.charts import Drawing
from semanticgan.files import replacing

STYLE = """
:root { color-scheme: light dark; --ink: #111; --ground: #fff; --faint: #ddd; --soft: #f4f4f4 }
@media (prefers-color-scheme: dark) { :root { --ink: #eee; --ground: #14161a; --faint: #3a3d44; --soft: #1d2026 } }
body { font: 16px/1.5 sans-serif; margin: 2em auto; max-width: 960px; padding: 0 1em }
html { color: var(--ink); background: var(--ground) }
h1, h2 { line-height: 1.2 } h2 { margin-top: 2em; border-bottom: 1px solid var(--faint) }
img, svg { max-width: 100%; height: auto } a { color: inherit }
figure { margin: 1em 0 } figcaption { font-size: .9em }
.row { display: flex; flex-wrap: wrap; gap: .5em 1em } .row figure { margin: 0; max-width: 100% }
.wide { overflow-x: auto } table { border-collapse: collapse }
th, td { text-align: left; vertical-align: top; padding: .2em 1em .2em 0; border-bottom: 1px solid var(--faint) }
td { overflow-wrap: anywhere; font-variant-numeric: tabular-nums }
.swatch { display: inline-block; width: 1em; height: 1em; margin: 0 .3em 0 .7em; border: 1px solid; vertical-align: -.1em }
pre { overflow-x: auto; background: var(--soft); padding: .7em } pre.wrapped { white-space: pre-wrap; overflow-wrap: anywhere }
"""


class Page:
    """Parts from top to bottom. Every text that is given is plain, and escaped here."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._parts = [f"<h1>{html.escape(title)}</h1>"]

    def heading(self, text: str) -> None:
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def code(self, text: str, wrapped: bool = False) -> None:
        """Text as it stands; `wrapped`: long lines go on in the next."""
        kind = ' class="wrapped"' if wrapped else ""
        self._parts.append(f"<pre{kind}>{html.escape(text)}</pre>")

    def folded(self, summary: str, content: Any) -> None:
        """JSON behind a line that opens it."""
        text = html.escape(json.dumps(content, indent=1, ensure_ascii=False))
        self._parts.append(f"<details><summary>{html.escape(summary)}</summary><pre>{text}</pre></details>")

    def link(self, text: str, target: str) -> None:
        """To a file beside this one."""
        self._parts.append(f'<p><a href="{html.escape(target)}">{html.escape(text)}</a></p>')

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """The first cell of a row names it."""
        top = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
        lines = [
            f'<tr><th scope="row">{html.escape(row[0])}</th>' + "".join(f"<td>{html.escape(c)}</td>" for c in row[1:]) + "</tr>"
            for row in rows
        ]
        start = f"<thead><tr>{top}</tr></thead>" if head else ""
        self._parts.append(f'<div class="wide"><table>{start}<tbody>{"".join(lines)}</tbody></table></div>')

    def legend(self, text: str, colours: Mapping[str, tuple[int, int, int]]) -> None:
        """What the colours of the pictures mean."""
        swatches = (
            f'<span class="swatch" style="background:rgb{colour}"></span>{html.escape(name)}' for name, colour in colours.items()
        )
        self._parts.append(f"<p>{html.escape(text)} {' '.join(swatches)}</p>")

    def picture(self, picture: Image.Image, alt: str, caption: str = "", quality: int | None = None) -> None:
        """A PNG, or a JPEG of that quality."""
        source = f'<img src="{_data_url(picture, quality)}" width="{picture.width}" alt="{html.escape(alt)}">'
        self._parts.append(_figure(source, caption))

    def charts(self, drawings: Sequence[Drawing]) -> None:
        """Side by side as far as there is room."""
        figures = "".join(_figure(drawing.to_svg(), "") for drawing in drawings)
        self._parts.append(f'<div class="row">{figures}</div>')

    def to_html(self) -> str:
        policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        head = (
            f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            f"<title>{html.escape(self.title)}</title><style>{STYLE}</style>"
        )
        body = "\n".join(self._parts)
        return f'<!doctype html>\n<html lang="en"><head>{head}</head><body><main>\n{body}\n</main></body></html>\n'

    def write(self, path: Path) -> None:
        """Whole or not at all. Raises UserError when the place cannot be written."""
        with replacing(path) as temporary:
            temporary.write_text(self.to_html(), encoding="utf-8", errors="replace")  # a file's name need not be valid UTF-8


def _figure(content: str, caption: str) -> str:
    return f"<figure>{content}" + (f"<figcaption>{html.escape(caption)}</figcaption>" if caption else "") + "</figure>"


def _data_url(picture: Image.Image, quality: int | None) -> str:
    stream = io.BytesIO()
    if quality is None:
        picture.save(stream, "PNG", optimize=True)
    else:
        picture.convert("RGB").save(stream, "JPEG", quality=quality)
    kind = "png" if quality is None else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
