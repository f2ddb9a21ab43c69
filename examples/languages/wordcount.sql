-- Counts the words on standard input: the most frequent first, ties in order of the words.
CREATE TABLE input(line TEXT);
.mode ascii
.separator "\037" "\n"
.import /dev/stdin input
.mode list

WITH RECURSIVE split(word, rest) AS (
    SELECT '', replace(line, char(9), ' ') || ' ' FROM input
    UNION ALL
    SELECT substr(rest, 1, instr(rest, ' ') - 1), substr(rest, instr(rest, ' ') + 1) FROM split WHERE rest <> ''
)
SELECT count(*) || ' ' || word FROM split WHERE word <> '' GROUP BY word ORDER BY count(*) DESC, word;
