import json
import string
from pathlib import Path

import numpy as np
import pytest
import torch

from ttd import train_lift
from ttd.experiments.train_lift import DescriberTrainingConfig, TrainLiftConfig
from ttd.geometry.describer import Describer, DescriberConfig, load_processor, refused_by_grammar
from ttd.geometry.description import parse, to_text
from ttd.seeding import key
from ttd.simulation import describer_training, tiny_vlm
from ttd.simulation.describer_figures import held_out_figures
from ttd.simulation.describer_training import IGNORE, DescriberPool, patch_labels, train
from ttd.simulation.render import render
from ttd.simulation.scenes import COLOURS, KINDS, SIZES, Scene, Solid, describe, draw_scene
from ttd.simulation.tiny_vlm import END, TinyVLMConfig, make_model, make_tokenizer, patches, save_vlm

SHIPPED = Path("weights/tiny/describer")
SMALL = TinyVLMConfig(vision_dim=24, vision_depth=2, text_dim=24, text_depth=1, n_heads=2)


def references(n: int) -> list[str]:
    """Descriptions of training items, as the training command draws them."""
    return [to_text(describe(draw_scene(key(0, "describer-train", i)))) + END for i in range(n)]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny") / "describer"
    save_vlm(folder, make_model(SMALL), {"simulated": True})
    return folder


def test_the_tokenizer_gives_back_every_printable_text():
    tok, rng = make_tokenizer(), np.random.default_rng(0)
    texts = ["".join(rng.choice(list(string.printable[:95]), 80)) for _ in range(50)] + references(5)
    assert [tok.decode(tok(text)["input_ids"]) for text in texts] == texts


def test_each_word_and_each_integer_is_one_token_and_a_description_is_short():
    tok = make_tokenizer()
    for word in (*KINDS, *COLOURS, *SIZES, "in_front_of", "o7", *map(str, range(-100, 201))):
        assert len(tok(word)["input_ids"]) == 1, word
    assert max(len(ids) for ids in tok(references(100))["input_ids"]) <= 90


def test_the_grammar_accepts_the_tokens_of_the_training_items_and_of_no_other_separators():
    tok, texts = make_tokenizer(), references(300)
    assert refused_by_grammar(tok, texts) == []
    dense = json.dumps(json.loads(texts[0].removesuffix(END)), separators=(",", ":")) + END
    assert refused_by_grammar(tok, [dense, texts[1]]) == [dense]


def test_random_weights_held_to_the_grammar_always_parse_even_when_they_draw(untrained):
    describer = Describer.prepare(DescriberConfig(model=str(untrained), max_new_tokens=4000))
    images = list(np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8))
    for seed in (None, 1, 2):
        for raw, cut in describer._write(images, seed=seed):
            assert not cut
            parse(raw)


def test_training_cuts_pictures_as_the_saved_processor_does(untrained):
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    seen = load_processor(str(untrained)).image_processor(image, return_tensors="pt")
    own = patches(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)
    torch.testing.assert_close(own, seen["pixel_values"])
    assert seen["image_grid_thw"].tolist() == [[1, 8, 8]] == tiny_vlm.grid_of(1).tolist()


def test_training_writes_the_prompt_that_the_saved_template_writes(untrained):
    describer = Describer.prepare(DescriberConfig(model=str(untrained)))
    inputs = describer.ask([np.zeros((64, 64, 3), np.uint8)])
    objective = describer_training.DescriberObjective(describer.model)
    assert inputs["input_ids"][0].tolist() == objective.prompt.tolist()


def test_patches_are_labelled_by_the_solid_that_covers_them_the_nearest_first():
    near, far = Solid("cone", "red", "large", 0.4, 0, 0.45, 0.3), Solid("box", "blue", "small", 0.3, 0, -0.45, -0.3)
    scene = Scene((far, near), 0)  # from left to right
    labels = patch_labels([scene], torch.from_numpy(render([scene], "base").mask)).view(8, 8, 4)
    assert labels[4, 6].tolist() == [1, KINDS.index("cone"), COLOURS.index("red"), SIZES.index("large")]
    assert labels[4, 1].tolist() == [2, KINDS.index("box"), COLOURS.index("blue"), SIZES.index("small")]
    assert labels[0, 4].tolist() == [0, IGNORE, IGNORE, IGNORE]


def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(describer_training, "TinyVLMConfig", lambda: SMALL)
    config = DescriberTrainingConfig.model_validate(
        {"sight": {"steps": 2, "batch_size": 4, "lr": 1e-3}, "words": {"steps": 4, "batch_size": 4, "lr": 1e-3}}
    )

    def run(folder: Path, stop_at: int | None = None) -> dict[str, torch.Tensor]:
        def log(line: dict) -> None:
            if stop_at is not None and (line["model"], line["step"]) == ("words", stop_at):
                raise KeyboardInterrupt

        return train(config, folder, seed=0, n_scenes=6, log=log, save_every=2).state_dict()

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", stop_at=2)
    resumed = run(tmp_path / "stopped")
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=0, atol=0)


def test_the_entry_leaves_a_describer_that_opens_with_its_figures_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(describer_training, "TinyVLMConfig", lambda: SMALL)
    config = TrainLiftConfig.model_validate(
        {
            "output_dir": tmp_path / "run", "weights": tmp_path / "weights", "component": "describer",
            "n_scenes": 4, "n_held_out": 2,
            "describer": {stage: {"steps": 1, "batch_size": 2, "lr": 1e-3} for stage in ("sight", "words")},
        }
    )  # fmt: skip
    assert train_lift.check(config).problems == []
    train_lift.main(config)
    facts = json.loads((tmp_path / "weights" / "describer.json").read_text())
    assert facts["held_out"] == json.loads((tmp_path / "run" / "metrics.json").read_text())["rows"]
    assert facts["provenance"]["simulated"]
    Describer.prepare(DescriberConfig(model=str(tmp_path / "weights")))


def test_figures_of_untrained_weights_are_at_the_level_of_their_shuffled_control(untrained):
    held = Describer.prepare(DescriberConfig(model=str(untrained)))
    free = Describer.prepare(DescriberConfig(model=str(untrained), constrained=False, max_new_tokens=20))
    rows = held_out_figures(held, free, DescriberPool(0, "test", 4), seed=0)
    assert set(rows) == {"base", "study", "spoilt", "free", "shuffled"}
    assert rows["study"]["valid"] == 1
    assert rows["free"]["valid"] == rows["free"]["agreement"] == 0
    assert rows["study"]["label_f1"] <= 0.25


def test_the_shipped_describer_reaches_its_goals_and_is_far_above_shuffled_pairs():
    rows = json.loads((SHIPPED / "describer.json").read_text())["held_out"]
    assert rows["study"]["valid"] == rows["free"]["valid"] == rows["free"]["agreement"] == 1
    for look in ("base", "study"):
        assert rows[look]["count"] >= 0.95
        assert rows[look]["label_f1"] >= 0.85
        assert rows[look]["color_f1"] >= 0.90
    assert rows["shuffled"]["label_f1"] < 0.35
    assert rows["shuffled"]["color_f1"] < 0.3
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 4_000_000


def test_the_shipped_describer_names_what_a_fresh_picture_shows():
    describer = Describer.prepare(DescriberConfig(model=str(SHIPPED)))
    scenes = [draw_scene(key(7, "fresh", i)) for i in range(20)]
    answers = describer.describe(list(render(scenes, "study").image), seeds=list(range(20)))
    said = [{(o["label"], o["color"]) for o in a.description["objects"]} for a in answers]
    true = [{(s.kind, s.colour) for s in scene.solids} for scene in scenes]
    assert sum(a == b for a, b in zip(said, true, strict=True)) >= 14  # 0.85 of 30 solids, both right in 7 of 10 scenes
