/* Watching a folder by inotify(7), until the input ends. The number of watched folders is bounded; what is lost is
 * reported as an overflow. */
#include "file_operation.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

enum {
    MAX_WATCHES = 4096,
    MAX_EVENTS_SIZE = 64 * 1024,
    REMOVAL_MS = 1000, /* the kernel does not report the removal of a folder that is open, as the watched one is */
};

static const uint32_t wanted = IN_CREATE | IN_MODIFY | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO | IN_ATTRIB |
                               IN_ONLYDIR;

static int inotify_fd;
static bool recursive;
/* A watched folder: its descriptor of inotify, and its path with a slash behind it ("": the first folder). */
static struct {
    int wd;
    char *path;
} watches[MAX_WATCHES];
static size_t watch_count;
static bool reports_new; /* a folder that appears may have entries that nobody has reported */

static int put_event(enum event type, const char *path)
{
    const struct record record = {.kind = RECORD_EVENT, .type = (uint8_t)type, .path = path};
    return put_record(&record);
}

static int find_watch(int wd)
{
    for (size_t i = 0; i < watch_count; i++)
        if (watches[i].wd == wd)
            return (int)i;
    return -1;
}

static void forget_watch(size_t i)
{
    free(watches[i].path);
    watches[i] = watches[--watch_count];
}

/* Watch a folder that is open. Returns 0 or an errno; ENOSPC when there are too many. */
static int add_watch(int folder, const char *path, bool first)
{
    char *text;
    if (watch_count == MAX_WATCHES)
        return ENOSPC;
    int wd = inotify_add_watch(inotify_fd, path_of(folder).text, wanted);
    if (wd < 0)
        return errno;
    int known = find_watch(wd);
    if (known >= 0)
        forget_watch((size_t)known); /* it was moved */
    if (!(text = malloc(strlen(path) + 2)))
        return ENOMEM;
    sprintf(text, "%s%s", path, first ? "" : "/");
    watches[watch_count].wd = wd;
    watches[watch_count++].path = text;
    return 0;
}

static char watch_prefix[MAX_FILE_PATH + 2]; /* path of the folder that is walked, with a slash */

static int watch_below(int folder, const char *name, const char *path, const struct stat *status, enum visit visit)
{
    char text[2 * MAX_FILE_PATH + 2];
    (void)status;
    if (visit == VISIT_AFTER || visit == VISIT_UNREADABLE)
        return 0;
    snprintf(text, sizeof text, "%s%s", watch_prefix, path);
    int error = reports_new ? put_event(EVENT_CREATE, text) : 0;
    if (error || visit != VISIT_FOLDER)
        return error;
    cleanup_close int opened = openat(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    error = opened < 0 ? errno : add_watch(opened, text, false);
    return error == ENOENT || error == ENOTDIR || error == EACCES ? 0 : error;
}

/* Watch a folder that was created or moved here, and everything below it. */
static int watch_new_folder(int root, const char *path)
{
    cleanup_close int folder = open_in_root(root, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    int error = folder < 0 ? errno : add_watch(folder, path, false);
    if (!error && (size_t)snprintf(watch_prefix, sizeof watch_prefix, "%s/", path) >= sizeof watch_prefix)
        error = ENAMETOOLONG;
    if (!error) {
        reports_new = true;
        error = walk(release_fd(&folder), MAX_FOLDERS, watch_below);
    }
    if (error == ENOSPC)
        return put_event(EVENT_OVERFLOW, path);
    return error == ENOENT || error == ENOTDIR || error == EACCES || error == ELOOP ? 0 : error;
}

static void forget_below(const char *path)
{
    size_t length = strlen(path);
    for (size_t i = watch_count; i-- > 0;)
        if (strncmp(watches[i].path, path, length) == 0 && watches[i].path[length] == '/') {
            inotify_rm_watch(inotify_fd, watches[i].wd);
            forget_watch(i);
        }
}

static enum event event_of(uint32_t mask)
{
    return mask & IN_CREATE       ? EVENT_CREATE
           : mask & IN_DELETE     ? EVENT_REMOVE
           : mask & IN_MOVED_FROM ? EVENT_MOVE_FROM
           : mask & IN_MOVED_TO   ? EVENT_MOVE_TO
           : mask & IN_ATTRIB     ? EVENT_ATTRIBUTES
                                  : EVENT_WRITE;
}

static int handle_event(int root, const struct inotify_event *event)
{
    char path[2 * MAX_FILE_PATH];
    int i = find_watch(event->wd);
    if (event->mask & IN_Q_OVERFLOW)
        return put_event(EVENT_OVERFLOW, "");
    if (i < 0)
        return 0;
    if (event->mask & IN_IGNORED) {
        forget_watch((size_t)i);
        return 0;
    }
    if (event->len == 0)
        return 0; /* the folder itself: reported by the folder above */
    snprintf(path, sizeof path, "%s%s", watches[i].path, event->name);
    if (strlen(path) > MAX_FILE_PATH)
        return put_event(EVENT_OVERFLOW, "");
    int error = put_event(event_of(event->mask), path);
    if (error || !recursive || !(event->mask & IN_ISDIR))
        return error;
    if (event->mask & IN_MOVED_FROM)
        forget_below(path);
    return event->mask & (IN_CREATE | IN_MOVED_TO) ? watch_new_folder(root, path) : 0;
}

static int read_events(int root)
{
    static _Alignas(struct inotify_event) char events[MAX_EVENTS_SIZE];
    ssize_t size = read(inotify_fd, events, sizeof events);
    int error = size < 0 && errno != EINTR && errno != EAGAIN ? errno : 0;
    for (ssize_t at = 0; !error && at < size;) {
        const struct inotify_event *event = (const struct inotify_event *)(const void *)(events + at);
        error = handle_event(root, event);
        at += (ssize_t)(sizeof *event + event->len);
    }
    return error ? error : flush_records();
}

static bool is_removed(int folder)
{
    struct stat status;
    return fstat(folder, &status) == 0 && status.st_nlink == 0;
}

/* Watch the folder, and with `recursive` those below it. Returns 0 or an errno. */
static int start_watch(int folder)
{
    int error = add_watch(folder, "", true);
    if (!error && recursive)
        error = walk(openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), MAX_FOLDERS, watch_below);
    if (!error)
        error = put_event(EVENT_READY, "");
    return error ? error : flush_records();
}

/* watch ROOT PATH RECURSIVE */
int watch_path(char **arguments)
{
    cleanup_close int folder = open_path(arguments, O_RDONLY | O_DIRECTORY);
    if (folder < 0 || (inotify_fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK)) < 0)
        return errno;
    recursive = arguments[2][0] == '1';
    int error = start_watch(folder);
    while (!error) {
        struct pollfd fds[2] = {{.fd = inotify_fd, .events = POLLIN}, {.fd = STDIN_FILENO, .events = POLLIN}};
        if (poll(fds, 2, REMOVAL_MS) < 0 && errno != EINTR)
            return errno;
        if (is_removed(folder))
            return ENOENT;
        if (fds[1].revents)
            return 0; /* the host wants no more */
        if (fds[0].revents)
            error = read_events(folder);
    }
    return error;
}
