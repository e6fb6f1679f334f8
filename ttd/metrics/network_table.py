"""Which published figure reads which network at which layer, from pictures of which size.

The MindEye family's are those of MindEye2's final_evaluations.ipynb (Scotti et al., 2024, arXiv:2403.11207): both sides are
brought to 256, then to the network's size, without a crop, anti-aliased as torchvision does it from 0.17 on. ViT-H/14 is the
classifier of DreamDiffusion (Bai et al., 2024, arXiv:2306.16934), LPIPS is Zhang et al., 2018, arXiv:1801.03924, FID's Inception
Heusel et al., 2017, arXiv:1706.08500. The code is that of torchvision, transformers, lpips and torch-fidelity, which the extra
``metrics`` brings; they are imported when a network is built.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ttd.config import UserError
from ttd.metrics.identification import TWO_WAY_CHANCE
from ttd.metrics.pairwise import N_WAY

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of RGB in ImageNet, as torchvision's weights state them."""
OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's training pictures; openai/CLIP, clip.py."""


@dataclass(frozen=True)
class Network:
    """What a figure is computed from: a network, its weights, the layer that is read and how pictures are prepared."""

    title: str
    build: Callable[[], nn.Module]
    """The network with random weights."""
    layer: str
    """Name of the module whose output is read, flattened."""
    score: Literal["two-way", "distance", "n-way", "distribution"]
    """two-way: ``two_way_identification``, higher is better; distance: ``correlation_distance``, lower is better; n-way:
    ``pairwise.n_way_top_k``, higher is better; distribution: ``distribution.fid`` and ``kid``, lower is better."""
    file: str
    """The weights, in a folder or in torch hub's cache."""
    source: str
    """Their address, or the repository on Hugging Face, with its commit, whose model.safetensors they are."""
    size: int | None
    """Height and width of the network's input; None: it resizes bytes itself."""
    first_size: int | None = 256
    """Height and width before that."""
    mode: Literal["bilinear", "bicubic"] = "bilinear"
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    may_lack: tuple[str, ...] = ()
    """Beginnings of weights that the file need not have, because the layer does not depend on them."""
    sha256: str | None = None
    """Of the file, or None: torchvision's file names end in its first digits; of SwAV's none is published."""
    ignored: tuple[str, ...] = ()
    """Beginnings of weights in the file that the network has not."""

    @property
    def chance(self) -> float | None:
        """Chance level of the score; None: only the shuffled control tells."""
        return {"two-way": TWO_WAY_CHANCE, "n-way": 1 / N_WAY}.get(self.score)


def _extra(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was built for another torch
        raise UserError(
            f"{module} cannot be imported ({error}); pip install 'ttd[metrics]', in an environment where torchvision matches "
            "torch: beside the CPU build of torch, PyPI's torchvision breaks transformers and diffusers too"
        ) from error


def _torchvision(function: str, **options: Any) -> nn.Module:
    return getattr(_extra("torchvision.models"), function)(weights=None, **options)


def _clip() -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    large = CLIPVisionConfig(  # config.json of openai/clip-vit-large-patch14
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        image_size=224, patch_size=14, projection_dim=768,
    )  # fmt: skip
    return CLIPVisionModelWithProjection(large)


def _fid_inception() -> nn.Module:
    base: Any = _extra("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3

    class Unweighted(base):
        """Its constructor would download, or read a pickle: it gets an empty file and takes no weights from it."""

        def load_state_dict(self, state_dict: dict[str, Tensor], *args: Any, **options: Any) -> Any:
            return super().load_state_dict(state_dict, *args, **options) if state_dict else None

    with tempfile.NamedTemporaryFile(suffix=".pth") as empty:
        torch.save({}, empty.name)
        return Unweighted("inception-v3-compat", ["2048"], feature_extractor_weights_path=empty.name)


def build_lpips() -> Any:
    """LPIPS whose AlexNet has random weights; its own loading would download them."""
    return _extra("lpips").LPIPS(net="alex", pnet_rand=True, verbose=False)


CLIP_COMMIT = "32bd64288804d66eefd0ccbe215aa642df71cc41"
_PYTORCH = "https://download.pytorch.org/models/"
_ALEXNET: dict[str, Any] = {
    "build": partial(_torchvision, "alexnet"), "score": "two-way", "size": 256,
    "file": "alexnet-owt-7be5be79.pth", "source": _PYTORCH + "alexnet-owt-7be5be79.pth",
}  # fmt: skip

NETWORKS = {
    "alexnet_2": Network(title="AlexNet(2)", layer="features.4", **_ALEXNET),
    "alexnet_5": Network(title="AlexNet(5)", layer="features.11", **_ALEXNET),
    "inception": Network(
        title="Inception v3", layer="avgpool", score="two-way", size=342,
        # torchvision sets transform_input itself only where it loads the weights itself
        build=partial(_torchvision, "inception_v3", transform_input=True, init_weights=False),
        file="inception_v3_google-0cc3c7bd.pth", source=_PYTORCH + "inception_v3_google-0cc3c7bd.pth",
    ),
    "clip": Network(
        title="CLIP ViT-L/14", layer="visual_projection", score="two-way", size=224, normalisation=OPENAI, build=_clip,
        file="clip-vit-large-patch14/model.safetensors", source=f"openai/clip-vit-large-patch14@{CLIP_COMMIT}",
        sha256="a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
        ignored=("text_model.", "text_projection.", "logit_scale", "vision_model.embeddings.position_ids"),
    ),
    "efficientnet": Network(
        title="EfficientNet-B1", layer="avgpool", score="distance", size=255, build=partial(_torchvision, "efficientnet_b1"),
        file="efficientnet_b1-c27df63c.pth", source=_PYTORCH + "efficientnet_b1-c27df63c.pth",
    ),
    "swav": Network(
        title="SwAV ResNet-50", layer="avgpool", score="distance", size=224, build=partial(_torchvision, "resnet50"),
        file="swav_800ep_pretrain.pth.tar", source="https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar",
        may_lack=("fc.",), ignored=("projection_head.", "prototypes."),
    ),
    "vit_h_14": Network(
        title="ViT-H/14", layer="heads", score="n-way", size=518, first_size=None, mode="bicubic",
        build=partial(_torchvision, "vit_h_14", image_size=518),
        file="vit_h_14_swag-80465313.pth", source=_PYTORCH + "vit_h_14_swag-80465313.pth",
    ),
    "fid_inception": Network(
        title="Inception of FID", layer="AvgPool", score="distribution", size=None, first_size=None, build=_fid_inception,
        file="weights-inception-2015-12-05-6726825d.pth",
        source="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    ),
}  # fmt: skip
"""By name. EfficientNet and ViT-H/14: the default weights of torchvision 0.28 (IMAGENET1K_V2, IMAGENET1K_SWAG_E2E_V1)."""
