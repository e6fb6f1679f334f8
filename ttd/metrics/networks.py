"""Features of pictures by published networks: one extractor, LPIPS as a distance of pairs, and weights that are found here.

Which network is read at which layer and size stands in ``network_table``. Weights come from a folder or from the cache of
torch hub or Hugging Face; nothing is downloaded: ``find_missing`` says what to download and how.

Shapes: N pictures of height and width H, F features.
"""

from __future__ import annotations

import re
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from torch import Tensor, nn

from ttd.config import UserError
from ttd.metrics.network_table import NETWORKS, Network, build_lpips
from ttd.metrics.pixel import resize
from ttd.untrusted.weights import sha256_of, split_name


class FeatureExtractor:
    """Pictures to the features [N, F] of one layer.

    ``identity`` is the hash of the weights: features kept on disk belong to it and to the network's name.
    """

    def __init__(
        self,
        network: Network,
        model: nn.Module,
        *,
        identity: str = "",
        device: torch.device | str = "cpu",
        batch_size: int = 32,
    ):
        layers = dict(model.named_modules())
        if network.layer not in layers:
            raise ValueError(f"{network.title}: {type(model).__name__} has no layer {network.layer!r}")
        self.network, self.identity, self.batch_size, self.device = network, identity, batch_size, torch.device(device)
        self.model = model.requires_grad_(False).eval().to(self.device)
        self.layer = layers[network.layer]

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Features float32 [N, F] of pictures [N, H, H, 3] in [0, 1].

        Raises:
            ValueError: no pictures, or not square ones of three channels (nothing is cropped in silence).
        """
        taken: list[Tensor] = []
        hook = self.layer.register_forward_hook(  # cloned: the next layer may work in place
            lambda module, inputs, output: taken.append(output.detach().flatten(1).float().cpu().clone())
        )
        try:
            for i in range(0, len(images), self.batch_size):
                self.model(prepare(images[i : i + self.batch_size], self.network).to(self.device))
        finally:
            hook.remove()
        if not taken:
            raise ValueError("no pictures")
        return torch.cat(taken).numpy()


class PerceptualDistance:
    """LPIPS of pairs of pictures: [N], lower is better, 0 for equal pictures; chance is the shuffled control.

    The size of the pictures matters and is not changed here: it belongs to the labels of the figure.
    """

    def __init__(
        self, model: nn.Module, *, identity: str = "", device: torch.device | str = "cpu", batch_size: int = 32
    ):
        self.identity, self.batch_size, self.device = identity, batch_size, torch.device(device)
        self.model = model.requires_grad_(False).eval().to(self.device)

    @torch.no_grad()
    def __call__(self, reconstructed: np.ndarray, shown: np.ndarray) -> np.ndarray:
        """Distances [N] of pictures [N, H, H, 3] in [0, 1].

        Raises:
            ValueError: the shapes differ or are no pictures.
        """
        if reconstructed.shape != shown.shape:
            raise ValueError(f"shapes differ: {reconstructed.shape} vs {shown.shape}")
        out = []
        for i in range(0, len(shown), self.batch_size):
            a, b = (2 * _planes(x[i : i + self.batch_size]).to(self.device) - 1 for x in (reconstructed, shown))
            out.append(self.model(a, b).flatten().cpu())
        return torch.cat(out).double().numpy()


def prepare(images: np.ndarray, network: Network) -> Tensor:
    """The network's input [N, 3, size, size] from pictures [N, H, H, 3] in [0, 1]."""
    _planes(images)
    if network.first_size:
        images = resize(images, network.first_size)
    if network.size is None:
        return (_planes(images) * 255).round().to(torch.uint8)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in network.normalisation)
    return (_planes(resize(images, network.size, mode=network.mode)) - mean) / std


def _planes(images: np.ndarray) -> Tensor:
    if images.ndim != 4 or images.shape[-1] != 3 or images.shape[1] != images.shape[2]:
        raise ValueError(f"pictures must be square, [N, H, H, 3], got {images.shape}")
    return torch.from_numpy(np.ascontiguousarray(images, np.float32)).permute(0, 3, 1, 2)


def find_weights(network: Network, folder: Path | None = None) -> Path | None:
    """The file of a network's weights: in ``folder`` (as it is, or as .safetensors), or in a cache; None if absent."""
    places = [] if folder is None else [folder / network.file, folder / _as_safetensors(network.file)]
    for path in [*places, _hub() / network.file]:
        if path.is_file():
            return path
    if network.source.startswith("https://"):
        return None
    from huggingface_hub import try_to_load_from_cache

    repository, commit = split_name(network.source)
    cached = try_to_load_from_cache(repository, "model.safetensors", revision=commit)
    return Path(cached) if isinstance(cached, str) else None


def find_missing(name: str, folder: Path | None = None) -> str | None:
    """One sentence that says which weights are missing and how to get them, or None."""
    network = NETWORKS[name]
    if find_weights(network, folder) is not None:
        return None
    path = (folder or _hub()) / network.file
    command = f"curl -L --create-dirs -o {path} {network.source}"
    if not network.source.startswith("https://"):
        repository, commit = split_name(network.source)
        command = f"hf download {repository} model.safetensors --local-dir {path.parent} --revision {commit}"
    return f"{network.title}: weights {path} are not there, nor in a cache; download them with: {command}"


def load_extractor(
    name: str, folder: Path | None = None, *, device: torch.device | str = "cpu", batch_size: int = 32
) -> FeatureExtractor:
    """The extractor of ``NETWORKS[name]`` with its weights.

    Raises:
        UserError: weights that are missing or not the network's, or a package that is not installed.
    """
    network = NETWORKS[name]
    path, identity = _found(name, folder)
    model = network.build()
    load_weights(model, network, path)
    return FeatureExtractor(network, model, identity=identity, device=device, batch_size=batch_size)


def load_lpips(
    folder: Path | None = None, *, device: torch.device | str = "cpu", batch_size: int = 32
) -> PerceptualDistance:
    """LPIPS on AlexNet, version 0.1: the linear layers of the package ``lpips`` on torchvision's AlexNet.

    Raises:
        UserError: as ``load_extractor``.
    """
    path, identity = _found("alexnet_2", folder)
    model = build_lpips()
    state = read_weights(path)
    trunk = {key: state[f"features.{key.split('.', 1)[1]}"] for key in model.net.state_dict()}  # slice2.3.bias
    model.net.load_state_dict(trunk)
    return PerceptualDistance(model, identity=identity, device=device, batch_size=batch_size)


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from .safetensors or from torch's format, without running what is in it.

    Raises:
        UserError: the file is damaged, or holds other than tensors.
    """
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: refused, nothing was run: {reason}; download it again") from error
    # SwAV was saved from DistributedDataParallel
    return {key.removeprefix("module."): value for key, value in state.items()}


def load_weights(model: nn.Module, network: Network, path: Path) -> None:
    """Fill ``model``; every weight must be there and have its shape, except those that the layer does not need.

    Raises:
        UserError: naming the weights that are not as expected.
    """
    state = {key: value for key, value in read_weights(path).items() if not key.startswith(network.ignored)}
    try:
        report = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise UserError(f"{path}: not the weights of {network.title} ({error})") from error
    lacking = [key for key in report.missing_keys if not key.startswith(network.may_lack)]
    if lacking or report.unexpected_keys:
        wrong = f"lacks {lacking[:3]}, has beyond it {report.unexpected_keys[:3]}"
        raise UserError(f"{path}: not the weights of {network.title}: {wrong}; take those of {network.source}")


def _found(name: str, folder: Path | None) -> tuple[Path, str]:
    """Path and hash of a network's weights; the hash, or its first digits in a file's name, is known beforehand."""
    path = find_weights(NETWORKS[name], folder)
    if path is None:
        raise UserError(find_missing(name, folder))
    digest, network = sha256_of(path), NETWORKS[name]
    if network.sha256 is not None and digest != network.sha256:
        raise UserError(f"{path}: has sha256 {digest}, {network.title}'s is {network.sha256}; download it again")
    stated = re.search(r"-([0-9a-f]{8})\.pth$", path.name)
    if stated and not digest.startswith(stated[1]):
        raise UserError(f"{path}: damaged, its sha256 begins with {digest[:8]}; remove it and download it again")
    return path, digest


def _hub() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _as_safetensors(file: str) -> Path:
    return Path(file).with_name(Path(file).name.split(".")[0] + ".safetensors")
