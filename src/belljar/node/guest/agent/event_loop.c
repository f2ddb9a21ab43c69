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

static int sooner(int a, int b)
{
    return a < 0 || (b >= 0 && b < a) ? b : a;
}

/* Never before STARTED: the command's first output may arrive before the reaper's report. */
static int job_output(enum stream stream)
{
    return agent.started_us && can_forward(&agent.streams, stream) ? agent.streams.output_fd[stream] : -1;
}

/* Send HELLO on `agent.port`: the agent sends the first frame. */
void start_serving(void)
{
    set_nonblocking(agent.port);
    agent.last_received_ms = now_us() / 1000;
    send_hello();
}

/* The job's descriptors; each is -1 while there is nothing to do with it. */
static void poll_job(struct pollfd *fds)
{
    bool preparing = agent.phase == PREPARING;
    const struct processes *waiting = &agent.prepared[preparing ? agent.prepared_count - 1 : 0];
    fds[0] = (struct pollfd){.fd = job_output(STDOUT), .events = POLLIN};
    fds[1] = (struct pollfd){.fd = job_output(STDERR), .events = POLLIN};
    fds[2] = (struct pollfd){.fd = agent.in_session ? -1 : agent.job.report_fd, .events = POLLIN};
    fds[3] = (struct pollfd){.fd = can_feed(&agent.streams) ? agent.streams.input_fd : -1, .events = POLLOUT};
    fds[4] = (struct pollfd){.fd = preparing ? waiting->report_fd : -1, .events = POLLIN};
    fds[5] = (struct pollfd){.fd = preparing ? waiting->command_fd : -1, .events = POLLIN};
    fds[6] = (struct pollfd){.fd = agent.exits_fd, .events = POLLIN};
}

static void handle_job(const struct pollfd *fds)
{
    if (fds[2].revents)
        read_report();
    if (fds[0].revents)
        forward_output(&agent.streams, STDOUT);
    if (fds[1].revents)
        forward_output(&agent.streams, STDERR);
    if (fds[3].revents)
        forward_input(&agent.streams);
    if (fds[4].revents || fds[5].revents)
        read_prepared();
    if (fds[6].revents)
        read_exits();
}

/* Wait for at most `max_wait_ms` (negative: no limit), and handle every event. */
void serve_once(int max_wait_ms)
{
    enum { PORT = 1, JOB = 7 };
    static struct pollfd fds[PORT + JOB + 1 + 3 * MAX_CHANNELS];
    int due_ms = agent.in_session ? channels_timeout() : meter_timeout(); /* first: they send frames */
    flush_frames();
    poll_job(fds + PORT);
    size_t count = PORT + JOB + poll_channels(fds + PORT + JOB); /* before the port: it may fill the buffer */
    fds[0] = (struct pollfd){.fd = agent.port, .events = POLLIN | (agent.out_len ? POLLOUT : 0)};
    int wait_ms = sooner(silence_timeout(), due_ms);
    wait_ms = can_collect() ? 0 : sooner(wait_ms, max_wait_ms);
    int ready = poll(fds, count, wait_ms);
    if (ready < 0 && errno != EINTR)
        die("poll");
    if (ready > 0) {
        handle_job(fds + PORT);
        handle_channels(fds + PORT + JOB);
        if (fds[0].revents & (POLLIN | POLLHUP | POLLERR))
            read_frames();
    }
    report_exit();
    if (can_collect())
        collect_slice();
}
