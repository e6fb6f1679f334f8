"""Solids that are turned by hand: everything comes from disk when asked for, and without WebGL the picture stays."""

import shutil

from report_folder_study import NO_GL

FIRST = ".solid >> nth=0"


def test_nothing_of_the_viewer_is_loaded_before_somebody_asks(small, visit):
    opened = visit(small)
    assert not [url for url in opened.requests if "model-viewer" in url or "/meshes/" in url]


def test_a_solid_can_be_turned_and_put_back_and_nobody_outside_is_asked(small, visit):
    opened = visit(small)
    solid = opened.page.locator(FIRST)
    solid.get_by_role("button").click()
    opened.page.wait_for_function("document.querySelector('model-viewer')?.modelIsVisible", timeout=25_000)
    assert solid.locator("model-viewer").bounding_box()["height"] == 250
    assert not solid.locator(".views").is_visible()
    drawn = solid.locator("model-viewer").evaluate("e => e.toBlob({idealAspect: false}).then(b => b.size)")
    centre = solid.locator("model-viewer").evaluate("e => e.getBoundingBoxCenter().toString()")
    assert drawn > 3_000, "bytes of a picture of something"
    assert "NaN" not in centre
    loaded = [url.rsplit("/", 1)[-1] for url in opened.requests if "model-viewer" in url or "/meshes/" in url]
    assert sorted(loaded) == ["0000_decoded.js", "model-viewer-umd.min.js"]
    assert opened.outside() == []
    assert opened.complaints == []
    back = solid.get_by_role("button", name="show the picture")
    assert back.evaluate("e => e === document.activeElement"), "the keyboard stays where it was"
    back.click()
    assert solid.locator(".views").is_visible()
    assert solid.get_by_role("button", name="turn it").is_visible()
    assert solid.locator("model-viewer").count() == 0


def test_without_webgl_the_picture_stays_and_the_page_says_why(small, visit):
    opened = visit(small, flags=NO_GL)
    solid = opened.page.locator(FIRST)
    solid.get_by_role("button").click()
    assert solid.get_by_role("status").inner_text() == "This browser offers no WebGL: the picture stays."
    assert solid.locator(".views img").first.is_visible()
    assert not [url for url in opened.requests if "model-viewer" in url]
    assert opened.complaints == []


def test_a_mesh_that_is_gone_leaves_the_picture(small, visit, tmp_path):
    folder = shutil.copytree(small.parent, tmp_path / "copy")
    (folder / "meshes/0000_decoded.js").unlink()
    opened = visit(folder / "index.html")
    solid = opened.page.locator(FIRST)
    solid.get_by_role("button").click()
    opened.page.wait_for_selector(".solid .says:not(:empty)")
    assert "0000_decoded.js is not there: the picture stays." in solid.get_by_role("status").inner_text()
    assert solid.locator(".views img").first.is_visible()


def test_the_whole_mesh_is_linked_beside_its_score(small, visit):
    solid = visit(small).page.locator(FIRST)
    assert "from the reconstruction, F 0.250" in solid.text_content()
    assert (small.parent / solid.get_by_role("link").get_attribute("href")).is_file()
