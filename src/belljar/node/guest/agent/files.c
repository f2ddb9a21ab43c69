/* Operations on descriptors and files.
 * Paths below an image's root are opened with RESOLVE_IN_ROOT: the image's links never lead out of it. */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

void set_nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        die("fcntl");
}

/* Close and set to -1. errno is kept: cleanup runs while an error is returned to the caller. */
void close_fd(int *fd)
{
    int error = errno;
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
    errno = error;
}

/* Return the descriptor and set it to -1, so that its former owner does not close it. */
int release_fd(int *fd)
{
    int released = *fd;
    *fd = -1;
    return released;
}

/* Close all descriptors but the standard ones and those in `kept`. Sorts `kept`; -1 in it stands for no descriptor. */
bool close_all_but(int *kept, size_t count)
{
    unsigned from = STDERR_FILENO + 1;
    for (size_t i = 1; i < count; i++)
        for (size_t j = i; j > 0 && kept[j - 1] > kept[j]; j--) {
            int swapped = kept[j];
            kept[j] = kept[j - 1];
            kept[j - 1] = swapped;
        }
    for (size_t i = 0; i < count; i++) {
        if (kept[i] < (int)from)
            continue;
        unsigned next = (unsigned)kept[i];
        if (next > from && syscall(SYS_close_range, from, next - 1, 0) < 0)
            return false;
        from = next + 1;
    }
    return syscall(SYS_close_range, from, ~0U, 0) == 0;
}

/* Write a file that exists; return false with errno. */
bool write_file(const char *path, const char *text)
{
    cleanup_close int fd = open(path, O_WRONLY | O_CLOEXEC);
    return fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
}

/* Return the number after `key` (NULL: the first) in a kernel file; 0 when it cannot be read. */
uint64_t read_number(const char *folder, const char *name, const char *key)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (n <= 0)
        return 0;
    text[n] = 0;
    const char *at = text;
    if (key) {
        at = strstr(text, key);
        if (!at)
            return 0;
        at += strlen(key);
    }
    return strtoull(at, NULL, 10);
}

bool write_number(const char *folder, const char *name, uint64_t number)
{
    char path[64], text[32];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    snprintf(text, sizeof text, "%llu", (unsigned long long)number);
    return write_file(path, text);
}

bool read_fully(int fd, void *data, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = read(fd, (char *)data + done, size - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        done += (size_t)n;
    }
    return true;
}

bool write_fully(int fd, const void *data, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = write(fd, (const char *)data + done, size - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return false;
        done += (size_t)n;
    }
    return true;
}

/* Open a folder below `root`, following links that stay below it. With `create`, create a missing last part. */
int open_below(const char *root, const char *path, bool create)
{
    struct open_how how = {.flags = O_PATH | O_DIRECTORY | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT};
    cleanup_close int top = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (top < 0)
        return -1;
    int folder = (int)syscall(SYS_openat2, top, path, &how, sizeof how);
    const char *last = strrchr(path, '/');
    if (folder >= 0 || errno != ENOENT || !create || !last)
        return folder;
    char above[MAX_LAYER_PATH + 2];
    snprintf(above, sizeof above, "%.*s/", (int)(last - path), path);
    cleanup_close int parent = (int)syscall(SYS_openat2, top, above, &how, sizeof how);
    if (parent < 0 || (mkdirat(parent, last + 1, 0755) < 0 && errno != EEXIST))
        return -1;
    return (int)syscall(SYS_openat2, top, path, &how, sizeof how);
}

/* Return a path of a descriptor's file for calls that take no descriptor. It stays valid when the file is renamed. */
struct fd_path path_of(int fd)
{
    struct fd_path path;
    snprintf(path.text, sizeof path.text, "/proc/self/fd/%d", fd);
    return path;
}

/* Mount on a folder of the image's root, creating the folder if it is missing; return false with errno. */
bool mount_below(const char *source, const char *path, const char *type, unsigned long flags, const char *data)
{
    cleanup_close int folder = open_below("/newroot", path, true);
    return folder >= 0 && mount(source, path_of(folder).text, type, flags, data) == 0;
}
