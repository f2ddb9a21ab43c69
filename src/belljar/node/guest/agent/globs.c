/* Globs of artifacts: `*` and `?` match within a name, `**` matches any number of names.
 * Matching takes time bounded by the product of the numbers of names, whatever the glob. */
#include "agent.h"

#include <fnmatch.h>
#include <string.h>

enum { MAX_SEGMENT = MAX_PATH_BYTES + 256 };

/* Return the next name in a glob or path, skipping slashes and names that are a single dot. */
static const char *next_segment(const char *at)
{
    for (;;) {
        if (*at == '/')
            at++;
        else if (at[0] == '.' && (at[1] == '/' || at[1] == 0))
            at++;
        else
            return at;
    }
}

static size_t segment_length(const char *at)
{
    return (size_t)(strchrnul(at, '/') - at);
}

static bool is_double_star(const char *glob)
{
    return segment_length(glob) == 2 && memcmp(glob, "**", 2) == 0;
}

/* Match one name with one pattern. musl's fnmatch takes time proportional to the product of their lengths. */
static bool segment_matches(const char *glob, const char *path)
{
    char pattern[MAX_SEGMENT + 1], name[MAX_SEGMENT + 1];
    size_t pattern_length = segment_length(glob), name_length = segment_length(path);
    if (pattern_length > MAX_SEGMENT || name_length > MAX_SEGMENT)
        return false;
    memcpy(pattern, glob, pattern_length);
    pattern[pattern_length] = 0;
    memcpy(name, path, name_length);
    name[name_length] = 0;
    return fnmatch(pattern, name, 0) == 0;
}

/* Return whether the glob matches the path or a folder above it; with `below`, whether it may match below the path.
 *
 * The part after a `**` is tried at each name in turn, and the part after the next `**` only behind the first match: a
 * glob matches everything below a match, so that a later match cannot succeed where the first one fails. */
static bool match(const char *glob, const char *path, bool below)
{
    const char *after_star = NULL, *retry = NULL;
    path = next_segment(path);
    for (;;) {
        glob = next_segment(glob);
        if (*glob == 0)
            return true;
        if (is_double_star(glob)) {
            do
                glob = next_segment(glob + 2);
            while (is_double_star(glob));
            if (below)
                return true;
            if (*glob == 0)
                return *path != 0;
            after_star = glob;
            retry = path;
        }
        if (*path == 0)
            return below;
        if (segment_matches(glob, path)) {
            glob += segment_length(glob);
            path = next_segment(path + segment_length(path));
        } else if (after_star) {
            glob = after_star;
            path = retry = next_segment(retry + segment_length(retry));
        } else {
            return false;
        }
    }
}

bool glob_matches(const char *glob, const char *path)
{
    return match(glob, path, false);
}

bool glob_may_match_below(const char *glob, const char *folder)
{
    return match(glob, folder, true);
}
