/* The script's disk, the layer behind it, and the working folder.
 * Paths below the image's root are opened with open_below: no link in an image leads out of it. */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/blkpg.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* LAYER: script_bytes u64, layer_bytes u64, path. Behind the script its disk holds a layer to mount over that
 * folder. */
void set_layer(const uint8_t *payload, size_t length)
{
    if (agent.phase != READY || agent.has_script || length <= 16 || length > 16 + MAX_LAYER_PATH ||
        payload[16] != '/' || memchr(payload + 16, 0, length - 16)) {
        errno = EPROTO;
        die("unexpected LAYER from host");
    }
    agent.script_bytes = get_u64(payload);
    agent.layer_bytes = get_u64(payload + 8);
    memcpy(agent.layer_folder, payload + 16, length - 16);
    agent.layer_folder[length - 16] = 0;
}

/* Add a part of the script's disk as the device /dev/vdbN. */
static bool add_part(int disk, int number, uint64_t start, uint64_t size)
{
    struct blkpg_partition part = {.start = (long long)start, .length = (long long)size, .pno = number};
    struct blkpg_ioctl_arg request = {.op = BLKPG_ADD_PARTITION, .datalen = sizeof part, .data = &part};
    return ioctl(disk, BLKPG, &request) == 0;
}

/* Mount the script's packages over the image's folder and under a writable layer. Paths are given as descriptors, so
 * that no link in the image redirects the mount. */
static int mount_layer(void)
{
    char options[160], under[48] = "";
    if (mount("/dev/vdb2", "/layer", "erofs", MS_RDONLY | MS_NOSUID | MS_NODEV, NULL) < 0)
        return errno;
    cleanup_close int below = open_below("/rom", agent.layer_folder, false);
    cleanup_close int at = open_below("/newroot", agent.layer_folder, true);
    if (at < 0)
        return errno;
    if (below >= 0)
        snprintf(under, sizeof under, ":%s", path_of(below).text);
    snprintf(options, sizeof options, "lowerdir=/layer%s,upperdir=/rw/layer,workdir=/rw/layer.work", under);
    return mount("layer", path_of(at).text, "overlay", MS_NOSUID | MS_NODEV, options) < 0 ? errno : 0;
}

/* Reread the script's disk, and partition it when a layer lies behind the script. A clone's kernel read the disk before
 * the host wrote its contents. */
static bool reread_disk(void)
{
    cleanup_close int disk = open("/dev/vdb", O_RDONLY | O_CLOEXEC);
    if (disk < 0 || ioctl(disk, BLKFLSBUF) < 0)
        return false;
    return agent.layer_bytes == 0 || (add_part(disk, 1, 0, agent.script_bytes) &&
                                      add_part(disk, 2, agent.script_bytes, agent.layer_bytes));
}

/* Mount the working folder: the script's files under a layer that the job's user owns. */
static bool mount_work(uint32_t uid, uint32_t gid)
{
    char work_folder[40], options[160];
    snprintf(agent.work_layer, sizeof agent.work_layer, "/rw/work%u", agent.mount_count);
    snprintf(work_folder, sizeof work_folder, "/rw/work%u.work", agent.mount_count);
    make_folder(agent.work_layer);
    make_folder(work_folder);
    cleanup_close int script = open_below("/newroot", "/job", false);
    if (script < 0 || chown(agent.work_layer, uid, gid) < 0 || chmod(agent.work_layer, 0755) < 0)
        return false;
    snprintf(options, sizeof options, "lowerdir=%s,upperdir=%s,workdir=%s", path_of(script).text, agent.work_layer,
             work_folder);
    return mount_below("work", "/work", "overlay", MS_NOSUID | MS_NODEV, options);
}

/* Mount the script's disk at /job, and the writable working folder over it at /work. Returns 0 or an errno. */
int mount_script(uint32_t uid, uint32_t gid)
{
    const char *script = agent.layer_bytes > 0 ? "/dev/vdb1" : "/dev/vdb";
    if (!reread_disk() || !mount_below(script, "/job", "erofs", MS_RDONLY | MS_NOSUID | MS_NODEV, NULL) ||
        !mount_work(uid, gid))
        return errno;
    agent.mount_count++;
    agent.has_script = true;
    return agent.layer_bytes > 0 ? mount_layer() : 0;
}

static void unmount_below(const char *path)
{
    cleanup_close int folder = open_below("/newroot", path, false);
    if (folder < 0 || umount2(path_of(folder).text, MNT_DETACH) < 0)
        die(path);
}

/* Unmount the script's disk and wait until the kernel has released it: a mount of a device in use would show its old
 * contents. */
void unmount_script(void)
{
    struct timespec pause_ms = {.tv_nsec = 1000000};
    unmount_below("/work");
    unmount_below("/job");
    agent.has_script = false;
    for (int i = 0; i < 2000; i++) {
        cleanup_close int disk = open("/dev/vdb", O_RDONLY | O_EXCL | O_CLOEXEC);
        if (disk >= 0)
            return;
        nanosleep(&pause_ms, NULL);
    }
    die("/dev/vdb");
}

/* Create the job's home folder, writable, outside the working folder, whose files may become artifacts. An image's own
 * home folder stays unchanged. */
void make_home(uint32_t uid, uint32_t gid)
{
    if (agent.has_home)
        return;
    agent.has_home = true;
    cleanup_close int parent = open_below("/newroot", uid == 0 ? "/" : "/home", true);
    const char *name = uid == 0 ? "root" : "job";
    if (parent < 0 || (mkdirat(parent, name, 0700) == 0 && fchownat(parent, name, uid, gid, AT_SYMLINK_NOFOLLOW) < 0))
        log_line("home: %s", strerror(errno)); /* a job can run without it */
}
