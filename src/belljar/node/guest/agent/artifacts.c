/* Artifacts: files that the job wrote below its working folder, sent after its processes ended.
 * The walk is done in slices between the host's frames, so that the host gets replies and can grant credit or end the
 * machine at any time. Files that are selected but cannot be sent are counted. */
#include "agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    MAX_GLOBS = 64,
    NAMES_SIZE = 2048, /* more than the largest linux_dirent64 */
    SLICE_US = 5000,   /* of walking without handling the host's frames */
};

/* struct linux_dirent64 of getdents64(2), which the C library does not declare. */
struct entry {
    uint64_t inode;
    int64_t offset;
    uint16_t size;
    uint8_t type;
    char name[];
};

/* An open folder of the walk, and the length of its path. */
struct folder {
    int fd;
    size_t path_length;
    size_t at, end; /* entries that were read and not visited yet */
    _Alignas(struct entry) char entries[NAMES_SIZE];
};

static struct {
    uint64_t bytes_left;
    uint32_t count_left, collected, skipped;
    char text[MAX_PAYLOAD + 1];
    const char *globs[MAX_GLOBS];
    size_t glob_count;
    bool started;
    int depth; /* number of open folders */
    struct folder folders[MAX_DEPTH + 1];
    char path[MAX_PATH_BYTES + 256 + 2]; /* of the visited entry; larger than the longest path that is sent */
    int file;                            /* the artifact being sent, or -1 */
    uint64_t file_left;
} walk;

/* At run time: an initializer would put the whole variable into the executable. */
void artifacts_init(void)
{
    walk.file = -1;
}

void start_collecting(const uint8_t *payload, size_t length)
{
    if (agent.phase != ENDED || length < 16) {
        errno = EPROTO;
        die("unexpected COLLECT from host");
    }
    walk.bytes_left = get_u64(payload);
    walk.count_left = get_u32(payload + 8);
    walk.collected = walk.skipped = 0;
    memcpy(walk.text, payload + 16, length - 16);
    walk.text[length - 16] = 0;
    walk.glob_count = 0;
    const char *end = walk.text + length - 16;
    for (char *glob = walk.text; glob < end && walk.glob_count < MAX_GLOBS; glob += strlen(glob) + 1)
        walk.globs[walk.glob_count++] = glob;
    walk.started = false;
    walk.depth = 0;
    agent.phase = COLLECTING;
}

/* Return whether a glob selects the current path, or with `below` may select something below it. `!` excludes. */
static bool is_selected(bool below)
{
    bool selected = false;
    for (size_t i = 0; i < walk.glob_count; i++) {
        const char *glob = walk.globs[i];
        if (glob[0] == '!' && glob_matches(glob + 1, walk.path))
            return false;
        if (glob[0] != '!' && !selected)
            selected = below ? glob_may_match_below(glob, walk.path) : glob_matches(glob, walk.path);
    }
    return selected;
}

/* Announce a file; send_file_chunk sends its bytes. */
static void open_artifact(int folder, const char *name)
{
    cleanup_close int fd = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    struct stat status;
    size_t path_length = strlen(walk.path);
    if (path_length > MAX_PATH_BYTES || fd < 0 || fstat(fd, &status) < 0 || !S_ISREG(status.st_mode) ||
        walk.count_left == 0 || (uint64_t)status.st_size > walk.bytes_left) {
        walk.skipped++;
        return;
    }
    walk.count_left--;
    walk.bytes_left -= (uint64_t)status.st_size;
    walk.collected++;
    uint8_t payload[12 + MAX_PATH_BYTES];
    put_u64(payload, (uint64_t)status.st_size);
    put_u32(payload + 8, status.st_mode & 0777);
    memcpy(payload + 12, walk.path, path_length);
    send_control(ARTIFACT, payload, 12 + path_length);
    walk.file_left = (uint64_t)status.st_size;
    if (walk.file_left > 0) {
        walk.file = fd;
        fd = -1;
    }
}

/* Send the file's next bytes. A file shorter than announced is padded with zeros to its announced size. */
static void send_file_chunk(void)
{
    size_t limit = walk.file_left < CHUNK ? (size_t)walk.file_left : CHUNK;
    limit = agent.streams.credit[ARTIFACTS] < limit ? (size_t)agent.streams.credit[ARTIFACTS] : limit;
    uint8_t *p = output_space(CHUNK);
    ssize_t n = read(walk.file, p + HEADER_SIZE, limit);
    if (n < 0 && errno == EINTR)
        return;
    if (n <= 0) {
        memset(p + HEADER_SIZE, 0, limit);
        n = (ssize_t)limit;
    }
    put_header(p, (uint32_t)n, ARTIFACT_DATA, NONE, 0);
    agent.out_len += HEADER_SIZE + (size_t)n;
    agent.streams.credit[ARTIFACTS] -= (uint64_t)n;
    walk.file_left -= (uint64_t)n;
    if (walk.file_left == 0)
        close_fd(&walk.file);
    flush_frames();
}

/* Enter a folder; one that is unreadable or too deep counts as skipped. Links are not followed. */
static void open_folder(int parent, const char *name)
{
    size_t length = strlen(walk.path);
    if (walk.depth > MAX_DEPTH || length + 1 > MAX_PATH_BYTES) {
        walk.skipped++;
        return;
    }
    struct folder *folder = &walk.folders[walk.depth];
    folder->fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (folder->fd < 0) {
        walk.skipped++;
        return;
    }
    if (length > 0)
        walk.path[length++] = '/';
    walk.path[length] = 0;
    folder->path_length = length;
    folder->at = folder->end = 0;
    walk.depth++;
}

static bool is_dot(const char *name)
{
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

/* Return an entry's type; a file system may leave it out of getdents64. */
static uint8_t type_of(int folder, const struct entry *entry)
{
    struct stat status;
    if (entry->type != DT_UNKNOWN)
        return entry->type;
    if (fstatat(folder, entry->name, &status, AT_SYMLINK_NOFOLLOW) < 0)
        return DT_UNKNOWN;
    return S_ISREG(status.st_mode) ? DT_REG : S_ISDIR(status.st_mode) ? DT_DIR : DT_CHR;
}

static void visit_entry(struct folder *folder, const struct entry *entry)
{
    size_t name_length = strlen(entry->name);
    if (is_dot(entry->name) || folder->path_length + name_length >= sizeof walk.path)
        return; /* the second never happens: walk.path has space for a folder's path and any name */
    memcpy(walk.path + folder->path_length, entry->name, name_length + 1);
    uint8_t type = type_of(folder->fd, entry);
    if (type == DT_UNKNOWN)
        walk.skipped += is_selected(false);
    else if (type == DT_REG && is_selected(false))
        open_artifact(folder->fd, entry->name);
    else if (type == DT_DIR && is_selected(true))
        open_folder(folder->fd, entry->name);
}

/* Visit the next entry of the innermost folder, or leave the folder at its end. */
static void walk_step(void)
{
    struct folder *folder = &walk.folders[walk.depth - 1];
    if (folder->at < folder->end) {
        const struct entry *entry = (const struct entry *)(const void *)(folder->entries + folder->at);
        folder->at += entry->size;
        visit_entry(folder, entry);
        return;
    }
    long n = syscall(SYS_getdents64, folder->fd, folder->entries, sizeof folder->entries);
    folder->at = 0;
    folder->end = n > 0 ? (size_t)n : 0;
    if (n > 0)
        return;
    walk.skipped += n < 0; /* the rest of the folder is unreadable */
    close_fd(&folder->fd);
    walk.depth--;
}

static void start_walk(void)
{
    const char *root = agent.job.isolated ? agent.work_layer : agent.working_folder;
    walk.started = true;
    walk.path[0] = 0;
    open_folder(AT_FDCWD, root);
}

bool can_collect(void)
{
    return agent.phase == COLLECTING && agent.job.report_fd < 0 && output_space(CHUNK) &&
           (walk.file < 0 || agent.streams.credit[ARTIFACTS] > 0);
}

void collect_slice(void)
{
    uint64_t until_us = now_us() + SLICE_US;
    if (!walk.started)
        start_walk();
    while (can_collect() && now_us() < until_us) {
        if (walk.file >= 0) {
            send_file_chunk();
        } else if (walk.depth > 0) {
            walk_step();
        } else {
            uint8_t result[8];
            put_u32(result, walk.collected);
            put_u32(result + 4, walk.skipped);
            send_control(COLLECTED, result, sizeof result);
            agent.phase = ENDED;
        }
    }
}
