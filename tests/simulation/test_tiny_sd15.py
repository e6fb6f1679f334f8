"""The tiny Stable Diffusion 1.5: its interface, its training loss, the entry's refusals, and the figures of the shipped one."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline
from PIL import Image
from torch import nn

from ttd import train_base
from ttd.experiments.train_base import TrainBaseConfig
from ttd.simulation import base_report, sd15_report, tiny_clip, tiny_sd15, tiny_unet, tiny_vae
from ttd.simulation.base_data import pictures
from ttd.simulation.judge import load_judge, name_pictures
from ttd.untrusted.weights import find_tampered

WEIGHTS = Path(__file__).parents[2] / "weights"
SHIPPED = WEIGHTS / "tiny_sd15"

# unet/config.json and scheduler/scheduler_config.json of stable-diffusion-v1-5, without the sizes of the network. What those
# files do not name has the value that diffusers gives to older files.
PUBLISHED_UNET = {
    "act_fn": "silu", "center_input_sample": False, "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0,
    "in_channels": 4, "mid_block_scale_factor": 1, "norm_eps": 1e-5, "out_channels": 4,
    "addition_embed_type": None, "class_embed_type": None, "encoder_hid_dim": None, "num_class_embeds": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn", "only_cross_attention": False, "time_cond_proj_dim": None,
    "time_embedding_type": "positional", "transformer_layers_per_block": 1, "use_linear_projection": False,
}  # fmt: skip
PUBLISHED_SCHEDULER = {
    "_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
    "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
    "trained_betas": None, "clip_sample": False, "prediction_type": "epsilon", "timestep_spacing": "leading",
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_clip.make_tokenizer()


@pytest.fixture(scope="module")
def untrained(tmp_path_factory, tokenizer):
    """A model of random weights, and the folder it was saved to."""
    folder = tmp_path_factory.mktemp("sd15")
    torch.manual_seed(0)
    tiny_clip.save_clip(folder / "clip", tiny_clip.ClipWithHeads(tiny_clip.make_clip(tokenizer)), tokenizer)
    model = tiny_sd15.make_model(tokenizer, folder / "clip").eval()
    tiny_sd15.save_pipeline(folder / "pipeline", model, tiny_vae.make_vae(), tokenizer)
    return model, folder / "pipeline"


def test_the_unet_takes_what_stable_diffusion_15_takes(untrained):
    config = dict(untrained[0].unet.config)
    assert {name: config[name] for name in PUBLISHED_UNET} == PUBLISHED_UNET
    levels = len(config["block_out_channels"])
    assert config["down_block_types"] == ("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",)
    assert config["up_block_types"] == ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1)
    assert isinstance(config["attention_head_dim"], int)  # 8 heads on every level there


def test_cross_attention_is_everywhere_but_at_the_lowest_level(untrained):
    unet = untrained[0].unet
    reads = {name.split(".attentions")[0] for name, _ in unet.named_modules() if name.endswith("attn2")}
    assert reads == {"down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.1", "up_blocks.2"}
    kernels = [m.proj_in for m in unet.modules() if hasattr(m, "proj_in")]
    assert all(isinstance(p, nn.Conv2d) for p in kernels)  # SDXL's are linear
    assert not any(name.startswith(("add_embedding", "class_embedding")) for name, _ in unet.named_modules())


def test_a_saved_folder_opens_with_the_pipeline_and_its_scheduler_is_the_published_one(untrained):
    pipeline = StableDiffusionPipeline.from_pretrained(untrained[1], dtype=torch.float32)
    assert isinstance(pipeline.scheduler, PNDMScheduler)
    scheduler = json.loads((untrained[1] / "scheduler/scheduler_config.json").read_text())
    assert {name: scheduler[name] for name in PUBLISHED_SCHEDULER} == PUBLISHED_SCHEDULER
    picture = pipeline("a small cyan torus right", height=64, width=64, num_inference_steps=2, output_type="np").images
    assert picture.shape == (1, 64, 64, 3)


@pytest.mark.parametrize("caption", ["a large red cone left", ""])
def test_training_is_conditioned_on_what_the_pipeline_computes(untrained, tokenizer, caption):
    model, folder = untrained
    pipeline = tiny_sd15.load_pipeline(folder)
    context, nothing = pipeline.encode_prompt([caption], "cpu", 1, do_classifier_free_guidance=True)
    ids = tiny_clip.tokenize(tokenizer, [caption, "a small blue box right"])
    (own,) = model.condition(ids, torch.tensor([1.0, 0.0]))  # the second caption is dropped
    assert torch.allclose(own[:1], context, atol=5e-3)  # half precision on disk
    assert torch.allclose(own[1:], nothing, atol=5e-3)
    assert not torch.allclose(own[:1], own[1:], atol=5e-2) or caption == ""


class KnowsTheAnswer(nn.Module):
    """All latents are ``clean``: the noise, or the velocity, is what is left of the noisy ones. ``off`` is its error."""

    def __init__(self, scheduler, clean, off):
        super().__init__()
        self.scheduler, self.clean, self.off = scheduler, clean, off

    def condition(self, ids, keep):
        return ()

    def forward(self, noisy, t):
        alpha = self.scheduler.alphas_cumprod[t].double()[:, None, None, None]
        noise = (noisy - alpha.sqrt() * self.clean) / (1 - alpha).sqrt()
        if self.scheduler.config.prediction_type == "epsilon":
            return noise + self.off
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * self.clean + self.off


@pytest.mark.parametrize(("make_scheduler", "plus"), [(tiny_sd15.make_scheduler, 0), (tiny_unet.make_scheduler, 1)])
def test_the_loss_is_zero_for_a_perfect_predictor_and_otherwise_weighs_by_min_snr(tokenizer, make_scheduler, plus):
    scheduler, clean = make_scheduler(), torch.full((1, 4, 2, 2), 0.5)
    kinds = ["a large red cone left"] * 1000

    def loss(off):
        model = KnowsTheAnswer(scheduler, clean, off)
        latents = clean.expand(1000, -1, -1, -1)
        return tiny_unet.UnetLoss(model, scheduler, tokenizer, latents, kinds, batch_size=1000, seed=0)(0)

    value, parts = loss(0.0)
    assert value.item() == pytest.approx(0, abs=1e-6)
    # 1,000 pictures in 1,000 slices of time: every level once, so the mean weight has a closed form (arXiv:2303.09556, eq. 5).
    alpha = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    snr = alpha / (1 - alpha)
    value, parts = loss(1.0)
    assert parts["mse"] == pytest.approx(1, abs=1e-3)
    assert value.item() == pytest.approx(np.mean(np.minimum(snr, 5) / (snr + plus)), rel=1e-3)


def config_of(tmp_path, **changes):
    given = {
        "base": "sd15",
        "parts_dir": WEIGHTS / "tiny",
        "export_dir": tmp_path / "out",
        "stages": ("unet", "report"),
    }
    return TrainBaseConfig(output_dir=tmp_path / "run", **(given | changes))


def test_the_costs_are_those_of_the_configuration(tmp_path):
    (note,) = train_base.check(config_of(tmp_path)).notes
    (shorter,) = train_base.check(config_of(tmp_path, stages=("unet",))).notes
    (all_four,) = train_base.check(TrainBaseConfig(output_dir=tmp_path)).notes
    minutes = [int(re.search(r"about (\d+) minutes", text)[1]) for text in (shorter, note, all_four)]
    assert minutes == sorted(set(minutes))
    assert "5.8 MB of weights" in note
    assert "13.5 MB of weights" in all_four


def test_everything_that_is_missing_is_named_at_once(tmp_path):
    plan = train_base.check(config_of(tmp_path, parts_dir=tmp_path / "nowhere", stages=("vae", "report", "page")))
    unknown, other, absent, pipeline = plan.problems
    assert "unknown stage 'page'" in unknown
    assert "stages: vae: base=sd15 takes them from parts_dir; train them with configs/base/tiny.yaml" in other
    assert "nowhere: lacks clip/model.safetensors, judge/model.safetensors; give the folder" in absent
    assert "no pipeline to report on; add the stage unet" in pipeline
    assert plan.notes == []


def test_parts_are_not_looked_for_where_the_stages_train_them(tmp_path):
    assert train_base.check(TrainBaseConfig(output_dir=tmp_path, export_dir=tmp_path / "new")).problems == []
    (problem,) = train_base.check(config_of(tmp_path, parts_dir=None, stages=("unet",))).problems
    assert re.search(r"export_dir=.*lacks vae/.*, clip/.*parts_dir", problem)


def test_a_folder_of_the_other_base_is_not_overwritten(tmp_path):
    (problem,) = train_base.check(config_of(tmp_path, export_dir=WEIGHTS / "tiny", stages=("unet",))).problems
    assert "holds a StableDiffusionXLPipeline, base=sd15 makes a StableDiffusionPipeline" in problem


def test_a_unet_alone_renders_the_base_look_alone_and_leaves_a_whole_pipeline(tmp_path):
    data, unet = {"n_base": 8, "single_fraction": 0.5}, {"steps": 1, "batch_size": 4, "lr": 1e-3, "ema": 0.9}
    config = config_of(tmp_path, stages=("unet",), data=data, unet=unet)
    assert train_base.check(config).problems == []
    train_base.main(config)
    assert [f.name.split("-")[:2] for f in (tmp_path / "run/pictures").iterdir()] == [["train", "base"]]
    assert tiny_sd15.load_pipeline(tmp_path / "out").scheduler.config.prediction_type == "epsilon"
    assert len((tmp_path / "out/SHA256SUMS").read_text().splitlines()) == 3
    assert train_base.check(config_of(tmp_path, stages=("report",))).problems == []


def test_a_short_row_of_a_contact_sheet_ends_in_white(tmp_path):
    base_report.contact_sheet(
        [torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 4, 4)], tmp_path / "sheet.png", Image.Resampling.NEAREST
    )
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (16, 16, 3)
    assert sheet[12, 12].min() == 255
    assert sheet[12, 2].max() == 0


def test_the_shipped_text_encoder_and_vae_are_those_of_the_demo_clip_and_vae():
    pipeline = tiny_sd15.load_pipeline(SHIPPED)
    clip = tiny_clip.load_clip(WEIGHTS / "tiny/clip")[0].clip.text_model.state_dict()
    vae = base_report.load_vae(WEIGHTS / "tiny/vae").state_dict()
    text = {name.removeprefix("text_model."): v for name, v in pipeline.text_encoder.state_dict().items()}
    assert clip.keys() == text.keys()
    assert all(torch.equal(clip[name], text[name]) for name in clip)
    assert all(torch.equal(vae[name], v) for name, v in pipeline.vae.state_dict().items())


def test_the_shipped_files_are_those_of_their_list_and_name_no_folder_of_a_machine():
    assert (SHIPPED / "SHA256SUMS").read_text().count(".safetensors") == len(list(SHIPPED.rglob("*.safetensors"))) == 3
    assert find_tampered(SHIPPED) is None
    named = [json.loads(f.read_text()).get("_name_or_path", "") for f in SHIPPED.rglob("*.json")]
    assert not any(Path(name).is_absolute() for name in named)


@pytest.mark.parametrize(
    ("part", "single", "kind", "colour"), [("unseen", 1.0, 0.85, 0.9), ("unseen-pairs", 0.0, 0.5, 0.4)]
)
def test_the_shipped_pipeline_draws_what_the_caption_says(part, single, kind, colour):
    scenes = pictures(part, "base", 16, single)
    drawn = base_report.generate(tiny_sd15.load_pipeline(SHIPPED), scenes.captions, seed=1, steps=25)
    named = base_report.shares(name_pictures(load_judge(WEIGHTS / "tiny/judge"), drawn), scenes)
    assert named["kind"] >= kind  # chance 0.17
    assert named["colour"] >= colour  # chance 0.13


def test_the_example_of_the_model_card_runs(monkeypatch):
    monkeypatch.chdir(WEIGHTS.parent)
    (example,) = re.findall(r"```python\n(.*?)```", (SHIPPED / "README.md").read_text(), re.DOTALL)
    exec(example, names := {})
    assert names["pipeline"].unet.dtype == torch.float32


def test_the_model_card_states_what_was_measured():
    figures = json.loads((SHIPPED / "figures.json").read_text())
    assert (SHIPPED / "README.md").read_text() == sd15_report.model_card(figures)
    assert figures["megabytes"] == 5.81
    assert max(figures["plms"]["control_captions_shuffled"].values()) < 0.6
    assert (SHIPPED / "contact_sheet.png").stat().st_size <= 250_000
