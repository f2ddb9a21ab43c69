/* Reading and writing the bytes of one regular file. */
#include "file_operation.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PIECE = 256 * 1024 };

static uint8_t piece[PIECE];

/* Copy to the standard output through a buffer: for files that sendfile(2) does not take, as those of /proc. */
static int copy_out(int file, uint64_t left)
{
    while (left > 0) {
        ssize_t n = read(file, piece, left < PIECE ? (size_t)left : PIECE);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? errno : 0;
        if (!write_fully(STDOUT_FILENO, piece, (size_t)n))
            return errno;
        left -= (uint64_t)n;
    }
    return 0;
}

static int send_out(int file, uint64_t left)
{
    bool started = false;
    while (left > 0) {
        ssize_t n = sendfile(STDOUT_FILENO, file, NULL, left < PIECE ? (size_t)left : PIECE);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EINVAL && !started)
            return copy_out(file, left);
        if (n <= 0)
            return n < 0 ? errno : 0;
        started = true;
        left -= (uint64_t)n;
    }
    return 0;
}

/* read ROOT PATH OFFSET LENGTH: an entry, then the bytes. */
int read_content(char **arguments)
{
    struct stat status;
    cleanup_close int path = open_path(arguments, O_PATH);
    cleanup_close int file = path < 0 ? -1 : open_regular(path, O_RDONLY);
    if (file < 0 || fstat(file, &status) < 0)
        return errno;
    struct record entry = record_of(&status, arguments[1], NULL);
    int error = put_record(&entry);
    if (error || (error = flush_records()))
        return error;
    off_t offset = (off_t)strtoull(arguments[2], NULL, 10);
    if (offset != 0 && lseek(file, offset, SEEK_SET) < 0)
        return errno;
    return send_out(file, strtoull(arguments[3], NULL, 10));
}

static volatile sig_atomic_t cancelled;

static void cancel(int number)
{
    (void)number;
    cancelled = 1;
}

static sigset_t waiting_mask;

/* The signal is blocked but while the operation waits for the host, so that it cannot come right before the wait. */
static bool handle_cancel(void)
{
    struct sigaction action = {.sa_handler = cancel};
    sigset_t blocked;
    return sigemptyset(&blocked) == 0 && sigaddset(&blocked, SIGTERM) == 0 &&
           sigprocmask(SIG_BLOCK, &blocked, &waiting_mask) == 0 && sigaction(SIGTERM, &action, NULL) == 0;
}

/* Copy some input to the file; return how much, 0 at the end. splice(2) takes no files that are open to append. */
static ssize_t copy_piece(int file)
{
    ssize_t n = splice(STDIN_FILENO, NULL, file, NULL, PIECE, 0);
    if (n >= 0 || errno != EINVAL)
        return n;
    n = read(STDIN_FILENO, piece, PIECE);
    return n > 0 && !write_fully(file, piece, (size_t)n) ? -1 : n;
}

static int copy_in(int file)
{
    for (;;) {
        struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
        int ready = ppoll(&input, 1, NULL, &waiting_mask);
        if (cancelled)
            return ECANCELED;
        ssize_t n = ready < 0 ? -1 : copy_piece(file);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? errno : 0;
    }
}

/* Tell the host what was written. */
static int put_written(int file, const char *path)
{
    struct stat status;
    if (fstat(file, &status) < 0)
        return errno;
    struct record entry = record_of(&status, path, NULL);
    return put_record(&entry);
}

/* Write beside the file and rename over it: readers see the old file or the new one, whole. */
static int write_atomically(int root, const char *path, mode_t mode, bool exclusive)
{
    enum { NO_REPLACE = 1 }; /* RENAME_NOREPLACE of linux/fs.h */
    char name[MAX_FILE_NAME + 1], partial[40];
    uint32_t random[2] = {0, 0};
    cleanup_close int parent = open_parent(root, path, name);
    if (parent < 0 || getrandom(random, sizeof random, 0) != sizeof random)
        return errno;
    snprintf(partial, sizeof partial, ".partial-%08x%08x", random[0], random[1]);
    cleanup_close int file = openat(parent, partial, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (file < 0)
        return errno;
    int error = copy_in(file);
    if (!error && (fchmod(file, mode) < 0 ||
                   syscall(SYS_renameat2, parent, partial, parent, name, exclusive ? NO_REPLACE : 0) < 0))
        error = errno;
    if (error)
        unlinkat(parent, partial, 0);
    return error ? error : put_written(file, path);
}

/* Open an existing regular file, or create one; `flags` are O_TRUNC, O_APPEND and O_EXCL. */
static int open_to_write(int root, const char *path, int flags, mode_t mode)
{
    char name[MAX_FILE_NAME + 1];
    cleanup_close int present = open_in_root(root, path, O_PATH);
    if (present >= 0 && (flags & O_EXCL)) {
        errno = EEXIST;
        return -1;
    }
    if (present >= 0)
        return open_regular(present, O_WRONLY | flags);
    cleanup_close int parent = errno == ENOENT ? open_parent(root, path, name) : -1;
    if (parent < 0)
        return -1;
    int file = openat(parent, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC | (flags & O_APPEND), 0600);
    if (file >= 0 && fchmod(file, mode) < 0)
        close_fd(&file);
    return file;
}

/* write ROOT PATH FLAGS MODE OFFSET: the input becomes the file's content, and an entry is put behind it. Flags: `a` append, `t` at once (atomic),
 * `x` only a new file, `p` create folders above, `o` at the offset without truncating. */
int write_content(char **arguments)
{
    const char *flags = arguments[2];
    mode_t mode = (mode_t)strtoul(arguments[3], NULL, 10) & 0777;
    char *here[2] = {arguments[0], (char[]){"/"}};
    cleanup_close int root = open_path(here, O_PATH | O_DIRECTORY);
    if (root < 0)
        return errno;
    if (!handle_cancel())
        return errno;
    int error = strchr(flags, 'p') ? make_parents(root, arguments[1], 0755) : 0;
    if (error || strchr(flags, 't'))
        return error ? error : write_atomically(root, arguments[1], mode, strchr(flags, 'x'));
    int open_flags = strchr(flags, 'a') ? O_APPEND : strchr(flags, 'o') ? 0 : O_TRUNC;
    cleanup_close int file =
        open_to_write(root, arguments[1], open_flags | (strchr(flags, 'x') ? O_EXCL : 0), mode);
    if (file < 0)
        return errno;
    off_t offset = (off_t)strtoull(arguments[4], NULL, 10);
    if (offset != 0 && lseek(file, offset, SEEK_SET) < 0)
        return errno;
    error = copy_in(file);
    return error ? error : put_written(file, arguments[1]);
}
