"""The networks of the metrics, with random weights, against torchvision's and torchmetrics' own way to the same numbers.

    pip install 'ttd[metrics]' torchmetrics
    python benchmarks/metric_networks.py [name …]

Needs an environment where torchvision matches torch: PyPI's pair, which runs on a CPU too; never the environment with the CPU
build of torch. Layers, sizes and widths do not depend on the weights, so none are downloaded. Per network: the layer, its
width F, and the largest difference between ``FeatureExtractor`` and torchvision's ``create_feature_extractor`` on pictures
prepared by torchvision's transforms (for CLIP the model's ``image_embeds``, for FID torch-fidelity's own answer).
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.transforms import v2

from ttd.metrics.network_table import NETWORKS, Network
from ttd.metrics.networks import FeatureExtractor, load_extractor, load_lpips

N, SIDE = 3, 300


def by_torchvision(network: Network, model: nn.Module, images: np.ndarray) -> Tensor:
    """The features [N, F] without the code under test."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    if network.size is None:
        return model((x * 255).round().to(torch.uint8))[0]
    mode = {"bilinear": v2.InterpolationMode.BILINEAR, "bicubic": v2.InterpolationMode.BICUBIC}[network.mode]
    steps: list[nn.Module] = [v2.Resize(network.first_size)] if network.first_size else []
    steps += [v2.Resize(network.size, interpolation=mode), v2.Lambda(lambda x: x.clamp(0, 1))]  # as bytes of PIL are
    steps += [v2.Normalize(*map(list, network.normalisation))]
    x = v2.Compose(steps)(x)
    if network.layer == "visual_projection":
        return model(pixel_values=x).image_embeds
    return create_feature_extractor(model, [network.layer])(x)[network.layer].flatten(1)


def lpips_against_torchmetrics(folder: Path, images: np.ndarray) -> float:
    """Largest difference of LPIPS with one random AlexNet, written to ``folder`` and read back by both."""
    from torchmetrics.functional.image.lpips import _LPIPS

    peer = _LPIPS(pretrained=True, net="alex", pnet_rand=True).eval()
    alexnet = NETWORKS["alexnet_2"].build()
    trunk = {key: alexnet.state_dict()[f"features.{key.split('.', 1)[1]}"] for key in peer.net.state_dict()}
    peer.net.load_state_dict(trunk)
    save_file(alexnet.state_dict(), folder / "alexnet-owt-7be5be79.safetensors")
    a, b = images, images[::-1].copy()
    planes = [torch.from_numpy(x).permute(0, 3, 1, 2) for x in (a, b)]
    expected = peer(*planes, normalize=True).flatten().detach().numpy()
    distance = load_lpips(folder)
    assert distance(a, a).max() == 0
    print("LPIPS of three pairs, random AlexNet:", distance(a, b).round(4).tolist())
    return float(np.abs(distance(a, b) - expected).max())


def main(names: list[str]) -> None:
    images = np.random.default_rng(0).random((N, SIDE, SIDE, 3)).astype(np.float32)
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, {torch.get_num_threads()} threads")
    print("| network | layer | input | score | F | weights / 1e6 | largest difference | s for 3 pictures |")
    print("|---|---|---|---|---|---|---|---|")
    for name in names or list(NETWORKS):
        network = NETWORKS[name]
        torch.manual_seed(0)
        model = network.build()
        if name == "vit_h_14":
            nn.init.normal_(model.heads.head.weight, std=0.02)  # torchvision starts it at zero: nothing to compare
        extractor = FeatureExtractor(network, model)
        start = time.perf_counter()
        features = extractor(images)
        seconds = time.perf_counter() - start
        with torch.no_grad():
            difference = np.abs(by_torchvision(network, model, images).numpy() - features).max()
        n_weights = sum(p.numel() for p in model.parameters()) / 1e6
        print(
            f"| {network.title} | {network.layer} | {network.size or 299} | {network.score} | {features.shape[1]} | "
            f"{n_weights:.1f} | {difference:.1e} of {np.abs(features).max():.2g} | {seconds:.1f} |",
            flush=True,
        )
    with tempfile.TemporaryDirectory() as folder:
        print(f"LPIPS, largest difference from torchmetrics: {lpips_against_torchmetrics(Path(folder), images):.1e}")
        print("AlexNet(5) from that folder:", load_extractor("alexnet_5", Path(folder))(images).shape)


if __name__ == "__main__":
    main(sys.argv[1:])
