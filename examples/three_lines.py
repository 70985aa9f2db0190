"""Purify pictures from Python: python examples/three_lines.py PICTURE OUTPUT."""

import sys

from zipcli import Purifier

purifier = Purifier.from_pretrained(seed=0)
clean = purifier(sys.argv[1])
clean.save(sys.argv[2])
