"""The page's routes. What is computed waits in `jobs`; what is read and written goes through `session`."""

import asyncio
import shlex
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import numpy as np
from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from semanticgan.errors import UserError
from semanticgan.model import SemanticGAN
from semanticgan.web import answers, pictures
from semanticgan.web.folder import DataFolder, UnknownError
from semanticgan.web.guard import Guard
from semanticgan.web.jobs import FullError
from semanticgan.web.session import RestartedError, Session, TooLateError, class_ids, events, upload

STATIC = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/server.js": ("server.js", "text/javascript; charset=utf-8"),
    "/samples.js": ("samples.js", "text/javascript; charset=utf-8"),
    "/folder.js": ("folder.js", "text/javascript; charset=utf-8"),
    "/editor.js": ("editor.js", "text/javascript; charset=utf-8"),
    "/takeaway.js": ("takeaway.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
}

Key = Annotated[str, Query(max_length=64)]
Name = Annotated[str, Query(max_length=4096)]
Page = Annotated[str, Query(max_length=64)]  # a random name that each open page gives itself: pages take turns
Side = Annotated[int, Query(ge=1, le=pictures.MAX_PIXELS)]


def build_app(model: SemanticGAN, name: str, data: DataFolder | None = None) -> FastAPI:
    """The application, to be run by any ASGI server or test client."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.session = session = Session(model, name, data)
        size = model.config.data.resolution
        blank = pictures.Opened("", (size, size), np.full((size, size, session.channels), 128, np.uint8))
        if model.E is not None or model.S is not None:  # the first call loads LPIPS and warms up
            session.worker.quick(session.first_masks, blank, "")
        yield
        session.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard)
    _add_errors(app)
    _add_page(app)
    _add_pictures(app)
    _add_folder(app)
    return app


def _session(request: Request) -> Session:
    return request.app.state.session


async def _same_start(request: Request) -> None:
    """Raises RestartedError for a page of an earlier start: its images may be those of another folder."""
    if request.headers.get("x-start") != _session(request).start:
        raise RestartedError


SAME_START = [Depends(_same_start)]


def _add_errors(app: FastAPI) -> None:
    """What went wrong as {"error": text} and a status of 4xx, or 503 where the page may try again."""

    def add(kind: type[Exception], status: int, text: str | None = None, headers: dict[str, str] | None = None) -> None:
        async def handle(request: Request, error: Exception) -> JSONResponse:
            return JSONResponse({"error": text or str(error)}, status, headers)

        app.add_exception_handler(kind, handle)

    add(UserError, 422)
    add(ClientDisconnect, 400, "the request broke off")  # nobody reads it, and it is no defect
    add(UnknownError, 404)
    add(pictures.TooLargeError, 413)
    add(TooLateError, 408, "the file did not come to its end in time; try again")
    add(FullError, 503, headers={"Retry-After": "2"})
    add(RestartedError, 409, "the server was started again; reload the page")
    add(RequestValidationError, 422, "the request's parameters are not as expected")

    async def handle(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": error.detail}, error.status_code)

    app.add_exception_handler(HTTPException, handle)


def _add_page(app: FastAPI) -> None:
    static = files("semanticgan.web") / "static"
    for address, (file, kind) in STATIC.items():
        app.add_api_route(address, _fixed((static / file).read_bytes(), kind), methods=["GET"])

    @app.get("/api/about")
    async def about(request: Request) -> dict[str, Any]:
        session = _session(request)
        out = {**answers.about(session.model, session.name), "start": session.start}
        if session.data is not None:
            root, model = str(session.data.root), session.model
            source = session.name if model.S is None else model.config.teacher  # a student is no start for a training
            command = f"semanticgan train --data {shlex.quote(root)} --from {shlex.quote(source)} --out NEW_RUN" if source else ""
            out["data"] = {"root": root, "ignore": session.data.ignores, "train": command}
        return out

    @app.get("/api/samples")
    async def samples(
        request: Request,
        seed: Annotated[int, Query(ge=0, lt=2**53)] = 0,
        psi: Annotated[float, Query(gt=-2, lt=2)] = 1.0,
        num: Annotated[int, Query(ge=1, le=16)] = 8,
        page: Page = "",
    ) -> list[dict[str, Any]]:
        session = _session(request)
        return await asyncio.wrap_future(session.worker.quick(session.samples, answers.Drawn(seed, psi, num), page))


def _fixed(content: bytes, kind: str) -> Callable[[], Any]:
    """A route that always gives the same."""

    async def route() -> Response:
        return Response(content, media_type=kind)

    return route


def _add_pictures(app: FastAPI) -> None:
    @app.post("/api/pictures", dependencies=SAME_START)
    async def add_picture(request: Request, name: Name = "picture", page: Page = "") -> dict[str, Any]:
        session = _session(request)
        async with upload(session, request, session.picture_door) as path:
            picture = await session.read(pictures.open_picture, path, name, session.channels)
        return await session.first_answer(picture, page)

    @app.get("/api/picture")
    async def show_picture(request: Request, id: Key) -> Response:
        session = _session(request)
        return Response(await session.read(pictures.png, session.picture(id).pixels), media_type="image/png")

    @app.get("/api/refine")
    async def refine(
        request: Request, id: Key, steps: Annotated[int, Query(ge=1, le=answers.MAX_STEPS)] = answers.STEPS, page: Page = ""
    ) -> Response:
        session = _session(request)
        return events(session, request, page, lambda job: answers.refine(session.model, session.picture(id), steps, job))

    @app.post("/api/mask.png")
    async def mask_file(request: Request, width: Side, height: Side, name: Name = "mask") -> Response:
        """The class ids that the page holds as a PNG to take away; of an earlier start too, so that work is not lost."""
        session = _session(request)
        label = await class_ids(session, request, width, height)
        content = await session.read(pictures.label_png, label, session.model.labels)
        headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='', errors='replace')}.png"}
        return Response(content, media_type="image/png", headers=headers)


def _add_folder(app: FastAPI) -> None:
    @app.get("/api/data")
    async def listing(
        request: Request,
        which: Annotated[str, Query(pattern="^(all|labeled|unlabeled)$")] = "all",
        start: Annotated[int, Query(ge=0, lt=2**31)] = 0,
        count: Annotated[int, Query(ge=1, le=200)] = 24,
        reload: bool = False,
    ) -> dict[str, Any]:
        session = _session(request)
        if reload:
            await session.read(session.folder.reload)
        return session.folder.listing(which, start, count)

    @app.get("/api/data/thumbnail")
    async def thumbnail(request: Request, image: Name) -> Response:
        session = _session(request)
        return Response(await session.read(session.folder.thumbnail, image), media_type="image/jpeg")

    @app.get("/api/data/picture")
    async def whole(request: Request, image: Name) -> Response:
        session = _session(request)
        content, kind = await session.read(session.folder.whole, image)
        return Response(content, media_type=kind)

    @app.post("/api/data/open", dependencies=SAME_START)
    async def open_image(request: Request, image: Name, page: Page = "") -> dict[str, Any]:
        session = _session(request)
        picture, labeled = await session.read(session.folder.open, image)
        return {**await session.first_answer(picture, page), "labeled": labeled, "ignore": session.folder.ignores}

    @app.get("/api/data/mask")
    async def mask(request: Request, image: Name) -> Response:
        session = _session(request)
        found = await session.read(session.folder.mask, image)
        if found is None:
            raise UnknownError("this image has no mask yet")
        content, (width, height) = found
        headers = {"Content-Encoding": "gzip", "X-Width": str(width), "X-Height": str(height)}
        return Response(content, media_type="application/octet-stream", headers=headers)

    @app.put("/api/data/mask", dependencies=SAME_START)
    async def save(request: Request, image: Name, width: Side, height: Side) -> dict[str, Any]:
        session = _session(request)
        session.folder.path(image)
        label = await class_ids(session, request, width, height)
        return await session.read(session.folder.save, image, label)

    @app.get("/api/data/following")
    async def following(request: Request, image: Name = "") -> dict[str, str | None]:
        session = _session(request)
        return {"name": await session.read(session.folder.following, image)}

    @app.get("/api/next")
    async def next_images(request: Request, num: Annotated[int, Query(ge=1, le=50)] = 10, page: Page = "") -> Response:
        session = _session(request)
        return events(session, request, page, lambda job: session.next_images(num, job))


# ---------------------------------------------------------------- the server


def serve(model: SemanticGAN, name: str, data: Path | None, port: int, say: Callable[[str], None]) -> None:
    """Run the page on 127.0.0.1 until it is interrupted. Raises UserError for a port that is taken or bad data."""
    import uvicorn

    folder = DataFolder(data, model.labels, model.config.data.num_channels) if data is not None else None
    with socket.socket() as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            place.bind(("127.0.0.1", port))
            place.listen(128)  # who comes before the server is up waits for it
        except OSError as error:
            raise UserError(
                f"--port {port}: cannot be used ({error.strerror}); name another, or 0 for any that is free"
            ) from None
        say(f"http://127.0.0.1:{place.getsockname()[1]}  (Ctrl-C ends it)")
        config = uvicorn.Config(
            build_app(model, name, folder), log_level="warning", server_header=False, limit_concurrency=512,
            timeout_graceful_shutdown=2, proxy_headers=False, ws="none",
        )  # fmt: skip
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[place])
