"""Counts the words on standard input: the most frequent first, ties in order of the words."""

import sys
from collections import Counter

counts = Counter(sys.stdin.read().split())
for word, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
    print(count, word)
