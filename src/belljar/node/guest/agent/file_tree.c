/* Names in folders: look at them, list them, move, remove and make them. No link is followed but on the way to the path
 * that the host names. */
#include "file_operation.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Put an entry; of a link also where it leads. */
static int put_entry(int folder, const char *name, const char *path, const struct stat *status, bool unreadable)
{
    char target[MAX_FILE_PATH + 1];
    ssize_t length = 0;
    if (S_ISLNK(status->st_mode) && (length = readlinkat(folder, name, target, MAX_FILE_PATH)) < 0)
        length = 0; /* replaced meanwhile */
    target[length] = 0;
    struct record entry = record_of(status, path, target);
    if (unreadable)
        entry.kind = RECORD_UNREADABLE;
    return put_record(&entry);
}

/* stat ROOT PATH FOLLOW */
int stat_path(char **arguments)
{
    struct stat status;
    cleanup_close int file = open_path(arguments, O_PATH | (arguments[2][0] == '1' ? 0 : O_NOFOLLOW));
    if (file < 0 || fstat(file, &status) < 0)
        return errno;
    return put_entry(file, "", arguments[1], &status, false);
}

/* The walk over a tree: the path of the visited entry, relative to the first folder. */
static char walk_path[MAX_FILE_PATH + 1];

static int join(size_t folder_length, const char *name)
{
    size_t length = strlen(name);
    if (folder_length + length + 1 > MAX_FILE_PATH)
        return ENAMETOOLONG;
    memcpy(walk_path + folder_length, name, length + 1);
    return 0;
}

static bool is_dot(const char *name)
{
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

static int walk_folder(DIR *entries, size_t length, unsigned depth, visit_entry *visit);

static int walk_into(int folder, const char *name, unsigned depth, visit_entry *visit, const struct stat *status)
{
    int fd = openat(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *entries = fd < 0 ? NULL : fdopendir(fd);
    if (!entries) {
        int error = errno == ENOENT || errno == ENOTDIR ? 0 : visit(folder, name, walk_path, status, VISIT_UNREADABLE);
        close_fd(&fd);
        return error;
    }
    int error = visit(folder, name, walk_path, status, VISIT_FOLDER);
    size_t length = strlen(walk_path);
    if (!error && (error = join(length, "/")) == 0)
        error = walk_folder(entries, length + 1, depth, visit);
    walk_path[length] = 0;
    closedir(entries);
    return error ? error : visit(folder, name, walk_path, status, VISIT_AFTER);
}

static int walk_entry(int folder, const char *name, unsigned depth, visit_entry *visit)
{
    struct stat status;
    if (fstatat(folder, name, &status, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT ? 0 : errno; /* removed meanwhile */
    if (!S_ISDIR(status.st_mode) || depth == 0)
        return visit(folder, name, walk_path, &status, VISIT_FILE);
    return walk_into(folder, name, depth, visit, &status);
}

static int walk_folder(DIR *entries, size_t length, unsigned depth, visit_entry *visit)
{
    const struct dirent *entry;
    int error = 0;
    while (!error && (errno = 0, entry = readdir(entries))) {
        if (is_dot(entry->d_name))
            continue;
        error = join(length, entry->d_name);
        if (!error)
            error = walk_entry(dirfd(entries), entry->d_name, depth - 1, visit);
    }
    return error ? error : entry ? 0 : errno;
}

/* Visit everything below a folder, to that depth (1: its entries). Takes over the descriptor. Returns 0 or an errno. */
int walk(int folder, unsigned depth, visit_entry *visit)
{
    DIR *entries = folder < 0 ? NULL : fdopendir(folder);
    if (!entries)
        return errno;
    walk_path[0] = 0;
    int error = walk_folder(entries, 0, depth, visit);
    closedir(entries);
    return error;
}

static int list_entry(int folder, const char *name, const char *path, const struct stat *status, enum visit visit)
{
    return visit == VISIT_AFTER ? 0 : put_entry(folder, name, path, status, visit == VISIT_UNREADABLE);
}

/* list ROOT PATH DEPTH */
int list_folder(char **arguments)
{
    unsigned long depth = strtoul(arguments[2], NULL, 10);
    if (depth == 0 || depth > MAX_FOLDERS)
        return EINVAL;
    return walk(open_path(arguments, O_RDONLY | O_DIRECTORY), (unsigned)depth, list_entry);
}

static int remove_entry(int folder, const char *name, const char *path, const struct stat *status, enum visit visit)
{
    (void)path;
    if (visit == VISIT_FOLDER)
        return 0;
    /* An unreadable folder may be empty. */
    int flags = S_ISDIR(status->st_mode) ? AT_REMOVEDIR : 0;
    return unlinkat(folder, name, flags) < 0 && errno != ENOENT ? errno : 0;
}

/* remove ROOT PATH RECURSIVE */
int remove_path(char **arguments)
{
    char name[MAX_FILE_NAME + 1];
    struct stat status;
    char *here[2] = {arguments[0], (char[]){"/"}};
    cleanup_close int root = open_path(here, O_PATH | O_DIRECTORY);
    cleanup_close int parent = root < 0 ? -1 : open_parent(root, arguments[1], name);
    if (parent < 0 || fstatat(parent, name, &status, AT_SYMLINK_NOFOLLOW) < 0)
        return errno;
    if (!S_ISDIR(status.st_mode))
        return unlinkat(parent, name, 0) < 0 ? errno : 0;
    if (arguments[2][0] == '1') {
        int error = walk(openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), MAX_FOLDERS,
                         remove_entry);
        if (error)
            return error;
    }
    return unlinkat(parent, name, AT_REMOVEDIR) < 0 ? errno : 0;
}

/* move ROOT PATH DESTINATION REPLACE */
int move_path(char **arguments)
{
    enum { NO_REPLACE = 1 }; /* RENAME_NOREPLACE of linux/fs.h */
    char name[MAX_FILE_NAME + 1], new_name[MAX_FILE_NAME + 1];
    char *here[2] = {arguments[0], (char[]){"/"}};
    cleanup_close int root = open_path(here, O_PATH | O_DIRECTORY);
    cleanup_close int from = root < 0 ? -1 : open_parent(root, arguments[1], name);
    cleanup_close int to = from < 0 ? -1 : open_parent(root, arguments[2], new_name);
    if (to < 0)
        return errno;
    unsigned flags = arguments[3][0] == '1' ? 0 : NO_REPLACE;
    return syscall(SYS_renameat2, from, name, to, new_name, flags) < 0 ? errno : 0;
}

/* mkdir ROOT PATH MODE PARENTS */
int make_path(char **arguments)
{
    char name[MAX_FILE_NAME + 1];
    mode_t mode = (mode_t)strtoul(arguments[2], NULL, 10) & 0777;
    char *here[2] = {arguments[0], (char[]){"/"}};
    cleanup_close int root = open_path(here, O_PATH | O_DIRECTORY);
    int error = root < 0 ? errno : arguments[3][0] == '1' ? make_parents(root, arguments[1], 0755) : 0;
    if (error)
        return error;
    cleanup_close int parent = open_parent(root, arguments[1], name);
    umask(0);
    return parent < 0 || mkdirat(parent, name, mode) < 0 ? errno : 0;
}

/* chmod ROOT PATH MODE */
int change_mode(char **arguments)
{
    mode_t mode = (mode_t)strtoul(arguments[2], NULL, 10) & 07777;
    cleanup_close int file = open_path(arguments, O_PATH);
    return file < 0 || chmod(path_of(file).text, mode) < 0 ? errno : 0;
}
