import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from ttd.config import StoppedError
from ttd.engine.items import Item, ItemsConfig, read_items, run_items

ITEMS = [Item(f"item-{i:02d}", payload=i) for i in range(10)]
FOUR = ItemsConfig(batch_size=4)


class Doubler:
    """Writes 2 × payload and which payloads it was worked on with; fails or signals where told."""

    def __init__(self, bad=(), signal_at=None):
        self.calls: list[list[int]] = []
        self.bad, self.signal_at = set(bad), signal_at

    def __call__(self, batch: list[Item], folders: list[Path]):
        numbers = [item.payload for item in batch]
        self.calls.append(numbers)
        if self.signal_at in numbers:
            os.kill(os.getpid(), signal.SIGTERM)
        for number, folder in zip(numbers, folders, strict=True):
            (folder / "value.txt").write_text(str(2 * number))
            if number in self.bad:
                raise RuntimeError(f"no such thing as {number}")
        return [{"together": numbers} for _ in batch]


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*.txt")}


def test_results_do_not_depend_on_the_world_size(tmp_path, monkeypatch):
    run_items(ITEMS, Doubler(), tmp_path / "one", inputs=1, config=FOUR)
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in (2, 0, 1):
        monkeypatch.setenv("RANK", str(rank))
        result = run_items(ITEMS, Doubler(), tmp_path / "three", inputs=1, config=FOUR)
    keys = [item.key for item in ITEMS]
    assert result.done == keys
    assert read_items(tmp_path / "three", keys) == read_items(tmp_path / "one", keys)
    assert read_items(tmp_path / "one", keys)[5] == {"key": "item-05", "together": [4, 5, 6, 7]}
    assert (
        tree(tmp_path / "three") == tree(tmp_path / "one") == {f"item-{i:02d}/value.txt": str(2 * i) for i in range(10)}
    )


def test_a_stopped_run_goes_on_where_it_was(tmp_path):
    with pytest.raises(StoppedError, match="stopped with 2 of 10 items left"):
        run_items(ITEMS, Doubler(signal_at=5), tmp_path, inputs=1, config=FOUR)
    work = Doubler()
    assert run_items(ITEMS, work, tmp_path, inputs=1, config=FOUR).made == 2
    assert work.calls == [[8, 9]]


def test_a_killed_item_leaves_nothing_that_counts(tmp_path):
    half = tmp_path / ".item-03.host.1"
    half.mkdir()
    (half / "value.txt").write_text("half")
    (tmp_path / "item-04").mkdir()  # without a status: not a result
    run_items(ITEMS, Doubler(), tmp_path, inputs=1, config=FOUR)
    assert not half.exists()
    assert tree(tmp_path)["item-04/value.txt"] == "8"


def test_failed_items_are_recorded_counted_and_tried_again(tmp_path):
    work = Doubler(bad={6})
    result = run_items(ITEMS, work, tmp_path, inputs=1, config=FOUR)
    assert result.failed == {"item-06": "RuntimeError: no such thing as 6"}
    assert len(result.done) == 9
    assert result.summary() == "9 items done, 1 failed\n  item-06: RuntimeError: no such thing as 6"
    assert work.calls == [[0, 1, 2, 3], [4, 5, 6, 7], [4], [5], [6], [7], [8, 9]]
    assert "no such thing" in json.loads((tmp_path / "item-06/status.json").read_text())["trace"]
    work = Doubler()
    assert run_items(ITEMS, work, tmp_path, inputs=1, config=FOUR).failed == {}
    assert work.calls == [[4, 5, 6, 7]]


def test_other_inputs_make_an_item_again(tmp_path):
    run_items(ITEMS, Doubler(), tmp_path, inputs=1, config=FOUR)
    assert run_items(ITEMS, Doubler(), tmp_path, inputs=1, config=FOUR).made == 0
    assert run_items(ITEMS, Doubler(), tmp_path, inputs=2, config=FOUR).made == 10


def test_two_claimers_share_the_work_and_a_dead_one_is_taken_over(tmp_path):
    claims = tmp_path / ".claims"
    claims.mkdir()
    dead = claims / "000001"
    dead.touch()
    os.utime(dead, (0, 0))
    config = ItemsConfig(batch_size=2, schedule="claimed", stale_after_s=5)
    works, results = [Doubler(), Doubler()], []

    def slowly(work):
        def run(batch, folders):
            time.sleep(0.02)
            return work(batch, folders)

        return run

    threads = [
        threading.Thread(
            target=lambda w=w: results.append(run_items(ITEMS, slowly(w), tmp_path, inputs=1, config=config))
        )
        for w in works
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(r.done) for r in results] == [10, 10]
    assert sorted(works[0].calls + works[1].calls) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


def test_keys_that_clash_or_leave_the_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"items share a key: \['a'\]"):
        run_items([Item("a"), Item("a")], Doubler(), tmp_path, inputs=1)
    with pytest.raises(ValueError, match=r"'\.\./a' is not a plain file name"):
        run_items([Item("../a")], Doubler(), tmp_path, inputs=1)
