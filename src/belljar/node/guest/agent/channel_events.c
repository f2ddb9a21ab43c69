/* The channels in the event loop: which descriptors to wait for, and what to do when they are ready.
 * Channels take turns: the one that finds no space for its output goes first in the next round. */
#include "agent.h"

#include <poll.h>
#include <signal.h>

enum { LINGER_MS = 1000 }; /* between attempts to free the place of a closed channel */

static size_t first; /* number of channels that are served later in this round */
static uint64_t swept_us;

/* A terminal's end may take no bytes while its output waits: neither is waited for without need, since POLLHUP cannot
 * be masked. */
static size_t poll_channel(struct channel *channel, struct pollfd *fds)
{
    const struct streams *streams = &channel->streams;
    bool running = channel->state != CHANNEL_STARTING; /* no output before STARTED, no input either */
    bool connecting = channel->state == CHANNEL_CONNECTING;
    bool is_served = output_space(CHUNK) != NULL; /* else its turn does not come, see handle_channels */
    fds[0] = (struct pollfd){
        .fd = is_served && running && (connecting || can_feed(streams)) ? streams->input_fd : -1,
        .events = POLLOUT,
    };
    for (enum stream stream = STDOUT; stream <= STDERR; stream++)
        fds[stream] = (struct pollfd){
            .fd = running && !connecting && can_forward(streams, stream) ? streams->output_fd[stream] : -1,
            .events = POLLIN,
        };
    return 3;
}

/* Return whether the channel has no descriptor: most commands that have ended. */
static bool is_silent(const struct channel *channel)
{
    const struct streams *streams = &channel->streams;
    return streams->input_fd < 0 && streams->output_fd[STDOUT] < 0 && streams->output_fd[STDERR] < 0;
}

/* Write the descriptors of the reaper and of every channel to `fds`; return their number. A channel without any has
 * `poll_at` 0. */
size_t poll_channels(struct pollfd *fds)
{
    size_t count = 0;
    if (!agent.in_session || !agent.attached)
        return 0;
    fds[count++] = (struct pollfd){.fd = agent.job.report_fd, .events = POLLIN};
    for (size_t i = 0; i < channel_count(); i++) {
        struct channel *channel = channel_at(i);
        channel->poll_at = is_silent(channel) ? 0 : count;
        if (channel->poll_at)
            count += poll_channel(channel, fds + count);
    }
    return count;
}

static void handle_connection(struct channel *channel, const struct pollfd *fds)
{
    int error = 0;
    if (fds[STDOUT].revents && can_forward(&channel->streams, STDOUT))
        error = forward_output(&channel->streams, STDOUT);
    if (error)
        finish_connection(channel, error);
    else
        forward_connection_input(channel);
}

static void handle_channel(struct channel *channel, const struct pollfd *fds)
{
    if (channel->state == CHANNEL_CONNECTING && fds[0].revents)
        finish_connecting(channel);
    if (channel->state == CHANNEL_CONNECTED && (fds[0].revents || fds[STDOUT].revents))
        handle_connection(channel, fds);
    if (channel->state < CHANNEL_RUNNING || channel->state > CHANNEL_LINGERING)
        return;
    if (fds[0].revents)
        forward_input(&channel->streams);
    for (enum stream stream = STDOUT; stream <= STDERR; stream++)
        if (fds[stream].revents && can_forward(&channel->streams, stream)) {
            channel->idle_since_us = now_us();
            forward_output(&channel->streams, stream); /* an error is its end, as a terminal's */
        }
}

static size_t place_of(const struct channel *channel)
{
    size_t i = 0;
    while (i < channel_count() && channel_at(i) != channel)
        i++;
    return i;
}

/* Handle the events of every channel, then the reaper's reports: a command's exit comes behind its output. */
void handle_channels(const struct pollfd *fds)
{
    size_t channels = channel_count(), count = 0;
    if (!agent.in_session || !agent.attached)
        return;
    /* A copy: a channel that ends leaves its place in the list to another. */
    static struct channel *turn[MAX_CHANNELS];
    for (size_t i = 0; i < channels; i++)
        if (channel_at((first + i) % channels)->poll_at)
            turn[count++] = channel_at((first + i) % channels);
    for (size_t i = 0; i < count; i++) {
        if (!output_space(CHUNK)) {
            first = place_of(turn[i]);
            count = i;
        } else {
            handle_channel(turn[i], fds + turn[i]->poll_at);
        }
    }
    if (fds[0].revents)
        read_session_reports();
}

/* What is due without an event: exits of commands whose output was forwarded, places of closed channels. */
static bool sweeps;   /* places are looked at in this round */
static int due_in_ms; /* the first thing that is due later; -1: none */

static void note_due(int ms)
{
    if (due_in_ms < 0 || ms < due_in_ms)
        due_in_ms = ms;
}

/* A process of the sandbox's user may have stopped the file operation. */
static void kill_if_late(struct channel *channel)
{
    uint64_t now = now_us();
    if (now - channel->cancelled_us >= CANCEL_MS * 1000) {
        channel->cancelled_us = now;
        signal_command(channel, SIGKILL, true);
    }
    note_due(CANCEL_MS);
}

static void check_channel(struct channel *channel)
{
    bool writing = channel->streams.output_fd[STDOUT] >= 0 || channel->streams.output_fd[STDERR] >= 0;
    if (channel->state == CHANNEL_RUNNING && !finish_session_command(channel) && channel->terminal &&
        channel->exit.type == REPORT_EXITED)
        note_due(TERMINAL_DRAIN_MS);
    if (channel->state == CHANNEL_RUNNING && channel->closing && channel->files)
        kill_if_late(channel);
    if (channel->state != CHANNEL_LINGERING)
        return;
    if (sweeps && !writing && remove_command_cgroup(channel))
        free_channel(channel);
    else
        note_due(LINGER_MS);
}

/* Do what is due; return the milliseconds until something is due again, -1 when nothing is. */
int channels_timeout(void)
{
    if (!agent.attached)
        return -1;
    uint64_t now = now_us();
    sweeps = now - swept_us >= LINGER_MS * 1000;
    swept_us = sweeps ? now : swept_us;
    due_in_ms = meter_timeout();
    int prepared_due_ms = end_prepared();
    if (prepared_due_ms >= 0)
        note_due(prepared_due_ms);
    for_each_channel(check_channel);
    return due_in_ms;
}
