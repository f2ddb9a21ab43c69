/* Boot, only as PID 1: modules, the root filesystem, cgroups, the port to the host.
 * An error ends the machine with a line on the console. */
#include "agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

void make_folder(const char *path)
{
    if (mkdir(path, 0755) < 0 && errno != EEXIST)
        die(path);
}

static void mount_at(const char *source, const char *target, const char *type, unsigned long flags, const char *data)
{
    make_folder(target);
    if (mount(source, target, type, flags, data) < 0)
        die(target);
}

static int module_names(const struct dirent *entry)
{
    size_t length = strlen(entry->d_name);
    return length > 3 && strcmp(entry->d_name + length - 3, ".ko") == 0;
}

/* Load /modules/NN-name.ko in the order of their numbers; delete the files, which take memory. */
static void load_modules(void)
{
    struct dirent **names;
    int count = scandir("/modules", &names, module_names, alphasort);
    for (int i = 0; i < count; i++) {
        char path[300];
        snprintf(path, sizeof path, "/modules/%s", names[i]->d_name);
        cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST) || unlink(path) < 0)
            die(path);
        free(names[i]);
    }
    if (count >= 0)
        free(names);
}

static void wait_for_path(const char *path)
{
    struct timespec pause_ms = {.tv_nsec = 1000000};
    for (int i = 0; access(path, F_OK) < 0; i++) {
        if (i == 5000)
            die(path);
        nanosleep(&pause_ms, NULL);
    }
}

/* Mount in the image's root, following links that stay in it. */
static void mount_in_root(const char *source, const char *path, const char *type, unsigned long flags, const char *data)
{
    if (!mount_below(source, path, type, flags, data))
        die(path);
}

static void make_device(int dev, const char *name, unsigned major_number, unsigned minor_number)
{
    if (mknodat(dev, name, S_IFCHR | 0666, makedev(major_number, minor_number)) < 0 || fchmodat(dev, name, 0666, 0) < 0)
        die(name);
}

/* A /dev with the devices that every program expects and none of the machine's own. */
static void make_dev(void)
{
    mount_in_root("dev", "/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=0755,size=1m,nr_inodes=256");
    cleanup_close int dev = open_below("/newroot", "/dev", false);
    if (dev < 0)
        die("/dev");
    make_device(dev, "null", 1, 3);
    make_device(dev, "zero", 1, 5);
    make_device(dev, "full", 1, 7);
    make_device(dev, "random", 1, 8);
    make_device(dev, "urandom", 1, 9);
    make_device(dev, "tty", 5, 0);
    mount_in_root("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620");
    mount_in_root("shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
    if (symlinkat("pts/ptmx", dev, "ptmx") < 0 || symlinkat("/proc/self/fd", dev, "fd") < 0 ||
        symlinkat("/proc/self/fd/0", dev, "stdin") < 0 || symlinkat("/proc/self/fd/1", dev, "stdout") < 0 ||
        symlinkat("/proc/self/fd/2", dev, "stderr") < 0)
        die("/dev");
}

/* Create a folder of the image's root unless it exists; set its mode unless that is 0. */
static void make_root_folder(const char *path, mode_t mode)
{
    cleanup_close int folder = open_below("/newroot", path, true);
    if (folder < 0 || (mode && chmod(path_of(folder).text, mode) < 0))
        die(path);
}

/* Mount the read-only root filesystem under a writable layer: a scratch disk if there is one, else half the memory. */
static void mount_root(void)
{
    wait_for_path("/dev/vda");
    mount_at("/dev/vda", "/rom", "erofs", MS_RDONLY, NULL);
    if (access("/dev/vdc", F_OK) == 0)
        mount_at("/dev/vdc", "/rw", "ext4", MS_NOSUID | MS_NODEV | MS_NOATIME, NULL);
    else
        mount_at("rw", "/rw", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOATIME, "mode=0755,size=50%");
    make_folder("/rw/root");
    make_folder("/rw/root.work");
    make_folder("/rw/layer");
    make_folder("/rw/layer.work");
    make_folder("/layer");
    mount_at("root", "/newroot", "overlay", MS_NODEV, "lowerdir=/rom,upperdir=/rw/root,workdir=/rw/root.work");
    make_root_folder("/proc", 0);
    make_root_folder("/job", 0);
    make_root_folder("/work", 0);
    make_root_folder("/tmp", 01777);
    mount_in_root("sys", "/sys", "sysfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    make_dev();
    /* Later mounts must appear in the namespaces of processes prepared before. */
    if (mount(NULL, "/newroot", NULL, MS_SHARED, NULL) < 0)
        die("/newroot");
}

/* Mount cgroups, so that a job's memory, processes and CPU time are bounded and counted apart from the agent's. */
static void mount_cgroups(void)
{
    mount_at("cgroup", "/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    if (!write_file("/cgroup/cgroup.subtree_control", "+memory +pids"))
        die("/cgroup");
}

static void bring_up_loopback(void)
{
    struct ifreq request = {.ifr_name = "lo"};
    cleanup_close int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return; /* a kernel without IPv4 */
    if (ioctl(fd, SIOCGIFFLAGS, &request) == 0) {
        request.ifr_flags |= IFF_UP;
        if (ioctl(fd, SIOCSIFFLAGS, &request) < 0)
            log_line("loopback: %s", strerror(errno));
    }
}

/* Open the virtio-serial port named "belljar"; -1 while it does not exist. */
static int open_port(void)
{
    DIR *ports = opendir("/sys/class/virtio-ports");
    if (!ports)
        return -1;
    int port = -1;
    struct dirent *entry;
    while (port < 0 && (entry = readdir(ports))) {
        char path[300], name[32] = "";
        snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
        cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t n = fd < 0 ? -1 : read(fd, name, sizeof name - 1);
        if (n <= 0 || strcmp(name, "belljar\n") != 0)
            continue;
        snprintf(path, sizeof path, "/dev/%s", entry->d_name);
        port = open(path, O_RDWR | O_CLOEXEC);
    }
    closedir(ports);
    return port;
}

/* Wait for the host's end of the port: the port's name and its opening are two messages. */
static void wait_for_host(void)
{
    struct timespec pause_ms = {.tv_nsec = 1000000};
    for (int i = 0; i < 5000; i++) {
        struct pollfd port = {.fd = agent.port, .events = POLLOUT};
        if (poll(&port, 1, 0) >= 0 && !(port.revents & POLLHUP))
            return;
        nanosleep(&pause_ms, NULL);
    }
    errno = ETIMEDOUT;
    die("virtio-serial port to the host");
}

/* Linux checks the local APIC's timer against the PIT and does not use it when they disagree, which happens under
 * emulation on a busy host. QEMU's microvm has no other timer that runs while the kernel's tick is stopped: such a
 * machine would sleep for ever at the first wait. End it at once, so that the host boots another. */
static void check_clock(void)
{
    char device[32] = "";
    cleanup_close int fd = open("/sys/devices/system/clockevents/clockevent0/current_device", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, device, sizeof device - 1);
    if (n > 0 && strcmp(device, "pit\n") == 0) {
        log_line("no clock");
        end_machine();
    }
}

/* Open the standard streams on the console or /dev/null, so that no other descriptor gets their numbers. */
static void open_console(void)
{
    int console = open("/dev/console", O_RDWR);
    if (console < 0)
        console = open("/dev/null", O_RDWR);
    for (int fd = 0; fd <= STDERR_FILENO; fd++)
        if (console < 0 || dup2(console, fd) != fd)
            end_machine(); /* no console to log to */
    if (console > STDERR_FILENO)
        close(console);
}

/* Disable kernel interfaces that jobs do not need: user namespaces expose privileged interfaces to unprivileged
 * processes, io_uring is a second way to most system calls. Without these settings privileges.c still filters the
 * calls. */
static void restrict_kernel(void)
{
    if (!write_file("/proc/sys/user/max_user_namespaces", "0"))
        log_line("user namespaces: %s", strerror(errno));
    if (!write_file("/proc/sys/kernel/io_uring_disabled", "2") && errno != ENOENT) /* Linux 6.6 has it */
        log_line("io_uring: %s", strerror(errno));
}

void boot(void)
{
    mount_at("dev", "/dev", "devtmpfs", MS_NOSUID, NULL);
    open_console();
    mount_at("proc", "/proc", "proc", 0, NULL);
    mount_at("sys", "/sys", "sysfs", 0, NULL);
    check_clock();
    if (!write_file("/proc/self/oom_score_adj", "-1000")) /* the reaper's too; the entrypoint sets it back */
        die("oom_score_adj");
    restrict_kernel();
    load_modules();
    mount_root();
    mount_cgroups();
    bring_up_loopback();
    if (sethostname("belljar", 7) < 0)
        die("hostname");
    struct timespec pause_ms = {.tv_nsec = 1000000};
    for (int i = 0; (agent.port = open_port()) < 0 && (agent.listener = open_listener()) < 0; i++) {
        if (i == 5000)
            die("port");
        nanosleep(&pause_ms, NULL);
    }
    if (agent.port >= 0)
        wait_for_host();
    else
        accept_host();
}
