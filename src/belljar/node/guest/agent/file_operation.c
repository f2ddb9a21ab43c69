/* The entry to file operations, and the lookup of paths below their root. */
#include "file_operation.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static const struct {
    const char *name;
    int arguments;
    operation *run;
} operations[] = {
    {"read", 4, read_content},     {"write", 5, write_content},     {"stat", 3, stat_path},
    {"list", 3, list_folder},      {"move", 4, move_path},          {"remove", 3, remove_path},
    {"mkdir", 4, make_path},       {"chmod", 3, change_mode},       {"watch", 3, watch_path},
    {"archive", 2, archive_folder}, {"extract", 2, extract_archive}, {"ports", 0, list_ports},
};

/* Run the operation argv[0] with the arguments that follow: the root, a path, numbers and flags. */
int run_file_operation(char **argv)
{
    int count = 0;
    while (argv[count + 1])
        count++;
    signal(SIGPIPE, SIG_IGN);
    for (size_t i = 0; i < sizeof operations / sizeof operations[0]; i++)
        if (strcmp(argv[0], operations[i].name) == 0 && count == operations[i].arguments) {
            int error = operations[i].run(argv + 1);
            int unwritten = flush_records();
            return error ? error : unwritten;
        }
    return EINVAL;
}

/* openat2(2) may fail with EAGAIN when a folder is renamed meanwhile. */
static int open_how(int folder, const char *path, int flags, uint64_t resolve)
{
    struct open_how how = {.flags = (uint64_t)flags | O_CLOEXEC, .resolve = resolve};
    for (int attempt = 0;; attempt++) {
        int fd = (int)syscall(SYS_openat2, folder, path, &how, sizeof how);
        if (fd >= 0 || errno != EAGAIN || attempt == 100)
            return fd;
    }
}

/* Open below the root; every link is followed as if the root were "/". */
int open_in_root(int root, const char *path, int flags)
{
    return open_how(root, *path ? path : "/", flags, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
}

static int open_root(const char *root)
{
    return open_how(AT_FDCWD, root, O_PATH | O_DIRECTORY, RESOLVE_NO_MAGICLINKS);
}

/* Open arguments[1] below the root arguments[0]. */
int open_path(char **arguments, int flags)
{
    cleanup_close int root = open_root(arguments[0]);
    return root < 0 ? -1 : open_in_root(root, arguments[1], flags);
}

/* Open the folder that holds the path's last name, and copy that name (MAX_FILE_NAME + 1 bytes). The name itself may be
 * a link. */
int open_parent(int root, const char *path, char *name)
{
    char folder[MAX_FILE_PATH + 1];
    size_t length = strlen(path);
    while (length > 0 && path[length - 1] == '/')
        length--;
    size_t start = length;
    while (start > 0 && path[start - 1] != '/')
        start--;
    if (length > MAX_FILE_PATH || length - start > MAX_FILE_NAME) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(name, path + start, length - start);
    name[length - start] = 0;
    if (!name[0] || strcmp(name, ".") == 0 || strcmp(name, "..") == 0) {
        errno = EINVAL;
        return -1;
    }
    memcpy(folder, path, start);
    folder[start] = 0;
    return open_in_root(root, folder, O_PATH | O_DIRECTORY);
}

/* Open a regular file that is known by an O_PATH descriptor, and nothing else: opening a FIFO or a device may block or
 * have effects. */
int open_regular(int file, int flags)
{
    struct stat status;
    if (fstat(file, &status) < 0)
        return -1;
    if (!S_ISREG(status.st_mode)) {
        errno = S_ISDIR(status.st_mode) ? EISDIR : S_ISLNK(status.st_mode) ? ELOOP : EOPNOTSUPP;
        return -1;
    }
    return open(path_of(file).text, flags | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
}

/* Create the folders above the path's last name. Returns 0 or an errno. */
int make_parents(int root, const char *path, mode_t mode)
{
    char above[MAX_FILE_PATH + 1], name[MAX_FILE_NAME + 1];
    size_t length = strlen(path);
    if (length > MAX_FILE_PATH)
        return ENAMETOOLONG;
    for (size_t i = 1; i < length; i++) {
        if (path[i] != '/' || path[i - 1] == '/' || path[i + 1 + strspn(path + i + 1, "/")] == 0)
            continue;
        memcpy(above, path, i);
        above[i] = 0;
        cleanup_close int present = open_in_root(root, above, O_PATH | O_DIRECTORY);
        if (present >= 0)
            continue;
        cleanup_close int parent = errno == ENOENT ? open_parent(root, above, name) : -1;
        if (parent < 0 || (mkdirat(parent, name, mode) < 0 && errno != EEXIST))
            return errno;
    }
    return 0;
}
