/* The host's frames: which are allowed when, and who handles them. */
#include "agent.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

static void keep_string(char **strings, size_t *count, const uint8_t *data, size_t length)
{
    if (agent.phase != READY || *count == MAX_STRINGS || length + 1 > ARENA_SIZE - MAX_PATH_BYTES - agent.arena_len ||
        memchr(data, 0, length)) {
        errno = E2BIG;
        die("arguments from host");
    }
    char *at = agent.arena + agent.arena_len;
    memcpy(at, data, length);
    at[length] = 0;
    agent.arena_len += length + 1;
    strings[(*count)++] = at;
    strings[*count] = NULL;
}

void handle_frame(enum kind kind, enum stream stream, uint8_t *payload, size_t length)
{
    bool known_stream = stream > NONE && stream < STREAMS;
    if (kind == WELCOME && length == 16 && payload[0] == VERSION &&
        (agent.phase == WAITING_WELCOME || agent.phase == READY)) {
        agent.silence_ms = (uint32_t)(payload[2] | payload[3] << 8) * 1000;
        set_clock(get_u64(payload + 8));
        agent.phase = READY;
    } else if (kind == IDENTITY) {
        take_identity(payload, length);
    } else if (agent.phase == WAITING_WELCOME) {
        errno = EPROTO;
        die("first frame from host");
    } else if (kind == ARG) {
        keep_string(agent.argv, &agent.argc, payload, length);
    } else if (kind == ENV) {
        keep_string(agent.envp, &agent.envc, payload, length);
    } else if (kind == NETWORK) {
        set_network_up(payload, length);
    } else if (kind == LAYER) {
        take_layer(payload, length);
    } else if (kind == RUN) {
        start_job(payload, length);
    } else if (kind == PREPARE) {
        prepare(payload, length);
    } else if (kind == REST && agent.phase == RESTING) {
        rest();
    } else if (kind == SUSPEND && agent.phase == READY) {
        agent.silence_ms = 0; /* there will be no host for a while */
        if (agent.is_init)
            open_etc();
        agent.phase = SUSPENDED_NOW;
        send_control(SUSPENDED, NULL, 0);
    } else if (kind == STDIN) {
        take_stdin(payload, length);
        forward_stdin();
    } else if (kind == CREDIT && length == 4 && known_stream) {
        agent.credit[stream] += get_u32(payload);
    } else if (kind == DISCARD && known_stream) {
        agent.discard[stream] = true;
    } else if (kind == SIGNAL && length == 1) {
        signal_job(payload[0]);
    } else if (kind == COLLECT) {
        order_collect(payload, length);
    } else if (kind == PING) {
        send_control(PONG, NULL, 0);
    } else {
        errno = EPROTO;
        die("frame from host");
    }
}
