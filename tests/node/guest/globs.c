/* Reads lines of a glob, a tab and a path; prints for each whether it matches, and whether it may match below. */
#include "agent.h"

#include <stdio.h>
#include <string.h>

int main(void)
{
    static char line[8192];
    while (fgets(line, sizeof line, stdin)) {
        char *path = strchr(line, '\t');
        if (!path)
            return 2;
        *path++ = 0;
        path[strcspn(path, "\n")] = 0;
        printf("%d %d\n", glob_matches(line, path), glob_may_match_below(line, path));
    }
    return 0;
}
