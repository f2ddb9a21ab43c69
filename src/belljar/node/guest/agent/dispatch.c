/* The host's frames: the phases in which each is allowed, and its handler.
 * Any other frame ends the machine. */
#include "agent.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

/* The strings of one command are sent together: those of two channels are never mixed. */
static void store_string(char **strings, size_t *count, uint16_t channel, const uint8_t *data, size_t length)
{
    if (agent.arena_len == 0)
        agent.strings_channel = channel;
    if (agent.strings_channel != channel || agent.phase != (channel ? IN_SESSION : READY) || *count == MAX_STRINGS || length + 1 > ARENA_SIZE - MAX_PATH_BYTES - agent.arena_len ||
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

void handle_frame(enum frame_type type, enum stream stream, uint16_t channel, uint8_t *payload, size_t length)
{
    bool known_stream = stream > NONE && stream < STREAMS;
    if (type == ARG) {
        store_string(agent.argv, &agent.argc, channel, payload, length);
    } else if (type == ENV) {
        store_string(agent.envp, &agent.envc, channel, payload, length);
    } else if (channel != 0) {
        handle_channel_frame(type, stream, channel, payload, length);
    } else if (type == WELCOME && length == 16 && payload[0] == VERSION &&
               (agent.phase == WAITING_WELCOME || agent.phase == READY || agent.phase == IN_SESSION)) {
        agent.silence_ms = (uint32_t)(payload[2] | payload[3] << 8) * 1000;
        set_clock(get_u64(payload + 8));
        agent.phase = agent.in_session ? IN_SESSION : READY;
    } else if (type == IDENTITY) {
        set_identity(payload, length);
    } else if (agent.phase == WAITING_WELCOME) {
        errno = EPROTO;
        die("unexpected first frame from host");
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
    } else if (type == SESSION) {
        start_session(payload, length);
    } else if (type == CHANNELS && agent.phase == IN_SESSION && length == 0) {
        list_channels();
    } else if (type == METER) {
        set_meter(payload, length);
    } else if (type == SUSPEND && (agent.phase == READY || agent.phase == IN_SESSION)) {
        detach_channels();
        agent.silence_ms = 0; /* no host is connected while the machine is frozen */
        if (agent.is_init)
            open_etc();
        agent.phase = SUSPENDED_NOW;
        send_control(SUSPENDED, NULL, 0);
    } else if (type == STDIN) {
        receive_input(&agent.streams, payload, length);
        if (agent.phase != READY) /* input may arrive before RUN */
            forward_input(&agent.streams);
    } else if (type == CREDIT && length == 4 && known_stream) {
        agent.streams.credit[stream] += get_u32(payload);
    } else if (type == DISCARD && known_stream) {
        agent.streams.discard[stream] = true;
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
