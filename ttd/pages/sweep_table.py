"""The table of a sweep: every setting with interval, spread over seeds and control, and every difference with its interval.

``table.json`` holds the figures, ``table.md`` is the same for people. Keys of scores are repetitions/ways/top, and the same
with /control for predictions paired with wrong pictures.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from ttd.config import write_json
from ttd.experiments.sweep import LEFT_OUT, WITHIN, Encoder, SweepConfig
from ttd.metrics.comparison import Figure, difference, figure, joined
from ttd.metrics.retrieval import chance

Tables = dict[tuple[str, str], dict[int, list[dict[str, np.ndarray]]]]
"""(setting, mode) → seed → the scores of its fits, each on other subjects."""
MEANING = {
    WITHIN: "One model of all subjects, tested on pictures that nobody saw in training.",
    LEFT_OUT: "For each subject a model that has seen no trial of it with its picture, neither in training nor in "
    "selection; tested on pictures that nobody saw in training.",
}
WHITENED = (
    " The channels are whitened by the subject's own training recordings, of which is known which trials repeat a picture, "
    "not which picture."
)


def write_comparison(
    config: SweepConfig, tables: Tables, cpu: dict[tuple[str, str], list[float]], facts: dict[str, Any]
) -> None:
    """Write ``table.json`` and ``table.md``, each whole or absent.

    Args:
        tables: scores of every setting and mode.
        cpu: CPU seconds of each fit that was a process of its own.
        facts: about the test part.
    """
    stacked = {what: stack(seeds) for what, seeds in tables.items()}
    drawn = {"seed": config.bootstrap_seed, "n_resamples": config.n_resamples}
    figures = [
        {"setting": name, "mode": mode, "key": key, "seeds": len(scores), **asdict(figure(scores, **drawn))}
        for (name, mode), keys in stacked.items()
        for key, scores in keys.items()
    ]
    others = [(name, config.reference) for name in config.settings if name != config.reference]
    differences = []
    for a, b in dict.fromkeys([*others, *config.pairs]):
        for mode in (WITHIN, LEFT_OUT):
            if (a, mode) in stacked and (b, mode) in stacked:
                keys = [key for key in stacked[a, mode] if not key.endswith("/control")]
                differences += [
                    {"first": a, "second": b, "mode": mode, "key": key}
                    | asdict(difference(stacked[a, mode][key], stacked[b, mode][key], **drawn))
                    for key in keys
                ]
    seconds = [
        {"setting": name, "mode": mode, "fits": len(s), "mean": round(float(np.mean(s)), 1), "total": round(sum(s), 1)}
        for (name, mode), s in cpu.items()
    ]
    content = {**facts, "figures": figures, "differences": differences, "cpu_s": seconds}
    write_json(config.output_dir / "table.json", content)
    aside = config.output_dir / ".table.md"
    aside.write_text(markdown(config, content))
    aside.replace(config.output_dir / "table.md")


def stack(seeds: dict[int, list[dict[str, np.ndarray]]]) -> dict[str, list[np.ndarray]]:
    """One table [S, M] per seed for every key."""
    keys = next(iter(seeds.values()))[0]
    return {key: [joined([scores[key] for scores in fits]) for fits in seeds.values()] for key in keys}


def markdown(config: SweepConfig, content: dict[str, Any]) -> str:
    """All figures, mode by mode, then the differences, then what they cost."""
    simulated = " (simulated study)" if content["simulated"] else ""
    head = (
        f"# Retrieval on {content['study']}{simulated}: {len(content['subjects'])} subjects, {content['pictures']} test "
        f"pictures, {content['channels']} channels\n\n"
        "Mean over subjects and seeds [95 % bootstrap over pictures] ± standard deviation over seeds; states selected on the "
        "validation part. Control: the same predictions paired with wrong pictures."
    )
    parts, modes = [head], [m for m in (WITHIN, LEFT_OUT) if any(f["mode"] == m for f in content["figures"])]
    keys = list(dict.fromkeys(f["key"] for f in content["figures"] if not f["key"].endswith("/control")))
    measures = list(dict.fromkeys(tuple(key.split("/")[1:]) for key in keys))
    titles = [f"{ways}-way top-{k} (chance {chance(ways=int(ways), k=int(k)):.3f})" for ways, k in measures]
    for mode in modes:
        note = WHITENED if mode == LEFT_OUT and content["normalise"] == "subject" else ""
        found = {(f["setting"], f["key"]): f for f in content["figures"] if f["mode"] == mode}
        lines = []
        for n in content["repetitions"]:
            for name in (name for name in config.settings if (name, keys[0]) in found):
                row = [found[name, f"{n}/{ways}/{k}"] for ways, k in measures]
                control = found[name, f"{n}/{measures[0][0]}/{measures[0][1]}/control"]
                lines.append([str(n), name, str(row[0]["seeds"]), *map(shown, row), shown(control)])
        header = ["repetitions", "model", "seeds", *titles, f"control, {measures[0][0]}-way top-{measures[0][1]}"]
        parts += [f"## {mode.capitalize()}", MEANING[mode] + note, rows(header, lines)]
    parts += ["## Differences", "Picture by picture, averaged over seeds; bold: the interval excludes 0."]
    lines = []
    for mode in modes:
        pairs = {(d["first"], d["second"], d["key"]): d for d in content["differences"] if d["mode"] == mode}
        for a, b in dict.fromkeys((first, second) for first, second, _ in pairs):
            for n in content["repetitions"]:
                row = [pairs[a, b, f"{n}/{ways}/{k}"] for ways, k in measures]
                lines.append([mode, f"{a} − {b}", str(n), *map(signed, row)])
    parts.append(rows(["mode", "models", "repetitions", *(t.split(" (")[0] for t in titles)], lines))
    lines = [
        [s["setting"], s["mode"], str(s["fits"]), f"{s['mean']:.0f}", f"{s['total']:.0f}"] for s in content["cpu_s"]
    ]
    parts += ["## CPU seconds", rows(["model", "mode", "fits", "per fit", "together"], lines)]
    unequal = [n for n, s in config.settings.items() if isinstance(s, Encoder) and s.seeds not in (None, config.seeds)]
    if unequal:
        parts.append(f"Other seeds than the rest, as the configuration asks: {', '.join(unequal)}.")
    return "\n\n".join(parts) + "\n"


def shown(f: dict[str, Any]) -> str:
    spread = "" if f["sd"] is None else f" ± {f['sd']:.3f}"
    return f"{f['value']:.3f} [{f['low']:.3f}, {f['high']:.3f}]{spread}"


def signed(f: dict[str, Any]) -> str:
    text = f"{f['value']:+.3f} [{f['low']:+.3f}, {f['high']:+.3f}]"
    return f"**{text}**" if Figure(f["value"], f["low"], f["high"], None).excludes_zero else text


def rows(header: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *lines])
