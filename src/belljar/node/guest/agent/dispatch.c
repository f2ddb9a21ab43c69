/* The host's frames: the phases in which each is allowed, and its handler.
 * Any other frame ends the machine. */
#include "agent.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

static void store_string(char **strings, size_t *count, const uint8_t *data, size_t length)
{
    if (agent.phase != READY || *count == MAX_STRINGS || length + 1 > ARENA_SIZE - MAX_PATH_BYTES - agent.arena_len ||
        memchr(data, 0, length)) {
        errno = E2BIG;
        die("too many or invalid arguments from host");
    }
    char *at = agent.arena + agent.arena_len;
    memcpy(at, data, length);
    at[length] = 0;
    agent.arena_len += length + 1;
    strings[(*count)++] = at;
    strings[*count] = NULL;
}

void handle_frame(enum frame_type type, enum stream stream, uint8_t *payload, size_t length)
{
    bool known_stream = stream > NONE && stream < STREAMS;
    if (type == WELCOME && length == 16 && payload[0] == VERSION &&
        (agent.phase == WAITING_WELCOME || agent.phase == READY)) {
        agent.silence_ms = (uint32_t)(payload[2] | payload[3] << 8) * 1000;
        set_clock(get_u64(payload + 8));
        agent.phase = READY;
    } else if (type == IDENTITY) {
        set_identity(payload, length);
    } else if (agent.phase == WAITING_WELCOME) {
        errno = EPROTO;
        die("unexpected first frame from host");
    } else if (type == ARG) {
        store_string(agent.argv, &agent.argc, payload, length);
    } else if (type == ENV) {
        store_string(agent.envp, &agent.envc, payload, length);
    } else if (type == NETWORK) {
        configure_network(payload, length);
    } else if (type == LAYER) {
        set_layer(payload, length);
    } else if (type == SECRET) {
        store_secret(payload, length);
    } else if (type == RUN) {
        start_job(payload, length);
    } else if (type == PREPARE) {
        prepare(payload, length);
    } else if (type == REST && agent.phase == RESTING) {
        finish_command();
    } else if (type == SUSPEND && agent.phase == READY) {
        agent.silence_ms = 0; /* no host is connected while the machine is frozen */
        if (agent.is_init)
            open_etc();
        agent.phase = SUSPENDED_NOW;
        send_control(SUSPENDED, NULL, 0);
    } else if (type == STDIN) {
        receive_stdin(payload, length);
        forward_stdin();
    } else if (type == CREDIT && length == 4 && known_stream) {
        agent.credit[stream] += get_u32(payload);
    } else if (type == DISCARD && known_stream) {
        agent.discard[stream] = true;
    } else if (type == SIGNAL && length == 1) {
        signal_job(payload[0]);
    } else if (type == COLLECT) {
        start_collecting(payload, length);
    } else if (type == PING) {
        send_control(PONG, NULL, 0);
    } else {
        errno = EPROTO;
        die("unexpected frame from host");
    }
}
