/* Artifacts: what the job wrote below its working folder, when nobody is left to change it. */
#include "agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <poll.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Whether `path` or a folder above it matches `glob`: `*` and `?` stay within a name, `**` spans any number of them. */
static bool glob_matches(const char *glob, const char *path)
{
    const char *slash = strchrnul(glob, '/');
    size_t length = (size_t)(slash - glob);
    if (length == 2 && memcmp(glob, "**", 2) == 0) {
        if (!*slash)
            return true;
        for (const char *rest = path; rest; rest = strchr(rest, '/') ? strchr(rest, '/') + 1 : NULL)
            if (glob_matches(slash + 1, rest))
                return true;
        return false;
    }
    char pattern[MAX_PATH_BYTES + 1], name[MAX_PATH_BYTES + 1];
    const char *end = strchrnul(path, '/');
    if (length >= sizeof pattern || (size_t)(end - path) >= sizeof name)
        return false;
    memcpy(pattern, glob, length);
    pattern[length] = 0;
    memcpy(name, path, (size_t)(end - path));
    name[end - path] = 0;
    if (fnmatch(pattern, name, 0) != 0)
        return false;
    if (!*slash || !slash[1])
        return true; /* the glob is used up: the file itself, or one below a folder that it names */
    return *end && glob_matches(slash + 1, end + 1);
}

static bool wanted(const char *path)
{
    for (size_t i = 0; i < agent.glob_count; i++)
        if (glob_matches(agent.globs[i], path))
            return true;
    return false;
}

/* Let the host's frames in and ours out until output has room and credit. */
static void wait_for_credit(void)
{
    while (agent.credit[ARTIFACTS] == 0 || !output_room(CHUNK)) {
        struct pollfd port = {.fd = agent.port, .events = POLLIN | (agent.out_len ? POLLOUT : 0)};
        if (poll(&port, 1, agent.silence_ms ? (int)agent.silence_ms : -1) == 0)
            end_machine();
        if (port.revents & POLLOUT)
            flush_out();
        if (port.revents & (POLLIN | POLLHUP | POLLERR))
            read_port();
    }
}

/* Send exactly `size` bytes; a file that is shorter than it said is filled up with zeros. */
static void send_artifact_data(int fd, uint64_t size)
{
    while (size > 0) {
        wait_for_credit();
        size_t most = size < CHUNK ? (size_t)size : CHUNK;
        most = agent.credit[ARTIFACTS] < most ? (size_t)agent.credit[ARTIFACTS] : most;
        uint8_t *p = output_room(CHUNK);
        ssize_t n = read(fd, p + HEADER_SIZE, most);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            memset(p + HEADER_SIZE, 0, most);
            n = (ssize_t)most;
        }
        put_header(p, (uint32_t)n, ARTIFACT_DATA, NONE);
        agent.out_len += HEADER_SIZE + (size_t)n;
        agent.credit[ARTIFACTS] -= (uint64_t)n;
        size -= (uint64_t)n;
        flush_out();
    }
}

static void send_artifact(int folder, const char *name, const char *path)
{
    int fd = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    struct stat status;
    size_t path_length = strlen(path);
    if (fd < 0 || fstat(fd, &status) < 0 || !S_ISREG(status.st_mode) || agent.collect_count_left == 0 ||
        (uint64_t)status.st_size > agent.collect_bytes_left) {
        agent.skipped++;
        close_fd(&fd);
        return;
    }
    agent.collect_count_left--;
    agent.collect_bytes_left -= (uint64_t)status.st_size;
    agent.collected++;
    uint8_t payload[12 + MAX_PATH_BYTES];
    put_u64(payload, (uint64_t)status.st_size);
    put_u32(payload + 8, status.st_mode & 0777);
    memcpy(payload + 12, path, path_length);
    send_control(ARTIFACT, payload, 12 + path_length);
    send_artifact_data(fd, (uint64_t)status.st_size);
    close(fd);
}

static bool is_dot(const char *name)
{
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

/* Walk the folder `fd`, whose path below the working folder is the first `length` bytes of `path`. Links are not
 * followed, other file systems' names are not trusted to be short. */
static void collect_folder(int fd, char *path, size_t length, int depth)
{
    DIR *folder = fdopendir(fd);
    if (!folder) {
        close(fd);
        return;
    }
    struct dirent *entry;
    while ((entry = readdir(folder))) {
        size_t name_length = strlen(entry->d_name);
        struct stat status;
        if (is_dot(entry->d_name) || fstatat(dirfd(folder), entry->d_name, &status, AT_SYMLINK_NOFOLLOW) < 0)
            continue;
        if (length + name_length + 1 > MAX_PATH_BYTES) {
            agent.skipped++;
            continue;
        }
        memcpy(path + length, entry->d_name, name_length + 1);
        if (S_ISREG(status.st_mode) && wanted(path))
            send_artifact(dirfd(folder), entry->d_name, path);
        if (!S_ISDIR(status.st_mode) || depth == MAX_DEPTH)
            continue;
        path[length + name_length] = '/';
        path[length + name_length + 1] = 0;
        int below = openat(dirfd(folder), entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (below >= 0)
            collect_folder(below, path, length + name_length + 1, depth + 1);
    }
    closedir(folder);
}

/* Keep what is wanted; the loop collects it when no frame of the host is half-handled. */
void order_collect(const uint8_t *payload, size_t length)
{
    static char globs[MAX_PAYLOAD + 1];
    if (agent.phase != ENDED || length < 16) {
        errno = EPROTO;
        die("COLLECT from host");
    }
    agent.collect_bytes_left = get_u64(payload);
    agent.collect_count_left = get_u32(payload + 8);
    agent.collected = agent.skipped = 0;
    memcpy(globs, payload + 16, length - 16);
    globs[length - 16] = 0;
    agent.glob_count = 0;
    for (char *glob = globs; glob < globs + length - 16 && agent.glob_count < 64; glob += strlen(glob) + 1)
        agent.globs[agent.glob_count++] = glob;
    agent.phase = COLLECTING;
}

void collect(void)
{
    char path[MAX_PATH_BYTES + 2] = "";
    const char *root = agent.job.isolated ? agent.work_layer : agent.working_folder;
    int fd = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0)
        collect_folder(fd, path, 0, 0);
    uint8_t result[8];
    put_u32(result, agent.collected);
    put_u32(result + 4, agent.skipped);
    send_control(COLLECTED, result, sizeof result);
    agent.phase = ENDED;
}
