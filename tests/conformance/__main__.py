"""`python -m tests.conformance COUNT SEED`: compare more cases with the SDK than the tests do."""

from __future__ import annotations

import sys

from tests.conformance.comparison import compare

if __name__ == "__main__":
    count, seed = (int(argument) for argument in sys.argv[1:3])
    compared, found = compare(seed, count)
    sys.stdout.write("\n".join([*found, f"{compared} cases compared, {len(found)} differences"]) + "\n")
    sys.exit(bool(found))
