"""The ViT-MAE encoder: DreamDiffusion's sizes, what it sees in pretraining and afterwards, its move between caps."""

import pytest
import torch

from ttd.config import UserError
from ttd.encoders import build_encoder, load_encoder, save_encoder
from ttd.encoders.decoder import DecoderConfig, MaskTokenDecoder
from ttd.encoders.mae import MAEConfig
from ttd.encoders.masking import MaskingConfig
from ttd.objectives.masked_reconstruction import MaskedReconstruction, MaskedReconstructionConfig

CAP = ["O1", "Oz", "O2", "Pz"]
SMALL = MAEConfig(embed_dim=16, depth=2, n_heads=2)


def encoder_of(ch_names=CAP, n_times=64, **more):
    torch.manual_seed(0)
    return build_encoder(SMALL.model_copy(update=more), n_times=n_times, sfreq=128, ch_names=ch_names)


def n_parameters(module):
    return sum(p.numel() for p in module.parameters())


def block(width, hidden):
    """Two norms, query, key, value and output, two layers of the GELU part."""
    return 4 * width + 4 * (width**2 + width) + (width * hidden + hidden) + (hidden * width + width)


def test_at_the_original_sizes_it_has_dreamdiffusions_tokens_and_parameters():
    names = [f"E{i}" for i in range(128)]
    with torch.device("meta"):
        encoder = build_encoder(MAEConfig(), n_times=512, sfreq=1000, ch_names=names)
        config = DecoderConfig(width=512, depth=8, n_heads=16, dropout=0.0, mlp_ratio=1.0)
        sizes = {"embed_dim": 1024, "n_tokens": 128, "n_chans": 128, "n_times": 512, "patch_samples": 4}
        decoder = MaskTokenDecoder(config, **sizes)
        tokens = encoder(torch.empty(2, 128, 512))
        kept = torch.empty(2, 115, dtype=torch.long)  # a ratio of 0.1 hides 13 of 128
        visible = encoder.encode_visible(torch.empty(2, 128, 512), kept)
        assert decoder(visible, kept).shape == (2, 128, 512)
    assert tokens.shape == (2, 128, 1024)
    assert visible.shape == (2, 116, 1024)
    # patches, class token, 24 blocks with a GELU layer as wide as the token, last norm
    assert n_parameters(encoder) == (128 * 4 * 1024 + 1024) + 1024 + 24 * block(1024, 1024) + 2048 == 151_769_088
    projected, predicted = 1024 * 512 + 512, 512 * 128 * 4 + 128 * 4
    assert n_parameters(decoder) == projected + 512 + 8 * block(512, 512) + 1024 + predicted == 13_412_864


def test_gradients_reach_every_weight_in_pretraining_and_the_class_tokens_is_zero_afterwards():
    """None at all would stop ranks that wait for it, and leave states without its moments."""
    encoder = encoder_of()
    encoder(torch.randn(2, 4, 64)).square().mean().backward()
    assert {n for n, p in encoder.named_parameters() if p.grad.abs().sum() == 0} == {"class_token"}
    objective = objective_of()
    objective({"eeg": torch.randn(2, 4, 64), "position": torch.arange(2)})["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.parameters())


def test_visible_patches_without_a_class_token_are_the_tokens_of_a_model_without_blocks():
    encoder, eeg = encoder_of(depth=0).eval(), torch.randn(2, 4, 64)
    kept = torch.tensor([[3, 0, 7], [15, 2, 2]])
    visible = encoder.encode_visible(eeg, kept)
    assert visible.shape == (2, 4, 16)
    assert torch.equal(visible[:, 1:], torch.stack([t[k] for t, k in zip(encoder(eeg), kept, strict=True)]))


def test_the_order_of_the_visible_patches_does_not_matter_but_their_places_do():
    encoder, eeg = encoder_of().eval(), torch.randn(1, 4, 64)
    there = encoder.encode_visible(eeg, torch.tensor([[1, 5, 9]]))
    assert torch.allclose(encoder.encode_visible(eeg, torch.tensor([[9, 1, 5]]))[:, [0, 2, 3, 1]], there, atol=1e-5)
    moved = torch.roll(eeg, 4, dims=2)  # the same samples, one patch later
    assert not torch.allclose(encoder.encode_visible(moved, torch.tensor([[2, 6, 10]])), there, atol=1e-3)


def test_samples_after_the_last_whole_patch_are_not_read():
    encoder, eeg = encoder_of(n_times=66).eval(), torch.randn(2, 4, 66)
    assert encoder.n_tokens == 16
    assert torch.equal(encoder(eeg), encoder(eeg * (torch.arange(66) < 64)))
    with pytest.raises(ValueError, match="n_times=3 is shorter than one patch of 4 samples"):
        encoder_of(n_times=3)


def test_its_weights_follow_the_electrode_name_and_another_length_keeps_them(tmp_path):
    old, eeg = encoder_of(whiten=True), torch.randn(2, 4, 64)
    mix = torch.randn(4, 4)
    old.set_noise_covariance(mix @ mix.T + torch.eye(4))
    save_encoder(tmp_path, old)
    order = [2, 0, 3, 1]
    again = load_encoder(tmp_path, ch_names=[CAP[i] for i in order]).eval()
    assert torch.allclose(again(eeg[:, order]), old.eval()(eeg), atol=1e-5)
    other = load_encoder(tmp_path, ch_names=["Fz", "Oz"], n_times=128)
    assert torch.equal(other.embed.weight[:, 1], old.embed.weight[:, 1])
    assert other(torch.randn(1, 2, 128)).shape == (1, 32, 16)


def objective_of(n_times=64, ratio=0.5, **changes):
    torch.manual_seed(0)
    masking = MaskingConfig(patches=True, span=4, ratio=ratio)
    decoder = DecoderConfig(width=16, depth=1, n_heads=2, dropout=0.0, mlp_ratio=1.0)
    config = MaskedReconstructionConfig(masking=masking, decoder=decoder, sign_flip=False)
    config = config.model_copy(update=changes)
    return MaskedReconstruction(config, encoder=encoder_of(n_times=n_times), seed=0)


def test_pretraining_leaves_the_hidden_patches_out_and_hides_whole_ones_alone():
    objective, positions = objective_of(n_times=66).eval(), torch.arange(20)
    mask = objective.mask(positions)
    assert bool((mask.sum(1) == 32).all())
    assert not mask[:, 64:].any()  # what is no whole patch is never hidden
    by_patch = mask[:, :64].unflatten(1, (16, 4))
    assert torch.equal(by_patch.any(2), by_patch.all(2))
    seen = []
    objective.encoder.norm.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    eeg = torch.randn(20, 4, 66)
    out = objective.reconstruct(eeg, mask)
    assert seen == [(20, 1 + 8, 16)]
    assert out.shape == eeg.shape
    assert torch.equal(objective.reconstruct(eeg + 1000.0 * mask[:, None], mask), out)


def test_a_hidden_patch_is_predicted_from_its_own_place():
    """With weights that copy what the learned token and the position say, each patch says where it was put."""
    objective = objective_of()
    decoder, mask = objective.decoder, objective.mask(torch.arange(1))
    decoder.blocks = torch.nn.ModuleList()
    decoder.norm = torch.nn.Identity()
    with torch.no_grad():
        decoder.embed.weight.zero_(), decoder.mask_token.zero_(), decoder.embed.bias.fill_(100.0)
        decoder.predict.weight.zero_(), decoder.predict.bias.zero_()
        decoder.predict.weight[:, 0] = 1.0  # the first sine, plus 100 where a visible patch stands
        out = objective.reconstruct(torch.randn(1, 4, 64), mask)
    expected = torch.arange(16).float().sin().repeat_interleave(4) + 100.0 * ~mask[0]
    assert torch.allclose(out[0], expected.expand(4, -1), atol=1e-4)


def test_a_mask_that_is_not_of_the_encoders_patches_is_refused():
    with pytest.raises(UserError, match="masking.span=32: the encoder's patches have 4 samples"):
        objective_of(masking=MaskingConfig(patches=True))
    with pytest.raises(UserError, match="hidden patches are left out"):
        objective_of(start="linear", fill="start")
    with pytest.raises(ValueError, match="patches and overlapping"):
        MaskingConfig(patches=True, overlapping=True)
    with pytest.raises(ValueError, match="leaves 0 of 16 patches visible"):
        objective_of(ratio=0.95).mask(torch.arange(1))


def test_with_masked_spans_it_is_pretrained_as_any_encoder():
    objective = objective_of(masking=MaskingConfig(span=8)).eval()
    eeg, mask = torch.randn(2, 4, 64), objective.mask(torch.arange(2))
    out = objective.reconstruct(eeg, mask)
    assert torch.equal(objective.reconstruct(eeg + 1000.0 * mask[:, None], mask), out)
    assert type(objective.decoder).__name__ == "ReconstructionDecoder"


def test_the_masked_error_falls_on_waves():
    objective = objective_of(ratio=0.25)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=5e-3)

    def waves(seed):
        phase = 6.28 * torch.rand(32, 1, 1, generator=torch.Generator().manual_seed(seed))
        eeg = 2**0.5 * torch.sin(6.283 * 10 * torch.arange(64) / 128 + phase).expand(-1, 4, -1).contiguous()
        return {"eeg": eeg, "position": torch.arange(32) + 32 * seed}

    for step in range(150):
        optimizer.zero_grad()
        objective(waves(step))["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        losses = objective.eval()(waves(10_000))
    assert losses["zero"].item() == pytest.approx(1.0, abs=0.1)
    assert losses["loss"] < 0.7 * losses["zero"]
