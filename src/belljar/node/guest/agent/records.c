/* Records: how file operations describe files and events to the host, and the host files to them.
 * Output is collected and written in large pieces. */
#include "file_operation.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

static uint8_t waiting[64 * 1024];
static size_t waiting_size;

/* Returns 0 or an errno. */
int flush_records(void)
{
    size_t size = waiting_size;
    waiting_size = 0;
    return size == 0 || write_fully(STDOUT_FILENO, waiting, size) ? 0 : errno;
}

int put_bytes(const void *data, size_t size)
{
    if (size > sizeof waiting - waiting_size && flush_records())
        return errno;
    if (size > sizeof waiting)
        return write_fully(STDOUT_FILENO, data, size) ? 0 : errno;
    memcpy(waiting + waiting_size, data, size);
    waiting_size += size;
    return 0;
}

int put_record(const struct record *record)
{
    uint8_t head[RECORD_SIZE] = {record->kind, record->type};
    size_t path = record->path ? strlen(record->path) : 0, target = record->target ? strlen(record->target) : 0;
    if (path > MAX_FILE_PATH || target > MAX_FILE_PATH)
        return ENAMETOOLONG;
    put_u16(head + 2, record->mode);
    put_u32(head + 4, record->uid);
    put_u32(head + 8, record->gid);
    put_u16(head + 12, (uint16_t)path);
    put_u16(head + 14, (uint16_t)target);
    put_u64(head + 16, record->size);
    put_u64(head + 24, record->modified_ns);
    int error = put_bytes(head, sizeof head);
    if (!error && path)
        error = put_bytes(record->path, path);
    if (!error && target)
        error = put_bytes(record->target, target);
    return error;
}

/* Read a record from the standard input; `path` and `target` have MAX_FILE_PATH + 1 bytes. Returns 0 or an errno. */
int get_record(struct record *record, char *path, char *target)
{
    uint8_t head[RECORD_SIZE];
    if (!read_fully(STDIN_FILENO, head, sizeof head))
        return ECANCELED; /* an archive that ends without its last record */
    uint16_t path_length = get_u16(head + 12), target_length = get_u16(head + 14);
    if (path_length > MAX_FILE_PATH || target_length > MAX_FILE_PATH)
        return ENAMETOOLONG;
    if (!read_fully(STDIN_FILENO, path, path_length) || !read_fully(STDIN_FILENO, target, target_length))
        return ECANCELED;
    path[path_length] = target[target_length] = 0;
    if (strlen(path) != path_length || strlen(target) != target_length)
        return EINVAL;
    *record = (struct record){head[0], head[1], get_u16(head + 2), get_u32(head + 4), get_u32(head + 8),
                              get_u64(head + 16), get_u64(head + 24), path, target};
    return 0;
}

static uint8_t type_of_mode(mode_t mode)
{
    return S_ISREG(mode)   ? 'f'
           : S_ISDIR(mode) ? 'd'
           : S_ISLNK(mode) ? 'l'
           : S_ISFIFO(mode) ? 'p'
           : S_ISSOCK(mode) ? 's'
           : S_ISBLK(mode) ? 'b'
                           : 'c';
}

struct record record_of(const struct stat *status, const char *path, const char *target)
{
    return (struct record){
        .kind = RECORD_ENTRY,
        .type = type_of_mode(status->st_mode),
        .mode = status->st_mode & 07777,
        .uid = status->st_uid,
        .gid = status->st_gid,
        .size = (uint64_t)status->st_size,
        .modified_ns = status->st_mtim.tv_sec < 0 ? 0
                       : (uint64_t)status->st_mtim.tv_sec * 1000000000 + (uint64_t)status->st_mtim.tv_nsec,
        .path = path,
        .target = target,
    };
}
