/* Frames over the byte stream to the host: buffering, sending and splitting.
 * The stream's end ends the machine, except while it is suspended. */
#include "agent.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

/* A suspended machine may have been frozen meanwhile; the host of its clone makes a new connection. */
static bool survives_disconnect(void)
{
    return agent.phase == SUSPENDED_NOW && agent.listener >= 0;
}

void flush_frames(void)
{
    while (agent.out_len > 0) {
        ssize_t n = write(agent.port, agent.out + agent.out_start, agent.out_len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0) { /* the host closed the stream */
            if (!survives_disconnect())
                end_machine();
            agent.out_len = 0; /* read_frames meets the end too */
            break;
        }
        agent.out_start += (size_t)n;
        agent.out_len -= (size_t)n;
    }
    agent.out_start = 0;
}

/* Return where `size` more bytes fit in the outgoing buffer; NULL when it is full. */
static uint8_t *frame_space(size_t size)
{
    if (agent.out_start + agent.out_len + size > OUT_SIZE && agent.out_start > 0) {
        memmove(agent.out, agent.out + agent.out_start, agent.out_len);
        agent.out_start = 0;
    }
    if (agent.out_start + agent.out_len + size > OUT_SIZE)
        return NULL;
    return agent.out + agent.out_start + agent.out_len;
}

/* Return space for a frame of output; leaves CONTROL_RESERVE bytes for control frames. */
uint8_t *output_space(size_t payload)
{
    return frame_space(HEADER_SIZE + payload + CONTROL_RESERVE);
}

void put_header(uint8_t *p, uint32_t length, enum frame_type type, enum stream stream, uint16_t channel)
{
    put_u32(p, length);
    p[4] = (uint8_t)type;
    p[5] = (uint8_t)stream;
    put_u16(p + 6, channel);
}

/* Queue a small frame of a channel (0: the conversation). The host's own frames bound their number, so the reserve
 * suffices while the host reads. */
void send_on(uint16_t channel, enum frame_type type, enum stream stream, const uint8_t *payload, size_t length)
{
    uint8_t *p;
    while (!(p = frame_space(HEADER_SIZE + length))) {
        struct pollfd waiting = {.fd = agent.port, .events = POLLOUT};
        if (poll(&waiting, 1, agent.silence_ms ? (int)agent.silence_ms : -1) == 0)
            end_machine(); /* the host does not read */
        flush_frames();
    }
    put_header(p, (uint32_t)length, type, stream, channel);
    if (length)
        memcpy(p + HEADER_SIZE, payload, length);
    agent.out_len += HEADER_SIZE + length;
}

void send_control(enum frame_type type, const uint8_t *payload, size_t length)
{
    send_on(0, type, NONE, payload, length);
}

void send_failure(uint16_t channel, enum stage stage, int error)
{
    uint8_t payload[8];
    put_u32(payload, stage);
    put_u32(payload + 4, (uint32_t)(error ? error : EIO));
    send_on(channel, FAILED, NONE, payload, sizeof payload);
}

/* The job cannot be started. */
void send_failed(enum stage stage, int error)
{
    send_failure(0, stage, error);
    agent.phase = ENDED;
}

void send_hello(void)
{
    uint8_t payload[16] = {VERSION};
    put_u64(payload + 8, now_us());
    send_control(HELLO, payload, sizeof payload);
}

void handle_frames(void)
{
    size_t at = 0;
    while (agent.in_len - at >= HEADER_SIZE) {
        uint8_t *p = agent.in + at;
        uint32_t length = get_u32(p);
        if (length > MAX_PAYLOAD) {
            errno = EPROTO;
            die("invalid frame from host");
        }
        if (agent.in_len - at < HEADER_SIZE + (size_t)length)
            break;
        handle_frame((enum frame_type)p[4], (enum stream)p[5], get_u16(p + 6), p + HEADER_SIZE, length);
        at += HEADER_SIZE + (size_t)length;
    }
    memmove(agent.in, agent.in + at, agent.in_len - at);
    agent.in_len -= at;
}

/* Read what the host has sent, and handle it. virtio-console returns at most a page at a time. */
void read_frames(void)
{
    enum { PAGE = 4096, READS = 16 }; /* then the channels' turn */
    for (int i = 0; i < READS && agent.in_len < IN_SIZE; i++) {
        ssize_t n = read(agent.port, agent.in + agent.in_len, IN_SIZE - agent.in_len);
        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            break;
        if (n <= 0 && i > 0)
            break; /* the next read meets the end too */
        if (n <= 0) {
            if (!survives_disconnect())
                end_machine();
            accept_host();
            return;
        }
        agent.in_len += (size_t)n;
        if (n < PAGE)
            break; /* there was no more */
    }
    agent.last_received_ms = now_us() / 1000;
    handle_frames();
}
