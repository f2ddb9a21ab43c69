/* The job's standard streams. */
#include "agent.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

void forward_output(enum stream stream)
{
    int *fd = &agent.job.output_fd[stream];
    ssize_t n;
    if (agent.discard[stream]) {
        n = read(*fd, agent.dropped, CHUNK);
    } else {
        size_t most = agent.credit[stream] < CHUNK ? (size_t)agent.credit[stream] : CHUNK;
        uint8_t *p = output_room(CHUNK);
        if (most == 0 || !p)
            return;
        n = read(*fd, p + HEADER_SIZE, most);
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

void take_stdin(const uint8_t *data, size_t length)
{
    if (agent.stdin_ended || length > STDIN_WINDOW - agent.stdin_len) {
        errno = EPROTO;
        die("STDIN from host");
    }
    memmove(agent.stdin_data, agent.stdin_data + agent.stdin_start, agent.stdin_len);
    agent.stdin_start = 0;
    memcpy(agent.stdin_data + agent.stdin_len, data, length);
    agent.stdin_len += length;
    agent.stdin_ended = length == 0;
}

static void drop_stdin(void)
{
    grant_stdin(agent.stdin_len);
    agent.stdin_len = 0;
}

/* Give the job what it will take of its standard input; what it closed it never misses. */
void forward_stdin(void)
{
    if (agent.phase == READY)
        return; /* RUN comes after the first of it */
    if (agent.job.stdin_fd < 0) {
        drop_stdin();
        return;
    }
    if (agent.stdin_len > 0) {
        ssize_t n = write(agent.job.stdin_fd, agent.stdin_data + agent.stdin_start, agent.stdin_len);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n < 0) {
            close_fd(&agent.job.stdin_fd);
            drop_stdin();
            return;
        }
        agent.stdin_start += (size_t)n;
        agent.stdin_len -= (size_t)n;
        grant_stdin((size_t)n);
    }
    if (agent.stdin_len == 0 && agent.stdin_ended)
        close_fd(&agent.job.stdin_fd);
}
