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
 * Each file covers one interface of the kernel or one duty; agent.h names them with what they offer. frames.c says which
 * frame leads where, reaper.c runs in a process of its own, wire.py is the other end and says what each frame means. The
 * agent's memory is static. What cannot go on ends the machine.
 *
 * With `--fd N PREFORK_FOLDER` it is an ordinary process that serves descriptor N, with `--listen N` instead one that
 * serves whoever comes to it, for tests and for nothing else.
 */
#include "agent.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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
