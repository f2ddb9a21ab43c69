/* The reaper: PID 1 of a job's PID namespace, a process of its own that is forked from the agent.
 * It starts the command, forwards signals, reaps orphans and reports the command's exit; when the reaper exits, the
 * kernel kills every process that the job left. A prefork program starts at once and waits for the command; without one
 * the reaper starts the command when it arrives. */
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
    struct child how; /* how its child is set up */
    int signals_fd;
    pid_t child; /* 0 before it is started */
    bool started;
    uint64_t started_us;
    char text[ARENA_SIZE + 1]; /* the command's strings; argv and envp point into it */
    char *argv[MAX_STRINGS + 1], *envp[MAX_STRINGS + 1];
} reaper;

static void send_report(enum report_type type, int value)
{
    struct rusage usage;
    struct report report = {.type = type, .value = value, .started_us = reaper.started_us};
    if (type == REPORT_EXITED && getrusage(RUSAGE_CHILDREN, &usage) == 0) {
        report.cpu_us = (uint64_t)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000 +
                        (uint64_t)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
        report.max_rss_bytes = (uint64_t)usage.ru_maxrss * 1024;
    }
    if (write(reaper.ends.report_fd, &report, sizeof report) != sizeof report)
        _exit(1); /* the agent has exited, and the machine ends with it */
}

static _Noreturn void fail(enum report_type type, int error)
{
    send_report(type, error);
    _exit(1);
}

/* For a job with user root: make the parts of /proc read-only that only file modes protect (core_pattern would run a
 * program outside the job). Undoing it needs CAP_SYS_ADMIN, which no job has. */
static bool protect_proc(void)
{
    static const char *const paths[] = {"/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs"};
    const unsigned long flags = MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC;
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++) {
        if (access(paths[i], F_OK) < 0)
            continue; /* not in this kernel */
        if (mount(paths[i], paths[i], NULL, MS_BIND, NULL) < 0 ||
            mount(NULL, paths[i], NULL, MS_REMOUNT | flags, NULL) < 0)
            return false;
    }
    return true;
}

/* Set up the job's mount namespace: its root is only the overlay, its /proc shows only its own processes. The agent's
 * later mounts below the root propagate into it; its own never propagate out. */
static bool enter_root(void)
{
    return mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) == 0 && chdir("/newroot") == 0 &&
           mount_below("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) &&
           mount("/newroot", "/", NULL, MS_MOVE, NULL) == 0 && chroot(".") == 0 && chdir("/") == 0;
}

/* Read a command's text of that size: the working folder, the arguments and the environment, each ended by a zero. It
 * is valid until the next is read. */
struct command read_command_text(int fd, uint32_t size, uint32_t max_argc)
{
    if (size > ARENA_SIZE || max_argc > MAX_STRINGS || !read_fully(fd, reaper.text, size))
        _exit(1);
    size_t argc = 0, envc = 0;
    char *at = reaper.text, *end = at + size;
    for (at += strlen(at) + 1; at < end; at += strlen(at) + 1) {
        if (argc < max_argc)
            reaper.argv[argc++] = at;
        else if (envc < MAX_STRINGS)
            reaper.envp[envc++] = at;
    }
    reaper.argv[argc] = reaper.envp[envc] = NULL;
    return (struct command){reaper.text, reaper.argv, reaper.envp};
}

/* Read a command: the number of bytes that follow, the number of arguments, and the text. */
static struct command read_command(void)
{
    uint32_t head[2];
    if (!read_fully(reaper.ends.command_fd, head, sizeof head))
        _exit(1);
    return read_command_text(reaper.ends.command_fd, head[0], head[1]);
}

/* Become the reaper of a session, which starts any number of commands. */
static _Noreturn void start_session_reaper(void)
{
    for (int fd = 0; fd < 3; fd++)
        close_fd(&reaper.how.stdio[fd]);
    close_fd(&reaper.how.cgroup_fd);
    serve_session(reaper.ends, &reaper.how, reaper.signals_fd);
}

/* A prefork program that waits is the OOM killer's first choice; one that runs the job is not. */
static void clear_oom_adj(pid_t child)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/oom_score_adj", child);
    if (!write_file(path, "0"))
        log_line("%s: %s", path, strerror(errno));
}

/* Start the job: in the waiting prefork program, or in a new process that executes the command. */
static void start_child(uint8_t control)
{
    if (control == CONTROL_EXEC && reaper.child > 0) {
        kill(reaper.child, SIGKILL);
        waitpid(reaper.child, NULL, 0);
    }
    reaper.started_us = now_us();
    if (control == CONTROL_EXEC) {
        struct command command = read_command();
        if ((reaper.child = spawn(&reaper.how, &command)) < 0)
            fail(REPORT_EXEC_FAILED, -reaper.child);
    } else if (reaper.how.isolated) {
        clear_oom_adj(reaper.child);
    }
    send_report(REPORT_STARTED, reaper.child);
    reaper.started = true;
    close_fd(&reaper.ends.command_fd);
    for (int fd = 0; fd < 3; fd++)
        close_fd(&reaper.how.stdio[fd]);
}

/* Signal the job's process group unless `signal_number` is 0, and exit. */
static _Noreturn void exit_reaper(int signal_number)
{
    if (signal_number && reaper.child > 0)
        kill(-reaper.child, signal_number);
    _exit(0);
}

static void handle_control(void)
{
    uint8_t control;
    if (read(reaper.ends.control_fd, &control, 1) != 1)
        exit_reaper(SIGKILL); /* the agent has exited */
    if (control == CONTROL_SESSION && reaper.child == 0)
        start_session_reaper();
    if (control == CONTROL_EXEC || control == CONTROL_PREFORK)
        start_child(control);
    else if (reaper.child > 0)
        kill(-reaper.child, control);
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
        if (!reaper.started) /* a prefork program that exits instead of waiting */
            send_report(REPORT_EXEC_FAILED, ECHILD);
        else
            send_report(REPORT_EXITED, status);
        exit_reaper(reaper.how.isolated ? 0 : SIGKILL);
    }
}

/* Set up signals, mounts and privileges before the job's first process starts. */
static void isolate(void)
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
    int kept[] = {ends.report_fd, ends.control_fd, ends.command_fd, how->stdio[0],  how->stdio[1],
                  how->stdio[2],  how->cgroup_fd,  how->command_fd, how->program_fd};
    reaper.ends = ends;
    reaper.how = *how;
    if (!close_all_but(kept, sizeof kept / sizeof kept[0])) /* the agent's own and other sets' */
        fail(REPORT_ISOLATE_FAILED, errno);
    isolate();
    if (prefork && (reaper.child = spawn(&reaper.how, prefork)) < 0)
        fail(REPORT_EXEC_FAILED, -reaper.child);
    close_fd(&reaper.how.program_fd);
    reaper.how.command_fd = -1; /* later children are no prefork programs */
    reaper.how.fixed_layout = false;
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
            handle_control();
        if (ready > 0 && (fds[0].revents || fds[1].revents))
            reap();
    }
}
