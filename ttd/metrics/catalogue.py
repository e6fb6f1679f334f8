"""Every metric that a table may print: its name there, unit, direction and source. The functions are in the other modules."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """What a metric is: printed name, unit, whether more is better, its source."""

    title: str
    unit: str
    direction: str
    source: str


METRICS = {
    "retrieval_top1": Facts("retrieval top-1, {k}-way", "fraction", "higher", "Song et al. 2024, arXiv:2308.13234"),
    "retrieval_top5": Facts("retrieval top-5, {k}-way", "fraction", "higher", "Song et al. 2024, arXiv:2308.13234"),
    "mean_reciprocal_rank": Facts(
        "mean reciprocal rank, {k}-way", "fraction", "higher", "mAP of UBP, one relevant picture"
    ),
    "prototype_top1": Facts(
        "retrieval of the concept's prototype, top-1, {k}-way",
        "fraction",
        "higher",
        "gallery of NICE, arXiv:2308.13234",
    ),
    "prototype_top5": Facts(
        "retrieval of the concept's prototype, top-5, {k}-way",
        "fraction",
        "higher",
        "gallery of NICE, arXiv:2308.13234",
    ),
    "mse": Facts("MSE", "squared intensity", "lower", "mean over RGB in [0, 1]"),
    "pixcorr": Facts("PixCorr", "Pearson r", "higher", "MindEye2, arXiv:2403.11207"),
    "ssim": Facts("SSIM", "index", "higher", "Wang et al. 2004; σ 1.5, grey, two-dimensional"),
    "two_way_clip": Facts("two-way identification, CLIP", "fraction", "higher", "Ozcelik & VanRullen 2023"),
    "two_way_judge": Facts("two-way identification, judge", "fraction", "higher", "Ozcelik & VanRullen 2023"),
    "two_way_alexnet_2": Facts(
        "two-way identification, AlexNet(2)", "fraction", "higher", "MindEye2, arXiv:2403.11207"
    ),
    "two_way_alexnet_5": Facts(
        "two-way identification, AlexNet(5)", "fraction", "higher", "MindEye2, arXiv:2403.11207"
    ),
    "two_way_inception": Facts(
        "two-way identification, Inception v3", "fraction", "higher", "MindEye2, arXiv:2403.11207"
    ),
    "two_way_clip_l": Facts(
        "two-way identification, CLIP ViT-L/14", "fraction", "higher", "MindEye2, arXiv:2403.11207"
    ),
    "distance_efficientnet": Facts("distance, EfficientNet-B1", "1 - Pearson r", "lower", "MindEye2, arXiv:2403.11207"),
    "distance_swav": Facts("distance, SwAV", "1 - Pearson r", "lower", "MindEye2, arXiv:2403.11207"),
    "lpips": Facts("LPIPS, AlexNet", "distance", "lower", "Zhang et al. 2018, arXiv:1801.03924"),
    "n_way_top1": Facts("50-way top-1, ViT-H/14", "fraction", "higher", "DreamDiffusion, arXiv:2306.16934"),
    "pairwise_mse": Facts("pair-wise score, MSE", "fraction", "higher", "DreamDiffusion, arXiv:2306.16934"),
    "pairwise_pcc": Facts("pair-wise score, PCC", "fraction", "higher", "DreamDiffusion, arXiv:2306.16934"),
    "pairwise_ssim": Facts(
        "pair-wise score, SSIM (RGB, uniform)", "fraction", "higher", "DreamDiffusion, arXiv:2306.16934"
    ),
    "pairwise_psm": Facts("pair-wise score, LPIPS", "fraction", "higher", "DreamDiffusion, arXiv:2306.16934"),
    "fid": Facts("FID, {features}", "squared features", "lower", "Heusel et al. 2017, arXiv:1706.08500"),
    "kid": Facts("KID, {features}", "kernel units", "lower", "Binkowski et al. 2018, arXiv:1801.01401"),
    "image_retrieval_top1": Facts("retrieval of the picture, CLIP, {k}-way", "fraction", "higher", "cosine, top-1"),
    "named_kind": Facts("kind named by the judge", "fraction", "higher", "independent classifier"),
    "named_colour": Facts("colour named by the judge", "fraction", "higher", "independent classifier"),
}
