import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoModelForImageTextToText,
    Idefics3Processor,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from ttd import train_lift
from ttd.config import UserError
from ttd.experiments.train_lift import TrainLiftConfig
from ttd.geometry.describer import Describer, DescriberConfig, find_missing, load_processor, refused_by_grammar
from ttd.geometry.description import parse, to_text
from ttd.geometry.vlm_tuning import IGNORE, PairObjective, chat_batch, read_pairs, save_tuned
from ttd.simulation.scenes import describe, draw_scene

TEXTS = [to_text(describe(draw_scene(seed))) for seed in range(40)]
CHAT = (
    "{{% for m in messages %}}<|im_start|>{{{{ m['role'] }}}}\n{{% for c in m['content'] %}}{{% if c['type'] == 'image' %}}"
    "{image}{{% else %}}{{{{ c['text'] }}}}{{% endif %}}{{% endfor %}}<|im_end|>{{% endfor %}}"
    "{{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
)


def tokenizer(image: str, special: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of some 400 tokens, trained on descriptions; ``image`` is what stands for a picture in a chat."""
    bpe = ByteLevelBPETokenizer()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>", *special]
    bpe.train_from_iterator(TEXTS, vocab_size=420, min_frequency=2, special_tokens=special, show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        chat_template=CHAT.format(image=image),
    )


def build_qwen3_vl(folder: Path) -> Path:
    torch.manual_seed(3)  # of 0 to 6, all of which parse, one that is brief
    names = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    tok = tokenizer("<|vision_start|><|image_pad|><|vision_end|>", names)
    image, video, start, end = tok.convert_tokens_to_ids(names)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    text = {
        "vocab_size": len(tok) + 13,  # real heads are padded beyond their tokenizer
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "rope_parameters": rope,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "depth": 1, "num_heads": 2, "patch_size": 8, "out_hidden_size": 16,
        "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    model = Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(
            text_config=text, vision_config=vision, image_token_id=image, video_token_id=video,
            vision_start_token_id=start, vision_end_token_id=end,
        )
    )  # fmt: skip
    size = {"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    save(folder, model, tok, Qwen2VLImageProcessorPil(patch_size=8, size=size))
    return folder


def build_smolvlm(folder: Path) -> Path:
    torch.manual_seed(0)
    names = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    tok = tokenizer("<image>", names)
    text = LlamaConfig(
        vocab_size=len(tok), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, pad_token_id=tok.pad_token_id,
    )  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32,
        "patch_size": 8,
    }  # fmt: skip
    image_id = tok.convert_tokens_to_ids("<image>")
    model = SmolVLMForConditionalGeneration(
        SmolVLMConfig(
            text_config=text, vision_config=vision, image_token_id=image_id, scale_factor=2,
            pad_token_id=tok.pad_token_id,
        )
    )  # fmt: skip
    pictures = Idefics3ImageProcessorPil(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 32}, do_image_splitting=False
    )
    # SmolVLM's own processor needs the package num2words, for the times of video frames; for pictures it is this one.
    save(folder, model, tok, None)
    Idefics3Processor(pictures, tok, image_seq_len=4, chat_template=tok.chat_template).save_pretrained(folder)
    return folder


def save(folder: Path, model, tok, pictures) -> None:
    model.generation_config.eos_token_id = tok.eos_token_id
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    if pictures is not None:
        pictures.save_pretrained(folder)
        (folder / "processor_config.json").write_text(json.dumps({"processor_class": "Qwen3VLProcessor"}))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vlm")
    return {"qwen3_vl": build_qwen3_vl(root / "qwen3_vl"), "smolvlm": build_smolvlm(root / "smolvlm")}


def pictures(*sizes: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for size in sizes]


@pytest.mark.parametrize("name", ["qwen3_vl", "smolvlm"])
def test_random_weights_from_a_folder_write_valid_descriptions_of_pictures_of_several_sizes(folders, name):
    describer = Describer.prepare(DescriberConfig(model=str(folders[name])))
    answers = describer.describe(pictures(32, 64, 50), seeds=[1, 2, 3])
    assert [a.status for a in answers] == ["ok"] * 3
    for answer in answers:
        assert parse(answer.raw) == answer.description
    assert answers[0].provenance["engine"].startswith("llguidance")


@pytest.mark.parametrize("name", ["qwen3_vl", "smolvlm"])
def test_a_picture_is_described_alike_alone_and_in_a_batch_with_longer_prompts(folders, name):
    describer = Describer.prepare(DescriberConfig(model=str(folders[name]), constrained=False, max_new_tokens=12))
    small, large = pictures(32, 64)
    alone = describer._write([small])
    assert describer._write([small, large])[0] == alone[0]


def test_what_the_grammar_forbids_is_never_written_and_free_weights_write_something_else(folders):
    config = DescriberConfig(model=str(folders["qwen3_vl"]), max_new_tokens=12)
    (held, _), *_ = Describer.prepare(config)._write(pictures(32))
    (free, _), *_ = Describer.prepare(config.model_copy(update={"constrained": False}))._write(pictures(32))
    assert held.startswith('{"schema_version": 1, "')
    assert not free.startswith("{")


def test_a_text_that_reaches_the_limit_is_tried_once_more_with_its_seed_and_then_counts_as_cut(folders):
    describer = Describer.prepare(DescriberConfig(model=str(folders["qwen3_vl"]), max_new_tokens=15))
    (answer,) = describer.describe(pictures(32), seeds=[7])
    assert (answer.status, answer.description) == ("truncated", None)
    assert answer.reason == "cut after max_new_tokens=15"
    assert answer.raw.startswith('{"schema_version": 1')
    facts = answer.provenance
    assert (facts["truncated"], facts["attempt"], facts["seed"]) == (True, 2, 7)


def test_a_second_try_depends_on_its_seed_alone(folders):
    describer = Describer.prepare(DescriberConfig(model=str(folders["qwen3_vl"]), constrained=False, max_new_tokens=12))
    first, again, other = (describer._write(pictures(32), seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_text_that_is_no_description_fails_and_is_kept_as_it_is(folders):
    describer = Describer.prepare(DescriberConfig(model=str(folders["qwen3_vl"]), constrained=False))
    raw = 'Here it is: {"schema_version": 1}'
    answer = describer._read(raw, cut=False, seed=None, attempt=1)
    assert (answer.status, answer.raw, answer.description) == ("failed", raw, None)
    assert answer.reason.startswith("not JSON")


def test_a_description_that_contradicts_itself_is_an_answer_with_problems(folders):
    describer = Describer.prepare(DescriberConfig(model=str(folders["qwen3_vl"]), constrained=False))
    answer = describer._read(TEXTS[0].replace('"depth_rank": 0', '"depth_rank": 5'), False, seed=None, attempt=1)
    assert answer.status == "ok"
    assert "depth_rank must number the objects" in answer.problems[0]


def test_provenance_names_model_weights_and_prompt_by_hash(folders):
    config = DescriberConfig(model=str(folders["qwen3_vl"]))
    info = Describer.prepare(config).info()
    other = Describer.prepare(config.model_copy(update={"prompt": "What is this?"})).info()
    assert info["revision"] == other["revision"]
    assert len(info["revision"]) == 16
    assert info["prompt"] != other["prompt"]


def test_the_grammar_accepts_the_references_as_a_byte_level_bpe_cuts_them_and_no_other_separators(folders):
    tok = load_processor(str(folders["qwen3_vl"])).tokenizer
    assert refused_by_grammar(tok, [text + tok.eos_token for text in TEXTS]) == []
    dense = json.dumps(json.loads(TEXTS[0]), separators=(",", ":")) + tok.eos_token
    unfinished = TEXTS[0][:-1] + tok.eos_token
    assert refused_by_grammar(tok, [dense, unfinished]) == [dense, unfinished]


def test_what_is_missing_is_told_before_anything_is_loaded(folders, tmp_path):
    assert find_missing(str(folders["qwen3_vl"])) == []
    assert (
        find_missing("Qwen/Qwen3-VL-4B-Instruct", "a" * 40) == []
    )  # of a repository nothing can be said without a network
    (loose,) = find_missing("Qwen/Qwen3-VL-4B-Instruct", "main")
    assert "give its commit" in loose
    (nowhere,) = find_missing("weights/nowhere/describer")
    assert "weights/nowhere/describer does not exist; give a folder or a repository owner/name" in nowhere
    (tmp_path / "config.json").write_text("{}")
    problems = find_missing(str(tmp_path))
    assert [p.split(" holds no ")[1].split(",")[0] for p in problems] == [
        "*.safetensors", "tokenizer_config.json", "*processor_config.json",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"holds no \*\.safetensors"):
        Describer.prepare(DescriberConfig(model=str(tmp_path)))


def test_weights_that_lack_a_tensor_are_refused_by_its_name(folders, tmp_path):
    folder = shutil.copytree(folders["qwen3_vl"], tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    del weights["model.visual.merger.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"its weights lack model\.visual\.merger\.norm\.weight"):
        Describer.prepare(DescriberConfig(model=str(folder)))


def test_a_model_without_chat_template_is_refused(folders):
    processor = load_processor(str(folders["smolvlm"]))
    processor.chat_template = processor.tokenizer.chat_template = None
    model = AutoModelForImageTextToText.from_pretrained(folders["smolvlm"])
    with pytest.raises(UserError, match="has no chat template"):
        Describer(model, processor, DescriberConfig(constrained=False))


def write_pairs(folder: Path, n: int) -> Path:
    lines = []
    for i, image in enumerate(pictures(*[32] * n)):
        Image.fromarray(image).save(folder / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "description": json.loads(TEXTS[i])}))
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    return folder / "pairs.jsonl"


@pytest.mark.parametrize("name", ["qwen3_vl", "smolvlm"])
def test_fine_tuning_asks_for_the_answer_alone_as_the_describer_would_write_it(folders, tmp_path, name):
    describer = Describer.prepare(DescriberConfig(model=str(folders[name]), prompt="Describe."))
    pairs = read_pairs(write_pairs(tmp_path, 2))
    batch = chat_batch(describer, pairs)
    prompt = describer.ask([pair.pixels() for pair in pairs])["input_ids"]
    n = prompt.shape[1]
    assert (batch["labels"][:, :n] == IGNORE).all()
    torch.testing.assert_close(batch["input_ids"][:, :n], prompt)
    for row, text in zip(batch["labels"], TEXTS[:2], strict=True):
        assert describer.tokenizer.decode(row[row != IGNORE]) == text + "<|im_end|>"


@pytest.mark.parametrize("name", ["qwen3_vl", "smolvlm"])
def test_adapters_of_the_language_model_learn_are_merged_and_are_opened_again(folders, tmp_path, name):
    describer = Describer.prepare(DescriberConfig(model=str(folders[name]), prompt="Describe.", max_new_tokens=5))
    pairs = read_pairs(write_pairs(tmp_path, 2))
    torch.manual_seed(0)
    objective = PairObjective(describer, rank=4)
    assert objective.state_dict()
    assert all("lora_" in name and "vis" not in name for name in objective.state_dict())
    optimizer = torch.optim.AdamW(objective.parameters(), 3e-2)
    losses = []
    for _ in range(12):
        loss = objective(pairs)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    objective.merge()
    save_tuned(describer, tmp_path / "tuned")
    opened = Describer.prepare(DescriberConfig(model=str(tmp_path / "tuned"), prompt="Describe.", max_new_tokens=5))
    again = opened.model(**chat_batch(opened, pairs)).loss.item()
    assert again == pytest.approx(objective(pairs).item(), abs=1e-4)
    assert again < losses[0] - 0.05


def test_pairs_that_cannot_be_used_are_named_by_their_line(tmp_path):
    path = write_pairs(tmp_path, 2)
    with path.open("a") as file:
        file.write('\n{"image": "0.png"}\n{"image": "9.png", "description": ' + TEXTS[0] + "}\nnot json\n")
    with pytest.raises(UserError, match=r"jsonl:3: 'description'.*\n.*jsonl:4: no picture .*9[.]png\n.*jsonl:5: "):
        read_pairs(path)


def test_the_entry_fine_tunes_a_folder_and_scores_the_pairs_that_it_held_out(folders, tmp_path):
    tree = {
        "output_dir": tmp_path / "run", "weights": tmp_path / "tuned", "component": "describer", "n_held_out": 2,
        "describer": {
            "start": {"model": str(folders["qwen3_vl"]), "prompt": "Describe.", "constrained": False, "max_new_tokens": 5},
            "pairs": write_pairs(tmp_path, 4), "lora_rank": 2, "words": {"steps": 2, "batch_size": 2, "lr": 1e-3},
        },
    }  # fmt: skip
    config = TrainLiftConfig.model_validate(tree)
    assert train_lift.check(config).problems == []
    train_lift.main(config)
    rows = json.loads((tmp_path / "run" / "metrics.json").read_text())["rows"]
    assert rows["held_out"]["valid"] == 0  # five tokens are no description
    assert find_missing(str(tmp_path / "tuned")) == []
    few = TrainLiftConfig.model_validate({**tree, "output_dir": tmp_path / "other", "n_held_out": 4})
    assert train_lift.check(few).problems == ["describer.pairs: 4 pairs, of which n_held_out=4 leave none to train on"]
