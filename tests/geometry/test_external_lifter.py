import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import trimesh
from PIL import Image

from ttd.config import UserError
from ttd.geometry.external_lifter import ExternalConfig, ExternalLifter
from ttd.geometry.lifter import LiftRequest
from ttd.geometry.meshes import from_glb, to_trimesh, vertex_colours
from ttd.geometry.surfaces import surface_of

STUB = str(Path(__file__).with_name("stub_worker.py"))
PICTURE = np.full((64, 64, 3), 230, np.uint8)
PICTURE[20:50, 10:40] = (180, 40, 20)


def config(*arguments: str, **more) -> ExternalConfig:
    quick = {"backoff_s": 0.01, "timeout_s": 5.0, "start_timeout_s": 60.0}
    return ExternalConfig(command=[sys.executable, STUB, *arguments], **(quick | more))


def lift(lifter: ExternalLifter, *keys: str):
    return {r.key: r for r in lifter.lift([LiftRequest(key, PICTURE) for key in keys])}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An L as GLB, once as glTF has it (+Y up, front +Z) and once with +Z up and its front towards -Y.

    Its arms go right 0.9, up 0.6 and to the front 0.3.
    """
    arms = []
    for axis, length in enumerate((0.9, 0.6, 0.3)):
        low, high = np.full(3, -0.1), np.full(3, 0.1)
        high[axis] = length
        arms.append(trimesh.creation.box(bounds=[low, high]))
    folder, body = tmp_path_factory.mktemp("glb"), trimesh.util.concatenate(arms)
    body.export(folder / "y-up.glb")
    right, up, front = body.vertices.T
    body.vertices = np.stack([right, -front, up], axis=1)
    body.export(folder / "z-up.glb")
    return folder


@pytest.fixture
def prepare(files):
    lifters = []

    def start(*arguments: str, **more) -> ExternalLifter:
        glb = files / ("z-up.glb" if "--z-up" in arguments else "y-up.glb")
        lifters.append(ExternalLifter.prepare(config("--glb", str(glb), *arguments, **more)))
        return lifters[-1]

    yield start
    for lifter in lifters:
        lifter.close()


def test_one_worker_lifts_all_and_its_file_is_kept_byte_for_byte(prepare, files, tmp_path):
    starts = tmp_path / "starts"
    lifter = prepare("--starts", str(starts))
    results = lift(lifter, "a", "b")
    assert len(starts.read_text().split()) == 1
    a = results["a"]
    assert (a.status, a.facts, a.peak_memory_mb) == ("ok", {"background": "plain"}, 12.5)
    assert a.glb == results["b"].glb == (files / "y-up.glb").read_bytes()
    np.testing.assert_array_equal(from_glb(a.glb).faces, a.surface.faces)
    assert "lifting a" in a.log
    assert "lifting b" not in a.log
    assert a.picture.shape == (512, 512, 3)
    info = lifter.info()
    assert (info.name, info.revision, info.licence, lifter.revision) == ("external:stub", "r1", "MIT", "stub@r1")


@pytest.mark.parametrize("axes", [(), ("--z-up",)])
def test_an_asymmetric_object_stands_upright_and_faces_the_camera_whatever_the_workers_axes(prepare, axes):
    mesh = to_trimesh(lift(prepare(*axes), "L")["L"])
    np.testing.assert_allclose(mesh.bounds, [[-0.1, -0.1, -0.1], [0.9, 0.6, 0.3]], atol=1e-6)
    assert mesh.volume > 0


def test_crash_hang_and_nonsense_fail_their_item_with_the_reason_and_the_rest_completes(prepare, tmp_path):
    starts = tmp_path / "starts"
    lifter = prepare("--starts", str(starts), timeout_s=2.0)
    results = lift(lifter, "a", "crash", "b", "hang", "c", "nonsense", "d", "stale", "e")
    assert [r.status for r in results.values()] == ["ok", "failed"] * 4 + ["ok"]
    assert "ended with status 3" in results["crash"].reason
    assert "CUDA out of memory" in results["crash"].log
    assert "said nothing for 2 s" in results["hang"].reason
    assert "no JSON object: '100%|####" in results["nonsense"].reason
    assert "answered question 7 instead of 8" in results["stale"].reason
    pids = [int(pid) for pid in starts.read_text().split()]
    assert len(pids) == 5  # one start, and one after each of the four
    assert [pid for pid in pids if psutil.pid_exists(pid)] == pids[-1:]  # none is left behind


def test_a_worker_that_lies_or_writes_rubbish_fails_the_item_and_goes_on(prepare, tmp_path):
    starts = tmp_path / "starts"
    results = lift(prepare("--starts", str(starts)), "lies", "broken", "empty", "fail", "a")
    assert [r.status for r in results.values()] == ["failed", "failed", "empty", "failed", "ok"]
    assert "wrote no file" in results["lies"].reason
    assert "not a readable GLB" in results["broken"].reason
    assert (results["empty"].reason, results["fail"].reason) == ("as asked", "as asked")
    assert len(starts.read_text().split()) == 1


def test_the_pause_before_a_restart_doubles_and_a_good_answer_ends_it(prepare):
    lifter = prepare(backoff_s=0.2)
    spent = []
    for key in ("crash", "crash", "crash", "a"):
        start = time.monotonic()
        lift(lifter, key)
        spent.append(time.monotonic() - start)
    assert lifter.worker.failures == 0
    assert spent[1] > 0.2
    assert spent[2] > 0.4
    assert spent[3] > 0.8


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--start", "crash"), r"ended with status 7; it said:\s+loading\s+no such GPU"),
        (("--start", "hang"), "said nothing for 3 s"),
        (("--start", "nonsense"), "no JSON object: 'Welcome!'"),
        (("--version", "2"), r"does not speak ttd-lift 1 \(version"),
    ],
)
def test_a_worker_that_does_not_start_is_told_before_any_item(prepare, arguments, said):
    with pytest.raises(UserError, match=rf"lifter\.command: .*stub_worker\.py.*{said}"):
        prepare(*arguments, start_timeout_s=3.0 if "hang" in arguments else 60.0)


def test_a_program_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"lifter\.command: /no/such/python: the worker cannot be started"):
        ExternalLifter.prepare(ExternalConfig(command=["/no/such/python"]))


def test_after_three_failed_starts_the_rest_fails_at_once(prepare):
    lifter = prepare()
    lifter.worker.command = ["/no/such/python"]
    lifter.worker.stop()
    results = lift(lifter, *"abcd")
    assert {r.status for r in results.values()} == {"failed"}
    assert "cannot be started" in results["c"].reason
    assert "given up" in results["d"].reason


def test_a_restricted_licence_must_be_accepted_by_its_name(prepare):
    name = "tencent-hunyuan-community"
    for accepted in (None, "MIT"):
        with pytest.raises(UserError, match=rf"accept_license.*stub comes under '{name}'.*accept_license: {name}"):
            prepare("--licence", name, accept_license=accepted)
    assert prepare("--licence", name, accept_license=name).info().licence == name


def test_a_worker_that_wants_the_picture_gets_it_whole(prepare, monkeypatch):
    lifter = prepare("--wants", "picture")
    seen = {}
    ask = lifter.worker.ask
    monkeypatch.setattr(
        lifter.worker, "ask", lambda q: (seen.update(image=np.asarray(Image.open(q["image"]))), ask(q))[1]
    )
    result = lift(lifter, "a")["a"]
    assert result.picture is None
    np.testing.assert_array_equal(seen["image"], PICTURE)


def test_a_texture_is_read_at_the_vertices():
    box = trimesh.creation.box()
    texture = Image.new("RGB", (2, 1), (250, 0, 0))
    texture.putpixel((1, 0), (0, 0, 250))
    uv = np.stack([(box.vertices[:, 0] > 0).astype(float), np.full(8, 0.5)], axis=1)
    box.visual = trimesh.visual.TextureVisuals(
        uv, material=trimesh.visual.material.PBRMaterial(baseColorTexture=texture)
    )
    surface = surface_of(from_glb(trimesh.Scene(box).export(file_type="glb")))
    left = surface.vertices[:, 0] < 0
    assert (surface.colours[left][:, 0] > 200).all()
    assert (surface.colours[~left][:, 2] > 200).all()
    assert vertex_colours(trimesh.creation.box()).shape == (8, 3)


def test_the_supplied_side_of_the_protocol_keeps_output_clean_and_turns_exceptions_into_answers(files, tmp_path):
    side = Path(__file__).parents[2] / "launch" / "workers"
    script = tmp_path / "worker.py"
    script.write_text(
        f"""
import shutil, sys
sys.path.insert(0, {str(side)!r})
from ttd_worker import serve

def load():
    print("loading, loudly")
    def lift(image, output, seed, description):
        print("lifting, loudly")
        if seed == 1:
            raise RuntimeError("out of memory")
        if seed == 2:
            return "nothing there"
        shutil.copyfile({str(files / "y-up.glb")!r}, output)
    return lift

serve(load, name="loud", revision="r1", licence="MIT")
"""
    )
    lifter = ExternalLifter.prepare(ExternalConfig(command=[sys.executable, str(script)], timeout_s=10))
    good, failed, empty, again = lifter.lift([LiftRequest(str(s), PICTURE, seed=s) for s in (0, 1, 2, 3)])
    lifter.close()
    assert (good.status, again.status) == ("ok", "ok")
    assert (failed.status, failed.reason) == ("failed", "RuntimeError: out of memory")
    assert "Traceback" in failed.log
    assert (empty.status, empty.reason) == ("empty", "nothing there")
    assert "lifting, loudly" in again.log
