/* Small operations on descriptors and files. */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

void set_nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        die("fcntl");
}

void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

bool write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    bool ok = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    close(fd);
    return ok;
}

uint64_t read_number(const char *folder, const char *name, const char *key)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
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
    int top = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (top < 0)
        return -1;
    int folder = (int)syscall(SYS_openat2, top, path, &how, sizeof how);
    const char *last = strrchr(path, '/');
    if (folder < 0 && errno == ENOENT && make && last) {
        char above[MAX_LAYER_PATH + 2];
        snprintf(above, sizeof above, "%.*s/", (int)(last - path), path);
        int parent = (int)syscall(SYS_openat2, top, above, &how, sizeof how);
        if (parent >= 0 && mkdirat(parent, last + 1, 0755) == 0)
            folder = (int)syscall(SYS_openat2, top, path, &how, sizeof how);
        close_fd(&parent);
    }
    int error = errno;
    close(top);
    errno = error;
    return folder;
}
