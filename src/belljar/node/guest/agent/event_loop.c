/* The event loop: it waits for the host and the job, and forwards between them.
 * One round never blocks longer than the host's allowed silence. */
#include "agent.h"

#include <errno.h>
#include <poll.h>

static int silence_timeout(void)
{
    if (!agent.silence_ms)
        return -1;
    uint64_t silent_ms = now_us() / 1000 - agent.last_received_ms;
    if (silent_ms >= agent.silence_ms) {
        log_line("no frame from the host for %u s", agent.silence_ms / 1000);
        end_machine();
    }
    return (int)(agent.silence_ms - silent_ms);
}

/* Never before STARTED: the command's first output may arrive before the reaper's report. */
static bool can_forward(enum stream stream)
{
    return agent.job.output_fd[stream] >= 0 && agent.started_us &&
           (agent.discard[stream] || (agent.credit[stream] && output_space(CHUNK)));
}

/* Send HELLO on `agent.port`: the agent sends the first frame. */
void start_serving(void)
{
    set_nonblocking(agent.port);
    agent.last_received_ms = now_us() / 1000;
    send_hello();
}

/* Wait for at most `max_wait_ms` (negative: no limit), and handle every event. */
void serve_once(int max_wait_ms)
{
    flush_frames();
    bool feed = agent.job.stdin_fd >= 0 && (agent.stdin_len > 0 || agent.stdin_ended);
    bool preparing = agent.phase == PREPARING;
    const struct processes *waiting = &agent.prepared[preparing ? agent.prepared_count - 1 : 0];
    struct pollfd fds[8] = {
        {.fd = agent.port, .events = POLLIN | (agent.out_len ? POLLOUT : 0)},
        {.fd = can_forward(STDOUT) ? agent.job.output_fd[STDOUT] : -1, .events = POLLIN},
        {.fd = can_forward(STDERR) ? agent.job.output_fd[STDERR] : -1, .events = POLLIN},
        {.fd = agent.job.report_fd, .events = POLLIN},
        {.fd = feed ? agent.job.stdin_fd : -1, .events = POLLOUT},
        {.fd = preparing ? waiting->report_fd : -1, .events = POLLIN},
        {.fd = preparing ? waiting->command_fd : -1, .events = POLLIN},
        {.fd = agent.exits_fd, .events = POLLIN},
    };
    int wait_ms = silence_timeout();
    if (can_collect())
        wait_ms = 0;
    else if (max_wait_ms >= 0 && (wait_ms < 0 || max_wait_ms < wait_ms))
        wait_ms = max_wait_ms;
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
            read_prepared();
        if (fds[7].revents)
            read_exits();
        if (fds[0].revents & (POLLIN | POLLHUP | POLLERR))
            read_frames();
    }
    report_exit();
    if (can_collect())
        collect_slice();
}
