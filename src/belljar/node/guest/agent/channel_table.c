/* The channels of a session: their table, their numbers, and the buffers for their input.
 * Everything is of fixed size. A command that has ended stays until the host closes its channel, or until its place is
 * needed; the oldest goes first. */
#include "agent.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

enum { MAX_LIVE = MAX_COMMANDS + MAX_CONNECTIONS, PAGE = 4096 };

static struct channel channels[MAX_CHANNELS];
static uint16_t place_of[1 << 16]; /* channel number → place in `channels` + 1; 0: no such channel */
static uint8_t buffers[MAX_LIVE][STDIN_WINDOW] __attribute__((aligned(PAGE)));
static bool buffer_used[MAX_LIVE];
static uint8_t wide_buffers[MAX_WIDE][WIDE_STDIN_WINDOW] __attribute__((aligned(PAGE)));
static bool wide_used[MAX_WIDE];
static struct channel *used[MAX_CHANNELS]; /* those that are not free */
static size_t used_count;
static uint64_t opened;

static bool is_connection(enum channel_state state)
{
    return state == CHANNEL_CONNECTING || state == CHANNEL_CONNECTED;
}

static bool is_live(enum channel_state state)
{
    return state == CHANNEL_STARTING || state == CHANNEL_RUNNING || is_connection(state);
}

struct channel *find_channel(uint16_t id)
{
    return place_of[id] ? &channels[place_of[id] - 1] : NULL;
}

void for_each_channel(void (*visit)(struct channel *))
{
    for (size_t i = used_count; i-- > 0;) /* backwards: a visit may free its channel */
        visit(used[i]);
}

size_t channel_count(void)
{
    return used_count;
}

struct channel *channel_at(size_t i)
{
    return used[i];
}

/* Return whether MAX_COMMANDS or MAX_CONNECTIONS are reached. */
static bool is_full(bool connection)
{
    size_t live = 0;
    for (size_t i = 0; i < used_count; i++)
        live += is_live(used[i]->state) && is_connection(used[i]->state) == connection;
    return live >= (connection ? MAX_CONNECTIONS : MAX_COMMANDS);
}

static uint8_t *take_buffer(void)
{
    for (size_t i = 0; i < MAX_LIVE; i++)
        if (!buffer_used[i]) {
            buffer_used[i] = true;
            return buffers[i];
        }
    return NULL; /* never: as many as live channels */
}

static void free_buffer(const struct channel *channel)
{
    uint8_t *buffer = channel->streams.input;
    if (channel->used_buffer && madvise(buffer, channel->streams.window, MADV_DONTNEED) < 0)
        log_line("madvise: %s", strerror(errno)); /* costs memory only */
    if (channel->streams.window == WIDE_STDIN_WINDOW)
        wide_used[(size_t)(buffer - wide_buffers[0]) / WIDE_STDIN_WINDOW] = false;
    else
        buffer_used[(size_t)(buffer - buffers[0]) / STDIN_WINDOW] = false;
}

/* Return the input buffer, and its memory to the kernel. */
void release_buffer(struct channel *channel)
{
    if (!channel->streams.input)
        return;
    free_buffer(channel);
    channel->used_buffer = false;
    channel->streams.input = NULL;
    channel->streams.input_len = 0;
}

/* Give a channel with much input a wide window; return false when there is none left, or it has one. */
bool widen_input(struct channel *channel)
{
    struct streams *streams = &channel->streams;
    size_t i = 0;
    while (i < MAX_WIDE && wide_used[i])
        i++;
    if (i == MAX_WIDE || streams->window == WIDE_STDIN_WINDOW)
        return false;
    memcpy(wide_buffers[i], streams->input + streams->input_start, streams->input_len);
    free_buffer(channel);
    wide_used[i] = channel->used_buffer = true;
    streams->input = wide_buffers[i];
    streams->window = WIDE_STDIN_WINDOW;
    streams->input_start = 0;
    return true;
}

/* Free the place of a channel; its number may be used again unless it was taken from it before. */
void free_channel(struct channel *channel)
{
    close_streams(&channel->streams);
    release_buffer(channel);
    remove_command_cgroup(channel);
    uint16_t place = (uint16_t)(channel - channels + 1);
    if (place_of[channel->streams.channel] == place)
        place_of[channel->streams.channel] = 0;
    channel->state = CHANNEL_FREE;
    for (size_t i = 0; i < used_count; i++)
        if (used[i] == channel)
            used[i--] = used[--used_count];
}

/* The host has closed the channel: its number is free, its place once nothing of the command is left. */
void release_channel(struct channel *channel)
{
    uint16_t id = channel->streams.channel;
    release_buffer(channel);
    send_closed(id, 0);
    place_of[id] = 0;
    bool writing = channel->streams.output_fd[STDOUT] >= 0 || channel->streams.output_fd[STDERR] >= 0;
    if (remove_command_cgroup(channel) && !writing)
        free_channel(channel);
    else
        channel->state = CHANNEL_LINGERING;
}

/* Free the place that is needed least: of a command whose channel was closed, else of the oldest that has ended. */
static struct channel *evict_channel(void)
{
    struct channel *oldest = NULL;
    for (size_t i = 0; i < used_count; i++) {
        struct channel *channel = used[i];
        bool lingers = channel->state == CHANNEL_LINGERING;
        if (!lingers && channel->state != CHANNEL_ENDED)
            continue;
        bool less_needed = !oldest || (lingers && oldest->state != CHANNEL_LINGERING);
        bool same = oldest && lingers == (oldest->state == CHANNEL_LINGERING);
        if (less_needed || (same && channel->order < oldest->order))
            oldest = channel;
    }
    if (oldest && oldest->state == CHANNEL_ENDED)
        send_closed(oldest->streams.channel, ENOSPC);
    if (oldest)
        free_channel(oldest);
    return oldest;
}

static struct channel *find_place(void)
{
    for (size_t i = 0; i < MAX_CHANNELS; i++)
        if (channels[i].state == CHANNEL_FREE)
            return &channels[i];
    return evict_channel();
}

/* Open a channel; return NULL when too many are live. A number in use ends the machine. */
struct channel *open_channel(uint16_t id, enum channel_state state)
{
    if (place_of[id]) {
        errno = EPROTO;
        die("channel opened twice by host");
    }
    if (is_full(is_connection(state)))
        return NULL;
    struct channel *channel = find_place();
    if (!channel)
        return NULL; /* never: more places than live channels */
    memset(channel, 0, sizeof *channel);
    channel->state = state;
    channel->order = ++opened;
    used[used_count++] = channel;
    streams_init(&channel->streams, id, take_buffer());
    place_of[id] = (uint16_t)(channel - channels + 1);
    return channel;
}

/* CLOSED is the last frame of every channel. */
void send_closed(uint16_t id, int error)
{
    uint8_t payload[4];
    put_u32(payload, (uint32_t)error);
    send_on(id, CLOSED, NONE, payload, sizeof payload);
}
