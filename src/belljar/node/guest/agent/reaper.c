/* The reaper: PID 1 of a job's PID namespace, a process of its own that is forked from the agent.
 *
 * It starts the entrypoint, passes signals on, reaps orphans and reports how the entrypoint ended. When it exits the
 * kernel kills whatever the job left. A prefork program is started at once and waits for its order; any other command is
 * started when the order comes. */
#include "agent.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

static struct {
    struct reaper_ends ends;
    struct child how; /* what its child becomes */
    int signals_fd;
    pid_t child; /* 0 before it is started */
    bool started;
    uint64_t started_us;
    char words[ARENA_SIZE + 1]; /* the order's, which argv and envp point into */
    char *argv[MAX_STRINGS + 1], *envp[MAX_STRINGS + 1];
} reaper;

static void send_report(enum report_kind kind, int value)
{
    struct rusage usage;
    struct report report = {.kind = kind, .value = value, .started_us = reaper.started_us};
    if (kind == REPORT_EXITED && getrusage(RUSAGE_CHILDREN, &usage) == 0) {
        report.cpu_us = (uint64_t)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000 +
                        (uint64_t)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
        report.max_rss_bytes = (uint64_t)usage.ru_maxrss * 1024;
    }
    if (write(reaper.ends.report_fd, &report, sizeof report) != sizeof report)
        _exit(1); /* the agent is gone, and with it the machine */
}

static _Noreturn void fail(enum report_kind kind, int error)
{
    send_report(kind, error);
    _exit(1);
}

/* For a job that is root: what /proc offers to root by the mode of a file alone becomes read-only (core_pattern would
 * run a program outside of the job). Without CAP_SYS_ADMIN no job undoes it. */
static bool protect_proc(void)
{
    static const char *const paths[] = {"/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs"};
    const unsigned long flags = MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC;
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++) {
        if (access(paths[i], F_OK) < 0)
            continue; /* not in this kernel */
        if (mount(paths[i], paths[i], NULL, MS_BIND, NULL) < 0 || mount(NULL, paths[i], NULL, MS_REMOUNT | flags, NULL) < 0)
            return false;
    }
    return true;
}

/* In the job's mount namespace: its root is the overlay and nothing else, its /proc shows its own processes. The agent's
 * later mounts below it come in, nothing goes out. */
static bool enter_root(void)
{
    return mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) == 0 && chdir("/newroot") == 0 &&
           mount_below("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) &&
           mount("/newroot", "/", NULL, MS_MOVE, NULL) == 0 && chroot(".") == 0 && chdir("/") == 0;
}

/* An order's words: how many bytes follow, how many of the strings are arguments; then the working folder, the
 * arguments and the environment, each ended by a zero. */
static struct command read_order(void)
{
    uint32_t head[2];
    if (!read_fully(reaper.ends.order_fd, head, sizeof head) || head[0] > ARENA_SIZE || head[1] > MAX_STRINGS ||
        !read_fully(reaper.ends.order_fd, reaper.words, head[0]))
        _exit(1);
    size_t argc = 0, envc = 0;
    char *at = reaper.words, *end = at + head[0];
    for (at += strlen(at) + 1; at < end; at += strlen(at) + 1) {
        if (argc < head[1])
            reaper.argv[argc++] = at;
        else if (envc < MAX_STRINGS)
            reaper.envp[envc++] = at;
    }
    reaper.argv[argc] = reaper.envp[envc] = NULL;
    return (struct command){reaper.words, reaper.argv, reaper.envp};
}

/* A process that waited is no longer the first that the kernel ends when memory is short. */
static void clear_oom_adj(pid_t child)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/oom_score_adj", child);
    if (!write_file(path, "0"))
        say("belljar-agent: %s: %s", path, strerror(errno));
}

/* The job begins: in the prefork program that waits, or in a process that executes the order's words. */
static void start_child(uint8_t order)
{
    if (order == ORDER_EXEC && reaper.child > 0) {
        kill(reaper.child, SIGKILL);
        waitpid(reaper.child, NULL, 0);
    }
    reaper.started_us = now_us();
    if (order == ORDER_EXEC) {
        struct command command = read_order();
        if ((reaper.child = spawn(&reaper.how, &command)) < 0)
            fail(REPORT_EXEC_FAILED, -reaper.child);
    } else if (reaper.how.isolated) {
        clear_oom_adj(reaper.child);
    }
    send_report(REPORT_STARTED, reaper.child);
    reaper.started = true;
    close_fd(&reaper.ends.order_fd);
    for (int fd = 0; fd < 3; fd++)
        close_fd(&reaper.how.stdio[fd]);
}

/* Signal the job's process group, and end with it what is left of it when that was the last word. */
static _Noreturn void leave(int signal_number)
{
    if (signal_number && reaper.child > 0)
        kill(-reaper.child, signal_number);
    _exit(0);
}

static void take_order(void)
{
    uint8_t order;
    if (read(reaper.ends.control_fd, &order, 1) != 1)
        leave(SIGKILL); /* the agent is gone */
    if (order == ORDER_EXEC || order == ORDER_PREFORK)
        start_child(order);
    else if (reaper.child > 0)
        kill(-reaper.child, order);
}

static void reap(void)
{
    struct signalfd_siginfo info;
    int status;
    pid_t pid;
    if (read(reaper.signals_fd, &info, sizeof info) < 0 && errno != EAGAIN)
        _exit(1);
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        if (pid != reaper.child)
            continue;
        if (!reaper.started) /* a prefork program that did not wait: not for this image */
            send_report(REPORT_EXEC_FAILED, ECHILD);
        else
            send_report(REPORT_EXITED, status);
        leave(reaper.how.isolated ? 0 : SIGKILL);
    }
}

/* Everything that the job's processes are to find, before the first of them is started. */
static void set_up(void)
{
    sigset_t child_signal;
    bool ok = sigemptyset(&child_signal) == 0 && sigaddset(&child_signal, SIGCHLD) == 0 &&
              sigprocmask(SIG_SETMASK, &child_signal, NULL) == 0 && prctl(PR_SET_CHILD_SUBREAPER, 1) == 0;
    reaper.signals_fd = ok ? signalfd(-1, &child_signal, SFD_CLOEXEC | SFD_NONBLOCK) : -1;
    if (ok && reaper.how.isolated)
        ok = enter_root() && (reaper.how.uid != 0 || protect_proc()) && drop_privileges(reaper.how.uid);
    if (!ok || reaper.signals_fd < 0)
        fail(REPORT_ISOLATE_FAILED, errno);
}

_Noreturn void reaper_main(const struct child *how, const struct command *prefork, struct reaper_ends ends)
{
    int kept[] = {ends.report_fd, ends.control_fd, ends.order_fd, how->stdio[0],  how->stdio[1],
                  how->stdio[2],  how->cgroup_fd,  how->order_fd, how->program_fd};
    reaper.ends = ends;
    reaper.how = *how;
    if (!close_all_but(kept, sizeof kept / sizeof kept[0])) /* what is the agent's alone, and other sets' */
        fail(REPORT_ISOLATE_FAILED, errno);
    set_up();
    if (prefork && (reaper.child = spawn(&reaper.how, prefork)) < 0)
        fail(REPORT_EXEC_FAILED, -reaper.child);
    close_fd(&reaper.how.program_fd);
    reaper.how.order_fd = -1; /* what is started from now on is no prefork program */
    reaper.how.laid_out = false;
    if (!prefork)
        send_report(REPORT_PREPARED, 0);
    for (;;) {
        struct pollfd fds[2] = {
            {.fd = reaper.signals_fd, .events = POLLIN},
            {.fd = reaper.ends.control_fd, .events = POLLIN},
        };
        int ready = poll(fds, 2, -1);
        if (ready < 0 && errno != EINTR)
            _exit(1);
        if (ready > 0 && fds[1].revents)
            take_order();
        if (ready > 0 && (fds[0].revents || fds[1].revents))
            reap();
    }
}
