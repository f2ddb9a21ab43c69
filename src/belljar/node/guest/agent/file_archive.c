/* A folder's tree as records, with the bytes of its files, and back. The host makes the archive of the records, and the
 * records of an archive: no archive format is parsed here. */
#include "file_operation.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static uint8_t piece[64 * 1024];

/* Put the announced number of bytes. A file that has become shorter is an error, one that has grown is cut. */
static int put_content(int file, uint64_t left)
{
    while (left > 0) {
        ssize_t n = read(file, piece, left < sizeof piece ? (size_t)left : sizeof piece);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? errno : ESTALE;
        int error = put_bytes(piece, (size_t)n);
        if (error)
            return error;
        left -= (uint64_t)n;
    }
    return 0;
}

static int put_file(int folder, const char *name, const char *path)
{
    struct stat status;
    cleanup_close int named = openat(folder, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (named < 0 && errno == ENOENT)
        return 0; /* removed meanwhile */
    cleanup_close int file = named < 0 ? -1 : open_regular(named, O_RDONLY);
    if (file < 0 || fstat(file, &status) < 0)
        return errno;
    struct record entry = record_of(&status, path, NULL);
    int error = put_record(&entry);
    return error ? error : put_content(file, entry.size);
}

/* Files, folders and links; sockets, FIFOs and devices are left out, as only their owner can use them. */
static int archive_entry(int folder, const char *name, const char *path, const struct stat *status, enum visit visit)
{
    char target[MAX_FILE_PATH + 1];
    if (visit == VISIT_UNREADABLE)
        return EACCES;
    if (visit == VISIT_AFTER || (visit == VISIT_FILE && S_ISDIR(status->st_mode)))
        return visit == VISIT_AFTER ? 0 : ELOOP; /* deeper than MAX_FOLDERS */
    if (S_ISREG(status->st_mode))
        return put_file(folder, name, path);
    if (!S_ISDIR(status->st_mode) && !S_ISLNK(status->st_mode))
        return 0;
    ssize_t length = S_ISLNK(status->st_mode) ? readlinkat(folder, name, target, MAX_FILE_PATH) : 0;
    if (length < 0)
        return errno == ENOENT ? 0 : errno;
    target[length] = 0;
    struct record entry = record_of(status, path, target);
    return put_record(&entry);
}

/* archive ROOT PATH */
int archive_folder(char **arguments)
{
    const struct record end = {.kind = RECORD_END};
    int error = walk(open_path(arguments, O_RDONLY | O_DIRECTORY), MAX_FOLDERS, archive_entry);
    return error ? error : put_record(&end);
}

static int get_content(int file, uint64_t left)
{
    while (left > 0) {
        size_t size = left < sizeof piece ? (size_t)left : sizeof piece;
        if (!read_fully(STDIN_FILENO, piece, size))
            return ECANCELED;
        if (!write_fully(file, piece, size))
            return errno;
        left -= size;
    }
    return 0;
}

static struct timespec modified(const struct record *entry)
{
    return (struct timespec){(time_t)(entry->modified_ns / 1000000000), (long)(entry->modified_ns % 1000000000)};
}

static int extract_file(int parent, const char *name, const struct record *entry)
{
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, modified(entry)};
    if (unlinkat(parent, name, 0) < 0 && errno != ENOENT)
        return errno;
    cleanup_close int file = openat(parent, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (file < 0)
        return errno;
    int error = get_content(file, entry->size);
    return error ? error : fchmod(file, entry->mode & 0777) < 0 || futimens(file, times) < 0 ? errno : 0;
}

/* A folder that exists is kept, a link to one is not followed. Its owner may always write into it. */
static int extract_folder(int parent, const char *name, const struct record *entry)
{
    if (mkdirat(parent, name, 0700) < 0 && errno != EEXIST)
        return errno;
    cleanup_close int folder = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return folder < 0 || fchmod(folder, (entry->mode & 0777) | 0700) < 0 ? errno : 0;
}

/* A hard link's target is a path in the same archive. */
static int extract_hard_link(int root, int parent, const char *name, const struct record *entry)
{
    char target_name[MAX_FILE_NAME + 1];
    cleanup_close int target_parent = open_parent(root, entry->target, target_name);
    if (target_parent < 0 || (unlinkat(parent, name, 0) < 0 && errno != ENOENT))
        return errno;
    return linkat(target_parent, target_name, parent, name, 0) < 0 ? errno : 0;
}

static int extract_entry(int root, const struct record *entry)
{
    char name[MAX_FILE_NAME + 1];
    int error = make_parents(root, entry->path, 0755);
    cleanup_close int parent = error ? -1 : open_parent(root, entry->path, name);
    if (parent < 0)
        return error ? error : errno;
    switch (entry->type) {
    case 'f':
        return extract_file(parent, name, entry);
    case 'd':
        return extract_folder(parent, name, entry);
    case 'l':
        if (unlinkat(parent, name, 0) < 0 && errno != ENOENT)
            return errno;
        return symlinkat(entry->target, parent, name) < 0 ? errno : 0;
    case 'h':
        return extract_hard_link(root, parent, name, entry);
    default:
        return EINVAL;
    }
}

/* extract ROOT PATH: the input is records and bytes. The folder itself is the root of every path in them. */
int extract_archive(char **arguments)
{
    static char path[MAX_FILE_PATH + 1], target[MAX_FILE_PATH + 1];
    struct record entry;
    cleanup_close int folder = open_path(arguments, O_PATH | O_DIRECTORY);
    int error = folder < 0 ? errno : 0;
    while (!error) {
        error = get_record(&entry, path, target);
        if (!error && entry.kind == RECORD_END)
            return 0;
        if (!error)
            error = entry.kind == RECORD_ENTRY ? extract_entry(folder, &entry) : EINVAL;
    }
    return error;
}
