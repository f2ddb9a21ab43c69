/* Counts the words on standard input: the most frequent first, ties in order of the words. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct entry {
    char *word;
    long count;
};

static int by_count(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    if (x->count != y->count)
        return x->count > y->count ? -1 : 1;
    return strcmp(x->word, y->word);
}

int main(void)
{
    struct entry *entries = NULL;
    size_t used = 0, room = 0;
    char word[256];
    while (scanf("%255s", word) == 1) {
        size_t at = 0;
        while (at < used && strcmp(entries[at].word, word) != 0)
            at++;
        if (at == used) {
            if (used == room) {
                room = room ? 2 * room : 64;
                entries = realloc(entries, room * sizeof *entries);
            }
            entries[used++] = (struct entry){strdup(word), 0};
        }
        entries[at].count++;
    }
    qsort(entries, used, sizeof *entries, by_count);
    for (size_t at = 0; at < used; at++)
        printf("%ld %s\n", entries[at].count, entries[at].word);
}
