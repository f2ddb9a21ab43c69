/* Artifacts: what the job wrote below its working folder, when nobody is left to change it.
 *
 * The walk is done in small pieces between the host's frames, so that the host is answered and can grant credit or end
 * the machine at any time. What is wanted and does not come is counted. */
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
    PIECE_US = 5000,   /* of walking without a look at the host's frames */
};

/* What getdents64(2) gives: the C library has no name for it. */
struct entry {
    uint64_t inode;
    int64_t offset;
    uint16_t size;
    uint8_t type;
    char name[];
};

/* A folder that is being read, and where its own path ends. */
struct folder {
    int fd;
    size_t path_length;
    size_t at, end; /* entries that were read and not looked at yet */
    _Alignas(struct entry) char entries[NAMES_SIZE];
};

static struct {
    uint64_t bytes_left;
    uint32_t count_left, collected, skipped;
    char text[MAX_PAYLOAD + 1];
    const char *globs[MAX_GLOBS];
    size_t glob_count;
    bool begun;
    int depth; /* folders that are open */
    struct folder folders[MAX_DEPTH + 1];
    char path[MAX_PATH_BYTES + 256 + 2]; /* of the entry that is looked at; longer than what can be told */
    int file;                            /* the artifact that is being sent, or -1 */
    uint64_t file_left;
} walk;

/* Not in the variable's definition: its zeros would be part of the executable. */
void artifacts_init(void)
{
    walk.file = -1;
}

void order_collect(const uint8_t *payload, size_t length)
{
    if (agent.phase != ENDED || length < 16) {
        errno = EPROTO;
        die("COLLECT from host");
    }
    walk.bytes_left = get_u64(payload);
    walk.count_left = get_u32(payload + 8);
    walk.collected = walk.skipped = 0;
    memcpy(walk.text, payload + 16, length - 16);
    walk.text[length - 16] = 0;
    walk.glob_count = 0;
    for (char *glob = walk.text; glob < walk.text + length - 16 && walk.glob_count < MAX_GLOBS; glob += strlen(glob) + 1)
        walk.globs[walk.glob_count++] = glob;
    walk.begun = false;
    walk.depth = 0;
    agent.phase = COLLECTING;
}

/* Whether a glob takes this in: a path, or with `below` something below it. A glob that begins with `!` takes out. */
static bool is_wanted(bool below)
{
    bool wanted = false;
    for (size_t i = 0; i < walk.glob_count; i++) {
        const char *glob = walk.globs[i];
        if (glob[0] == '!' && glob_matches(glob + 1, walk.path))
            return false;
        if (glob[0] != '!' && !wanted)
            wanted = below ? glob_may_match_below(glob, walk.path) : glob_matches(glob, walk.path);
    }
    return wanted;
}

/* Begin to send a file: the announcement now, its bytes piece by piece. */
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

/* Send the next bytes of the file, exactly as many as were announced: one that is shorter is filled up with zeros. */
static void send_piece(void)
{
    size_t most = walk.file_left < CHUNK ? (size_t)walk.file_left : CHUNK;
    most = agent.credit[ARTIFACTS] < most ? (size_t)agent.credit[ARTIFACTS] : most;
    uint8_t *p = output_room(CHUNK);
    ssize_t n = read(walk.file, p + HEADER_SIZE, most);
    if (n < 0 && errno == EINTR)
        return;
    if (n <= 0) {
        memset(p + HEADER_SIZE, 0, most);
        n = (ssize_t)most;
    }
    put_header(p, (uint32_t)n, ARTIFACT_DATA, NONE);
    agent.out_len += HEADER_SIZE + (size_t)n;
    agent.credit[ARTIFACTS] -= (uint64_t)n;
    walk.file_left -= (uint64_t)n;
    if (walk.file_left == 0)
        close_fd(&walk.file);
    flush_out();
}

/* Go into a folder; one that cannot be read, or is too deep, counts as left out. Links are not followed. */
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

/* What an entry is: a file system need not say it in its folder. */
static uint8_t type_of(int folder, const struct entry *entry)
{
    struct stat status;
    if (entry->type != DT_UNKNOWN)
        return entry->type;
    if (fstatat(folder, entry->name, &status, AT_SYMLINK_NOFOLLOW) < 0)
        return DT_UNKNOWN;
    return S_ISREG(status.st_mode) ? DT_REG : S_ISDIR(status.st_mode) ? DT_DIR : DT_CHR;
}

static void look_at(struct folder *folder, const struct entry *entry)
{
    size_t name_length = strlen(entry->name);
    if (is_dot(entry->name) || folder->path_length + name_length >= sizeof walk.path)
        return; /* the latter cannot be: a folder's path fits, and so does any name behind it */
    memcpy(walk.path + folder->path_length, entry->name, name_length + 1);
    uint8_t type = type_of(folder->fd, entry);
    if (type == DT_UNKNOWN)
        walk.skipped += is_wanted(false);
    else if (type == DT_REG && is_wanted(false))
        open_artifact(folder->fd, entry->name);
    else if (type == DT_DIR && is_wanted(true))
        open_folder(folder->fd, entry->name);
}

/* Look at the next entry of the innermost folder, or leave it at its end. */
static void take_step(void)
{
    struct folder *folder = &walk.folders[walk.depth - 1];
    if (folder->at < folder->end) {
        const struct entry *entry = (const struct entry *)(const void *)(folder->entries + folder->at);
        folder->at += entry->size;
        look_at(folder, entry);
        return;
    }
    long n = syscall(SYS_getdents64, folder->fd, folder->entries, sizeof folder->entries);
    folder->at = 0;
    folder->end = n > 0 ? (size_t)n : 0;
    if (n > 0)
        return;
    walk.skipped += n < 0; /* the rest of it cannot be read */
    close_fd(&folder->fd);
    walk.depth--;
}

static void begin(void)
{
    const char *root = agent.job.isolated ? agent.work_layer : agent.working_folder;
    walk.begun = true;
    walk.path[0] = 0;
    open_folder(AT_FDCWD, root);
}

bool may_collect(void)
{
    return agent.phase == COLLECTING && agent.job.report_fd < 0 && output_room(CHUNK) &&
           (walk.file < 0 || agent.credit[ARTIFACTS] > 0);
}

void collect_piece(void)
{
    uint64_t until_us = now_us() + PIECE_US;
    if (!walk.begun)
        begin();
    while (may_collect() && now_us() < until_us) {
        if (walk.file >= 0) {
            send_piece();
        } else if (walk.depth > 0) {
            take_step();
        } else {
            uint8_t result[8];
            put_u32(result, walk.collected);
            put_u32(result + 4, walk.skipped);
            send_control(COLLECTED, result, sizeof result);
            agent.phase = ENDED;
        }
    }
}
