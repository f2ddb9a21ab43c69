<?php
// Counts the words on standard input: the most frequent first, ties in order of the words.
$words = preg_split('/\s+/', stream_get_contents(STDIN), -1, PREG_SPLIT_NO_EMPTY);
$counts = array_count_values($words);
uksort($counts, fn($a, $b) => $counts[$b] <=> $counts[$a] ?: strcmp($a, $b));
foreach ($counts as $word => $count) {
    echo "$count $word\n";
}
