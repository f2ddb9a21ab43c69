/*
 * belljar's agent: PID 1 of every machine.
 *
 * As /init of the initramfs it loads modules, mounts the root filesystem and a writable layer over it, then serves one
 * host over one byte stream: it runs one entrypoint in namespaces of its own, carries its streams, says how it ended,
 * hands over artifacts, and resets the machine when told to or when the host falls silent. It never runs two jobs.
 *
 * Read it top to bottom: wire, link, boot, the job's processes, artifacts, the loop. wire.py is the other end and says
 * what each frame means. Memory is static; every return value is looked at; what cannot go on ends the machine.
 *
 * With `--fd N` it is an ordinary process that serves descriptor N, for tests and for nothing else.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <linux/fs.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
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

/* --- wire: the same numbers as wire.py, held together by a test ----------------------------------------------------- */

enum {
    VERSION = 1,
    HEADER_SIZE = 8,
    MAX_PAYLOAD = 128 * 1024,
    STDIN_WINDOW = 64 * 1024,
    MAX_PATH_BYTES = 1024,
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
};

enum stream { NONE = 0, STDOUT = 1, STDERR = 2, ARTIFACTS = 3, STREAMS };
enum stage { STAGE_SCRIPT = 1, STAGE_ISOLATE = 2, STAGE_EXEC = 3 };
enum { RUN_ISOLATED = 1, RUN_KEEP = 2 };

enum {
    CHUNK = 64 * 1024,                           /* most bytes of output in one frame */
    CONTROL_ROOM = 4 * 1024,                     /* kept free in the outgoing buffer for frames that are not output */
    OUT_SIZE = 3 * (HEADER_SIZE + CHUNK) + CONTROL_ROOM,
    IN_SIZE = 2 * (HEADER_SIZE + MAX_PAYLOAD),
    ARENA_SIZE = 1280 * 1024,                    /* all arguments and environment strings */
    MAX_STRINGS = 8192,
    PIPE_SIZE = 256 * 1024,
    MAX_DEPTH = 48,                              /* of folders below the working folder that are searched */
    MEMORY_RESERVE = 32 * 1024 * 1024,           /* of the machine's memory that is not the job's, at most */
};

/* What the reaper (the job's own PID 1) tells the agent. */
enum report_kind { REPORT_EXEC_FAILED = 1, REPORT_STARTED = 2, REPORT_EXITED = 3, REPORT_ISOLATE_FAILED = 4 };
struct report {
    uint32_t kind;
    int32_t value; /* errno, pid, or wait status */
    uint64_t cpu_us;
    uint64_t max_rss_bytes;
};

enum phase { WAITING_WELCOME, READY, RUNNING, ENDED, COLLECTING };

static struct {
    bool is_init;
    int port; /* the byte stream to the host */
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

    pid_t reaper;
    int report_fd, control_fd;
    int stdin_fd;
    int output_fd[STREAMS];
    uint64_t credit[STREAMS];
    bool discard[STREAMS];
    uint8_t stdin_data[STDIN_WINDOW];
    size_t stdin_start, stdin_len;
    bool stdin_ended, isolated, keep, script_mounted;
    int wait_status;
    bool has_status;
    uint64_t started_us, ended_us, cpu_us, max_memory;
    char working_folder[MAX_PATH_BYTES];

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
    if (agent.reaper > 0)
        kill(agent.reaper, SIGKILL);
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

static void flush_out(void)
{
    while (agent.out_len > 0) {
        ssize_t n = write(agent.port, agent.out + agent.out_start, agent.out_len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0)
            end_machine(); /* the host hung up */
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
    if (n <= 0)
        end_machine();
    agent.in_len += (size_t)n;
    agent.last_heard_ms = now_us() / 1000;
    handle_input();
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
    mount_at("root", "/newroot", "overlay", MS_NODEV, "lowerdir=/rom,upperdir=/rw/root,workdir=/rw/root.work");
    make_folder("/newroot/proc");
    make_folder("/newroot/tmp");
    if (chmod("/newroot/tmp", 01777) < 0)
        die("/tmp");
    mount_at("sys", "/newroot/sys", "sysfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    make_dev();
}

/* A cgroup for the job, so that its memory, processes and CPU time are bounded and counted apart from the agent's. */
static void make_cgroup(void)
{
    mount_at("cgroup", "/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    if (!write_file("/cgroup/cgroup.subtree_control", "+memory +pids"))
        die("/cgroup");
    make_folder("/cgroup/job");
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
    if (!write_file("/proc/self/oom_score_adj", "-1000")) /* the reaper's too; the entrypoint sets it back */
        die("oom_score_adj");
    load_modules();
    mount_root();
    make_cgroup();
    raise_loopback();
    if (sethostname("belljar", 7) < 0)
        die("hostname");
    struct timespec pause_ms = {.tv_nsec = 1000000};
    for (int i = 0; (agent.port = open_port()) < 0; i++) {
        if (i == 5000)
            die("port");
        nanosleep(&pause_ms, NULL);
    }
    wait_for_host();
}

/* --- the job's processes -------------------------------------------------------------------------------------------- */

/* The script's disk at /job, and over it, writable, the working folder. Reread from the device: a snapshot's clone was
 * given the disk's contents after its kernel had first looked at it. */
static int mount_script(uint32_t uid, uint32_t gid)
{
    int disk = open("/dev/vdb", O_RDONLY | O_CLOEXEC);
    if (disk < 0)
        return errno;
    int flushed = ioctl(disk, BLKFLSBUF);
    close(disk);
    if (flushed < 0)
        return errno;
    make_folder("/newroot/job");
    make_folder("/newroot/work");
    make_folder("/rw/work");
    make_folder("/rw/work.work");
    if (chown("/rw/work", uid, gid) < 0 || chmod("/rw/work", 0755) < 0)
        return errno;
    if (mount("/dev/vdb", "/newroot/job", "erofs", MS_RDONLY | MS_NOSUID | MS_NODEV, NULL) < 0)
        return errno;
    if (mount("work", "/newroot/work", "overlay", MS_NOSUID | MS_NODEV,
              "lowerdir=/newroot/job,upperdir=/rw/work,workdir=/rw/work.work") < 0)
        return errno;
    return 0;
}

static uint64_t read_number(const char *path, const char *key)
{
    char text[1024];
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

static int limit_cgroup(uint32_t max_processes)
{
    char text[32];
    uint64_t total = read_number("/proc/meminfo", "MemTotal:") * 1024;
    uint64_t reserve = total / 4 < MEMORY_RESERVE ? total / 4 : MEMORY_RESERVE;
    snprintf(text, sizeof text, "%llu", (unsigned long long)(total - reserve));
    if (!write_file("/cgroup/job/memory.max", text))
        return errno;
    snprintf(text, sizeof text, "%u", max_processes);
    return write_file("/cgroup/job/pids.max", text) ? 0 : errno;
}

/* What a job's process must not inherit from the agent: blocked and ignored signals. */
static void reset_signals(void)
{
    sigset_t none;
    sigemptyset(&none);
    signal(SIGPIPE, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static _Noreturn void exec_entrypoint(uint32_t uid, uint32_t gid, int cgroup_fd, const int stdio[3], int error_fd)
{
    struct rlimit no_core = {0, 0};
    bool ok = setsid() >= 0;
    for (int fd = 0; ok && fd < 3; fd++)
        ok = dup2(stdio[fd], fd) == fd;
    if (ok && agent.isolated)
        ok = write(cgroup_fd, "0", 1) == 1 && write_file("/proc/self/oom_score_adj", "0") && syscall(SYS_setgroups, 0, NULL) == 0 && setgid(gid) == 0 &&
             setuid(uid) == 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0;
    /* After the change of user, which clears it. */
    ok = ok && prctl(PR_SET_PDEATHSIG, SIGKILL) == 0 && setrlimit(RLIMIT_CORE, &no_core) == 0;
    ok = ok && chdir(agent.working_folder) == 0;
    if (ok) {
        umask(022);
        reset_signals();
        environ = agent.envp;
        execvpe(agent.argv[0], agent.argv, agent.envp);
    }
    int error = errno;
    if (write(error_fd, &error, sizeof error) != sizeof error)
        _exit(126);
    _exit(127);
}

static void send_report(int fd, enum report_kind kind, int value)
{
    struct rusage usage;
    struct report report = {.kind = kind, .value = value};
    if (kind == REPORT_EXITED && getrusage(RUSAGE_CHILDREN, &usage) == 0) {
        report.cpu_us = (uint64_t)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000 +
                        (uint64_t)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
        report.max_rss_bytes = (uint64_t)usage.ru_maxrss * 1024;
    }
    if (write(fd, &report, sizeof report) != sizeof report)
        _exit(1); /* the agent is gone, and with it the machine */
}

/* In the job's mount namespace: its root is the overlay and nothing else, its /proc shows its own processes. */
static bool enter_root(void)
{
    return mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 && chdir("/newroot") == 0 &&
           mount("proc", "/newroot/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) == 0 &&
           mount("/newroot", "/", NULL, MS_MOVE, NULL) == 0 && chroot(".") == 0 && chdir("/") == 0;
}

/* PID 1 of the job's namespace: starts the entrypoint, passes signals on, reaps orphans, reports how it ended. When it
 * exits the kernel kills whatever the job left. */
static _Noreturn void be_reaper(uint32_t uid, uint32_t gid, int cgroup_fd, const int stdio[3], int report_fd, int control)
{
    sigset_t child_signal;
    sigemptyset(&child_signal);
    sigaddset(&child_signal, SIGCHLD);
    sigprocmask(SIG_SETMASK, &child_signal, NULL);
    int signals = signalfd(-1, &child_signal, SFD_CLOEXEC);
    int failed[2];
    if (signals < 0 || pipe2(failed, O_CLOEXEC) < 0 || prctl(PR_SET_CHILD_SUBREAPER, 1) < 0 ||
        (agent.isolated && !enter_root())) {
        send_report(report_fd, REPORT_ISOLATE_FAILED, errno);
        _exit(1);
    }
    pid_t child = fork();
    if (child == 0)
        exec_entrypoint(uid, gid, cgroup_fd, stdio, failed[1]);
    int error = child < 0 ? errno : 0;
    for (int fd = 0; fd < 3; fd++)
        close(stdio[fd]);
    close(failed[1]);
    if (child > 0 && read(failed[0], &error, sizeof error) != sizeof error)
        error = 0;
    close(failed[0]);
    if (error) {
        send_report(report_fd, REPORT_EXEC_FAILED, error);
        _exit(1);
    }
    send_report(report_fd, REPORT_STARTED, child);

    for (;;) {
        struct pollfd fds[2] = {{.fd = signals, .events = POLLIN}, {.fd = control, .events = POLLIN}};
        if (poll(fds, 2, -1) < 0 && errno != EINTR)
            _exit(1);
        uint8_t signal_number;
        if (fds[1].revents) {
            if (read(control, &signal_number, 1) != 1)
                break;
            kill(-child, signal_number);
        }
        struct signalfd_siginfo info;
        if (fds[0].revents && read(signals, &info, sizeof info) < 0)
            _exit(1);
        int status;
        pid_t pid;
        while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
            if (pid != child)
                continue;
            send_report(report_fd, REPORT_EXITED, status);
            if (!agent.isolated)
                kill(-child, SIGKILL);
            _exit(0);
        }
    }
    kill(-child, SIGKILL);
    _exit(0);
}

/* A pipe whose end `theirs` (0: reading) belongs to the job's user, so that it may open /dev/stdout again. */
static int job_pipe(int ends[2], int theirs, uint32_t uid, uint32_t gid)
{
    if (pipe2(ends, O_CLOEXEC) < 0)
        return errno;
    fcntl(ends[0], F_SETPIPE_SZ, PIPE_SIZE); /* only speed depends on it */
    if (agent.isolated && fchown(ends[theirs], uid, gid) < 0)
        return errno;
    set_nonblocking(ends[1 - theirs]);
    return 0;
}

static int start_processes(uint32_t uid, uint32_t gid)
{
    int in[2], out[2], err[2], report[2], control[2], error;
    int cgroup_fd = -1;
    if (agent.isolated && (cgroup_fd = open("/cgroup/job/cgroup.procs", O_WRONLY | O_CLOEXEC)) < 0)
        return errno;
    if ((error = job_pipe(in, 0, uid, gid)) || (error = job_pipe(out, 1, uid, gid)) ||
        (error = job_pipe(err, 1, uid, gid)))
        return error;
    if (pipe2(report, O_CLOEXEC) < 0 || pipe2(control, O_CLOEXEC) < 0)
        return errno;
    set_nonblocking(report[0]);
    unsigned long flags = SIGCHLD;
    if (agent.isolated)
        flags |= CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS;
    /* clone without a stack of its own is fork with namespaces, clone(2). */
    agent.reaper = (pid_t)syscall(SYS_clone, flags, NULL, NULL, NULL, NULL);
    if (agent.reaper < 0)
        return errno;
    if (agent.reaper == 0) {
        int stdio[3] = {in[0], out[1], err[1]};
        close(in[1]);
        close(control[1]);
        be_reaper(uid, gid, cgroup_fd, stdio, report[1], control[0]);
    }
    close_fd(&cgroup_fd);
    close(in[0]);
    close(out[1]);
    close(err[1]);
    close(report[1]);
    close(control[0]);
    agent.stdin_fd = in[1];
    agent.output_fd[STDOUT] = out[0];
    agent.output_fd[STDERR] = err[0];
    agent.report_fd = report[0];
    agent.control_fd = control[1];
    return 0;
}

static void start_job(const uint8_t *payload, size_t length)
{
    if (agent.phase != READY || length < 16 || length - 16 >= MAX_PATH_BYTES || agent.argc == 0) {
        errno = EPROTO;
        die("RUN from host");
    }
    uint32_t uid = get_u32(payload), gid = get_u32(payload + 4), max_processes = get_u32(payload + 8);
    uint32_t flags = get_u32(payload + 12);
    agent.isolated = (flags & RUN_ISOLATED) != 0;
    agent.keep = (flags & RUN_KEEP) != 0;
    memset(agent.discard, 0, sizeof agent.discard); /* also what was said of the command before, and came late */
    memcpy(agent.working_folder, payload + 16, length - 16);
    agent.working_folder[length - 16] = 0;
    int error;
    if (agent.isolated && !agent.script_mounted && ((error = mount_script(uid, gid)))) {
        send_failed(STAGE_SCRIPT, error);
        return;
    }
    agent.script_mounted = true;
    if ((agent.isolated && ((error = limit_cgroup(max_processes)))) || (error = start_processes(uid, gid))) {
        send_failed(STAGE_ISOLATE, error);
        return;
    }
    agent.phase = RUNNING;
}

static void read_report(void)
{
    struct report report;
    ssize_t n = read(agent.report_fd, &report, sizeof report);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n != sizeof report) { /* the reaper is gone: reap it; without a report it was killed, and the job with it */
        close_fd(&agent.report_fd);
        close_fd(&agent.control_fd);
        if (waitpid(agent.reaper, NULL, 0) < 0)
            die("waitpid");
        agent.reaper = 0;
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
        agent.started_us = now_us();
        put_u32(pid, (uint32_t)report.value);
        send_control(STARTED, pid, sizeof pid);
        break;
    case REPORT_EXITED:
        agent.has_status = true;
        agent.wait_status = report.value;
        agent.cpu_us = report.cpu_us;
        agent.max_memory = report.max_rss_bytes;
        break;
    }
}

/* The machine waits for another command, in the same files: what the last one was called with and said is forgotten. */
static void forget_command(void)
{
    agent.phase = READY;
    agent.arena_len = agent.argc = agent.envc = 0;
    memset(agent.argv, 0, sizeof agent.argv);
    memset(agent.envp, 0, sizeof agent.envp);
    agent.stdin_start = agent.stdin_len = 0;
    agent.stdin_ended = agent.has_status = false;
    agent.started_us = 0;
}

/* Once the processes are gone and their streams are read to the end: say how it was. */
static void finish_if_ended(void)
{
    if (agent.phase != RUNNING || agent.report_fd >= 0 || agent.output_fd[STDOUT] >= 0 || agent.output_fd[STDERR] >= 0)
        return;
    uint64_t oom_kills = 0;
    if (agent.isolated) {
        uint64_t cpu_us = read_number("/cgroup/job/cpu.stat", "usage_usec ");
        uint64_t peak = read_number("/cgroup/job/memory.peak", NULL);
        oom_kills = read_number("/cgroup/job/memory.events", "oom_kill ");
        agent.cpu_us = cpu_us ? cpu_us : agent.cpu_us;
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
    close_fd(&agent.stdin_fd);
    agent.phase = ENDED;
    send_control(EXITED, payload, sizeof payload);
    if (agent.keep)
        forget_command();
}

static void signal_job(uint8_t signal_number)
{
    if (agent.phase != RUNNING || agent.reaper <= 0)
        return; /* it ended meanwhile */
    if (signal_number == SIGKILL)
        kill(agent.reaper, SIGKILL);
    else if (agent.control_fd >= 0 && write(agent.control_fd, &signal_number, 1) < 0)
        say("belljar-agent: signal: %s", strerror(errno));
}

/* --- streams -------------------------------------------------------------------------------------------------------- */

static void forward_output(enum stream stream)
{
    int *fd = &agent.output_fd[stream];
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
    if (agent.stdin_fd < 0) {
        drop_stdin();
        return;
    }
    if (agent.stdin_len > 0) {
        ssize_t n = write(agent.stdin_fd, agent.stdin_data + agent.stdin_start, agent.stdin_len);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n < 0) {
            close_fd(&agent.stdin_fd);
            drop_stdin();
            return;
        }
        agent.stdin_start += (size_t)n;
        agent.stdin_len -= (size_t)n;
        grant_stdin((size_t)n);
    }
    if (agent.stdin_len == 0 && agent.stdin_ended)
        close_fd(&agent.stdin_fd);
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
    const char *root = agent.isolated ? "/rw/work" : agent.working_folder;
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
    if (agent.phase != READY || *count == MAX_STRINGS || length + 1 > ARENA_SIZE - agent.arena_len ||
        memchr(data, 0, length)) {
        errno = E2BIG;
        die("arguments from host");
    }
    char *at = agent.arena + agent.arena_len;
    memcpy(at, data, length);
    at[length] = 0;
    agent.arena_len += length + 1;
    strings[(*count)++] = at;
}

static void handle_frame(enum kind kind, enum stream stream, uint8_t *payload, size_t length)
{
    bool known_stream = stream > NONE && stream < STREAMS;
    if (kind == WELCOME && length == 4 && payload[0] == VERSION && agent.phase == WAITING_WELCOME) {
        agent.silence_ms = (uint32_t)(payload[2] | payload[3] << 8) * 1000;
        agent.phase = READY;
    } else if (agent.phase == WAITING_WELCOME) {
        errno = EPROTO;
        die("first frame from host");
    } else if (kind == ARG) {
        keep_string(agent.argv, &agent.argc, payload, length);
    } else if (kind == ENV) {
        keep_string(agent.envp, &agent.envc, payload, length);
    } else if (kind == RUN) {
        start_job(payload, length);
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
    return agent.output_fd[stream] >= 0 && agent.started_us && (agent.discard[stream] || (agent.credit[stream] && output_room(CHUNK)));
}

static _Noreturn void serve(void)
{
    set_nonblocking(agent.port);
    agent.last_heard_ms = now_us() / 1000;
    send_hello();
    for (;;) {
        flush_out();
        bool feed = agent.stdin_fd >= 0 && (agent.stdin_len > 0 || agent.stdin_ended);
        struct pollfd fds[5] = {
            {.fd = agent.port, .events = POLLIN | (agent.out_len ? POLLOUT : 0)},
            {.fd = may_forward(STDOUT) ? agent.output_fd[STDOUT] : -1, .events = POLLIN},
            {.fd = may_forward(STDERR) ? agent.output_fd[STDERR] : -1, .events = POLLIN},
            {.fd = agent.report_fd, .events = POLLIN},
            {.fd = feed ? agent.stdin_fd : -1, .events = POLLOUT},
        };
        if (poll(fds, 5, silence_timeout()) < 0 && errno != EINTR)
            die("poll");
        if (fds[3].revents)
            read_report();
        if (fds[1].revents)
            forward_output(STDOUT);
        if (fds[2].revents)
            forward_output(STDERR);
        if (fds[4].revents)
            forward_stdin();
        if (fds[0].revents & (POLLIN | POLLHUP | POLLERR))
            read_port();
        finish_if_ended();
        if (agent.phase == COLLECTING)
            collect();
    }
}

static void start_empty(void)
{
    agent.report_fd = agent.control_fd = agent.stdin_fd = -1;
    for (int stream = 0; stream < STREAMS; stream++)
        agent.output_fd[stream] = -1;
    signal(SIGPIPE, SIG_IGN);
}

#ifndef AGENT_FUZZ
int main(int argc, char **argv)
{
    start_empty();
    agent.is_init = getpid() == 1;
    if (agent.is_init)
        boot();
    else if (argc == 3 && strcmp(argv[1], "--fd") == 0)
        agent.port = atoi(argv[2]);
    else {
        say("belljar-agent: runs as PID 1 of a machine, or with --fd N in tests");
        return 2;
    }
    serve();
}
#endif
