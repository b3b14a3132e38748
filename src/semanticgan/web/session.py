"""What one running server holds; how uploads come in, and how a long job's events go out."""

import asyncio
import json
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import Request
from fastapi.responses import StreamingResponse

from semanticgan.errors import UserError
from semanticgan.model import SemanticGAN
from semanticgan.suggest import Look, look_at_files, propose
from semanticgan.web import answers, pictures
from semanticgan.web.folder import DataFolder, UnknownError
from semanticgan.web.guard import MAX_BODY
from semanticgan.web.jobs import FullError, Long, Worker

UPLOADS = 4  # files that come in at once; the others wait at the door
WAITING = 128  # that may wait there
READERS = 2  # files that are decoded or written at once
UPLOAD_SECONDS = 60
ALIKE = 200  # unlabelled images among which the next ones are looked for, and labelled ones that they should differ from
EVENTS = 4  # steps that may wait for a slow page; later ones are left out


class TooLateError(Exception):
    """An upload that did not come to its end in time."""


class RestartedError(Exception):
    """A page that was opened before the server was started again, perhaps for another folder or model."""


class Door:
    """Where uploads come in: few at once, the others wait."""

    def __init__(self) -> None:
        self.places, self.waiting = asyncio.Semaphore(UPLOADS), 0


class Session:
    """What one running server holds."""

    def __init__(self, model: SemanticGAN, name: str, data: DataFolder | None) -> None:
        self.model, self.name, self.data = model, name, data
        self.channels = model.config.data.num_channels
        self.pictures, self.worker = pictures.Pictures(), Worker()
        self.first_masks, self.samples = answers.FirstMasks(model), answers.Samples(model)
        self.looks: dict[str, Look] = {}
        self.place = tempfile.TemporaryDirectory(prefix="semanticgan-")
        self.readers = ThreadPoolExecutor(READERS, "files")
        self.picture_door, self.mask_door = Door(), Door()  # pictures on a slow line must not hold up a mask
        self.start = secrets.token_urlsafe(12)  # known to the pages that were opened since

    def close(self) -> None:
        self.worker.close()
        self.readers.shutdown(cancel_futures=True)
        self.place.cleanup()

    async def read(self, work: Callable[..., Any], *args: Any) -> Any:
        """What is done with files and their pixels, few at once, which bounds the memory."""
        return await asyncio.get_running_loop().run_in_executor(self.readers, work, *args)

    @property
    def folder(self) -> DataFolder:
        """Raises UnknownError where the server was started without one."""
        if self.data is None:
            raise UnknownError("no data folder; start the page with --data DATA")
        return self.data

    def picture(self, key: str) -> pictures.Opened:
        """Raises UnknownError for a picture that is no longer open."""
        found = self.pictures.get(key)
        if found is None:
            raise UnknownError("this picture is no longer open; drop it again, or open it again in the folder")
        return found

    async def first_answer(self, picture: pictures.Opened, page: str) -> dict[str, Any]:
        """The picture under its id, with the encoder's or the student's mask if there is one."""
        out: dict[str, Any] = {"id": self.pictures.add(picture), "name": picture.name, "size": picture.size}
        out["stretched"] = picture.stretched
        if self.model.E is not None or self.model.S is not None:
            found = await asyncio.wrap_future(self.worker.quick(self.first_masks, picture, page))
            out["answer"] = await self.read(answers.answer, self.model, found, 0)
        return out

    def next_images(self, num: int, job: Long) -> None:
        """Tell `progress`, then `proposals`: of a part of the folder, those to label next.

        Raises UserError for a model without an encoder, UnknownError without a folder.
        """
        self.model.G  # noqa: B018  says what a student lacks
        if self.model.E is None:
            raise UserError("this model has no encoder, so it cannot suggest what to label")
        folder = self.folder
        free, known = folder.drawn(False, ALIKE), folder.drawn(True, ALIKE)
        missing = [(n, True) for n in free if n not in self.looks] + [(n, False) for n in known if n not in self.looks]
        done = 0
        for views in (True, False):
            for name, found in look_at_files(self.model, folder.root, [n for n, v in missing if v == views], views):
                job.breathe()
                done += 1
                if isinstance(found, Look):
                    self.looks[name] = found
                job.tell("progress", {"done": done, "total": len(missing)})
        looks = {name: self.looks[name] for name in free if name in self.looks and not folder.has_mask(name)}
        near = [self.looks[name] for name in known if name in self.looks]
        images = [{"name": p.image, "uncertainty": p.uncertainty, "distance": p.distance} for p in propose(looks, num, near)]
        job.tell("proposals", {"images": images, "of": len(looks)})


# ---------------------------------------------------------------- bodies in, events out


@asynccontextmanager
async def upload(session: Session, request: Request, door: Door) -> AsyncIterator[Path]:
    """The request's body as a file that is gone afterwards; few at once, the size counted as it comes.

    Raises FullError when too many wait, TooLargeError, TooLateError.
    """
    if door.waiting >= WAITING:
        raise FullError
    door.waiting += 1
    try:
        async with door.places:
            with tempfile.NamedTemporaryFile(dir=session.place.name) as file:
                try:
                    await asyncio.wait_for(_receive(request, file.write), UPLOAD_SECONDS)
                except asyncio.TimeoutError:
                    raise TooLateError from None
                file.flush()
                yield Path(file.name)
    finally:
        door.waiting -= 1


async def _receive(request: Request, write: Callable[[bytes], Any]) -> None:
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY:
            raise pictures.TooLargeError(f"got more than {MAX_BODY // 2**20} MiB; make the file smaller")
        write(part)


async def class_ids(session: Session, request: Request, width: int, height: int) -> np.ndarray:
    """A body of one byte a pixel as [H, W]. Raises UserError for another length."""
    if width * height > pictures.MAX_PIXELS:
        raise pictures.TooLargeError(f"got {width} x {height}, expected at most {pictures.MAX_PIXELS // 10**6} million pixels")
    async with upload(session, request, session.mask_door) as path:
        content = await session.read(path.read_bytes)
    if len(content) != width * height:
        raise UserError(f"got {len(content)} bytes, expected {width} x {height}, one a pixel")
    return np.frombuffer(content, np.uint8).reshape(height, width)


def events(session: Session, request: Request, page: str, work: Callable[[Long], None]) -> StreamingResponse:
    """A long job's events as they come (server-sent events); the job stops when the client leaves.

    Where too many wait that is an event too: a page cannot read why events are refused.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

    def put(kind: str, content: Any) -> None:
        if kind not in ("step", "progress") or queue.qsize() < EVENTS:
            queue.put_nowait((kind, content))

    try:
        job = session.worker.long(work, lambda kind, content: _soon(loop, put, kind, content), page)
    except FullError as error:
        return StreamingResponse(iter([_event("failed", str(error))]), media_type="text/event-stream")

    async def stream() -> AsyncIterator[str]:
        try:
            yield _event("waiting", {"jobs": session.worker.waiting})
            while not await request.is_disconnected():
                try:
                    kind, content = await asyncio.wait_for(queue.get(), 0.25)
                except asyncio.TimeoutError:
                    continue
                yield _event(kind, content)
                if kind in ("end", "failed"):
                    return
        finally:
            job.gone.set()

    return StreamingResponse(stream(), media_type="text/event-stream")


def _soon(loop: asyncio.AbstractEventLoop, put: Callable[[str, Any], None], kind: str, content: Any) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(put, kind, content)


def _event(kind: str, content: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps(content)}\n\n"
