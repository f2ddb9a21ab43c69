/* The host's frames for a channel of a session. A frame for a channel that has been closed is ignored: it may have been
 * sent before the host knew. Any other frame that is not allowed ends the machine. */
#include "agent.h"

#include <errno.h>
#include <signal.h>

static void receive_channel_input(struct channel *channel, const uint8_t *payload, size_t length)
{
    struct streams *streams = &channel->streams;
    if (!streams->input)
        return; /* the command has ended meanwhile */
    channel->received += channel->received < STDIN_WINDOW ? length : 0;
    if (channel->received >= STDIN_WINDOW && widen_input(channel))
        grant_input(streams, WIDE_STDIN_WINDOW - STDIN_WINDOW);
    size_t passed = channel->state == CHANNEL_RUNNING ? pass_input(streams, payload, length) : 0;
    if (passed > 0 && passed == length)
        return;
    receive_input(streams, payload + passed, length - passed);
    channel->used_buffer |= length - passed > 4096;
    if (channel->state == CHANNEL_RUNNING)
        forward_input(streams);
    else if (channel->state == CHANNEL_CONNECTED)
        forward_connection_input(channel);
}

/* CLOSE: of a command that has ended, the exit is forgotten. One that runs is killed with all its descendants; a file
 * operation is cancelled, so that it removes what it has begun. */
static void close_channel(struct channel *channel)
{
    if (channel->state == CHANNEL_CONNECTING || channel->state == CHANNEL_CONNECTED)
        finish_connection(channel, ECANCELED);
    else if (channel->state == CHANNEL_ENDED)
        release_channel(channel);
    else {
        channel->closing = true;
        channel->cancelled_us = now_us();
        channel->streams.discard[STDOUT] = channel->streams.discard[STDERR] = true;
        signal_command(channel, channel->files ? SIGTERM : SIGKILL, !channel->files);
    }
}

static bool handle_known(struct channel *channel, enum frame_type type, enum stream stream, const uint8_t *payload,
                         size_t length)
{
    bool is_output = stream == STDOUT || stream == STDERR;
    if (type == STDIN && stream == NONE)
        receive_channel_input(channel, payload, length);
    else if (type == CREDIT && length == 4 && is_output)
        channel->streams.credit[stream] += get_u32(payload);
    else if (type == DISCARD && length == 0 && is_output)
        channel->streams.discard[stream] = true;
    else if (type == SIGNAL && length == 2 && payload[0] > 0 && payload[0] <= 64 && payload[1] <= 1)
        signal_command(channel, payload[0], payload[1]);
    else if (type == RESIZE && length == 4)
        resize_terminal(channel->terminal ? channel->streams.output_fd[STDOUT] : -1, get_u16(payload),
                        get_u16(payload + 2));
    else if (type == CLOSE && length == 0)
        close_channel(channel);
    else
        return false;
    return true;
}

static bool is_for_known(enum frame_type type)
{
    return type == STDIN || type == CREDIT || type == DISCARD || type == SIGNAL || type == RESIZE || type == CLOSE;
}

void handle_channel_frame(enum frame_type type, enum stream stream, uint16_t id, uint8_t *payload, size_t length)
{
    struct channel *channel = find_channel(id);
    bool allowed = agent.phase == IN_SESSION && agent.attached;
    if (allowed && type == EXEC)
        start_session_command(id, payload, length);
    else if (allowed && type == CONNECT)
        start_connection(id, payload, length);
    else if (!allowed || !is_for_known(type) || (channel && !handle_known(channel, type, stream, payload, length))) {
        errno = EPROTO;
        die("unexpected frame for a channel from host");
    }
}
