/* The standard streams of a command and the bytes of a connection: output within the host's credit, input within the
 * agent's. A slow reader on either side slows the writer on the other, and no other channel. */
#include "agent.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

void streams_init(struct streams *streams, uint16_t channel, uint8_t *buffer)
{
    memset(streams, 0, sizeof *streams);
    streams->channel = channel;
    streams->input = buffer;
    streams->window = STDIN_WINDOW;
    streams->input_fd = -1;
    for (int stream = 0; stream < STREAMS; stream++) {
        streams->output_fd[stream] = -1;
        streams->limit[stream] = UINT64_MAX;
    }
}

void close_streams(struct streams *streams)
{
    close_fd(&streams->input_fd);
    for (int stream = 0; stream < STREAMS; stream++)
        close_fd(&streams->output_fd[stream]);
}

bool can_forward(const struct streams *streams, enum stream stream)
{
    return streams->output_fd[stream] >= 0 && streams->limit[stream] &&
           (streams->discard[stream] || (streams->credit[stream] && output_space(CHUNK)));
}

bool can_feed(const struct streams *streams)
{
    return streams->input_fd >= 0 && (streams->input_len > 0 || streams->input_ended);
}

/* Return how many bytes of a stream to read now. */
static size_t next_size(const struct streams *streams, enum stream stream)
{
    uint64_t size = streams->limit[stream] < CHUNK ? streams->limit[stream] : CHUNK;
    if (!streams->discard[stream] && streams->credit[stream] < size)
        size = streams->credit[stream];
    return (size_t)size;
}

/* Forward or discard what a stream has, at most CHUNK bytes. Closes its descriptor at its end and returns the errno of
 * a read that failed, or 0. */
int forward_output(struct streams *streams, enum stream stream)
{
    int *fd = &streams->output_fd[stream];
    bool discards = streams->discard[stream];
    size_t size = next_size(streams, stream);
    uint8_t *p = discards ? agent.discarded : output_space(CHUNK);
    if (size == 0 || !p)
        return 0;
    ssize_t n = read(*fd, discards ? p : p + HEADER_SIZE, size);
    if (n > 0 && !discards) {
        put_header(p, (uint32_t)n, OUTPUT, stream, streams->channel);
        agent.out_len += HEADER_SIZE + (size_t)n;
        streams->credit[stream] -= (uint64_t)n;
    }
    if (n > 0 && streams->limit[stream] != UINT64_MAX)
        streams->limit[stream] -= (uint64_t)n;
    int error = n < 0 ? errno : 0;
    if (n == 0 || (n < 0 && error != EAGAIN && error != EINTR))
        close_fd(fd);
    return error == EAGAIN || error == EINTR ? 0 : error;
}

void grant_input(const struct streams *streams, size_t size)
{
    uint8_t payload[4];
    put_u32(payload, (uint32_t)size);
    if (size)
        send_on(streams->channel, STDIN_CREDIT, NONE, payload, sizeof payload);
}

void receive_input(struct streams *streams, const uint8_t *data, size_t length)
{
    if (streams->input_ended || length > streams->window - streams->input_len) {
        errno = EPROTO;
        die("unexpected STDIN from host");
    }
    memmove(streams->input, streams->input + streams->input_start, streams->input_len);
    streams->input_start = 0;
    memcpy(streams->input + streams->input_len, data, length);
    streams->input_len += length;
    streams->input_ended = length == 0;
}

/* Write input that need not wait behind other input; return how many bytes were taken. What is left is received. */
size_t pass_input(struct streams *streams, const uint8_t *data, size_t length)
{
    if (streams->input_fd < 0 || streams->input_len > 0 || streams->input_ended || length == 0)
        return 0;
    ssize_t n = write(streams->input_fd, data, length);
    if (n <= 0)
        return 0; /* forward_input meets the error too */
    grant_input(streams, (size_t)n);
    return (size_t)n;
}

static void discard_input(struct streams *streams)
{
    grant_input(streams, streams->input_len);
    streams->input_len = 0;
}

/* Write buffered input; discard it when the other end is closed. */
void forward_input(struct streams *streams)
{
    if (streams->input_fd < 0) {
        discard_input(streams);
        return;
    }
    if (streams->input_len > 0) {
        ssize_t n = write(streams->input_fd, streams->input + streams->input_start, streams->input_len);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n < 0) {
            close_fd(&streams->input_fd);
            discard_input(streams);
            return;
        }
        streams->input_start += (size_t)n;
        streams->input_len -= (size_t)n;
        grant_input(streams, (size_t)n);
    }
    if (streams->input_len == 0 && streams->input_ended)
        close_fd(&streams->input_fd);
}
