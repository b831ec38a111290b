"""`python -m tests.scenarios --rewrite`: write what the scenarios print now; look at the diff before committing it."""

from __future__ import annotations

import argparse
import sys

from tests.scenarios.script import files, replay


def main() -> int:
    """Exit code 1 when a file differs and is not to be rewritten."""
    parser = argparse.ArgumentParser(prog="python -m tests.scenarios", description=__doc__)
    parser.add_argument("--rewrite", action="store_true", help="write the outputs into the files")
    rewrite = parser.parse_args().rewrite
    changed = []
    for path in files():
        before = path.read_text()
        after = replay(before)
        if before != after:
            changed.append(path.name)
            if rewrite:
                path.write_text(after)
    print(f"{len(changed)} of {len(files())} scenarios {'rewritten' if rewrite else 'differ'}", *changed)
    return 1 if changed and not rewrite else 0


if __name__ == "__main__":
    sys.exit(main())
