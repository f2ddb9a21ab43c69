"""Count words: read standard input, print the most frequent words with their counts.

belljar run examples/wordcount.py --stdin README.md
"""

import re
import sys
from collections import Counter

words = re.findall(r"[a-z']+", sys.stdin.read().lower())
for word, count in Counter(words).most_common(10):
    print(f"{count:6} {word}")
