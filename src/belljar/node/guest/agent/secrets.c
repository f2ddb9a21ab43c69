/* Secrets that are files: a tmpfs of their own, readable by the job's user alone.
 * Their bytes are in the machine's memory and on no disk, whatever holds the root filesystem's writable layer. */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

static const char folder_path[] = "/run/secrets";

/* Return the folder, mounted at the first secret; -1 with errno. */
static int open_folder(uint32_t uid, uint32_t gid)
{
    char options[96];
    if (!agent.has_secrets) {
        cleanup_close int below = open_below("/newroot", folder_path, true);
        snprintf(options, sizeof options, "mode=0500,uid=%u,gid=%u,size=2m,nr_inodes=256", uid, gid);
        if (below < 0 || !mount_below("secrets", folder_path, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options))
            return -1;
        agent.has_secrets = true;
    }
    return open_below("/newroot", folder_path, false);
}

static bool write_secret(int folder, const char *name, const struct request *owner, const uint8_t *data, size_t length)
{
    if (unlinkat(folder, name, 0) < 0 && errno != ENOENT)
        return false;
    cleanup_close int file = openat(folder, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0400);
    return file >= 0 && fchown(file, owner->uid, owner->gid) == 0 && write_fully(file, data, length);
}

/* SECRET: uid u32, gid u32, name, a zero, the file's bytes. */
void store_secret(const uint8_t *payload, size_t length)
{
    char name[MAX_SECRET_NAME + 1];
    const uint8_t *text = payload + 8, *end = length > 8 ? memchr(text, 0, length - 8) : NULL;
    if (agent.phase != READY || !end || end == text || end - text > MAX_SECRET_NAME || text[0] == '.' ||
        memchr(text, '/', (size_t)(end - text))) {
        errno = EPROTO;
        die("unexpected SECRET from host");
    }
    memcpy(name, text, (size_t)(end - text) + 1);
    if (!agent.is_init) /* only PID 1 may mount */
        return;
    struct request owner = {.uid = get_u32(payload), .gid = get_u32(payload + 4)};
    cleanup_close int folder = open_folder(owner.uid, owner.gid);
    if (folder < 0 || !write_secret(folder, name, &owner, end + 1, (size_t)(payload + length - end - 1)))
        die(folder_path);
}
