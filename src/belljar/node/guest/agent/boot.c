/* Boot, only as PID 1: modules, the root filesystem, cgroups, the port to the host. */
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

/* Load /modules/NN-name.ko in the order of their numbers, and free the memory that the files take. */
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

static void wait_for(const char *path)
{
    struct timespec pause_ms = {.tv_nsec = 1000000};
    for (int i = 0; access(path, F_OK) < 0; i++) {
        if (i == 5000)
            die(path);
        nanosleep(&pause_ms, NULL);
    }
}

/* Mount in the image's root, wherever its own links lead, but never out of it. */
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

/* A /dev with what every program expects and none of the machine's own devices. */
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

/* A folder of the image's root, made if it is missing. */
static void make_root_folder(const char *path, mode_t mode)
{
    cleanup_close int folder = open_below("/newroot", path, true);
    if (folder < 0 || (mode && chmod(path_of(folder).text, mode) < 0))
        die(path);
}

/* The read-only root filesystem under a writable layer: a scratch disk when there is one, half the memory otherwise. */
static void mount_root(void)
{
    wait_for("/dev/vda");
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
    /* What is mounted here later is to appear in the namespaces of processes that were prepared before. */
    if (mount(NULL, "/newroot", NULL, MS_SHARED, NULL) < 0)
        die("/newroot");
}

/* Cgroups for jobs, so that their memory, processes and CPU time are bounded and counted apart from the agent's. */
static void mount_cgroups(void)
{
    mount_at("cgroup", "/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    if (!write_file("/cgroup/cgroup.subtree_control", "+memory +pids"))
        die("/cgroup");
}

static void raise_loopback(void)
{
    struct ifreq request = {.ifr_name = "lo"};
    cleanup_close int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return; /* a kernel without IPv4 */
    if (ioctl(fd, SIOCGIFFLAGS, &request) == 0) {
        request.ifr_flags |= IFF_UP;
        if (ioctl(fd, SIOCSIFFLAGS, &request) < 0)
            say("belljar-agent: loopback: %s", strerror(errno));
    }
}

/* Open the virtio-serial port that the host calls "belljar"; -1 while it is not there. */
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

/* The port is there before the host's end of it is: its name and its opening are two messages. */
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
    die("host");
}

/* Linux checks the timer of the local APIC against the PIT, and does without it when they disagree, as they do now and
 * then under emulation on a busy host. QEMU's microvm has no other that goes on when the kernel stops its tick: such a
 * machine would sleep for ever at the first wait. It ends at once instead, and its host boots another. */
static void check_clock(void)
{
    char device[32] = "";
    cleanup_close int fd = open("/sys/devices/system/clockevents/clockevent0/current_device", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, device, sizeof device - 1);
    if (n > 0 && strcmp(device, "pit\n") == 0) {
        say("belljar-agent: no clock");
        end_machine();
    }
}

/* Standard streams on the console, or on nothing: no descriptor of the agent's may have their numbers. */
static void open_console(void)
{
    int console = open("/dev/console", O_RDWR);
    if (console < 0)
        console = open("/dev/null", O_RDWR);
    for (int fd = 0; fd <= STDERR_FILENO; fd++)
        if (console < 0 || dup2(console, fd) != fd)
            end_machine(); /* there is nobody to tell */
    if (console > STDERR_FILENO)
        close(console);
}

/* Doors that no job needs: user namespaces give an unprivileged process the kernel's privileged interfaces to try, and
 * io_uring is a second way to all of them. Where a kernel has no such setting, it is closed by system call alone. */
static void close_doors(void)
{
    if (!write_file("/proc/sys/user/max_user_namespaces", "0"))
        say("belljar-agent: user namespaces: %s", strerror(errno));
    if (!write_file("/proc/sys/kernel/io_uring_disabled", "2") && errno != ENOENT) /* Linux 6.6 has it */
        say("belljar-agent: io_uring: %s", strerror(errno));
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
    close_doors();
    load_modules();
    mount_root();
    mount_cgroups();
    raise_loopback();
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
