import pytest
import torch

from ttd.bridge.heads import ClipHead, ClipHeadConfig, PooledProjection


def make(mode: str, **sizes: int) -> ClipHead:
    sizes = {"embed_dim": 16, "n_tokens": 5, "clip_dim": 7} | sizes
    return ClipHead(ClipHeadConfig(mode=mode), **sizes).eval()


def test_the_original_clip_head_has_the_original_number_of_parameters():
    head = make("mean", embed_dim=1024, n_tokens=15, clip_dim=768)
    assert sum(p.numel() for p in head.parameters()) == 1_836_801


def test_the_pooled_projection_has_the_original_number_of_parameters():
    assert sum(p.numel() for p in PooledProjection(context_dim=2048, pooled_dim=1280).parameters()) == 2_622_720


@pytest.mark.parametrize("mode", ["flat", "query", "mean"])
def test_every_mode_gives_one_embedding_per_sample(mode):
    assert make(mode)(torch.randn(3, 5, 16)).shape == (3, 7)


@pytest.mark.parametrize(("mode", "forgets"), [("flat", False), ("query", False), ("mean", True)])
def test_only_the_mean_forgets_the_order_of_the_tokens(mode, forgets):
    torch.manual_seed(0)
    head, tokens = make(mode), torch.randn(3, 5, 16)
    if mode == "query":
        torch.nn.init.normal_(head.query)  # starts as an average, learns which moments to look at
    assert torch.allclose(head(tokens), head(tokens.flip(1)), atol=1e-6) == forgets


def test_the_pooled_projection_starts_small():
    torch.manual_seed(0)
    projection = PooledProjection(context_dim=512, pooled_dim=256)
    assert projection.project.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert projection(torch.zeros(2, 4, 512)).abs().max() == 0
