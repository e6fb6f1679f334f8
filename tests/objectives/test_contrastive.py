import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from ttd.bridge.heads import ClipHead, ClipHeadConfig
from ttd.config import UserError
from ttd.encoders import InceptSADConfig, build_encoder
from ttd.encoders.subjects import SubjectLayers
from ttd.objectives.contrastive import (
    Contrastive,
    ContrastiveConfig,
    TargetSpace,
    gather,
    load_aligned,
    save_aligned,
    symmetric_info_nce,
)

SPACES = ("centred", "half_whitened")


def make(space: str = "half_whitened", seed: int = 0) -> Contrastive:
    torch.manual_seed(seed)
    encoder = build_encoder(
        InceptSADConfig(embed_dim=16, depth=0, stem_dropout=0.0), n_times=64, sfreq=128, ch_names=["O1", "Oz", "O2"]
    )
    head = ClipHead(ClipHeadConfig(dropout=0.0), embed_dim=16, n_tokens=encoder.n_tokens, clip_dim=6)
    targets = TargetSpace.fit(torch.randn(50, 6) * torch.tensor([5.0, 3, 1, 1, 0.5, 0.1]) + 1, space)
    return Contrastive(ContrastiveConfig(target_space=space), encoder=encoder, head=head, space=targets)


def make_batch(n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "eeg": torch.randn(n, 3, 64, generator=g),
        "clip": torch.randn(n, 6, generator=g),
        "image": torch.arange(n) // 2,  # pictures seen twice
        "position": torch.arange(n),
    }


def test_perfect_embeddings_score_zero_and_unrelated_ones_the_logarithm_of_the_batch():
    own = torch.eye(8)
    image = torch.arange(8)
    loss, top1 = symmetric_info_nce(own, own, image, torch.tensor(100.0))
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert top1 == 1.0
    loss, _ = symmetric_info_nce(own, own, image, torch.tensor(0.0))
    assert loss.item() == pytest.approx(math.log(8), rel=1e-6)


def test_without_repeats_it_is_the_symmetric_cross_entropy():
    g = torch.Generator().manual_seed(0)
    a, b = (F.normalize(torch.randn(5, 4, generator=g), dim=1) for _ in range(2))
    logits, labels = 7.0 * a @ b.T, torch.arange(5)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    assert symmetric_info_nce(a, b, labels, torch.tensor(7.0))[0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_two_samples_of_one_picture_are_not_pushed_apart():
    target = torch.eye(4)[[0, 0, 1, 1]]
    image = torch.tensor([0, 0, 1, 1])
    loss, top1 = symmetric_info_nce(target, target, image, torch.tensor(100.0))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-5)  # each of the two positives has weight 1/2: the minimum
    assert top1 == 1.0


def test_the_scale_starts_at_one_over_007_and_stops_at_100():
    head = make().head
    assert head.scale().item() == pytest.approx(1 / 0.07, rel=1e-5)
    head.logit_scale.data.fill_(10.0)
    assert head.scale().item() == pytest.approx(100.0, rel=1e-5)


def test_half_whitening_raises_small_directions_by_the_fourth_root():
    torch.manual_seed(0)
    std = torch.tensor([8.0, 1.0, 1.0, 1.0])
    base = torch.tensor([0.0, 100.0, 0, 0])  # far from 0, so that bringing to unit length is nearly linear
    space = TargetSpace.fit(torch.randn(5000, 4) * std + base, "half_whitened")
    gain = torch.linalg.norm(space.matrix, dim=1)
    assert (gain[2] / gain[0]).item() == pytest.approx(math.sqrt(8), rel=0.05)  # (variance ratio 64) ** (1 / 4)


@pytest.mark.parametrize("name", SPACES)
def test_targets_are_centred_by_the_training_mean(name):
    torch.manual_seed(0)
    training = torch.randn(200, 6) + 3.0
    space = TargetSpace.fit(training, name)
    assert space(training).mean(0).norm() < 0.2
    assert F.normalize(training, dim=1).mean(0).norm() > 0.8
    assert torch.allclose(space(training).norm(dim=1), torch.ones(200))


def test_a_space_of_one_picture_is_refused():
    with pytest.raises(ValueError, match="at least 2 training images, got 1"):
        TargetSpace.fit(torch.randn(1, 6), "centred")


def test_an_exported_alignment_gives_the_same_embeddings(tmp_path):
    objective, batch = make().eval(), make_batch(8)
    save_aligned(tmp_path, objective)
    aligned = load_aligned(tmp_path)
    assert torch.equal(aligned(batch["eeg"]), objective.embed(batch["eeg"]))
    assert torch.equal(aligned.prepare_targets(batch["clip"]), objective.space(batch["clip"]))
    assert aligned.target == "clip"
    assert not aligned.training


def test_a_folder_without_a_head_is_named(tmp_path):
    objective = make()
    save_aligned(tmp_path, objective)
    (tmp_path / "clip_head" / "config.json").unlink()
    with pytest.raises(UserError, match="no clip_head/config"):
        load_aligned(tmp_path)


def with_layers() -> Contrastive:
    plain = make()
    layers = SubjectLayers(["a", "b"], 3, numbered=["a", "b", "left out"])
    config = plain.config.model_copy(update={"subject_layers": True})
    return Contrastive(config, encoder=plain.encoder, head=plain.head, space=plain.space, layers=layers)


def test_subject_layers_start_as_the_identity_and_train_each_on_its_own_subject():
    batch = make_batch(8) | {"subject": torch.zeros(8, dtype=torch.long)}
    plain, layered = make().eval(), with_layers().eval()
    losses = layered(batch)
    assert losses["loss"].item() == plain(batch)["loss"].item()
    losses["loss"].backward()
    moved = layered.layers.weight.grad.abs().sum((1, 2))
    assert moved[0] > 0
    assert moved[1] == 0


def test_an_exported_alignment_knows_whose_layer_is_whose(tmp_path):
    objective, eeg = with_layers().eval(), make_batch(2)["eeg"]
    objective.layers.weight.data[1] = torch.eye(3)  # b is doubled
    save_aligned(tmp_path, objective)
    with pytest.raises(UserError, match="a layer per subject, which this step does not apply"):
        load_aligned(tmp_path)
    aligned = load_aligned(tmp_path, subject_layers=True)
    plain = make().eval().embed
    with torch.no_grad():
        assert torch.allclose(
            aligned(eeg, aligned.layers.places(["b", "a"])), plain(eeg * torch.tensor([2.0, 1])[:, None, None])
        )
        assert torch.allclose(aligned(eeg, aligned.layers.places(["who", "else"])), plain(1.5 * eeg), atol=1e-6)
        assert torch.allclose(aligned(eeg), plain(1.5 * eeg), atol=1e-6)  # nobody said who: the mean of all layers


def test_layers_that_were_not_asked_for_are_refused():
    plain = make()
    with pytest.raises(ValueError, match="subject_layers=False"):
        Contrastive(
            plain.config, encoder=plain.encoder, head=plain.head, space=plain.space, layers=SubjectLayers(["a"], 3)
        )
    with pytest.raises(ValueError, match="each once"):
        SubjectLayers(["a", "a"], 3)


def test_it_learns_to_tell_pictures_apart():
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    patterns, clip = torch.randn(16, 3, 64, generator=g), torch.randn(16, 6, generator=g)
    objective = make()
    objective.space = TargetSpace.fit(clip, "centred")
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    image = torch.arange(16)
    for _ in range(60):
        batch = {"eeg": patterns + 0.5 * torch.randn(16, 3, 64, generator=g), "clip": clip, "image": image}
        losses = objective(batch)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    objective.eval()
    unseen = patterns + 0.5 * torch.randn(16, 3, 64, generator=g)
    similarity = objective.embed(unseen) @ objective.space(clip).T
    assert (similarity.argmax(1) == image).float().mean() > 0.8  # chance 1/16


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    objective, batch = make().eval(), make_batch(8)  # evaluation mode: a batch norm sees another batch on each rank
    losses = objective({name: value[rank::2] for name, value in batch.items()})
    losses["loss"].backward()
    gradients = {}
    for name, parameter in objective.named_parameters():
        dist.all_reduce(parameter.grad)
        gradients[name] = parameter.grad / 2  # the mean over ranks, as DDP and ZeRO take it
    loss = losses["loss"].detach()
    dist.all_reduce(loss)
    if rank == 0:
        torch.save({"loss": loss / 2, "gradients": gradients}, f"{folder}/two.pt")
    dist.destroy_process_group()


@pytest.mark.distributed
def test_two_ranks_have_loss_and_gradients_of_one_process_with_the_whole_batch(tmp_path):
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    objective = make().eval()
    loss = objective(make_batch(8))["loss"]
    loss.backward()
    assert two["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in objective.named_parameters():
        assert torch.allclose(two["gradients"][name], parameter.grad, atol=1e-6, rtol=1e-4), name


def _gathers(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    a = torch.full((2, 3), float(rank), requires_grad=True)
    numbers, small = torch.tensor([2**40 + rank, -rank]), torch.full((2, 1, 2), rank, dtype=torch.float16)
    all_a, all_numbers, all_small = gather(a, numbers, small)
    (all_a * torch.arange(4.0)[:, None] * (rank + 1)).sum().backward()
    kept = {"a": all_a.detach(), "numbers": all_numbers, "small": all_small, "gradient": a.grad}
    torch.save(kept, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.distributed
def test_one_message_carries_tensors_of_any_type_and_gradients_come_home(tmp_path):
    mp.spawn(_gathers, args=(str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        got = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert got["a"][:, 0].tolist() == [0, 0, 1, 1]
        assert got["numbers"].tolist() == [2**40, 0, 2**40 + 1, -1]
        assert (got["small"].shape, got["small"][:, 0, 1].tolist()) == ((4, 1, 2), [0, 0, 1, 1])
        assert got["gradient"][:, 0].tolist() == [(1 + 2) * row for row in (2 * rank, 2 * rank + 1)]
