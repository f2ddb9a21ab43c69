/*
 * belljar's agent: PID 1 of every machine.
 *
 * As /init of the initramfs it loads modules, mounts the root filesystem and a writable layer over it, then serves one
 * host over one byte stream: it runs one entrypoint in namespaces of its own, carries its streams, says how it ended,
 * hands over artifacts, and resets the machine when told to or when the host falls silent. It never runs two jobs.
 *
 * A machine that is to be frozen and cloned is got ready first: processes are prepared in their namespaces, interpreters
 * among them that have started already (prefork), and wait for the job. A clone is told who it is before anything else
 * runs in it, and may rehearse: run a command of belljar's own, and forget it.
 *
 * Read it top to bottom: wire, link, boot, identity, the job's processes, artifacts, the loop. wire.py is the other end
 * and says what each frame means. Memory is static; every return value is looked at; what cannot go on ends the machine.
 *
 * With `--fd N PREFORK_FOLDER` it is an ordinary process that serves descriptor N, with `--listen N` instead one that
 * serves whoever comes to it, for tests and for nothing else.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <linux/acct.h>
#include <linux/blkpg.h>
#include <linux/fs.h>
#include <linux/genetlink.h>
#include <linux/netlink.h>
#include <linux/openat2.h>
#include <linux/random.h>
#include <linux/taskstats.h>
#include <net/if.h>
#include <net/route.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/random.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/vm_sockets.h> /* after sys/socket.h, whose types it uses */

/* --- wire: the same numbers as wire.py, held together by a test ----------------------------------------------------- */

enum {
    VERSION = 3,
    HEADER_SIZE = 8,
    MAX_PAYLOAD = 128 * 1024,
    STDIN_WINDOW = 64 * 1024,
    MAX_PATH_BYTES = 1024,
    SEED_BYTES = 64,
    MAX_HOSTNAME = 63,
    MAX_LAYER_PATH = 200,
};

enum kind {
    WELCOME = 0x01,
    ARG = 0x02,
    ENV = 0x03,
    RUN = 0x04,
    STDIN = 0x05,
    CREDIT = 0x06,
    SIGNAL = 0x07,
    COLLECT = 0x08,
    PING = 0x09,
    POWER_OFF = 0x0A,
    DISCARD = 0x0B,
    NETWORK = 0x0C,
    IDENTITY = 0x0D,
    PREPARE = 0x0E,
    SUSPEND = 0x0F,
    REST = 0x10,
    LAYER = 0x11,
    HELLO = 0x81,
    STARTED = 0x82,
    OUTPUT = 0x83,
    EXITED = 0x84,
    STDIN_CREDIT = 0x85,
    ARTIFACT = 0x86,
    ARTIFACT_DATA = 0x87,
    COLLECTED = 0x88,
    PONG = 0x89,
    FAILED = 0x8A,
    PREPARED = 0x8B,
    SUSPENDED = 0x8C,
    RESTED = 0x8D,
};

enum stream { NONE = 0, STDOUT = 1, STDERR = 2, ARTIFACTS = 3, STREAMS };
enum stage { STAGE_SCRIPT = 1, STAGE_ISOLATE = 2, STAGE_EXEC = 3 };
enum { RUN_ISOLATED = 1, RUN_KEEP = 2, RUN_REHEARSE = 4 };
enum etc { ETC_HOSTNAME, ETC_HOSTS, ETC_MACHINE_ID, ETC_FILES };

static const char *const etc_paths[ETC_FILES] = {
    "/newroot/etc/hostname", "/newroot/etc/hosts", "/newroot/etc/machine-id",
};

enum {
    CHUNK = 64 * 1024,                           /* most bytes of output in one frame */
    CONTROL_ROOM = 4 * 1024,                     /* kept free in the outgoing buffer for frames that are not output */
    OUT_SIZE = 3 * (HEADER_SIZE + CHUNK) + CONTROL_ROOM,
    IN_SIZE = 2 * (HEADER_SIZE + MAX_PAYLOAD),
    ARENA_SIZE = 1280 * 1024,                    /* all arguments and environment strings, and the working folder */
    MAX_STRINGS = 8192,
    PIPE_SIZE = 256 * 1024,
    MAX_DEPTH = 48,                              /* of folders below the working folder that are searched */
    MEMORY_RESERVE = 32 * 1024 * 1024,           /* of the machine's memory that is not the job's, at most */
    MAX_PREPARED = 8,
    MAX_NAME = 31,                               /* of a prefork program */
    ORDER_FD = 3,                                /* where a prefork program reads its orders */
    PROGRAM_FD = 4,                              /* the prefork program's own text */
};

/* What the agent tells a reaper, in one byte; what is no order is a signal for the job. */
enum { ORDER_EXEC = 0, ORDER_PREFORK = 0xFF };

/* What the reaper (the job's own PID 1) tells the agent. */
enum report_kind {
    REPORT_EXEC_FAILED = 1,
    REPORT_STARTED = 2,
    REPORT_EXITED = 3,
    REPORT_ISOLATE_FAILED = 4,
    REPORT_PREPARED = 5,
};
struct report {
    uint32_t kind;
    int32_t value; /* errno, pid, or wait status */
    uint64_t cpu_us;
    uint64_t max_rss_bytes;
    uint64_t started_us; /* by the reaper's clock: the agent may come to reading this late */
};

enum phase { WAITING_WELCOME, READY, PREPARING, SUSPENDED_NOW, RUNNING, RESTING, ENDED, COLLECTING };

/* The processes of one job and the agent's ends of what leads to them. Prepared, they wait for the job's words. */
struct processes {
    pid_t reaper, main; /* the latter only of a prefork program, else 0 */
    int report_fd, control_fd, order_fd;
    int stdin_fd;
    int output_fd[STREAMS];
    bool isolated;
    char cgroup[32];
    char prefork[MAX_NAME + 1]; /* the program that waits, empty for none */
};

static struct {
    bool is_init;
    int port; /* the byte stream to the host */
    int etc[ETC_FILES]; /* opened before a snapshot, so that a clone has less to do until it knows who it is */
    int listener; /* where a host may come again after a snapshot; -1 where it cannot */
    enum phase phase;
    uint64_t last_heard_ms;
    uint32_t silence_ms;

    uint8_t in[IN_SIZE];
    size_t in_len;
    uint8_t out[OUT_SIZE];
    size_t out_start, out_len; /* bytes out_start .. out_start + out_len wait to be written */

    char arena[ARENA_SIZE];
    size_t arena_len;
    char *argv[MAX_STRINGS + 1], *envp[MAX_STRINGS + 1];
    size_t argc, envc;

    struct processes job, prepared[MAX_PREPARED];
    size_t prepared_count;
    unsigned made;     /* how many sets of processes, for the names of their cgroups */
    rlim_t stack_gap;  /* see choose_layout; 0 where prefork programs are laid out as the kernel likes */
    unsigned mounted;  /* how often the script's disk was mounted, for the name of the working folder's layer */
    bool has_script;   /* it is mounted now */
    uint64_t script_bytes, layer_bytes; /* how the script's disk is divided; no layer_bytes: it is not */
    char layer_folder[MAX_LAYER_PATH + 1]; /* what the layer is laid over */
    bool keep, rehearse;
    const char *prefork_folder;
    uint64_t credit[STREAMS];
    bool discard[STREAMS];
    uint8_t stdin_data[STDIN_WINDOW];
    size_t stdin_start, stdin_len;
    bool stdin_ended;
    int wait_status;
    bool has_status;
    int exits_fd; /* where the kernel says which process exits; -1 where it does not */
    bool leaving; /* the job's main process has begun to exit */
    uint64_t started_us, ended_us, cpu_us, cpu_before_us, max_memory;
    char working_folder[MAX_PATH_BYTES];
    char work_layer[32]; /* where what the job writes into its working folder really lies */

    uint64_t collect_bytes_left;
    uint32_t collect_count_left, collected, skipped;
    char *globs[64];
    size_t glob_count;
    uint8_t artifact_data[CHUNK];
} agent;

/* --- small things -------------------------------------------------------------------------------------------------- */

static uint64_t now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_BOOTTIME, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static uint32_t get_u32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint64_t get_u64(const uint8_t *p)
{
    return (uint64_t)get_u32(p) | (uint64_t)get_u32(p + 4) << 32;
}

static void put_u32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

static void put_u64(uint8_t *p, uint64_t v)
{
    put_u32(p, (uint32_t)v);
    put_u32(p + 4, (uint32_t)(v >> 32));
}

static void say(const char *format, ...)
{
    char line[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof line - 1, format, args);
    va_end(args);
    if (n < 0)
        return;
    size_t len = (size_t)n < sizeof line - 2 ? (size_t)n : sizeof line - 2;
    line[len] = '\n';
    if (write(STDERR_FILENO, line, len + 1) < 0)
        return; /* nobody to tell */
}

/* End the machine. A reset ends both hypervisors' processes; Firecracker knows no power-off. */
static _Noreturn void end_machine(void)
{
    if (agent.is_init) {
        reboot(RB_AUTOBOOT);
        for (;;)
            pause();
    }
    if (agent.job.reaper > 0)
        kill(agent.job.reaper, SIGKILL);
    for (size_t i = 0; i < agent.prepared_count; i++)
        kill(agent.prepared[i].reaper, SIGKILL);
    exit(0);
}

static _Noreturn void die(const char *what)
{
    say("belljar-agent: %s: %s", what, strerror(errno));
    end_machine();
}

static void set_nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        die("fcntl");
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static bool write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    bool ok = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    close(fd);
    return ok;
}

/* --- link: frames in and out ---------------------------------------------------------------------------------------- */

/* Whether the machine goes on without its stream: suspended, it may have been frozen since, and its clone's host comes to
 * where the agent listens. Any other machine ends with its stream. */
static bool outlives_stream(void)
{
    return agent.phase == SUSPENDED_NOW && agent.listener >= 0;
}

static void accept_host(void);

static void flush_out(void)
{
    while (agent.out_len > 0) {
        ssize_t n = write(agent.port, agent.out + agent.out_start, agent.out_len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0) { /* the host hung up */
            if (!outlives_stream())
                end_machine();
            agent.out_len = 0; /* reading finds the end too */
            break;
        }
        agent.out_start += (size_t)n;
        agent.out_len -= (size_t)n;
    }
    agent.out_start = 0;
}

/* Where `size` more bytes can be written in the outgoing buffer; NULL when there is no room now. */
static uint8_t *out_room(size_t size)
{
    if (agent.out_start + agent.out_len + size > OUT_SIZE && agent.out_start > 0) {
        memmove(agent.out, agent.out + agent.out_start, agent.out_len);
        agent.out_start = 0;
    }
    if (agent.out_start + agent.out_len + size > OUT_SIZE)
        return NULL;
    return agent.out + agent.out_start + agent.out_len;
}

/* Room for a frame of output that leaves the control frames theirs. */
static uint8_t *output_room(size_t payload)
{
    return out_room(HEADER_SIZE + payload + CONTROL_ROOM);
}

static void put_header(uint8_t *p, uint32_t length, enum kind kind, enum stream stream)
{
    put_u32(p, length);
    p[4] = (uint8_t)kind;
    p[5] = (uint8_t)stream;
    p[6] = p[7] = 0;
}

/* Queue a small frame. The host earns no more control frames than fit: their number is bounded by what it sends. */
static void send_control(enum kind kind, const uint8_t *payload, size_t length)
{
    uint8_t *p;
    while (!(p = out_room(HEADER_SIZE + length))) {
        struct pollfd waiting = {.fd = agent.port, .events = POLLOUT};
        if (poll(&waiting, 1, agent.silence_ms ? (int)agent.silence_ms : -1) == 0)
            end_machine(); /* the host reads no more */
        flush_out();
    }
    put_header(p, (uint32_t)length, kind, NONE);
    if (length)
        memcpy(p + HEADER_SIZE, payload, length);
    agent.out_len += HEADER_SIZE + length;
}

static void send_failed(enum stage stage, int error)
{
    uint8_t payload[8];
    put_u32(payload, stage);
    put_u32(payload + 4, (uint32_t)error);
    send_control(FAILED, payload, sizeof payload);
    agent.phase = ENDED;
}

static void send_hello(void)
{
    uint8_t payload[16] = {VERSION};
    put_u64(payload + 8, now_us());
    send_control(HELLO, payload, sizeof payload);
}

static void handle_frame(enum kind kind, enum stream stream, uint8_t *payload, size_t length);

static void handle_input(void)
{
    size_t at = 0;
    while (agent.in_len - at >= HEADER_SIZE) {
        uint8_t *p = agent.in + at;
        uint32_t length = get_u32(p);
        if (length > MAX_PAYLOAD) {
            errno = EPROTO;
            die("frame from host");
        }
        if (agent.in_len - at < HEADER_SIZE + (size_t)length)
            break;
        handle_frame((enum kind)p[4], (enum stream)p[5], p + HEADER_SIZE, length);
        at += HEADER_SIZE + (size_t)length;
    }
    memmove(agent.in, agent.in + at, agent.in_len - at);
    agent.in_len -= at;
}

static void read_port(void)
{
    ssize_t n = read(agent.port, agent.in + agent.in_len, IN_SIZE - agent.in_len);
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    if (n <= 0) {
        if (!outlives_stream())
            end_machine();
        accept_host();
        return;
    }
    agent.in_len += (size_t)n;
    agent.last_heard_ms = now_us() / 1000;
    handle_input();
}

/* --- vsock: where there is no virtio-serial port, the host comes to a port that the agent listens on ------------------ */

enum { VSOCK_PORT = 1024 };

/* A socket that listens for the host; -1 while the machine has no vsock device. The socket alone proves nothing: it can
 * be had wherever the module is loaded, so ask whether the machine has an address of its own. */
static int open_listener(void)
{
    unsigned cid = VMADDR_CID_ANY;
    int device = open("/dev/vsock", O_RDONLY | O_CLOEXEC);
    if (device < 0)
        return -1;
    if (ioctl(device, IOCTL_VM_SOCKETS_GET_LOCAL_CID, &cid) < 0)
        cid = VMADDR_CID_ANY;
    close(device);
    if (cid == VMADDR_CID_ANY)
        return -1;
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = VSOCK_PORT};
    int listener = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (const struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 1) < 0)
        die("vsock");
    return listener;
}

static bool is_host(const struct sockaddr_vm *peer)
{
    return peer->svm_family != AF_VSOCK || peer->svm_cid == VMADDR_CID_HOST; /* another family only in tests */
}

/* Wait for the host to connect, and begin with empty hands: what was under way belonged to the stream before. */
static void accept_host(void)
{
    struct sockaddr_vm peer;
    socklen_t length;
    close_fd(&agent.port);
    do {
        close_fd(&agent.port);
        length = sizeof peer;
        memset(&peer, 0, sizeof peer);
        agent.port = accept4(agent.listener, (struct sockaddr *)&peer, &length, SOCK_CLOEXEC);
        if (agent.port < 0 && errno != EINTR && errno != ECONNABORTED)
            die("accept");
    } while (agent.port < 0 || !is_host(&peer));
    set_nonblocking(agent.port);
    agent.in_len = agent.out_start = agent.out_len = 0;
    agent.last_heard_ms = now_us() / 1000;
}

/* --- boot: only as PID 1 --------------------------------------------------------------------------------------------- */

static void make_folder(const char *path)
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
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
            die(path);
        close(fd);
        unlink(path);
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

static void make_device(const char *path, unsigned major_number, unsigned minor_number)
{
    if (mknod(path, S_IFCHR | 0666, makedev(major_number, minor_number)) < 0 || chmod(path, 0666) < 0)
        die(path);
}

/* A /dev with what every program expects and none of the machine's own devices. */
static void make_dev(void)
{
    mount_at("dev", "/newroot/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=0755,size=1m,nr_inodes=256");
    make_device("/newroot/dev/null", 1, 3);
    make_device("/newroot/dev/zero", 1, 5);
    make_device("/newroot/dev/full", 1, 7);
    make_device("/newroot/dev/random", 1, 8);
    make_device("/newroot/dev/urandom", 1, 9);
    make_device("/newroot/dev/tty", 5, 0);
    mount_at("devpts", "/newroot/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620");
    mount_at("shm", "/newroot/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
    if (symlink("pts/ptmx", "/newroot/dev/ptmx") < 0 || symlink("/proc/self/fd", "/newroot/dev/fd") < 0 ||
        symlink("/proc/self/fd/0", "/newroot/dev/stdin") < 0 || symlink("/proc/self/fd/1", "/newroot/dev/stdout") < 0 ||
        symlink("/proc/self/fd/2", "/newroot/dev/stderr") < 0)
        die("/dev");
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
    make_folder("/newroot/proc");
    make_folder("/newroot/job");
    make_folder("/newroot/work");
    make_folder("/newroot/tmp");
    if (chmod("/newroot/tmp", 01777) < 0)
        die("/tmp");
    mount_at("sys", "/newroot/sys", "sysfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
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
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return; /* a kernel without IPv4 */
    if (ioctl(fd, SIOCGIFFLAGS, &request) == 0) {
        request.ifr_flags |= IFF_UP;
        if (ioctl(fd, SIOCSIFFLAGS, &request) < 0)
            say("belljar-agent: loopback: %s", strerror(errno));
    }
    close(fd);
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
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t n = fd < 0 ? -1 : read(fd, name, sizeof name - 1);
        close_fd(&fd);
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
    int fd = open("/sys/devices/system/clockevents/clockevent0/current_device", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, device, sizeof device - 1);
    close_fd(&fd);
    if (n > 0 && strcmp(device, "pit\n") == 0) {
        say("belljar-agent: no clock");
        end_machine();
    }
}

static void boot(void)
{
    mount_at("dev", "/dev", "devtmpfs", MS_NOSUID, NULL);
    int console = open("/dev/console", O_RDWR);
    for (int fd = 0; console >= 0 && fd <= STDERR_FILENO; fd++)
        dup2(console, fd);
    if (console > STDERR_FILENO)
        close(console);
    mount_at("proc", "/proc", "proc", 0, NULL);
    mount_at("sys", "/sys", "sysfs", 0, NULL);
    check_clock();
    if (!write_file("/proc/self/oom_score_adj", "-1000")) /* the reaper's too; the entrypoint sets it back */
        die("oom_score_adj");
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

/* --- network: what the host says of the machine's device, before the job or in a fresh clone --------------------------- */

enum { NETWORK_SIZE = 24, MAX_NAMESERVERS = 3 };

static void network_ioctl(int fd, unsigned long what, void *request, const char *name)
{
    if (ioctl(fd, what, request) < 0)
        die(name);
}

static struct sockaddr socket_address(const uint8_t address[4])
{
    struct sockaddr_in in = {.sin_family = AF_INET};
    struct sockaddr out;
    memcpy(&in.sin_addr, address, 4);
    memcpy(&out, &in, sizeof out);
    return out;
}

static struct ifreq device_request(void)
{
    struct ifreq request;
    memset(&request, 0, sizeof request);
    memcpy(request.ifr_name, "eth0", 5);
    return request;
}

static void raise_device(int fd, const uint8_t *address, unsigned prefix, int mtu)
{
    struct ifreq request = device_request();
    request.ifr_mtu = mtu;
    network_ioctl(fd, SIOCSIFMTU, &request, "eth0: MTU");
    request = device_request();
    request.ifr_addr = socket_address(address);
    network_ioctl(fd, SIOCSIFADDR, &request, "eth0: address");
    uint32_t bits = prefix ? 0xffffffffu << (32 - prefix) : 0;
    uint8_t mask[4] = {(uint8_t)(bits >> 24), (uint8_t)(bits >> 16), (uint8_t)(bits >> 8), (uint8_t)bits};
    request = device_request();
    request.ifr_netmask = socket_address(mask);
    network_ioctl(fd, SIOCSIFNETMASK, &request, "eth0: netmask");
    request = device_request();
    network_ioctl(fd, SIOCGIFFLAGS, &request, "eth0");
    request.ifr_flags |= IFF_UP;
    network_ioctl(fd, SIOCSIFFLAGS, &request, "eth0: up");
}

static void add_default_route(int fd, const uint8_t *gateway)
{
    static const uint8_t any[4];
    struct rtentry route;
    memset(&route, 0, sizeof route);
    route.rt_dst = socket_address(any);
    route.rt_genmask = socket_address(any);
    route.rt_gateway = socket_address(gateway);
    route.rt_flags = RTF_UP | RTF_GATEWAY;
    if (ioctl(fd, SIOCADDRT, &route) < 0 && errno != EEXIST) /* a clone of a machine that had it already */
        die("eth0: route");
}

/* The image's own may be a link to anywhere: it is replaced, never written through. */
static void write_resolv_conf(const uint8_t *nameservers, unsigned count)
{
    static const char path[] = "/newroot/etc/resolv.conf";
    make_folder("/newroot/etc");
    if (unlink(path) < 0 && errno != ENOENT)
        die(path);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0)
        die(path);
    for (unsigned i = 0; i < count; i++)
        dprintf(fd, "nameserver %u.%u.%u.%u\n", nameservers[4 * i], nameservers[4 * i + 1], nameservers[4 * i + 2],
                nameservers[4 * i + 3]);
    close(fd);
}

/* address[4] gateway[4] mtu u16, prefix u8, count u8, three name servers. In tests, as no PID 1, it is only read. */
static void set_network_up(const uint8_t *payload, size_t length)
{
    if (agent.phase != READY || length != NETWORK_SIZE || payload[10] > 32 || payload[11] > MAX_NAMESERVERS) {
        errno = EPROTO;
        die("NETWORK from host");
    }
    if (!agent.is_init)
        return;
    write_file("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"); /* where the kernel has IPv6 at all */
    write_file("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("network");
    raise_device(fd, payload, payload[10], payload[8] | payload[9] << 8);
    add_default_route(fd, payload + 4);
    close(fd);
    write_resolv_conf(payload + 12, payload[11]);
}

/* --- identity: what must differ between clones of one machine -------------------------------------------------------- */

/* Fresh entropy, counted as such, and the generator seeded from it at once (random(4)): clones share all that was before. */
static void seed_kernel(const uint8_t *seed)
{
    uint32_t pool[2 + SEED_BYTES / 4] = {SEED_BYTES * 8, SEED_BYTES}; /* struct rand_pool_info: bits, bytes, data */
    memcpy(pool + 2, seed, SEED_BYTES);
    int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, RNDADDENTROPY, pool) < 0 || ioctl(fd, RNDRESEEDCRNG) < 0)
        die("/dev/urandom");
    close(fd);
}

static void set_clock(uint64_t unix_ns)
{
    struct timespec now = {.tv_sec = (time_t)(unix_ns / 1000000000), .tv_nsec = (long)(unix_ns % 1000000000)};
    if (agent.is_init && clock_settime(CLOCK_REALTIME, &now) < 0)
        die("clock");
}

static void open_etc(void)
{
    for (enum etc file = 0; file < ETC_FILES; file++)
        if (agent.etc[file] < 0)
            agent.etc[file] = open(etc_paths[file], O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0644);
}

static void write_etc(enum etc file, const char *text)
{
    int fd = agent.etc[file];
    ssize_t length = (ssize_t)strlen(text);
    if (fd < 0 || write(fd, text, (size_t)length) != length || ftruncate(fd, length) < 0)
        say("belljar-agent: %s: %s", etc_paths[file], strerror(errno)); /* an image may have no /etc */
    close_fd(&agent.etc[file]);
}

static void name_machine(const char *name)
{
    char text[160], id[34] = {0};
    uint8_t random[16];
    if (sethostname(name, strlen(name)) < 0)
        die("hostname");
    open_etc();
    snprintf(text, sizeof text, "%s\n", name);
    write_etc(ETC_HOSTNAME, text);
    snprintf(text, sizeof text, "127.0.0.1 localhost %s\n::1 localhost\n", name);
    write_etc(ETC_HOSTS, text);
    if (syscall(SYS_getrandom, random, sizeof random, 0) != sizeof random)
        die("getrandom");
    for (size_t i = 0; i < sizeof random; i++) /* machine-id(5): 32 lower-case hexadecimal digits */
        snprintf(id + 2 * i, 3, "%02x", random[i]);
    id[32] = '\n';
    write_etc(ETC_MACHINE_ID, id);
}

static void take_identity(const uint8_t *payload, size_t length)
{
    char name[MAX_HOSTNAME + 1] = "";
    if (length <= SEED_BYTES || length > SEED_BYTES + MAX_HOSTNAME ||
        (agent.phase != READY && agent.phase != SUSPENDED_NOW)) {
        errno = EPROTO;
        die("IDENTITY from host");
    }
    memcpy(name, payload + SEED_BYTES, length - SEED_BYTES);
    if (agent.is_init) {
        seed_kernel(payload);
        name_machine(name);
    }
    if (agent.phase == SUSPENDED_NOW) {
        agent.phase = WAITING_WELCOME;
        agent.last_heard_ms = now_us() / 1000;
        send_hello();
    }
}

/* --- exits: which process begins to, said by the kernel before it takes its memory apart ------------------------------- */

/* A generic netlink message (linux/genetlink.h) with one attribute; false when it could not be sent. */
static bool send_netlink(uint16_t family, uint8_t command, uint8_t version, uint16_t attribute, const char *text)
{
    struct {
        struct nlmsghdr header;
        struct genlmsghdr generic;
        struct nlattr attribute;
        char text[64];
    } message = {0};
    size_t length = strlen(text) + 1;
    if (length > sizeof message.text)
        return false;
    memcpy(message.text, text, length);
    message.attribute = (struct nlattr){(uint16_t)(NLA_HDRLEN + length), attribute};
    message.generic = (struct genlmsghdr){command, version, 0};
    message.header.nlmsg_len = (uint32_t)(NLMSG_HDRLEN + GENL_HDRLEN + NLA_ALIGN(message.attribute.nla_len));
    message.header.nlmsg_type = family;
    message.header.nlmsg_flags = NLM_F_REQUEST;
    return send(agent.exits_fd, &message, message.header.nlmsg_len, 0) == (ssize_t)message.header.nlmsg_len;
}

/* The attribute of that type in a run of them, or NULL; `length` becomes that of its payload. */
static const uint8_t *find_attribute(const uint8_t *at, size_t size, uint16_t type, size_t *length)
{
    struct nlattr head;
    for (size_t step; size >= sizeof head; at += step, size -= step) {
        memcpy(&head, at, sizeof head);
        if (head.nla_len < sizeof head || head.nla_len > size)
            return NULL;
        if ((head.nla_type & NLA_TYPE_MASK) == type) {
            *length = head.nla_len - NLA_HDRLEN;
            return at + NLA_HDRLEN;
        }
        step = NLA_ALIGN((size_t)head.nla_len);
        if (step > size)
            return NULL;
    }
    return NULL;
}

/* The attributes of the kernel's next message; NULL when there is none. */
static const uint8_t *receive_netlink(size_t *size)
{
    static uint8_t buffer[4096];
    struct nlmsghdr header;
    struct sockaddr_nl from;
    socklen_t from_length = sizeof from;
    ssize_t n = recvfrom(agent.exits_fd, buffer, sizeof buffer, 0, (struct sockaddr *)&from, &from_length);
    if (n < (ssize_t)(NLMSG_HDRLEN + GENL_HDRLEN) || from.nl_pid != 0)
        return NULL;
    memcpy(&header, buffer, sizeof header);
    if (header.nlmsg_type == NLMSG_ERROR || header.nlmsg_len > (size_t)n)
        return NULL;
    *size = header.nlmsg_len - NLMSG_HDRLEN - GENL_HDRLEN;
    return buffer + NLMSG_HDRLEN + GENL_HDRLEN;
}

/* Ask the kernel for a word about each process that exits (Documentation/accounting/taskstats.rst). Without it a job's
 * end is heard from its reaper, which is later by the time that it takes to unmap an interpreter. */
static void hear_exits(void)
{
    char cpus[64] = "";
    size_t size, length;
    uint16_t family;
    if (!agent.is_init || agent.exits_fd >= 0)
        return;
    int fd = open("/sys/devices/system/cpu/possible", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, cpus, sizeof cpus - 1);
    close_fd(&fd);
    agent.exits_fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);
    const uint8_t *at = NULL;
    if (n > 0 && agent.exits_fd >= 0 &&
        send_netlink(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, 1, CTRL_ATTR_FAMILY_NAME, TASKSTATS_GENL_NAME) &&
        (at = receive_netlink(&size)) && (at = find_attribute(at, size, CTRL_ATTR_FAMILY_ID, &length)) &&
        length == sizeof family) {
        memcpy(&family, at, sizeof family);
        cpus[strcspn(cpus, "\n")] = 0;
        set_nonblocking(agent.exits_fd);
        if (send_netlink(family, TASKSTATS_CMD_GET, TASKSTATS_GENL_VERSION, TASKSTATS_CMD_ATTR_REGISTER_CPUMASK, cpus))
            return;
    }
    close_fd(&agent.exits_fd);
}

/* The main process is done when its last thread is, here only when that is its first, whose code is the process'. Lost
 * messages (a job may exit more processes than there is room for) do no harm: the reaper says it again. */
static void read_exits(void)
{
    struct taskstats exit = {0};
    size_t size, length, least = offsetof(struct taskstats, ac_tgid) + sizeof exit.ac_tgid;
    const uint8_t *at = receive_netlink(&size);
    if (!at || !(at = find_attribute(at, size, TASKSTATS_TYPE_AGGR_PID, &length)) ||
        !(at = find_attribute(at, length, TASKSTATS_TYPE_STATS, &length)) || length < least)
        return;
    memcpy(&exit, at, length < sizeof exit ? length : sizeof exit); /* it grows with the kernel's version */
    if (agent.phase != RUNNING || !agent.job.main || exit.ac_pid != (uint32_t)agent.job.main ||
        exit.ac_tgid != exit.ac_pid || !(exit.ac_flag & AGROUP) || agent.has_status)
        return;
    agent.leaving = agent.has_status = true;
    agent.wait_status = (int)exit.ac_exitcode;
    agent.ended_us = now_us();
}

/* --- the job's processes -------------------------------------------------------------------------------------------- */

/* script_bytes u64, layer_bytes u64, path: behind the script its disk holds a layer, which is laid over that folder. */
static void take_layer(const uint8_t *payload, size_t length)
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

/* A folder of the image, wherever its own links lead, but never out of `root`; made if only its last part is missing. */
static int open_below(const char *root, const char *path, bool make)
{
    struct open_how how = {.flags = O_PATH | O_DIRECTORY | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT};
    int top = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (top < 0)
        return -1;
    int folder = (int)syscall(SYS_openat2, top, path, &how, sizeof how);
    const char *last = strrchr(path, '/');
    if (folder < 0 && errno == ENOENT && make && last) {
        char above[MAX_LAYER_PATH + 2];
        snprintf(above, sizeof above, "%.*s/", (int)(last - path), path);
        int parent = (int)syscall(SYS_openat2, top, above, &how, sizeof how);
        if (parent >= 0 && mkdirat(parent, last + 1, 0755) == 0)
            folder = (int)syscall(SYS_openat2, top, path, &how, sizeof how);
        close_fd(&parent);
    }
    int error = errno;
    close(top);
    errno = error;
    return folder;
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
static int mount_script(uint32_t uid, uint32_t gid)
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
static void unmount_script(void)
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

static uint64_t read_number(const char *folder, const char *name, const char *key)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0)
        return 0;
    text[n] = 0;
    const char *at = text;
    if (key) {
        at = strstr(text, key);
        if (!at)
            return 0;
        at += strlen(key);
    }
    return strtoull(at, NULL, 10);
}

static bool write_number(const char *folder, const char *name, uint64_t number)
{
    char path[64], text[32];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    snprintf(text, sizeof text, "%llu", (unsigned long long)number);
    return write_file(path, text);
}

/* A cgroup of the processes' own, with the machine's memory less what the agent and the kernel need. */
static int make_job_cgroup(struct processes *job, uint32_t max_processes)
{
    snprintf(job->cgroup, sizeof job->cgroup, "/cgroup/job%u", agent.made++);
    if (mkdir(job->cgroup, 0755) < 0)
        return errno;
    uint64_t total = read_number("/proc", "meminfo", "MemTotal:") * 1024;
    uint64_t reserve = total / 4 < MEMORY_RESERVE ? total / 4 : MEMORY_RESERVE;
    if (!write_number(job->cgroup, "memory.max", total - reserve) ||
        !write_number(job->cgroup, "pids.max", max_processes))
        return errno;
    return 0;
}

/* One layout in memory for all prefork programs of this machine: a hypervisor that translates keeps its translations by
 * address, and those that a rehearsal caused are to serve the job. Yet no layout that can be known beforehand: without
 * randomization the kernel maps libraries below a gap for the stack, as large as the limit of the stack at the exec
 * (mmap_base in arch/x86/mm/mmap.c), and that is drawn at random for the machine. */
static void choose_layout(void)
{
    enum { LEAST_MIB = 1024, MIBS = 1 << 23 };
    uint32_t random;
    if (agent.is_init && agent.stack_gap == 0 && getrandom(&random, sizeof random, 0) == sizeof random)
        agent.stack_gap = (rlim_t)(LEAST_MIB + random % MIBS) << 20;
}

/* Whether programs that are executed from now on are laid out at random; only while one is prepared they are not. */
static void set_randomization(bool on)
{
    if (agent.stack_gap && !write_file("/proc/sys/kernel/randomize_va_space", on ? "2" : "0"))
        die("randomize_va_space");
}

/* By the child, before its exec: stop there, with the gap as its limit. */
static bool ask_for_layout(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_STACK, &limit) < 0 || ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0)
        return false;
    limit.rlim_cur = agent.stack_gap;
    return setrlimit(RLIMIT_STACK, &limit) == 0;
}

/* By its parent, when it has stopped: nothing of the new program has run yet, which looks at the limit when it starts. */
static bool let_go_with_limit(pid_t child)
{
    struct rlimit limit;
    int status;
    return waitpid(child, &status, 0) == child && WIFSTOPPED(status) && getrlimit(RLIMIT_STACK, &limit) == 0 &&
           prlimit(child, RLIMIT_STACK, &limit, NULL) == 0 && ptrace(PTRACE_DETACH, child, NULL, NULL) == 0;
}

/* What a job's process must not inherit from the agent: blocked and ignored signals. */
static void reset_signals(void)
{
    sigset_t none;
    sigemptyset(&none);
    signal(SIGPIPE, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* What the child of a reaper is to become. */
struct child {
    uint32_t uid, gid;
    bool isolated, laid_out;
    int stdio[3], cgroup_fd, order_fd, program_fd; /* the last two only for a prefork program, else -1 */
};

/* Descriptors of a prefork program at the numbers that it expects; all others are closed by its exec. */
static bool hand_over(const struct child *child)
{
    /* Both may be in each other's way: first to places above them. */
    int order = fcntl(child->order_fd, F_DUPFD_CLOEXEC, 10), program = fcntl(child->program_fd, F_DUPFD_CLOEXEC, 10);
    return order >= 0 && program >= 0 && dup2(order, ORDER_FD) == ORDER_FD && dup2(program, PROGRAM_FD) == PROGRAM_FD;
}

static _Noreturn void exec_command(const struct child *child, const char *folder, int error_fd)
{
    struct rlimit no_core = {0, 0};
    bool ok = setsid() >= 0;
    for (int fd = 0; ok && fd < 3; fd++)
        ok = dup2(child->stdio[fd], fd) == fd;
    if (ok && child->isolated)
        /* What only waits is the first to go when the job wants the memory. */
        ok = write(child->cgroup_fd, "0", 1) == 1 &&
             write_file("/proc/self/oom_score_adj", child->order_fd >= 0 ? "1000" : "0") &&
             syscall(SYS_setgroups, 0, NULL) == 0 && setgid(child->gid) == 0 && setuid(child->uid) == 0 &&
             prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0;
    /* After the change of user, which clears it. */
    ok = ok && prctl(PR_SET_PDEATHSIG, SIGKILL) == 0 && setrlimit(RLIMIT_CORE, &no_core) == 0;
    ok = ok && chdir(folder) == 0 && (!child->laid_out || ask_for_layout());
    if (ok) {
        umask(022);
        reset_signals();
        if (error_fd <= PROGRAM_FD && child->order_fd >= 0)
            error_fd = fcntl(error_fd, F_DUPFD_CLOEXEC, 10);
        if (child->order_fd < 0 || hand_over(child)) {
            environ = agent.envp;
            execvpe(agent.argv[0], agent.argv, agent.envp);
        }
    }
    int error = errno;
    if (write(error_fd, &error, sizeof error) != sizeof error)
        _exit(126);
    _exit(127);
}

/* Fork and execute agent.argv; returns the child's pid, or minus the errno that kept it from running. */
static pid_t spawn(const struct child *how, const char *folder)
{
    int failed[2], error;
    if (pipe2(failed, O_CLOEXEC) < 0)
        return -errno;
    pid_t child = fork();
    if (child == 0)
        exec_command(how, folder, failed[1]);
    error = child < 0 ? errno : 0;
    close(failed[1]);
    if (child > 0 && read(failed[0], &error, sizeof error) != sizeof error)
        error = 0;
    close(failed[0]);
    if (child > 0 && !error && how->laid_out && !let_go_with_limit(child))
        error = errno;
    if (error && child > 0) {
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
    }
    return error ? -error : child;
}

static void send_report(int fd, enum report_kind kind, int value)
{
    struct rusage usage;
    struct report report = {.kind = kind, .value = value, .started_us = agent.started_us};
    if (kind == REPORT_EXITED && getrusage(RUSAGE_CHILDREN, &usage) == 0) {
        report.cpu_us = (uint64_t)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000 +
                        (uint64_t)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
        report.max_rss_bytes = (uint64_t)usage.ru_maxrss * 1024;
    }
    if (write(fd, &report, sizeof report) != sizeof report)
        _exit(1); /* the agent is gone, and with it the machine */
}

/* In the job's mount namespace: its root is the overlay and nothing else, its /proc shows its own processes. The agent's
 * later mounts below it come in, nothing goes out. */
static bool enter_root(void)
{
    return mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) == 0 && chdir("/newroot") == 0 &&
           mount("proc", "/newroot/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) == 0 &&
           mount("/newroot", "/", NULL, MS_MOVE, NULL) == 0 && chroot(".") == 0 && chdir("/") == 0;
}

static bool read_fully(int fd, void *data, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = read(fd, (char *)data + done, size - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        done += (size_t)n;
    }
    return true;
}

/* An order's words: how many bytes follow, how many of the strings are arguments; then the working folder, the
 * arguments and the environment, each ended by a zero. */
static void read_order(int fd)
{
    uint32_t head[2];
    if (!read_fully(fd, head, sizeof head) || head[0] > ARENA_SIZE || !read_fully(fd, agent.arena, head[0]))
        _exit(1);
    agent.argc = agent.envc = 0;
    char *at = agent.arena, *end = at + head[0];
    size_t folder = strlen(at);
    if (folder >= sizeof agent.working_folder)
        _exit(1);
    memcpy(agent.working_folder, at, folder + 1);
    for (at += folder + 1; at < end; at += strlen(at) + 1) {
        if (agent.argc < head[1])
            agent.argv[agent.argc++] = at;
        else
            agent.envp[agent.envc++] = at;
    }
    agent.argv[agent.argc] = agent.envp[agent.envc] = NULL;
}

/* A process that waited is no longer the first that the kernel ends when memory is short. */
static void is_the_job(pid_t child)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/oom_score_adj", child);
    if (!write_file(path, "0"))
        say("belljar-agent: %s: %s", path, strerror(errno));
}

/* PID 1 of the job's namespace: starts the entrypoint, passes signals on, reaps orphans, reports how it ended. When it
 * exits the kernel kills whatever the job left. `how` says what the child becomes; a prefork program is started at once
 * and waits for its order, any other command is started when the order comes. */
static _Noreturn void be_reaper(struct child how, bool prefork, int report_fd, int control)
{
    sigset_t child_signal;
    int order_fd = how.order_fd;
    sigemptyset(&child_signal);
    sigaddset(&child_signal, SIGCHLD);
    sigprocmask(SIG_SETMASK, &child_signal, NULL);
    int signals = signalfd(-1, &child_signal, SFD_CLOEXEC);
    if (signals < 0 || prctl(PR_SET_CHILD_SUBREAPER, 1) < 0 || (how.isolated && !enter_root())) {
        send_report(report_fd, REPORT_ISOLATE_FAILED, errno);
        _exit(1);
    }
    pid_t child = 0;
    if (prefork && (child = spawn(&how, "/")) < 0) {
        send_report(report_fd, REPORT_EXEC_FAILED, -child);
        _exit(1);
    }
    how.order_fd = -1; /* what is started from now on is no prefork program */
    how.laid_out = false;
    if (!prefork)
        send_report(report_fd, REPORT_PREPARED, 0);
    bool started = false;
    for (;;) {
        struct pollfd fds[2] = {{.fd = signals, .events = POLLIN}, {.fd = control, .events = POLLIN}};
        if (poll(fds, 2, -1) < 0 && errno != EINTR)
            _exit(1);
        uint8_t order;
        if (fds[1].revents) {
            if (read(control, &order, 1) != 1)
                break;
            if (order == ORDER_EXEC && child > 0) {
                kill(child, SIGKILL);
                waitpid(child, NULL, 0);
            }
            agent.started_us = now_us(); /* in this process's copy, for what it reports */
            if (order == ORDER_EXEC) {
                read_order(order_fd);
                if ((child = spawn(&how, agent.working_folder)) < 0) {
                    send_report(report_fd, REPORT_EXEC_FAILED, -child);
                    _exit(1);
                }
            }
            if (order == ORDER_PREFORK && how.isolated)
                is_the_job(child);
            if (order == ORDER_EXEC || order == ORDER_PREFORK) {
                send_report(report_fd, REPORT_STARTED, child);
                started = true;
                close(order_fd);
                for (int fd = 0; fd < 3; fd++)
                    close(how.stdio[fd]);
            } else if (child > 0) {
                kill(-child, order);
            }
        }
        struct signalfd_siginfo info;
        if (fds[0].revents && read(signals, &info, sizeof info) < 0)
            _exit(1);
        int status;
        pid_t pid;
        while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
            if (pid != child)
                continue;
            if (!started) /* a prefork program that did not wait: not for this image */
                send_report(report_fd, REPORT_EXEC_FAILED, ECHILD);
            else
                send_report(report_fd, REPORT_EXITED, status);
            if (!how.isolated)
                kill(-child, SIGKILL);
            _exit(0);
        }
    }
    if (child > 0)
        kill(-child, SIGKILL);
    _exit(0);
}

/* A pipe whose end `theirs` (0: reading) belongs to the job's user, so that it may open /dev/stdout again. */
static int job_pipe(int ends[2], int theirs, bool isolated, uint32_t uid, uint32_t gid)
{
    if (pipe2(ends, O_CLOEXEC) < 0)
        return errno;
    fcntl(ends[0], F_SETPIPE_SZ, PIPE_SIZE); /* only speed depends on it */
    if (isolated && fchown(ends[theirs], uid, gid) < 0)
        return errno;
    set_nonblocking(ends[1 - theirs]);
    return 0;
}

static int open_program(const char *name)
{
    char path[MAX_PATH_BYTES];
    if (strchr(name, '/') || name[0] == '.') {
        errno = EINVAL;
        return -1;
    }
    snprintf(path, sizeof path, "%s/%s", agent.prefork_folder, name);
    return open(path, O_RDONLY | O_CLOEXEC);
}

/* What RUN and PREPARE have in common. */
struct request {
    uint32_t uid, gid, max_processes, flags;
};

static void close_processes(struct processes *job)
{
    close_fd(&job->report_fd);
    close_fd(&job->control_fd);
    close_fd(&job->order_fd);
    close_fd(&job->stdin_fd);
    for (int stream = 0; stream < STREAMS; stream++)
        close_fd(&job->output_fd[stream]);
}

static void no_processes(struct processes *job)
{
    memset(job, 0, sizeof *job);
    job->report_fd = job->control_fd = job->order_fd = job->stdin_fd = -1;
    for (int stream = 0; stream < STREAMS; stream++)
        job->output_fd[stream] = -1;
}

/* In a reaper: what is the agent's alone. A reaper that kept the writing end of another set's standard input would keep
 * that job waiting for its end. */
static void close_agents_ends(void)
{
    for (size_t i = 0; i < agent.prepared_count; i++)
        close_processes(&agent.prepared[i]);
    for (enum etc file = 0; file < ETC_FILES; file++)
        close_fd(&agent.etc[file]);
    close_fd(&agent.exits_fd);
    close_fd(&agent.port);
}

/* A set of processes that waits for its order: a reaper in new namespaces and, when job->prefork names one, a prefork
 * program, whose command is in agent.argv. */
static int start_processes(struct processes *job, const struct request *request)
{
    int in[2], out[2], err[2], report[2], control[2], orders[2], error;
    bool prefork = job->prefork[0] != 0;
    struct child child = {request->uid, request->gid, job->isolated, prefork && agent.stack_gap, {-1, -1, -1}, -1, -1, -1};
    if (job->isolated) {
        char path[64];
        if ((error = make_job_cgroup(job, request->max_processes)))
            return error;
        snprintf(path, sizeof path, "%s/cgroup.procs", job->cgroup);
        if ((child.cgroup_fd = open(path, O_WRONLY | O_CLOEXEC)) < 0)
            return errno;
    }
    if (prefork && (child.program_fd = open_program(job->prefork)) < 0)
        return errno;
    if ((error = job_pipe(in, 0, job->isolated, request->uid, request->gid)) ||
        (error = job_pipe(out, 1, job->isolated, request->uid, request->gid)) ||
        (error = job_pipe(err, 1, job->isolated, request->uid, request->gid)))
        return error;
    if (pipe2(report, O_CLOEXEC) < 0 || pipe2(control, O_CLOEXEC) < 0 ||
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, orders) < 0)
        return errno;
    set_nonblocking(report[0]);
    unsigned long flags = SIGCHLD;
    if (job->isolated)
        flags |= CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC;
    /* clone without a stack of its own is fork with namespaces, clone(2). */
    job->reaper = (pid_t)syscall(SYS_clone, flags, NULL, NULL, NULL, NULL);
    if (job->reaper < 0)
        return errno;
    if (job->reaper == 0) {
        close_agents_ends();
        child.stdio[0] = in[0];
        child.stdio[1] = out[1];
        child.stdio[2] = err[1];
        child.order_fd = orders[1];
        close(in[1]);
        close(control[1]);
        close(orders[0]);
        be_reaper(child, prefork, report[1], control[0]);
    }
    close_fd(&child.cgroup_fd);
    close_fd(&child.program_fd);
    close(in[0]);
    close(out[1]);
    close(err[1]);
    close(report[1]);
    close(control[0]);
    close(orders[1]);
    job->stdin_fd = in[1];
    job->output_fd[STDOUT] = out[0];
    job->output_fd[STDERR] = err[0];
    job->report_fd = report[0];
    job->control_fd = control[1];
    job->order_fd = orders[0];
    return 0;
}

/* End processes that nobody will give an order to any more. */
static void drop_processes(struct processes *job)
{
    if (job->reaper > 0) {
        kill(job->reaper, SIGKILL);
        waitpid(job->reaper, NULL, 0);
    }
    close_processes(job);
    if (job->cgroup[0])
        rmdir(job->cgroup);
    no_processes(job);
}

/* Whether a set's program ended while it waited, killed for its memory: its reaper said so. */
static bool has_ended(const struct processes *job)
{
    struct pollfd said = {.fd = job->report_fd, .events = POLLIN};
    return job->prefork[0] && poll(&said, 1, 0) == 1;
}

/* The newest set that was prepared with that prefork program, taken out of those that wait. */
static bool take_prepared(struct processes *job, const char *prefork)
{
    for (size_t i = agent.prepared_count; i-- > 0;) {
        if (strcmp(agent.prepared[i].prefork, prefork) != 0 || has_ended(&agent.prepared[i]))
            continue;
        *job = agent.prepared[i];
        memmove(&agent.prepared[i], &agent.prepared[i + 1], (agent.prepared_count - i - 1) * sizeof *job);
        agent.prepared_count--;
        return true;
    }
    return false;
}

static void forget_strings(void)
{
    agent.arena_len = agent.argc = agent.envc = 0;
    agent.argv[0] = agent.envp[0] = NULL;
}

static bool write_fully(int fd, const void *data, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = write(fd, (const char *)data + done, size - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return false;
        done += (size_t)n;
    }
    return true;
}

static size_t append(char *buffer, size_t at, const char *text)
{
    size_t size = strlen(text) + 1;
    memcpy(buffer + at, text, size);
    return at + size;
}

/* Tell the processes what to become: to whom it concerns, and the words. Arguments come before the environment. All of it
 * at once: whoever waits for it is woken by the first piece, and would only wait again. */
static bool give_order(struct processes *job, bool prefork)
{
    static char words[MAX_PATH_BYTES + ARENA_SIZE];
    uint8_t order = prefork ? ORDER_PREFORK : ORDER_EXEC;
    uint32_t head[2] = {0, (uint32_t)agent.argc};
    size_t size = append(words, sizeof head, agent.working_folder);
    for (size_t i = 0; i < agent.argc; i++)
        size = append(words, size, agent.argv[i]);
    for (size_t i = 0; i < agent.envc; i++)
        size = append(words, size, agent.envp[i]);
    head[0] = (uint32_t)(size - sizeof head);
    memcpy(words, head, sizeof head);
    bool ok = write(job->control_fd, &order, 1) == 1 && write_fully(job->order_fd, words, size);
    close_fd(&job->order_fd);
    return ok;
}

/* Numbers, a path, and after a zero a name: the payload of RUN and PREPARE. */
static struct request read_request(const uint8_t *payload, size_t length, char *prefork)
{
    const uint8_t *text = payload + 16, *end = length > 16 ? memchr(text, 0, length - 16) : NULL;
    size_t name_length = end ? (size_t)(payload + length - end - 1) : 0;
    if (agent.phase != READY || !end || end - text >= MAX_PATH_BYTES || name_length > MAX_NAME) {
        errno = EPROTO;
        die("RUN or PREPARE from host");
    }
    memcpy(agent.working_folder, text, (size_t)(end - text) + 1);
    memcpy(prefork, end + 1, name_length);
    prefork[name_length] = 0;
    return (struct request){get_u32(payload), get_u32(payload + 4), get_u32(payload + 8), get_u32(payload + 12)};
}

/* Make a set of processes that waits: the host is told when it does. */
static void prepare(const uint8_t *payload, size_t length)
{
    struct processes *job = &agent.prepared[agent.prepared_count];
    char prefork[MAX_NAME + 1];
    struct request request = read_request(payload, length, prefork);
    if (agent.prepared_count == MAX_PREPARED) {
        errno = E2BIG;
        die("PREPARE from host");
    }
    no_processes(job);
    memcpy(job->prefork, prefork, sizeof prefork);
    job->isolated = (request.flags & RUN_ISOLATED) != 0;
    if (prefork[0]) {
        choose_layout();
        hear_exits();
    }
    set_randomization(false);
    int error = start_processes(job, &request);
    forget_strings();
    if (error) {
        drop_processes(job);
        send_failed(STAGE_ISOLATE, error);
        set_randomization(true);
        agent.phase = READY;
        return;
    }
    agent.prepared_count++;
    agent.phase = PREPARING;
}

/* The set that is being prepared waits now, or will never. */
static void prepared(const struct report *report)
{
    struct processes *job = &agent.prepared[agent.prepared_count - 1];
    if (report) {
        drop_processes(job);
        agent.prepared_count--;
        send_failed(report->kind == REPORT_EXEC_FAILED ? STAGE_EXEC : STAGE_ISOLATE, report->value);
    } else {
        job->main = job->prefork[0] && job->isolated ? (pid_t)read_number(job->cgroup, "cgroup.procs", NULL) : 0;
        send_control(PREPARED, NULL, 0);
    }
    set_randomization(true);
    agent.phase = READY;
}

/* A prefork program says one byte when it waits; a reaper without one reports. */
static void hear_prepared(void)
{
    struct processes *job = &agent.prepared[agent.prepared_count - 1];
    struct report report = {.kind = REPORT_EXEC_FAILED, .value = ECHILD};
    uint8_t byte;
    if (read(job->report_fd, &report, sizeof report) >= 0) {
        prepared(report.kind == REPORT_PREPARED ? NULL : &report);
        return;
    }
    if (recv(job->order_fd, &byte, 1, MSG_DONTWAIT) == 1)
        prepared(NULL);
}

static void start_job(const uint8_t *payload, size_t length)
{
    char prefork[MAX_NAME + 1];
    struct request request = read_request(payload, length, prefork);
    if (agent.argc == 0) {
        errno = EPROTO;
        die("RUN from host");
    }
    bool isolated = (request.flags & RUN_ISOLATED) != 0;
    agent.keep = (request.flags & RUN_KEEP) != 0;
    agent.rehearse = (request.flags & RUN_REHEARSE) != 0;
    agent.started_us = 0;
    agent.has_status = agent.leaving = false;
    int error;
    if (isolated && !agent.has_script && ((error = mount_script(request.uid, request.gid)))) {
        send_failed(STAGE_SCRIPT, error);
        return;
    }
    bool preforked = prefork[0] && take_prepared(&agent.job, prefork);
    if (!preforked && !take_prepared(&agent.job, "")) {
        no_processes(&agent.job);
        agent.job.isolated = isolated;
        if ((error = start_processes(&agent.job, &request))) {
            send_failed(STAGE_ISOLATE, error);
            return;
        }
    }
    if (!preforked)
        agent.job.main = 0;
    agent.cpu_before_us = isolated ? read_number(agent.job.cgroup, "cpu.stat", "usage_usec ") : 0;
    if (!give_order(&agent.job, preforked)) {
        send_failed(STAGE_ISOLATE, errno);
        return;
    }
    forget_strings();
    agent.phase = RUNNING;
}

static void read_report(void)
{
    struct report report;
    struct processes *job = &agent.job;
    ssize_t n = read(job->report_fd, &report, sizeof report);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n != sizeof report) { /* the reaper is gone: reap it; without a report it was killed, and the job with it */
        close_fd(&job->report_fd);
        close_fd(&job->control_fd);
        if (waitpid(job->reaper, NULL, 0) < 0)
            die("waitpid");
        job->reaper = 0;
        agent.ended_us = now_us();
        if (!agent.has_status)
            agent.wait_status = SIGKILL;
        return;
    }
    uint8_t pid[4];
    switch (report.kind) {
    case REPORT_ISOLATE_FAILED:
        send_failed(STAGE_ISOLATE, report.value);
        break;
    case REPORT_EXEC_FAILED:
        send_failed(STAGE_EXEC, report.value);
        break;
    case REPORT_STARTED:
        agent.started_us = report.started_us;
        put_u32(pid, (uint32_t)report.value);
        send_control(STARTED, pid, sizeof pid);
        break;
    case REPORT_EXITED:
        if (agent.leaving)
            break;
        agent.has_status = true;
        agent.wait_status = report.value;
        agent.cpu_us = report.cpu_us;
        agent.max_memory = report.max_rss_bytes;
        break;
    }
}

/* After a command that another may follow: back to waiting for words. The host asks for it once it has sent all that
 * belonged to this one. What a rehearsal did is undone. */
static void rest(void)
{
    drop_processes(&agent.job);
    agent.leaving = false;
    agent.stdin_len = agent.stdin_start = 0;
    agent.stdin_ended = false;
    memset(agent.credit, 0, sizeof agent.credit);
    memset(agent.discard, 0, sizeof agent.discard);
    if (agent.rehearse && agent.has_script)
        unmount_script();
    agent.phase = READY;
    send_control(RESTED, NULL, 0);
}

static bool is_drained(enum stream stream)
{
    int waiting;
    return agent.job.output_fd[stream] < 0 || (ioctl(agent.job.output_fd[stream], FIONREAD, &waiting) == 0 && waiting == 0);
}

/* Once the processes are gone and their streams are read to the end, say how it was; or, when nothing follows in this
 * machine but its artifacts, once the main process has done all that it will do and what it wrote is read. */
static void finish_if_ended(void)
{
    struct processes *job = &agent.job;
    bool gone = job->report_fd < 0 && job->output_fd[STDOUT] < 0 && job->output_fd[STDERR] < 0;
    bool left = agent.leaving && agent.started_us && !agent.keep && !agent.rehearse && is_drained(STDOUT) && is_drained(STDERR);
    if (agent.phase != RUNNING || (!gone && !left))
        return;
    uint64_t oom_kills = 0;
    if (job->isolated) {
        uint64_t cpu_us = read_number(job->cgroup, "cpu.stat", "usage_usec ");
        uint64_t peak = read_number(job->cgroup, "memory.peak", NULL);
        oom_kills = read_number(job->cgroup, "memory.events", "oom_kill ");
        agent.cpu_us = cpu_us > agent.cpu_before_us ? cpu_us - agent.cpu_before_us : agent.cpu_us;
        agent.max_memory = peak ? peak : agent.max_memory;
    }
    bool signalled = WIFSIGNALED(agent.wait_status);
    uint8_t payload[40] = {0};
    put_u32(payload, signalled ? 0 : (uint32_t)WEXITSTATUS(agent.wait_status));
    put_u32(payload + 4, signalled ? (uint32_t)WTERMSIG(agent.wait_status) : 0);
    put_u32(payload + 8, (uint32_t)oom_kills);
    put_u64(payload + 16, agent.cpu_us);
    put_u64(payload + 24, agent.max_memory);
    put_u64(payload + 32, agent.ended_us - agent.started_us);
    close_fd(&job->stdin_fd);
    close_fd(&job->output_fd[STDOUT]);
    close_fd(&job->output_fd[STDERR]);
    agent.phase = agent.keep || agent.rehearse ? RESTING : ENDED;
    send_control(EXITED, payload, sizeof payload);
}

static void signal_job(uint8_t signal_number)
{
    if (agent.phase != RUNNING || agent.job.reaper <= 0 || signal_number == 0 || signal_number > 64)
        return; /* it ended meanwhile */
    if (signal_number == SIGKILL)
        kill(agent.job.reaper, SIGKILL);
    else if (agent.job.control_fd >= 0 && write(agent.job.control_fd, &signal_number, 1) < 0)
        say("belljar-agent: signal: %s", strerror(errno));
}

/* --- streams -------------------------------------------------------------------------------------------------------- */

static void forward_output(enum stream stream)
{
    int *fd = &agent.job.output_fd[stream];
    ssize_t n;
    if (agent.discard[stream]) {
        n = read(*fd, agent.artifact_data, CHUNK);
    } else {
        size_t most = agent.credit[stream] < CHUNK ? (size_t)agent.credit[stream] : CHUNK;
        uint8_t *p = output_room(CHUNK);
        if (most == 0 || !p)
            return;
        n = read(*fd, p + HEADER_SIZE, most);
        if (n > 0) {
            put_header(p, (uint32_t)n, OUTPUT, stream);
            agent.out_len += HEADER_SIZE + (size_t)n;
            agent.credit[stream] -= (uint64_t)n;
        }
    }
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
        close_fd(fd);
}

static void grant_stdin(size_t size)
{
    uint8_t payload[4];
    put_u32(payload, (uint32_t)size);
    if (size)
        send_control(STDIN_CREDIT, payload, sizeof payload);
}

static void take_stdin(const uint8_t *data, size_t length)
{
    if (agent.stdin_ended || length > STDIN_WINDOW - agent.stdin_len) {
        errno = EPROTO;
        die("STDIN from host");
    }
    memmove(agent.stdin_data, agent.stdin_data + agent.stdin_start, agent.stdin_len);
    agent.stdin_start = 0;
    memcpy(agent.stdin_data + agent.stdin_len, data, length);
    agent.stdin_len += length;
    agent.stdin_ended = length == 0;
}

static void drop_stdin(void)
{
    grant_stdin(agent.stdin_len);
    agent.stdin_len = 0;
}

/* Give the job what it will take of its standard input; what it closed it never misses. */
static void forward_stdin(void)
{
    if (agent.phase == READY)
        return; /* RUN comes after the first of it */
    if (agent.job.stdin_fd < 0) {
        drop_stdin();
        return;
    }
    if (agent.stdin_len > 0) {
        ssize_t n = write(agent.job.stdin_fd, agent.stdin_data + agent.stdin_start, agent.stdin_len);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n < 0) {
            close_fd(&agent.job.stdin_fd);
            drop_stdin();
            return;
        }
        agent.stdin_start += (size_t)n;
        agent.stdin_len -= (size_t)n;
        grant_stdin((size_t)n);
    }
    if (agent.stdin_len == 0 && agent.stdin_ended)
        close_fd(&agent.job.stdin_fd);
}

/* --- artifacts: what the job wrote below its working folder, when nobody is left to change it ------------------------- */

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
static void order_collect(const uint8_t *payload, size_t length)
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

static void collect(void)
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

/* --- the host's frames, and the loop -------------------------------------------------------------------------------- */

static void keep_string(char **strings, size_t *count, const uint8_t *data, size_t length)
{
    if (agent.phase != READY || *count == MAX_STRINGS || length + 1 > ARENA_SIZE - MAX_PATH_BYTES - agent.arena_len ||
        memchr(data, 0, length)) {
        errno = E2BIG;
        die("arguments from host");
    }
    char *at = agent.arena + agent.arena_len;
    memcpy(at, data, length);
    at[length] = 0;
    agent.arena_len += length + 1;
    strings[(*count)++] = at;
    strings[*count] = NULL;
}

static void handle_frame(enum kind kind, enum stream stream, uint8_t *payload, size_t length)
{
    bool known_stream = stream > NONE && stream < STREAMS;
    if (kind == WELCOME && length == 16 && payload[0] == VERSION &&
        (agent.phase == WAITING_WELCOME || agent.phase == READY)) {
        agent.silence_ms = (uint32_t)(payload[2] | payload[3] << 8) * 1000;
        set_clock(get_u64(payload + 8));
        agent.phase = READY;
    } else if (kind == IDENTITY) {
        take_identity(payload, length);
    } else if (agent.phase == WAITING_WELCOME) {
        errno = EPROTO;
        die("first frame from host");
    } else if (kind == ARG) {
        keep_string(agent.argv, &agent.argc, payload, length);
    } else if (kind == ENV) {
        keep_string(agent.envp, &agent.envc, payload, length);
    } else if (kind == NETWORK) {
        set_network_up(payload, length);
    } else if (kind == LAYER) {
        take_layer(payload, length);
    } else if (kind == RUN) {
        start_job(payload, length);
    } else if (kind == PREPARE) {
        prepare(payload, length);
    } else if (kind == REST && agent.phase == RESTING) {
        rest();
    } else if (kind == SUSPEND && agent.phase == READY) {
        agent.silence_ms = 0; /* there will be no host for a while */
        if (agent.is_init)
            open_etc();
        agent.phase = SUSPENDED_NOW;
        send_control(SUSPENDED, NULL, 0);
    } else if (kind == STDIN) {
        take_stdin(payload, length);
        forward_stdin();
    } else if (kind == CREDIT && length == 4 && known_stream) {
        agent.credit[stream] += get_u32(payload);
    } else if (kind == DISCARD && known_stream) {
        agent.discard[stream] = true;
    } else if (kind == SIGNAL && length == 1) {
        signal_job(payload[0]);
    } else if (kind == COLLECT) {
        order_collect(payload, length);
    } else if (kind == PING) {
        send_control(PONG, NULL, 0);
    } else if (kind == POWER_OFF) {
        end_machine();
    } else {
        errno = EPROTO;
        die("frame from host");
    }
}

static int silence_timeout(void)
{
    if (!agent.silence_ms)
        return -1;
    uint64_t silent_ms = now_us() / 1000 - agent.last_heard_ms;
    if (silent_ms >= agent.silence_ms) {
        say("belljar-agent: the host has been silent for %u s", agent.silence_ms / 1000);
        end_machine();
    }
    return (int)(agent.silence_ms - silent_ms);
}

/* Never before STARTED: the entrypoint may be quicker with its first words than the reaper with its report. */
static bool may_forward(enum stream stream)
{
    return agent.job.output_fd[stream] >= 0 && agent.started_us &&
           (agent.discard[stream] || (agent.credit[stream] && output_room(CHUNK)));
}

static _Noreturn void serve(void)
{
    set_nonblocking(agent.port);
    agent.last_heard_ms = now_us() / 1000;
    send_hello();
    for (;;) {
        flush_out();
        bool feed = agent.job.stdin_fd >= 0 && (agent.stdin_len > 0 || agent.stdin_ended);
        bool preparing = agent.phase == PREPARING;
        const struct processes *waiting = &agent.prepared[preparing ? agent.prepared_count - 1 : 0];
        struct pollfd fds[8] = {
            {.fd = agent.port, .events = POLLIN | (agent.out_len ? POLLOUT : 0)},
            {.fd = may_forward(STDOUT) ? agent.job.output_fd[STDOUT] : -1, .events = POLLIN},
            {.fd = may_forward(STDERR) ? agent.job.output_fd[STDERR] : -1, .events = POLLIN},
            {.fd = agent.job.report_fd, .events = POLLIN},
            {.fd = feed ? agent.job.stdin_fd : -1, .events = POLLOUT},
            {.fd = preparing ? waiting->report_fd : -1, .events = POLLIN},
            {.fd = preparing ? waiting->order_fd : -1, .events = POLLIN},
            {.fd = agent.exits_fd, .events = POLLIN},
        };
        if (poll(fds, 8, silence_timeout()) < 0 && errno != EINTR)
            die("poll");
        if (fds[3].revents)
            read_report();
        if (fds[1].revents)
            forward_output(STDOUT);
        if (fds[2].revents)
            forward_output(STDERR);
        if (fds[4].revents)
            forward_stdin();
        if (fds[5].revents || fds[6].revents)
            hear_prepared();
        if (fds[7].revents)
            read_exits();
        if (fds[0].revents & (POLLIN | POLLHUP | POLLERR))
            read_port();
        finish_if_ended();
        if (agent.phase == COLLECTING && agent.job.report_fd < 0)
            collect();
    }
}

static void start_empty(void)
{
    no_processes(&agent.job);
    agent.port = agent.listener = agent.exits_fd = -1;
    for (enum etc file = 0; file < ETC_FILES; file++)
        agent.etc[file] = -1;
    agent.prefork_folder = "/prefork";
    signal(SIGPIPE, SIG_IGN);
}

#ifndef AGENT_FUZZ
int main(int argc, char **argv)
{
    start_empty();
    agent.is_init = getpid() == 1;
    if (agent.is_init)
        boot();
    else if (argc == 4 && strcmp(argv[1], "--fd") == 0) {
        agent.port = atoi(argv[2]);
        agent.prefork_folder = argv[3];
    } else if (argc == 4 && strcmp(argv[1], "--listen") == 0) {
        agent.listener = atoi(argv[2]);
        agent.prefork_folder = argv[3];
        accept_host();
    } else {
        say("belljar-agent: runs as PID 1 of a machine, or with --fd N FOLDER or --listen N FOLDER in tests");
        return 2;
    }
    serve();
}
#endif
