"""Occlusion on the page: bars where the windows are, a control before onset, a map only of a full cap."""

import json
import re

import numpy as np
import pytest

from ttd.config import UserError
from ttd.pages import occlusion

CAP = ["Fp1", "Fp2", "F3", "F4", "C3", "C4", "P3", "P4", "O1", "O2"]


def entry(drop: float, **more) -> dict:
    return {"value": 0.3 - drop, "drop": drop, "low": drop - 0.02, "high": drop + 0.03, **more}


def content(names: list[str] = CAP, *, early: float = 0.001) -> dict:
    time = [
        entry(early, start_s=-0.1, stop_s=-0.05), entry(-0.004, start_s=-0.05, stop_s=0.0),
        entry(0.02, start_s=0.0, stop_s=0.05), entry(0.12, start_s=0.05, stop_s=0.1),
    ]  # fmt: skip
    electrodes = [entry(0.01 * i, ch_name=name, **{"with": names[:2]}) for i, name in enumerate(names)]
    return {
        "model": "encoder", "metric": "mean_reciprocal_rank", "repetitions": 20, "chance": 0.029, "study": "Simulated",
        "ch_names": names, "intact": {"value": 0.3, "low": 0.27, "high": 0.33}, "time": time, "electrodes": electrodes,
    }  # fmt: skip


def section(folder, what: dict) -> str:
    (folder / "occlusion.json").write_text(json.dumps(what))
    return "\n".join(occlusion.section(folder))


def test_bars_stand_where_the_windows_are_and_those_before_onset_are_grey():
    axis = occlusion.time_figure(content()["time"], "score").axes[0]
    bars = axis.containers[0].patches
    assert [bar.get_x() for bar in bars] == pytest.approx([-100, -50, 0, 50])
    assert [bar.get_height() for bar in bars] == pytest.approx([0.001, -0.004, 0.02, 0.12])
    grey = [bar.get_facecolor() == bars[0].get_facecolor() for bar in bars]
    assert grey == [True, True, False, False]
    assert [text.get_text() for text in axis.get_legend().texts] == ["before onset: control", "after onset"]


def test_lines_reach_from_the_low_to_the_high_end_of_the_interval():
    lines = occlusion.time_figure(content()["time"], "score").axes[0].collections[0].get_segments()
    assert np.array(lines)[-1, :, 1] == pytest.approx([0.10, 0.15])


def test_the_control_is_counted_in_words():
    _, drawn = occlusion.hidden_time(content()["time"], "score")
    assert "which cannot hold the picture: the interval includes 0 in 2 of 2, the largest change is 0.004" in drawn
    _, leaking = occlusion.hidden_time(content(early=0.2)["time"], "score")
    assert "the interval includes 0 in 1 of 2, the largest change is 0.200" in leaking


def test_without_a_window_before_onset_the_lack_of_a_control_is_said():
    assert "so there is no control" in occlusion.hidden_time(content()["time"][2:], "score")[1]


def test_words_and_table_name_the_strongest_window_and_electrodes(tmp_path):
    html = section(tmp_path, content())
    window, electrodes = re.findall(r'alt="([^"]*)"', html)
    assert window == "drop of the mean reciprocal rank by hidden time window; largest 0.120 at 50 to 100 ms, 4 windows"
    assert electrodes == (
        "scalp map of the drop of the mean reciprocal rank by hidden electrode; strongest O2 0.090, O1 0.080, P4 0.070"
    )
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    assert re.findall(r"<td>(.*?)</td>", rows[1]) == ["O2", "Fp1, Fp2", "0.090 [0.070, 0.120]", "30 %"]
    assert len(rows) == 1 + 10
    assert "Of 10 intervals 7 lie above 0 and 0 below; about 0.2 would" in html  # drops of 0.03 to 0.09, less 0.02
    assert "replaced by the mean of the training part" in html
    assert "does not say that the brain holds the picture there" in html


def test_a_small_cap_gets_bars_instead_of_a_map(tmp_path):
    html = section(tmp_path, content(["TP9", "AF7", "AF8", "TP10"]))
    assert "scalp map" not in html
    assert "Too few electrodes for a map." in html


def test_electrodes_without_a_place_are_named_beside_the_map(tmp_path):
    assert "without a known place: E001." in section(tmp_path, content([*CAP, "E001"]))


def test_no_occlusion_is_said_and_a_damaged_file_is_refused(tmp_path):
    assert "occlusion: not run" in occlusion.section(tmp_path)[0]
    with pytest.raises(UserError, match=r"occlusion\.json: lacks intact; run ttd/eval\.py again"):
        section(tmp_path, {name: value for name, value in content().items() if name != "intact"})
    (tmp_path / "occlusion.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        occlusion.section(tmp_path)
