from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import HeunDiscreteScheduler, PriorTransformer, ShapEImg2ImgPipeline
from diffusers.pipelines.shap_e import ShapERenderer
from diffusers.pipelines.shap_e.renderer import create_pan_cameras
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from ttd.config import UserError
from ttd.geometry.lifter import LiftRequest, LiftResult
from ttd.geometry.meshes import from_glb, to_glb, to_trimesh, vertex_colours
from ttd.geometry.shap_e import TO_FRAME, ShapEConfig, ShapELifter

PICTURE = np.full((64, 64, 3), 230, np.uint8)
PICTURE[20:50, 10:40] = (180, 40, 20)
QUICK = {"steps": 2, "cells": 32}


def tiny_pipeline() -> ShapEImg2ImgPipeline:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16, image_size=32, projection_dim=16, intermediate_size=24, num_attention_heads=2,
        num_hidden_layers=2, patch_size=8,
    )  # fmt: skip
    prior = PriorTransformer(
        num_attention_heads=2, attention_head_dim=16, embedding_dim=16, num_embeddings=32, embedding_proj_dim=16,
        time_embed_dim=64, num_layers=1, clip_embed_dim=32, additional_embeddings=0, time_embed_act_fn="gelu",
        norm_in_type="layer", embedding_proj_norm_type=None, encoder_hid_proj_type=None, added_emb_type=None,
    )  # fmt: skip
    return ShapEImg2ImgPipeline(
        prior=prior,
        image_encoder=CLIPVisionModel(vision),
        image_processor=CLIPImageProcessor(crop_size=32, size=32),
        shap_e_renderer=ShapERenderer(
            param_shapes=((8, 93), (8, 8), (8, 8), (8, 8)), d_latent=16, d_hidden=8, n_output=12
        ),
        scheduler=HeunDiscreteScheduler(
            beta_schedule="exp", prediction_type="sample", use_karras_sigmas=True, clip_sample=True
        ),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("shap_e")
    tiny_pipeline().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def lifter(folder):
    return ShapELifter.prepare(ShapEConfig(model=str(folder), **QUICK))


class LShape(nn.Module):
    """Stands for the renderer's network: an L whose arms go right 0.9, up 0.6 and to the front 0.3, in Shap-E's axes."""

    def forward(self, *, position: Tensor, **how) -> SimpleNamespace:
        p = torch.stack([position[..., 0], position[..., 2], -position[..., 1]], dim=-1)  # right, up, front
        inside = torch.full(p.shape[:-1], -1.0)
        for axis, length in enumerate((0.9, 0.6, 0.3)):
            high = torch.full((3,), 0.1)
            high[axis] = length
            inside = torch.maximum(inside, torch.minimum(p + 0.1, high - p).amin(-1))
        return SimpleNamespace(signed_distance=inside[..., None], channels=(p + 1) / 2)


def test_a_saved_random_pipeline_gives_a_glb_that_reloads(lifter):
    result = lifter.lift([LiftRequest("item", PICTURE, seed=3)])[0]
    assert (result.status, result.facts) == ("ok", {"background": "plain"})
    assert result.picture.shape == (256, 256, 3)
    np.testing.assert_array_equal(result.picture[0, 0], [255, 255, 255])
    assert result.seconds > 0
    assert result.peak_memory_mb > 0
    mesh = to_trimesh(result)
    assert mesh.is_watertight  # what reaches the end of the grid is closed
    back = from_glb(to_glb(mesh, {}))
    np.testing.assert_array_equal(back.faces, mesh.faces)
    assert len(np.unique(vertex_colours(back), axis=0)) > 5
    assert lifter.info().pretrained


def test_the_seed_decides_the_object_and_neighbours_do_not(lifter):
    requests = [LiftRequest("a", PICTURE, seed=1), LiftRequest("b", PICTURE[:, ::-1].copy(), seed=2)]
    together = lifter.lift(requests)
    alone = lifter.lift(requests[1:])[0]
    np.testing.assert_array_equal(alone.surface.vertices, together[1].surface.vertices)
    other = lifter.lift([LiftRequest("b", requests[1].image, seed=5)])[0]
    assert other.surface is None or other.surface.vertices.shape != alone.surface.vertices.shape


def test_a_field_without_surface_is_empty_and_not_a_crash(folder):
    pipeline = ShapEImg2ImgPipeline.from_pretrained(folder)
    with torch.no_grad():
        last = pipeline.shap_e_renderer.mlp.mlp[-1]
        last.weight[0].zero_()
        last.bias[0] = -3.0  # outside everywhere
    result = ShapELifter(pipeline, ShapEConfig(**QUICK)).lift([LiftRequest("item", PICTURE)])[0]
    assert (result.status, result.surface) == ("empty", None)
    assert "no surface" in result.reason


def test_lifting_leaves_the_networks_own_weights_as_they_were(lifter):
    before = {name: value.clone() for name, value in lifter.pipeline.shap_e_renderer.mlp.state_dict().items()}
    lifter.lift([LiftRequest("item", PICTURE)])
    for name, value in lifter.pipeline.shap_e_renderer.mlp.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_what_is_up_and_in_front_for_shap_e_is_up_and_in_front_here(folder):
    camera = create_pan_cameras(4)  # of the pipeline's own turntable; the first one is the front
    eye, right, down = (TO_FRAME[:3, :3] @ np.asarray(v[0]) for v in (camera.origin, camera.x, camera.y))
    np.testing.assert_allclose(eye, [0, 1.79, 3.58], atol=0.01)
    np.testing.assert_allclose(right, [1, 0, 0], atol=1e-6)
    assert down[1] < -0.8
    pipeline = ShapEImg2ImgPipeline.from_pretrained(folder)
    pipeline.shap_e_renderer.mlp = LShape()
    surface = ShapELifter(pipeline, ShapEConfig(cells=64)).surface({})
    mesh = to_trimesh(LiftResult("L", "ok", surface=surface, to_frame=TO_FRAME))
    np.testing.assert_allclose(mesh.bounds, [[-0.1, -0.1, -0.1], [0.9, 0.6, 0.3]], atol=0.04)
    assert mesh.volume > 0  # wound outwards
    tip = vertex_colours(mesh)[np.argmax(mesh.vertices[:, 0])]
    np.testing.assert_allclose(tip, [242, 127, 127], atol=16)  # the colour of x = 0.9, y = z = 0


def test_a_folder_without_the_pipeline_is_named(tmp_path):
    with pytest.raises(UserError, match=r"image_encoder lacks config\.json"):
        ShapELifter.prepare(ShapEConfig(model=str(tmp_path)))
