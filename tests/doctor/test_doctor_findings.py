"""How findings are taken, joined over ranks and printed; and which versions are too old."""

import threading

import pytest
from doctor_runs import plant_version

from ttd import floors
from ttd.checkup.findings import RankReport, combine, look, ok, places, problem, table, warning, worst
from ttd.checkup.world import agreement, bus_bandwidth


def test_a_check_that_hangs_is_a_problem_and_keeps_nobody():
    never = threading.Event()
    finding = look(never.wait, 0.1)
    assert (finding.status, finding.text) == ("problem", "no answer within 0.1 s")


def test_a_check_that_fails_is_a_problem_with_the_first_line_of_its_error():
    def broken():
        raise OSError("the disk is gone\nand more")

    finding = look(broken, 1)
    assert (finding.status, finding.text) == ("problem", "the check failed: OSError: the disk is gone")


def test_the_gravest_status_counts():
    assert worst([]) == "ok"
    assert worst([ok("a"), warning("b", "c")]) == "warning"
    assert worst([problem("a", "b"), ok("c"), warning("d", "e")]) == "problem"


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ({1: "b"}, "rank 1 on b"),
        ({4: "b", 5: "b", 7: "b", 0: "a"}, "rank 0 on a, ranks 4-5, 7 on b"),
        ({r: f"n{r}" for r in range(7)}, "rank 0 on n0, rank 1 on n1, rank 2 on n2, rank 3 on n3 and 3 more hosts"),
        ({r: "a" for r in range(8)}, "all 8 ranks"),
    ],
)
def test_ranks_are_named_with_their_hosts(ranks, words):
    assert places(ranks, 8) == words


def test_ranks_that_say_the_same_share_a_line_and_the_well_are_not_named():
    reports = [
        RankReport(0, "a", {"disk": ok("9.1 GB"), "shards": ok("read")}),
        RankReport(1, "b", {"disk": problem("0.11 GB", "make room"), "shards": ok("read")}),
        RankReport(2, "b", {"disk": problem("0.12 GB", "make room"), "shards": problem("torn", "copy again")}),
    ]
    lines = combine(reports, 3)
    assert [(f.text, f.where) for f in lines["disk"]] == [("0.11 GB", "ranks 1-2 on b")]
    assert [(f.text, f.where) for f in lines["shards"]] == [("torn", "rank 2 on b")]
    assert table(lines).splitlines() == [
        "✗ disk    0.11 GB [ranks 1-2 on b]",
        "          → make room",
        "✗ shards  torn [rank 2 on b]",
        "          → copy again",
    ]


def test_a_report_is_the_same_after_its_way_through_json():
    report = RankReport(1, "b", {"disk": problem("0.1 GB", "make room")}, {"torch": "2.13.0"})
    assert RankReport.from_json(report.to_json()) == report


def test_the_rank_with_another_version_is_named_and_the_majority_is_right():
    reports = [RankReport(r, f"n{r}", {}, {"torch": "2.13.0", "commit": "abc"}) for r in range(3)]
    assert agreement(reports, 3).status == "ok"
    reports[0].facts["torch"] = "2.12.0"
    reports[2].facts.pop("commit")
    assert agreement(reports, 3).text == (
        "rank 0 on n0: torch 2.12.0 (others 2.13.0); rank 2 on n2: commit absent (others abc)"
    )
    assert agreement(reports, 3).status == "problem"


def test_bus_bandwidth_is_that_of_nccl_tests():
    """4 ranks, 1 GB in 1 s: each link carries 2 × 3/4 of it; two ranks exchange it once."""
    assert bus_bandwidth(10**9, 1.0, 4) == 1.5e9
    assert bus_bandwidth(10**9, 0.5, 2) == 2e9


@pytest.mark.parametrize(
    ("package", "version", "cve"),
    [
        ("torch", "2.9.1+cu128", "CVE-2026-24747"),
        ("transformers", "5.9.9", "CVE-2026-9856"),
        ("diffusers", "0.37.1", "CVE-2026-44513"),
    ],
)
def test_a_package_below_its_floor_is_named_with_what_it_allows(package, version, cve, tmp_path, monkeypatch):
    assert floors.too_old() == []
    monkeypatch.syspath_prepend(plant_version(tmp_path, package, version))
    [(text, remedy)] = floors.too_old()
    assert text.startswith(f"{package} {version} is older than ")
    assert cve in text
    assert remedy.startswith(f"pip install --upgrade '{package}>=")


def test_the_floor_itself_is_high_enough(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(plant_version(tmp_path, "torch", "2.10.0"))
    assert floors.too_old() == []


def test_a_version_that_cannot_be_read_is_no_version(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(plant_version(tmp_path, "diffusers", "new"))
    assert floors.too_old()[0][0] == "diffusers: its version cannot be read"


@pytest.mark.parametrize(
    ("running", "newer"),
    [
        ((3, 11, 13), "3.11.14"),
        ((3, 11, 14), ""),
        ((3, 12, 11), "3.12.12"),
        ((3, 13, 5), "3.13.6"),
        ((3, 13, 6), ""),
        ((3, 14, 0), ""),
    ],
)
def test_python_is_safe_from_these_patch_levels(running, newer):
    assert floors.newer_python(running) == newer
