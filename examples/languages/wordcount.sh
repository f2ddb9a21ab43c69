# Counts the words on standard input: the most frequent first, ties in order of the words.
tr -s '[:space:]' '\n' | grep . | LC_ALL=C sort | uniq -c | LC_ALL=C sort -k1,1nr -k2 | while read -r count word; do
    echo "$count $word"
done
