/* Small operations on descriptors and files. */
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

/* errno stays as it is: this runs where an error is on its way to the caller. */
void close_fd(int *fd)
{
    int error = errno;
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
    errno = error;
}

/* The descriptor, which its former owner closes no more. */
int take_fd(int *fd)
{
    int taken = *fd;
    *fd = -1;
    return taken;
}

/* Close all descriptors but the standard ones and those in `kept`, which is sorted by this; -1 stands for none. */
bool close_all_but(int *kept, size_t count)
{
    unsigned from = STDERR_FILENO + 1;
    for (size_t i = 1; i < count; i++)
        for (size_t j = i; j > 0 && kept[j - 1] > kept[j]; j--) {
            int other = kept[j];
            kept[j] = kept[j - 1];
            kept[j - 1] = other;
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

bool write_file(const char *path, const char *text)
{
    cleanup_close int fd = open(path, O_WRONLY | O_CLOEXEC);
    return fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
}

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

/* A folder of the image, wherever its own links lead, but never out of `root`; made if only its last part is missing. */
int open_below(const char *root, const char *path, bool make)
{
    struct open_how how = {.flags = O_PATH | O_DIRECTORY | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT};
    cleanup_close int top = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (top < 0)
        return -1;
    int folder = (int)syscall(SYS_openat2, top, path, &how, sizeof how);
    const char *last = strrchr(path, '/');
    if (folder >= 0 || errno != ENOENT || !make || !last)
        return folder;
    char above[MAX_LAYER_PATH + 2];
    snprintf(above, sizeof above, "%.*s/", (int)(last - path), path);
    cleanup_close int parent = (int)syscall(SYS_openat2, top, above, &how, sizeof how);
    if (parent < 0 || (mkdirat(parent, last + 1, 0755) < 0 && errno != EEXIST))
        return -1;
    return (int)syscall(SYS_openat2, top, path, &how, sizeof how);
}

/* The path of a descriptor's file, for calls that take no descriptor: what it was opened as, whatever has its name now. */
struct fd_path path_of(int fd)
{
    struct fd_path path;
    snprintf(path.text, sizeof path.text, "/proc/self/fd/%d", fd);
    return path;
}

/* Mount on a folder of the image's root, made if it is missing; false with errno when that cannot be. */
bool mount_below(const char *source, const char *path, const char *type, unsigned long flags, const char *data)
{
    cleanup_close int folder = open_below("/newroot", path, true);
    return folder >= 0 && mount(source, path_of(folder).text, type, flags, data) == 0;
}
