/* Frames in and out of the one byte stream to the host. */
#include "agent.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

/* Whether the machine goes on without its stream: suspended, it may have been frozen since, and its clone's host comes to
 * where the agent listens. Any other machine ends with its stream. */
static bool outlives_stream(void)
{
    return agent.phase == SUSPENDED_NOW && agent.listener >= 0;
}

void flush_out(void)
{
    while (agent.out_len > 0) {
        ssize_t n = write(agent.port, agent.out + agent.out_start, agent.out_len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0) { /* the host hung up */
            if (!outlives_stream())
                end_machine();
            agent.out_len = 0; /* reading finds the end too */
            break;
        }
        agent.out_start += (size_t)n;
        agent.out_len -= (size_t)n;
    }
    agent.out_start = 0;
}

/* Where `size` more bytes can be written in the outgoing buffer; NULL when there is no room now. */
static uint8_t *out_room(size_t size)
{
    if (agent.out_start + agent.out_len + size > OUT_SIZE && agent.out_start > 0) {
        memmove(agent.out, agent.out + agent.out_start, agent.out_len);
        agent.out_start = 0;
    }
    if (agent.out_start + agent.out_len + size > OUT_SIZE)
        return NULL;
    return agent.out + agent.out_start + agent.out_len;
}

/* Room for a frame of output that leaves the control frames theirs. */
uint8_t *output_room(size_t payload)
{
    return out_room(HEADER_SIZE + payload + CONTROL_ROOM);
}

void put_header(uint8_t *p, uint32_t length, enum kind kind, enum stream stream)
{
    put_u32(p, length);
    p[4] = (uint8_t)kind;
    p[5] = (uint8_t)stream;
    p[6] = p[7] = 0;
}

/* Queue a small frame. The host earns no more control frames than fit: their number is bounded by what it sends. */
void send_control(enum kind kind, const uint8_t *payload, size_t length)
{
    uint8_t *p;
    while (!(p = out_room(HEADER_SIZE + length))) {
        struct pollfd waiting = {.fd = agent.port, .events = POLLOUT};
        if (poll(&waiting, 1, agent.silence_ms ? (int)agent.silence_ms : -1) == 0)
            end_machine(); /* the host reads no more */
        flush_out();
    }
    put_header(p, (uint32_t)length, kind, NONE);
    if (length)
        memcpy(p + HEADER_SIZE, payload, length);
    agent.out_len += HEADER_SIZE + length;
}

void send_failed(enum stage stage, int error)
{
    uint8_t payload[8];
    put_u32(payload, stage);
    put_u32(payload + 4, (uint32_t)(error ? error : EIO));
    send_control(FAILED, payload, sizeof payload);
    agent.phase = ENDED;
}

void send_hello(void)
{
    uint8_t payload[16] = {VERSION};
    put_u64(payload + 8, now_us());
    send_control(HELLO, payload, sizeof payload);
}

void handle_input(void)
{
    size_t at = 0;
    while (agent.in_len - at >= HEADER_SIZE) {
        uint8_t *p = agent.in + at;
        uint32_t length = get_u32(p);
        if (length > MAX_PAYLOAD) {
            errno = EPROTO;
            die("frame from host");
        }
        if (agent.in_len - at < HEADER_SIZE + (size_t)length)
            break;
        handle_frame((enum kind)p[4], (enum stream)p[5], p + HEADER_SIZE, length);
        at += HEADER_SIZE + (size_t)length;
    }
    memmove(agent.in, agent.in + at, agent.in_len - at);
    agent.in_len -= at;
}

void read_port(void)
{
    ssize_t n = read(agent.port, agent.in + agent.in_len, IN_SIZE - agent.in_len);
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    if (n <= 0) {
        if (!outlives_stream())
            end_machine();
        accept_host();
        return;
    }
    agent.in_len += (size_t)n;
    agent.last_heard_ms = now_us() / 1000;
    handle_input();
}
