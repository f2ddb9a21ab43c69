-- Counts the words on standard input: the most frequent first, ties in order of the words.
WITH RECURSIVE
    input(text) AS (
        SELECT replace(replace(CAST(readfile('/dev/stdin') AS TEXT), char(10), ' '), char(9), ' ') || ' '
    ),
    split(word, rest) AS (
        SELECT '', text FROM input
        UNION ALL
        SELECT substr(rest, 1, instr(rest, ' ') - 1), substr(rest, instr(rest, ' ') + 1) FROM split WHERE rest <> ''
    )
SELECT count(*) || ' ' || word FROM split WHERE word <> '' GROUP BY word ORDER BY count(*) DESC, word;
