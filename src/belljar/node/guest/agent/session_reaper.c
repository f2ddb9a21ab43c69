/* The reaper of a session: it starts the commands that the agent requests, forwards their signals, reaps them and every
 * orphan. It is PID 1 of the sandbox, so its end is theirs. */
#include "agent.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

static struct {
    struct reaper_ends ends;
    bool isolated;
    int signals_fd;
    struct running {
        pid_t pid; /* 0: free */
        uint16_t channel;
    } running[MAX_COMMANDS];
} session;

static void send_report(enum report_type type, uint16_t channel, int value, uint64_t started_us,
                        const struct rusage *usage)
{
    struct report report = {.type = (uint16_t)type, .channel = channel, .value = value, .started_us = started_us};
    if (usage) {
        report.cpu_us = (uint64_t)(usage->ru_utime.tv_sec + usage->ru_stime.tv_sec) * 1000000 +
                        (uint64_t)(usage->ru_utime.tv_usec + usage->ru_stime.tv_usec);
        report.max_rss_bytes = (uint64_t)usage->ru_maxrss * 1024;
    }
    if (write(session.ends.report_fd, &report, sizeof report) != sizeof report)
        _exit(1); /* the agent has exited, and the machine ends with it */
}

static struct running *find_running(pid_t pid, uint16_t channel)
{
    for (size_t i = 0; i < MAX_COMMANDS; i++) {
        struct running *command = &session.running[i];
        if (pid ? command->pid == pid : command->pid != 0 && command->channel == channel)
            return command;
    }
    return NULL;
}

static struct running *find_free(void)
{
    for (size_t i = 0; i < MAX_COMMANDS; i++)
        if (session.running[i].pid == 0)
            return &session.running[i];
    _exit(1); /* never: the agent bounds the commands that run */
}

/* Set up the command's standard streams: those that were passed, or a terminal, whose other end goes to the agent. */
static bool set_up_streams(const struct session_request *request, struct child *how, int *fds, size_t count,
                           int *terminal)
{
    size_t streams = how->terminal ? 0 : 3;
    if (count != streams + (session.isolated ? 1 : 0)) {
        errno = EPROTO;
        return false;
    }
    how->cgroup_fd = session.isolated ? fds[streams] : -1;
    if (!how->terminal) {
        memcpy(how->stdio, fds, 3 * sizeof(int));
        return true;
    }
    *terminal = open_terminal(request, session.isolated, &how->stdio[0]);
    how->stdio[1] = how->stdio[2] = how->stdio[0];
    return *terminal >= 0;
}

static void start_command(const struct session_request *request, int *fds, size_t count)
{
    struct child how = {.uid = request->uid, .gid = request->gid, .isolated = session.isolated,
                        .terminal = (request->flags & EXEC_TERMINAL) != 0, .files = (request->flags & EXEC_FILES) != 0,
                        .stdio = {-1, -1, -1}, .cgroup_fd = -1, .command_fd = -1, .program_fd = -1};
    cleanup_close int terminal = -1;
    struct command command = read_command_text(session.ends.command_fd, request->size, request->argc);
    bool ok = set_up_streams(request, &how, fds, count, &terminal);
    uint64_t started_us = now_us();
    pid_t pid = ok ? spawn(&how, &command) : -errno;
    if (how.terminal)
        close_fd(&how.stdio[0]);
    for (size_t i = 0; i < count; i++)
        close_fd(&fds[i]);
    if (pid < 0) {
        send_report(REPORT_EXEC_FAILED, request->channel, -pid, 0, NULL);
        return;
    }
    *find_free() = (struct running){pid, request->channel};
    if (how.terminal &&
        !send_with_descriptors(session.ends.command_fd, &request->channel, sizeof request->channel, &terminal, 1))
        _exit(1);
    send_report(REPORT_STARTED, request->channel, pid, started_us, NULL);
}

static void handle_request(void)
{
    struct session_request request;
    int fds[4];
    size_t count = sizeof fds / sizeof fds[0];
    if (receive_with_descriptors(session.ends.command_fd, &request, sizeof request, fds, &count) != sizeof request)
        _exit(1); /* the agent has exited */
    const struct running *command = find_running(0, request.channel);
    if (request.type == REQUEST_EXEC)
        start_command(&request, fds, count);
    else if (command)
        kill(-command->pid, request.signal);
}

static void reap(void)
{
    struct signalfd_siginfo info;
    struct rusage usage;
    int status;
    pid_t pid;
    if (read(session.signals_fd, &info, sizeof info) < 0 && errno != EAGAIN)
        _exit(1);
    while ((pid = wait4(-1, &status, WNOHANG, &usage)) > 0) {
        struct running *command = find_running(pid, 0);
        if (!command)
            continue; /* an orphan */
        uint16_t channel = command->channel;
        command->pid = 0;
        send_report(REPORT_EXITED, channel, status, 0, &usage);
    }
}

/* The agent has exited. Without namespaces (in tests) nothing else ends the commands. */
static _Noreturn void end_session(void)
{
    for (size_t i = 0; i < MAX_COMMANDS && !session.isolated; i++)
        if (session.running[i].pid > 0)
            kill(-session.running[i].pid, SIGKILL);
    _exit(0);
}

_Noreturn void serve_session(struct reaper_ends ends, const struct child *how, int signals_fd)
{
    session.ends = ends;
    session.isolated = how->isolated;
    session.signals_fd = signals_fd;
    for (;;) {
        struct pollfd fds[3] = {
            {.fd = signals_fd, .events = POLLIN},
            {.fd = ends.command_fd, .events = POLLIN},
            {.fd = ends.control_fd, .events = POLLIN},
        };
        if (poll(fds, 3, -1) < 0 && errno != EINTR)
            _exit(1);
        if (fds[2].revents)
            end_session();
        if (fds[0].revents)
            reap();
        if (fds[1].revents)
            handle_request();
    }
}
