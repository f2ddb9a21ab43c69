/* The reaper: PID 1 of a job's PID namespace. It runs in a process of its own, forked from the agent. */
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
static void clear_oom_adj(pid_t child)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/oom_score_adj", child);
    if (!write_file(path, "0"))
        say("belljar-agent: %s: %s", path, strerror(errno));
}

/* PID 1 of the job's namespace: starts the entrypoint, passes signals on, reaps orphans, reports how it ended. When it
 * exits the kernel kills whatever the job left. `how` says what the child becomes; a prefork program is started at once
 * and waits for its order, any other command is started when the order comes. */
_Noreturn void reaper_main(struct child how, bool prefork, int report_fd, int control)
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
                clear_oom_adj(child);
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
