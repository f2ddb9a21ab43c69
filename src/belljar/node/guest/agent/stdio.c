/* The job's standard streams: output within the host's credit, input within the agent's.
 * A slow reader on either side slows the writer on the other. */
#include "agent.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

void forward_output(enum stream stream)
{
    int *fd = &agent.job.output_fd[stream];
    ssize_t n;
    if (agent.discard[stream]) {
        n = read(*fd, agent.discarded, CHUNK);
    } else {
        size_t limit = agent.credit[stream] < CHUNK ? (size_t)agent.credit[stream] : CHUNK;
        uint8_t *p = output_space(CHUNK);
        if (limit == 0 || !p)
            return;
        n = read(*fd, p + HEADER_SIZE, limit);
        if (n > 0) {
            put_header(p, (uint32_t)n, OUTPUT, stream);
            agent.out_len += HEADER_SIZE + (size_t)n;
            agent.credit[stream] -= (uint64_t)n;
        }
    }
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
        close_fd(fd);
}

static void grant_stdin(size_t size)
{
    uint8_t payload[4];
    put_u32(payload, (uint32_t)size);
    if (size)
        send_control(STDIN_CREDIT, payload, sizeof payload);
}

void receive_stdin(const uint8_t *data, size_t length)
{
    if (agent.stdin_ended || length > STDIN_WINDOW - agent.stdin_len) {
        errno = EPROTO;
        die("unexpected STDIN from host");
    }
    memmove(agent.stdin_data, agent.stdin_data + agent.stdin_start, agent.stdin_len);
    agent.stdin_start = 0;
    memcpy(agent.stdin_data + agent.stdin_len, data, length);
    agent.stdin_len += length;
    agent.stdin_ended = length == 0;
}

static void discard_stdin(void)
{
    grant_stdin(agent.stdin_len);
    agent.stdin_len = 0;
}

/* Write buffered input to the job; discard it when the job closed its standard input. */
void forward_stdin(void)
{
    if (agent.phase == READY)
        return; /* input may arrive before RUN */
    if (agent.job.stdin_fd < 0) {
        discard_stdin();
        return;
    }
    if (agent.stdin_len > 0) {
        ssize_t n = write(agent.job.stdin_fd, agent.stdin_data + agent.stdin_start, agent.stdin_len);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n < 0) {
            close_fd(&agent.job.stdin_fd);
            discard_stdin();
            return;
        }
        agent.stdin_start += (size_t)n;
        agent.stdin_len -= (size_t)n;
        grant_stdin((size_t)n);
    }
    if (agent.stdin_len == 0 && agent.stdin_ended)
        close_fd(&agent.job.stdin_fd);
}
