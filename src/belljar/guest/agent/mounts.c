/* The script's disk, the layer behind it, and the working folder. */
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

/* script_bytes u64, layer_bytes u64, path: behind the script its disk holds a layer, which is laid over that folder. */
void take_layer(const uint8_t *payload, size_t length)
{
    if (agent.phase != READY || agent.has_script || length <= 16 || length > 16 + MAX_LAYER_PATH || payload[16] != '/' ||
        memchr(payload + 16, 0, length - 16)) {
        errno = EPROTO;
        die("LAYER from host");
    }
    agent.script_bytes = get_u64(payload);
    agent.layer_bytes = get_u64(payload + 8);
    memcpy(agent.layer_folder, payload + 16, length - 16);
    agent.layer_folder[length - 16] = 0;
}

/* A part of the script's disk as a device of its own, /dev/vdbN: the kernel knows it until it is told otherwise. */
static bool add_part(int disk, int number, uint64_t start, uint64_t size)
{
    struct blkpg_partition part = {.start = (long long)start, .length = (long long)size, .pno = number};
    struct blkpg_ioctl_arg order = {.op = BLKPG_ADD_PARTITION, .datalen = sizeof part, .data = &part};
    return ioctl(disk, BLKPG, &order) == 0;
}

/* What was installed for the script, over the image's own folder and under a writable layer. Its paths are written as
 * descriptors: no name in an image leads the agent elsewhere. */
static int mount_layer(void)
{
    char options[160], under[48] = "", target[40];
    if (mount("/dev/vdb2", "/layer", "erofs", MS_RDONLY | MS_NOSUID | MS_NODEV, NULL) < 0)
        return errno;
    int below = open_below("/rom", agent.layer_folder, false), at = open_below("/newroot", agent.layer_folder, true);
    int error = at < 0 ? errno : 0;
    if (below >= 0)
        snprintf(under, sizeof under, ":/proc/self/fd/%d", below);
    snprintf(options, sizeof options, "lowerdir=/layer%s,upperdir=/rw/layer,workdir=/rw/layer.work", under);
    snprintf(target, sizeof target, "/proc/self/fd/%d", at);
    if (!error && mount("layer", target, "overlay", MS_NOSUID | MS_NODEV, options) < 0)
        error = errno;
    close_fd(&below);
    close_fd(&at);
    return error;
}

/* The script's disk at /job, and over it, writable, the working folder. Reread from the device: a snapshot's clone was
 * given the disk's contents after its kernel had first looked at it. */
int mount_script(uint32_t uid, uint32_t gid)
{
    char work_folder[40], options[160];
    bool layered = agent.layer_bytes > 0;
    int disk = open("/dev/vdb", O_RDONLY | O_CLOEXEC);
    if (disk < 0)
        return errno;
    bool ready = ioctl(disk, BLKFLSBUF) == 0;
    if (ready && layered)
        ready = add_part(disk, 1, 0, agent.script_bytes) &&
                add_part(disk, 2, agent.script_bytes, agent.layer_bytes);
    int error = errno;
    close(disk);
    if (!ready)
        return error;
    snprintf(agent.work_layer, sizeof agent.work_layer, "/rw/work%u", agent.mounted);
    snprintf(work_folder, sizeof work_folder, "/rw/work%u.work", agent.mounted);
    make_folder(agent.work_layer);
    make_folder(work_folder);
    if (chown(agent.work_layer, uid, gid) < 0 || chmod(agent.work_layer, 0755) < 0)
        return errno;
    const char *script = layered ? "/dev/vdb1" : "/dev/vdb";
    if (mount(script, "/newroot/job", "erofs", MS_RDONLY | MS_NOSUID | MS_NODEV, NULL) < 0)
        return errno;
    snprintf(options, sizeof options, "lowerdir=/newroot/job,upperdir=%s,workdir=%s", agent.work_layer, work_folder);
    if (mount("work", "/newroot/work", "overlay", MS_NOSUID | MS_NODEV, options) < 0)
        return errno;
    agent.mounted++;
    agent.has_script = true;
    return layered ? mount_layer() : 0;
}

/* Unmount the script's disk; returns when the kernel has let go of it: a mount of a device that is still held would
 * show what was on it before. */
void unmount_script(void)
{
    struct timespec pause_ms = {.tv_nsec = 1000000};
    if (umount2("/newroot/work", MNT_DETACH) < 0 || umount2("/newroot/job", MNT_DETACH) < 0)
        die("umount");
    agent.has_script = false;
    for (int i = 0; i < 2000; i++) {
        int disk = open("/dev/vdb", O_RDONLY | O_EXCL | O_CLOEXEC);
        if (disk >= 0) {
            close(disk);
            return;
        }
        nanosleep(&pause_ms, NULL);
    }
    die("/dev/vdb");
}
