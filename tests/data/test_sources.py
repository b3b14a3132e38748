from pathlib import Path

import pytest

from semanticgan.data.sources import Sources, draw_validation, find_sources, list_images, mask_path, passed_over, stray_masks
from semanticgan.errors import UserError


def fill(root, labeled=12, unlabeled=5):
    """Empty files: which files are where does not depend on what they hold."""
    for name in ("images", "masks", "more/images"):
        (root / name).mkdir(parents=True)
    for k in range(labeled):
        (root / f"images/a{k:02}.jpg").touch()
        (root / f"masks/a{k:02}.png").touch()
    for k in range(unlabeled):
        (root / f"more/images/u{k}.png").touch()
    return root


@pytest.fixture
def root(tmp_path):
    return fill(tmp_path / "data")


def write_list(path, *lines):
    path.write_text("\n".join(lines))
    return str(path)


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/a.jpg", "masks/a.png"),
        ("x/images/a.b.tif", "x/masks/a.b.png"),
        ("images/x/images/y/a.png", "images/x/masks/y/a.png"),
        ("/images/images.png", "/masks/images.png"),
    ],
)
def test_mask_path_replaces_the_last_images_folder(image, mask):
    assert mask_path(Path(image)) == Path(mask)


def test_mask_path_without_an_images_folder(tmp_path):
    with pytest.raises(UserError, match="no folder called images"):
        mask_path(tmp_path / "pictures/images.png")


def test_folder_means_every_image_below_it_without_masks(root):
    (root / "images/notes.txt").touch()
    (root / "images/.hidden.png").touch()
    (root / "images/B.JPEG").touch()
    found = list_images(root, str(root))
    assert found == ["images/B.JPEG", *(f"images/a{k:02}.jpg" for k in range(12)), *(f"more/images/u{k}.png" for k in range(5))]
    assert list_images(root, "more") == [f"more/images/u{k}.png" for k in range(5)]


def test_list_keeps_its_order_and_drops_repeats(root):
    spec = write_list(root / "l.txt", "\ufeff# remark", "images/a03.jpg", "", " images/a01.jpg \r", str(root / "images/a03.jpg"))
    assert list_images(root, spec) == list_images(root, "l.txt") == ["images/a03.jpg", "images/a01.jpg"]


def test_a_list_means_its_own_data_folder_first(root, tmp_path, monkeypatch):
    other = fill(tmp_path / "other")
    monkeypatch.chdir(other)
    (other / "images/b.jpg").touch()
    assert list_images(root, write_list(root / "l.txt", "images/a00.jpg", "images/b.jpg")) == [
        "images/a00.jpg",
        (other / "images/b.jpg").as_posix(),
    ]


def test_a_name_that_means_two_places_is_refused(root, tmp_path, monkeypatch):
    monkeypatch.chdir(fill(tmp_path / "other"))
    with pytest.raises(UserError, match=r"^images: got two such places, .*other/images and .*data/images; write \./images for"):
        list_images(root, "images")
    assert list_images(root, "./images")[0] == (tmp_path / "other/images/a00.jpg").as_posix()
    monkeypatch.chdir(root)
    assert list_images(root, "images")[0] == "images/a00.jpg"


def test_the_same_file_has_one_name_through_links_and_dots(root, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(root)
    spec = write_list(root / "l.txt", str(link / "images/a00.jpg"), "more/../images/a00.jpg", str(root / "images/a00.jpg"))
    assert list_images(root, spec) == ["images/a00.jpg"]
    assert list_images(link, str(root / "images")) == [f"images/a{k:02}.jpg" for k in range(12)]


def test_contact_sheets_are_no_images(root):
    before = list_images(root, str(root))
    for folder in (root, root / "images"):
        (folder / "contact_sheet.png").touch()
    assert list_images(root, str(root)) == before


def test_a_folder_that_links_to_itself_ends(root):
    (root / "images/loop").symlink_to(root)
    assert len(list_images(root, "images")) < 40


def test_a_linked_folder_keeps_its_own_name(root, tmp_path):
    """Else the mask of images/..., a link to pictures elsewhere, would be looked for elsewhere too."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/b.png").touch()
    (root / "linked").mkdir()
    (root / "linked/images").symlink_to(tmp_path / "elsewhere")
    assert "linked/images/b.png" in list_images(root, str(root))


@pytest.mark.parametrize("spec", ["none", "no/such.txt", "x" * 5000, "nul\0byte", "~nobody-of-this-name/a.png"])
def test_missing_list_or_folder(root, spec):
    with pytest.raises(UserError, match="no such file or folder"):
        list_images(root, spec)


def test_empty_folder_list_and_missing_root(root, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images in this folder"):
        list_images(root, str(tmp_path / "empty"))
    with pytest.raises(UserError, match="no images in this folder"):
        find_sources(tmp_path / "empty")
    with pytest.raises(UserError, match="no images in this list"):
        list_images(root, write_list(tmp_path / "l.txt", "", "# only a remark"))
    with pytest.raises(UserError, match="no such folder"):
        find_sources(tmp_path / "none")
    with pytest.raises(UserError, match="not a folder"):
        find_sources(tmp_path / "l.txt")


def test_a_list_that_is_no_text(root):
    (root / "a.bin").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(UserError, match="cannot be read as a list"):
        list_images(root, "a.bin")


def test_every_bad_line_of_a_list_is_named_up_to_twenty(root):
    spec = write_list(root / "l.txt", "images/a00.jpg", *(f"images/no{k}.jpg" for k in range(25)), "images", "nul\0")
    with pytest.raises(UserError) as caught:
        list_images(root, spec)
    lines = str(caught.value).splitlines()
    assert len(lines) == 21 and "l.txt:2: 'images/no0.jpg': no such image" in lines[0] and lines[-1] == "and 7 more"


def test_defaults(root):
    sources = find_sources(root)
    assert len(sources.val) == 2 and len(sources.labeled) == 10
    assert not {*sources.val} & {*sources.labeled, *sources.unlabeled}
    assert {*sources.labeled, *(f"more/images/u{k}.png" for k in range(5))} == {*sources.unlabeled}
    assert any("2 of 12 labelled images are held out" in note and sources.val[0] in note for note in sources.notes)
    assert find_sources(root) == sources


def test_validation_draw_is_a_tenth_at_least_two_and_stable():
    names = [f"images/{k}.png" for k in range(100)]
    assert len(draw_validation(names)) == 10 and len(draw_validation(names[:5])) == 2
    assert draw_validation(names) == draw_validation(names[::-1])
    # another image moves at most one into or out of the draw
    assert len({*draw_validation(names)} & {*draw_validation([*names, "images/new.png"])}) >= 9


def test_whole_folders_are_drawn_where_there_are_ten():
    """Slices of a volume are alike, and a score on those between training slices flatters."""
    volumes = [f"images/{v:02}/{k}.png" for v in range(20) for k in range(6)]
    drawn = draw_validation(volumes)
    assert len(drawn) == 12 and len({name.split("/")[1] for name in drawn}) == 2
    large = [f"images/large/{k}.png" for k in range(300)]  # of 420 images a tenth, and the large folder is more
    assert not {*large} & {*draw_validation([*volumes, *large])}
    few = [name for name in volumes if name < "images/09"]
    assert len({name.split("/")[1] for name in draw_validation(few)}) > 1


def test_validation_images_of_a_run_stay_held_out_and_grow_with_the_labels(tmp_path):
    root = fill(tmp_path / "data", labeled=30)
    names = [f"images/a{k:02}.jpg" for k in range(30)]
    before = Sources(root, tuple(names[2:20]), (), tuple(names[:2]), ())
    sources = find_sources(root, before=before)
    assert {*names[:2]} < {*sources.val} and len(sources.val) == 3 and not {*sources.val} & {*before.labeled}
    assert {*sources.labeled} == {*names} - {*sources.val} and not {*sources.val} & {*sources.unlabeled}
    assert find_sources(root, val=[write_list(root / "v.txt", names[9])], before=before).val == (names[9],)
    chosen = find_sources(root, labeled=[write_list(root / "l.txt", *names[4:9])], before=before)
    assert chosen.val == tuple(names[:2]) and chosen.labeled == tuple(names[4:9])
    elsewhere = fill(tmp_path / "elsewhere", labeled=12)
    assert len(find_sources(elsewhere, before=Sources(root, (), (), ("images/x.jpg",), ())).val) == 2


def test_held_out_images_beside_training_images_of_their_folder_are_told(tmp_path):
    for volume in ("one", "two"):
        for k in range(6):
            for kind, suffix in (("images", "jpg"), ("masks", "png")):
                path = tmp_path / kind / volume / f"{k}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
    notes = "\n".join(find_sources(tmp_path).notes)
    assert "warning: images/" in notes and "hold whole ones out with --val" in notes
    assert "unlabelled: 10 images, the labelled ones included: 6 in images/two, 4 in images/one" in notes


def test_lists_are_taken_as_they_are(root):
    labeled = write_list(root / "l.txt", "images/a00.jpg", "images/a01.jpg")
    val = write_list(root / "v.txt", "images/a05.jpg")
    sources = find_sources(root, [labeled], ["more"], [val])
    assert sources.labeled == ("images/a00.jpg", "images/a01.jpg") and sources.val == ("images/a05.jpg",)
    assert sources.unlabeled == (*sources.labeled, *(f"more/images/u{k}.png" for k in range(5)))
    assert not any("warning" in note for note in sources.notes)


def test_unlabelled_defaults_to_all_but_validation(root):
    val = write_list(root / "v.txt", "images/a05.jpg")
    sources = find_sources(root, [write_list(root / "l.txt", "images/a00.jpg")], (), [val])
    assert len(sources.unlabeled) == 16 and "images/a05.jpg" not in sources.unlabeled


def test_validation_images_leave_folders_but_stay_in_lists_with_a_warning(root):
    val = write_list(root / "v.txt", "images/a05.jpg", "images/a06.jpg")
    assert not {*find_sources(root, (), ["images"], [val]).unlabeled} & {"images/a05.jpg", "images/a06.jpg"}
    both = write_list(root / "l.txt", "images/a00.jpg", "images/a05.jpg")
    sources = find_sources(root, [both], ["more"], [val])
    assert "images/a05.jpg" in sources.labeled
    assert any(
        note.startswith("warning: 1 images are both labelled and for validation, such as images/a05.jpg")
        for note in sources.notes
    )
    sources = find_sources(root, [write_list(root / "m.txt", "images/a00.jpg")], [both], [val])
    assert any(note.startswith("warning: 1 validation images are also unlabelled") for note in sources.notes)


def test_a_drawn_validation_set_leaves_every_list(root):
    everything = write_list(root / "l.txt", *(f"images/a{k:02}.jpg" for k in range(12)))
    sources = find_sources(root, [everything], [everything])
    assert len(sources.val) == 2 and not {*sources.val} & {*sources.unlabeled}


def test_labelled_list_naming_unlabelled_images(root):
    spec = write_list(root / "l.txt", "images/a00.jpg", "more/images/u0.png", "more/images/u1.png")
    with pytest.raises(UserError) as caught:
        find_sources(root, [spec])
    lines = str(caught.value).splitlines()
    assert (
        len(lines) == 2 and "u0.png: listed as labelled but has no mask; expected" in lines[0] and "more/masks/u0.png" in lines[0]
    )
    with pytest.raises(UserError, match="listed as validation but has no mask"):
        find_sources(root, (), (), [spec])
    (root / "c.jpg").touch()
    with pytest.raises(UserError, match="no folder called images"):
        find_sources(root, [write_list(root / "m.txt", "c.jpg")])


def test_no_labels_at_all_and_too_few(tmp_path):
    with pytest.raises(UserError, match="no labelled images"):
        find_sources(fill(tmp_path / "a", labeled=0))
    with pytest.raises(UserError, match="got 2 labelled images, expected at least 3"):
        find_sources(fill(tmp_path / "b", labeled=2))


def test_what_lies_in_the_folder_comes_before_a_link_to_it(root):
    """Else an image would have the link's name, below which no mask lies."""
    (root / "a_link").symlink_to(root / "images")
    assert list_images(root, str(root)) == [
        *(f"images/a{k:02}.jpg" for k in range(12)),
        *(f"more/images/u{k}.png" for k in range(5)),
    ]


def test_a_link_to_a_mask_that_is_not_there_is_told(root):
    (root / "masks/a01.png").unlink(missing_ok=True)
    (root / "masks/a01.png").symlink_to(root / "nowhere.png")
    assert stray_masks(root) == [f"{root}/masks/a01.png: link to a mask that is not there; fetch it, or remove the link"]


def test_masks_in_a_linked_folder_are_looked_at(root, tmp_path):
    (root / "masks").rename(tmp_path / "store")
    (root / "masks").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "a01.tif").touch()
    assert stray_masks(root) == [f"{root}/masks/a01.tif: got a mask ending in .tif, expected a01.png; store masks as PNG"]


def test_names_that_only_look_alike_are_told(root):
    (root / "images" / "k\u00e4se.jpg").touch()
    (root / "masks" / "ka\u0308se.png").touch()
    (problem,) = stray_masks(root)
    assert "composed in another way (Unicode); rename one of them" in problem


def test_images_of_other_formats_are_counted(root, tmp_path):
    for name in ("a.gif", "b.GIF", "c.nii.gz", "masks/d.gif", ".e.gif"):
        (root / name).touch()
    assert passed_over(root).startswith(
        "passed over: files that are not read as images, .gif (2), .nii.gz (1); `semanticgan convert`"
    )
    assert passed_over(root / "more") == ""
    (tmp_path / "volumes").mkdir()
    (tmp_path / "volumes/a.nii.gz").touch()
    with pytest.raises(UserError, match=r"no images in this folder, expected .*; passed over: .* \.nii\.gz \(1\)"):
        list_images(tmp_path, str(tmp_path / "volumes"))


def test_masks_that_no_image_finds(root):
    (root / "masks/orphan.png").touch()
    (root / "images/u.png").touch()
    (root / "masks/u.jpg").touch()
    (root / "masks/readme.txt").touch()
    with pytest.raises(UserError) as caught:
        find_sources(root)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert (
        "masks/orphan.png: mask without image" in lines[0]
        and "masks/u.jpg: got a mask ending in .jpg, expected u.png" in lines[1]
    )
    find_sources(root, [write_list(root / "l.txt", *(f"images/a{k:02}.jpg" for k in range(4)))])  # a list names what it wants


def test_two_labelled_images_with_one_mask_are_refused_unless_a_list_names_one(root):
    (root / "images/a03.png").touch()
    with pytest.raises(UserError, match=r"images/a03\.jpg and images/a03\.png: got one mask for both, masks/a03\.png"):
        find_sources(root)
    some = write_list(root / "some.txt", *(f"images/a{k:02}.jpg" for k in range(6)))
    sources = find_sources(root, labeled=[some], val=[write_list(root / "val.txt", "images/a07.jpg")])
    assert "images/a03.png" in sources.unlabeled and len(sources.labeled) == 6


def test_a_name_that_is_no_utf8_can_be_drawn():
    assert len(draw_validation([f"images/\udce9{k}.jpg" for k in range(5)])) == 2


def test_no_image_that_the_run_before_was_trained_on_is_held_out(tmp_path):
    """Only the last of thirty is new to it: there is no other to add, though a tenth would be three."""
    root = fill(tmp_path / "data", labeled=30)
    names = [f"images/a{k:02}.jpg" for k in range(30)]
    before = Sources(root, tuple(names[2:29]), (), tuple(names[:2]), ())
    assert find_sources(root, before=before).val == (*names[:2], names[29])
    before = Sources(root, tuple(names[2:]), (), tuple(names[:2]), ())
    assert find_sources(root, before=before).val == tuple(names[:2])


def test_a_folder_with_more_than_a_tenth_is_never_drawn_whole():
    """Whatever the order in which the folders are drawn."""
    for number in range(20):
        small = [f"images/{number}-{v}/{k}.png" for v in range(12) for k in range(5)]
        large = [f"images/{number}-large/{k}.png" for k in range(60)]
        drawn = draw_validation([*small, *large])
        assert len(drawn) == 15 and not {*large} & {*drawn}
