"""Print what THINGS-EEG1 and THINGS-EEG2 have in common, and write the lists of concepts to leave out.

    python shards/leak_table.py lists=FOLDER
    python shards/leak_table.py lists=FOLDER splits=configs/splits

A model that is tested on one study and trained on the other must not see these pictures, nor pictures of these concepts.
"""

from __future__ import annotations

from ttd.config import run
from ttd.data.overlap import LeakTableConfig, concept_lists, leak_table, read_lists, write_lists


def main(config: LeakTableConfig) -> None:
    """The table, one line per list and part; then the lists of concepts."""
    lists = read_lists(config.lists)
    for line in leak_table(lists):
        found = f"{line.shared:,} of {line.n:,} ({line.trials:,} trials of each subject)"
        print(f"{line.what} in {line.within}: {found}")
    for name, (about, concepts) in concept_lists(lists).items():
        print(f"{name}.json: {about}: {len(concepts)}")
    if config.splits is not None:
        write_lists(lists, config.splits)


if __name__ == "__main__":
    run(main, LeakTableConfig, doc=__doc__)
