"""The page in a real browser: drop, look, refine, paint, save, undo, next, and a phone's width."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semanticgan.data.dataset import read_mask
from semanticgan.data.synthetic import LABELS, draw_scene

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = [name for name in ("fastapi", "uvicorn", "playwright") if importlib.util.find_spec(name) is None]
MISSING += [] if CHROMIUM else ["chromium"]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"missing: {', '.join(MISSING)}; make browser installs it"),
]
PHONE = {"width": 375, "height": 740}


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture
def visit(browser, server):
    """Open the page; at the end nothing may have gone wrong in it, and nothing been asked of another host."""
    contexts, problems = [], []

    def open_page(**options):
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text) if a_problem(message) else None)
        page.on("request", lambda request: problems.append(request.url) if not_ours(request.url) else None)
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.goto(server)
        page.get_by_role("status").filter(has_text="Ready").wait_for()
        contexts.append(context)
        return page

    def a_problem(message):
        return message.type == "error" and "status of 4" not in message.text  # a refusal is said in the page too

    def not_ours(url):
        return not url.startswith((server, "data:", "blob:"))

    yield open_page
    for context in contexts:
        context.close()
    assert not problems


@pytest.fixture
def photo(tmp_path) -> Path:
    """A picture whose name is a script."""
    path = tmp_path / "<img src=x onerror=alert(1)>.png"
    Image.fromarray(draw_scene(50, "a", 64)[0]).save(path)
    return path


def shot(page, folder: Path, name: str) -> None:
    page.screenshot(path=folder / f"{name}.png", full_page=True)


def said(page, text):
    page.get_by_role("status").filter(has_text=text).wait_for()


def open_from_folder(page, name):
    page.get_by_role("button", name="Folder", exact=True).click()
    page.locator("#images button", has_text=name).click()
    said(page, name)
    page.locator("#work").wait_for()


def drag(page, start, end):
    """From one point of the drawing area to another, both as shares of its sides."""
    box = page.locator("#stage").bounding_box()
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, end)]
    page.mouse.move(*points[0])
    page.mouse.down()
    page.mouse.move(*points[1], steps=5)
    page.mouse.up()


def share(page, name) -> float:
    return float(page.locator("#classes li", has_text=name).locator(".share").inner_text().split()[0])


def test_drop_look_and_refine(visit, photo, tmp_path):
    page = visit()
    page.get_by_role("button", name="Picture", exact=True).click()
    page.set_input_files("#file", photo)
    said(page, "label map after")
    assert page.get_by_role("heading", name=photo.name).is_visible()  # as text
    page.locator("#step", has_text="Step").wait_for()
    before = page.locator("#step").inner_text()
    page.wait_for_function("before => document.getElementById('step').textContent !== before", arg=before)
    shot(page, tmp_path, "refining")
    page.locator("#step", has_text="encoder's is shown").wait_for()
    assert page.locator("#mask option").all_inner_texts() == ["encoder", "encoder, all views", "inversion, 60 steps"]
    assert "validation images" in page.locator("#words").inner_text()
    assert sum(share(page, name) for name in LABELS.names) == pytest.approx(100, abs=0.3)
    for base in ("reconstruction", "uncertainty"):
        page.get_by_label(base).check()
        shot(page, tmp_path, base)
    page.get_by_label("show cell").uncheck()
    page.locator("#opacity").fill("100")
    shot(page, tmp_path, "class-by-class")
    with page.expect_download() as mask:
        page.get_by_role("button", name="Mask (PNG)").click()
    label = np.asarray(Image.open(mask.value.path()))
    assert label.shape == (64, 64) and label.max() < 4
    assert share(page, "nucleus") == pytest.approx(100 * (label == 2).mean(), abs=0.1)
    for button, suffix in (("Overlay (PNG)", ".png"), ("Numbers (JSON)", ".json")):
        with page.expect_download() as file:
            page.get_by_role("button", name=button).click()
        assert file.value.suggested_filename.endswith(suffix)


def test_drop_event_and_stop(visit, photo):
    page = visit()
    page.evaluate(
        """async bytes => {
          const data = new DataTransfer()
          data.items.add(new File([new Uint8Array(bytes)], 'dropped.png', { type: 'image/png' }))
          document.dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true }))
        }""",
        list(photo.read_bytes()),
    )
    said(page, "dropped.png: label map after")
    page.locator("#step", has_text="Step ").first.wait_for()  # whichever is shown first
    page.get_by_role("button", name="Stop").click()
    assert page.get_by_role("button", name="Stop").is_disabled()


def test_paint_save_undo(visit, data, tmp_path):
    page = visit()
    open_from_folder(page, "images/02.png")
    said(page, "the mask in the folder")
    mask = data / "masks" / "02.png"
    before, bytes_before = read_mask(mask, LABELS), mask.read_bytes()
    assert page.get_by_role("button", name="Undo").is_disabled()
    page.get_by_label("yeast").first.check()
    drag(page, (0.4, 0.5), (0.6, 0.5))
    shot(page, tmp_path, "painted")
    page.get_by_role("button", name="Save mask").click()
    said(page, "Saved masks/02.png")
    after = read_mask(mask, LABELS)
    changed = after != before
    assert changed.any() and (after[changed] == 3).all() and changed.mean() < 0.5
    assert (data / "masks" / ".kept" / "02.1.png").read_bytes() == bytes_before
    page.locator("#stage").focus()
    page.keyboard.press("u")
    page.keyboard.press("s")
    said(page, "02.2.png")
    np.testing.assert_array_equal(read_mask(mask, LABELS), before)
    page.keyboard.press("y")
    page.keyboard.press("e")
    page.keyboard.press("Space")  # erases at the cursor, in the middle
    page.keyboard.press("s")
    said(page, "02.3.png")
    assert read_mask(mask, LABELS)[24, 24] == 0


def test_fill_zoom_and_ignore(visit, data, tmp_path):
    page = visit()
    open_from_folder(page, "images/02.png")
    page.get_by_label("ignored").first.check()
    page.locator("#stage").focus()
    for _ in range(3):
        page.keyboard.press("+")
    page.keyboard.press("f")
    page.keyboard.press("Space")
    shot(page, tmp_path, "filled")
    before = read_mask(data / "masks" / "02.png", LABELS)
    page.keyboard.press("s")
    said(page, "Saved")
    after = read_mask(data / "masks" / "02.png", LABELS)
    changed = after != before
    assert changed[24, 24] and (after[changed] == 255).all() and (before[changed] == before[24, 24]).all()
    assert (after == before[24, 24]).sum() < (before == before[24, 24]).sum()


def test_propose_label_and_next(visit, data, tmp_path):
    page = visit()
    page.get_by_role("button", name="Propose images").click()
    said(page, "6 proposals out of 6 images")
    shot(page, tmp_path, "proposals")
    first = page.locator("#proposals button").first
    name = first.inner_text().partition(":")[0]
    assert name in {f"images/{k:02d}.png" for k in range(4, 10)}
    first.click()
    said(page, "Correct it and save")
    page.get_by_role("button", name="Save mask").click()
    said(page, "5 of 10 images have a mask")
    assert (data / name.replace("images", "masks")).is_file()
    page.get_by_role("button", name="Next image").click()
    page.wait_for_function("name => document.getElementById('title').textContent !== name", arg=name)
    said(page, "Correct it and save")


def test_next_shows_every_proposal_once(visit):
    page = visit()
    page.get_by_role("button", name="Propose images").click()
    said(page, "6 proposals out of 6 images")
    names = [text.partition(":")[0] for text in page.locator("#proposals button").all_inner_texts()]
    page.locator("#proposals button").first.click()
    seen = []
    for name in names:
        page.get_by_role("heading", name=name, exact=True).wait_for()
        seen.append(page.locator("#title").inner_text())
        page.keyboard.press("n")
    assert seen == names


def test_what_is_drawn_during_a_save_is_not_saved(visit, data):
    page = visit()
    open_from_folder(page, "images/02.png")
    said(page, "the mask in the folder")
    held = []
    page.route("**/api/data/mask*", lambda route: held.append(route) if route.request.method == "PUT" else route.continue_())
    page.get_by_label("yeast").first.check()
    drag(page, (0.4, 0.3), (0.6, 0.3))
    page.get_by_role("button", name="Save mask").click()
    drag(page, (0.4, 0.7), (0.6, 0.7))
    page.get_by_role("button", name="Save mask").click()
    page.wait_for_timeout(200)
    assert len(held) == 1  # the second waits for the first
    held.pop().continue_()
    said(page, "02.1.png")
    page.wait_for_timeout(200)
    page.evaluate("window.confirm = text => { window.asked = text; return false }")
    page.get_by_role("button", name="Folder", exact=True).click()
    page.locator("#images button", has_text="images/03.png").click()
    page.wait_for_function("window.asked?.includes('is not saved')")
    held.pop().continue_()
    said(page, "02.2.png")
    assert (read_mask(data / "masks" / "02.png", LABELS) == 3).sum() > (
        read_mask(data / "masks" / ".kept" / "02.2.png", LABELS) == 3
    ).sum()


def hold_saves(page):
    """Saves that are on their way wait in this list."""
    held = []
    page.route("**/api/data/mask*", lambda route: held.append(route) if route.request.method == "PUT" else route.continue_())
    return held


def confirms(page, answer):
    page.evaluate("answer => { window.asked = []; window.confirm = text => { window.asked.push(text); return answer } }", answer)


def refine_slowly(page):
    page.get_by_label("Steps").fill("1000")
    page.get_by_role("button", name="Refine").click()
    page.locator("#step", has_text="Step ").wait_for()


def test_a_step_on_its_way_is_not_saved(visit, data):
    page = visit()
    open_from_folder(page, "images/05.png")
    said(page, "Correct it and save")
    refine_slowly(page)
    page.get_by_role("button", name="Save mask").click()
    said(page, "What is shown is on its way")
    page.get_by_role("button", name="Mask (PNG)").click()
    assert not (data / "masks" / "05.png").exists()
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Save mask").click()
    said(page, "Saved masks/05.png")
    label = read_mask(data / "masks" / "05.png", LABELS)
    assert share(page, "cell") == pytest.approx(100 * (label == 1).mean(), abs=0.1)


def test_no_refinement_replaces_what_is_being_saved(visit):
    page = visit()
    open_from_folder(page, "images/05.png")
    said(page, "Correct it and save")
    held = hold_saves(page)
    before = [share(page, name) for name in LABELS.names]
    page.get_by_role("button", name="Save mask").click()
    page.get_by_label("Steps").fill("3")
    page.get_by_role("button", name="Refine").click()
    page.locator("#step", has_text="Choose its label map under Mask").wait_for()
    held.pop().continue_()
    said(page, "Saved masks/05.png")
    assert [share(page, name) for name in LABELS.names] == before
    assert page.locator("#mask").evaluate("e => e.selectedOptions[0].text") == "in the folder"


def test_a_map_chosen_during_a_save_is_not_saved(visit):
    page = visit()
    open_from_folder(page, "images/02.png")
    said(page, "the mask in the folder")
    held = hold_saves(page)
    page.get_by_role("button", name="Save mask").click()
    page.locator("#mask").select_option(label="encoder")
    held.pop().continue_()
    said(page, "Saved masks/02.png")
    assert page.locator("#mask").evaluate("e => e.selectedOptions[0].text") == "encoder"
    confirms(page, False)
    page.get_by_role("button", name="Folder", exact=True).click()
    page.locator("#images button", has_text="images/03.png").click()
    page.wait_for_function("window.asked[0]?.includes('images/02.png is not saved')")


def test_an_image_opened_again_during_its_save(visit):
    page = visit()
    open_from_folder(page, "images/02.png")
    said(page, "the mask in the folder")
    held = hold_saves(page)
    confirms(page, False)
    page.get_by_label("yeast").first.check()
    drag(page, (0.4, 0.3), (0.6, 0.3))
    drawn = share(page, "yeast")
    page.get_by_role("button", name="Save mask").click()
    page.get_by_role("button", name="Folder", exact=True).click()
    page.locator("#images button", has_text="images/02.png").click()
    page.wait_for_timeout(200)
    held.pop().continue_()
    page.locator("#stage").wait_for()
    assert share(page, "yeast") == drawn and page.evaluate("window.asked") == []
    drag(page, (0.4, 0.7), (0.6, 0.7))
    page.get_by_role("button", name="Folder", exact=True).click()
    page.locator("#images button", has_text="images/03.png").click()
    page.wait_for_function("window.asked.length === 1")


def test_what_is_drawn_on_a_dropped_picture_is_asked_for(visit, photo):
    page = visit()
    page.get_by_role("button", name="Picture", exact=True).click()
    page.set_input_files("#file", photo)
    page.locator("#step", has_text="encoder's is shown").wait_for()
    confirms(page, False)
    page.locator("#mask").select_option(label="inversion, 60 steps")  # to look at it is no work
    drag(page, (0.4, 0.5), (0.6, 0.5))
    page.get_by_role("button", name="Folder", exact=True).click()
    page.locator("#images button", has_text="images/03.png").click()
    page.wait_for_function("window.asked[0]?.startsWith('What you drew on')")
    page.get_by_role("button", name="Picture", exact=True).click()
    with page.expect_download():
        page.get_by_role("button", name="Mask (PNG)").click()
    open_from_folder(page, "images/03.png")
    said(page, "the mask in the folder")
    assert len(page.evaluate("window.asked")) == 1


def test_the_smallest_brush_paints_one_pixel(visit, data):
    page = visit()
    open_from_folder(page, "images/02.png")
    before = read_mask(data / "masks" / "02.png", LABELS)
    page.locator("#size").fill("1")
    page.locator(f"[name=class][value='{(before[24, 24] + 1) % 4}']").check()
    page.locator("#stage").focus()
    page.keyboard.press("Space")
    page.keyboard.press("s")
    said(page, "Saved masks/02.png")
    changed = read_mask(data / "masks" / "02.png", LABELS) != before
    assert changed.sum() == 1 and changed[24, 24]


def test_undo_during_a_stroke(visit):
    page = visit()
    open_from_folder(page, "images/02.png")
    page.get_by_label("yeast").first.check()
    drag(page, (0.4, 0.3), (0.6, 0.3))
    one = share(page, "yeast")
    box = page.locator("#stage").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + 0.7 * box["height"]
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 30, y, steps=3)
    page.keyboard.press("u")
    assert share(page, "yeast") == one
    page.mouse.move(x - 30, y, steps=3)
    page.mouse.up()
    assert share(page, "yeast") == one
    page.keyboard.press("y")
    assert share(page, "yeast") > one
    page.keyboard.press("u")
    page.keyboard.press("u")
    assert page.get_by_role("button", name="Undo").is_disabled() and share(page, "yeast") < one


def test_next_passes_over_what_cannot_be_opened(visit, data):
    page = visit()
    page.get_by_role("button", name="Propose images").click()
    said(page, "6 proposals out of 6 images")
    names = [text.partition(":")[0] for text in page.locator("#proposals button").all_inner_texts()]
    (data / names[1]).unlink()
    page.locator("#proposals button").first.click()
    page.get_by_role("heading", name=names[0], exact=True).wait_for()
    page.keyboard.press("n")
    said(page, "no such file")
    page.keyboard.press("n")
    page.get_by_role("heading", name=names[2], exact=True).wait_for()


def answering(page, address, **changes):
    """The page again, with another answer of the server."""

    def answer(route):
        response = route.fetch()
        route.fulfill(response=response, json={**response.json(), **changes})

    page.route(address, answer)


def test_next_without_an_encoder(visit):
    page = visit()
    answering(page, "**/api/about*", encoder=False)
    page.reload()
    open_from_folder(page, "images/05.png")
    said(page, "Correct it and save")
    for name in ("images/06.png", "images/07.png"):
        page.get_by_role("button", name="Next image").click()
        page.get_by_role("heading", name=name, exact=True).wait_for()


def test_another_coding_is_said(visit):
    page = visit()
    open_from_folder(page, "images/02.png")
    page.get_by_label("ignored").first.check()
    page.get_by_role("button", name="Folder", exact=True).click()
    answering(page, "**/api/data?*", ignore=False)
    page.get_by_role("button", name="Read the folder again").click()
    said(page, "nothing can be marked as ignored")
    page.get_by_role("button", name="Picture", exact=True).click()
    assert page.get_by_label("ignored").count() == 0
    assert page.locator("[name=class][value='1']").is_checked()


def test_a_page_of_an_earlier_start(visit, app, data):
    page = visit()
    open_from_folder(page, "images/05.png")
    said(page, "Correct it and save")
    app.state.session.start = "another"
    page.get_by_role("button", name="Save mask").click()
    said(page, "the server was started again; reload the page")
    assert not (data / "masks" / "05.png").exists()
    with page.expect_download():
        page.get_by_role("button", name="Mask (PNG)").click()


def test_a_refinement_that_breaks_off(visit):
    page = visit()
    open_from_folder(page, "images/05.png")
    said(page, "Correct it and save")
    page.route("**/api/refine*", lambda route: route.fulfill(status=404))
    page.get_by_role("button", name="Refine").click()
    said(page, "This broke off; try again.")


def test_single_keys_can_be_switched_off(visit, tmp_path):
    page = visit()
    open_from_folder(page, "images/02.png")
    page.locator("#keys-box summary").click()
    page.get_by_label("Single keys work").uncheck()
    shot(page, tmp_path, "keys")
    page.locator("#title").focus()
    page.keyboard.press("e")
    assert page.get_by_role("button", name="Brush").get_attribute("aria-pressed") == "true"
    page.keyboard.press("Control+s")
    said(page, "Saved masks/02.png")


def test_samples(visit, tmp_path):
    page = visit()
    page.get_by_role("button", name="Samples", exact=True).click()
    said(page, "12 samples of seed 0, truncation 1")
    one = page.locator("#samples img").first.get_attribute("src")
    page.get_by_label("Seed").fill("5")
    page.get_by_role("button", name="Draw").click()
    said(page, "seed 5")
    assert page.locator("#samples img").first.get_attribute("src") != one
    shot(page, tmp_path, "samples")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(visit, photo, tmp_path, scheme):
    page = visit(viewport=PHONE, has_touch=True, is_mobile=True, device_scale_factor=2, color_scheme=scheme)
    shot(page, tmp_path, "phone-folder")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    open_from_folder(page, "images/02.png")
    page.get_by_label("yeast").first.check()
    before = share(page, "yeast")
    page.locator("#stage").scroll_into_view_if_needed()
    box = page.locator("#stage").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_function("document.getElementById('undo').disabled === false")
    assert share(page, "yeast") > before
    shot(page, tmp_path, "phone-picture")
    page.get_by_role("button", name="Samples", exact=True).click()
    said(page, "12 samples")
    shot(page, tmp_path, "phone-samples")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_everything_has_a_name_and_can_be_reached(visit, photo):
    page = visit()
    page.get_by_role("button", name="Picture", exact=True).click()
    page.set_input_files("#file", photo)
    said(page, "label map after")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, select, canvas, progress, img')].filter(e => {
          const label = e.getAttribute('aria-label') || e.labels?.[0]?.textContent || e.textContent || e.alt
          return !(label || '').trim() && !e.hasAttribute('alt')
        }).map(e => e.outerHTML)"""
    )
    assert nameless == []
    reached = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.dataset.tool || ''"))
    assert {"file", "brush", "stage", "opacity", "steps", "refine", "mask", "get-mask", "get-json"} <= reached


def test_what_is_wrong_is_said(visit, tmp_path):
    page = visit()
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    with page.expect_response("**/api/pictures**") as response:
        page.set_input_files("#file", bad)
    assert response.value.status == 422
    said(page, "bad.png: not an image")


def test_refining_leaves_a_saved_mask_alone(visit):
    page = visit()
    open_from_folder(page, "images/02.png")
    said(page, "the mask in the folder")
    before = [share(page, name) for name in LABELS.names]
    page.get_by_label("Steps").fill("3")
    page.get_by_role("button", name="Refine").click()
    page.locator("#step", has_text="Choose its label map under Mask").wait_for()
    assert [share(page, name) for name in LABELS.names] == before
    page.locator("#mask").select_option(label="inversion, 3 steps")
    assert [share(page, name) for name in LABELS.names] != before


def test_mask_of_another_size(visit, data):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(data / "masks" / "02.png")
    page = visit()
    open_from_folder(page, "images/02.png")
    said(page, "its mask has another size")
    page.get_by_role("button", name="Save mask").click()
    said(page, "Saved masks/02.png")
    assert read_mask(data / "masks" / "02.png", LABELS).shape == (48, 48)
