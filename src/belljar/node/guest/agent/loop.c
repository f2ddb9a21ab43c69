/* The loop: waits for whatever comes next, from the host or the job, and passes it on. */
#include "agent.h"

#include <errno.h>
#include <poll.h>

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

/* Answer the stream that `agent.port` is: the agent speaks first. */
void begin_serving(void)
{
    set_nonblocking(agent.port);
    agent.last_heard_ms = now_us() / 1000;
    send_hello();
}

/* One round: wait, for at most `most_ms` unless that is negative, and handle what came. */
void serve_once(int most_ms)
{
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
    int wait_ms = silence_timeout();
    if (may_collect())
        wait_ms = 0;
    else if (most_ms >= 0 && (wait_ms < 0 || most_ms < wait_ms))
        wait_ms = most_ms;
    int ready = poll(fds, 8, wait_ms);
    if (ready < 0 && errno != EINTR)
        die("poll");
    if (ready > 0) {
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
    }
    finish_if_ended();
    if (may_collect())
        collect_piece();
}
