// Counts the words on standard input: the most frequent first, ties in order of the words.
const counts = new Map();
for (const word of require("fs").readFileSync(0, "utf8").split(/\s+/).filter(Boolean)) {
  counts.set(word, (counts.get(word) ?? 0) + 1);
}
const sorted = [...counts].sort(([a, m], [b, n]) => n - m || (a < b ? -1 : 1));
for (const [word, count] of sorted) console.log(`${count} ${word}`);
