/* The numbers of the wire protocol, and little-endian encoding.
 * wire.py has the same numbers; a test compares both. */
#ifndef BELLJAR_WIRE_H
#define BELLJAR_WIRE_H

#include <stdint.h>

enum {
    VERSION = 5,
    HEADER_SIZE = 8,
    MAX_PAYLOAD = 128 * 1024,
    STDIN_WINDOW = 64 * 1024,
    WIDE_STDIN_WINDOW = 256 * 1024,
    MAX_PATH_BYTES = 1024,
    SEED_BYTES = 64,
    MAX_HOSTNAME = 63,
    MAX_LAYER_PATH = 200,
    MAX_SECRET_NAME = 64,
};

enum frame_type {
    WELCOME = 0x01,
    ARG = 0x02,
    ENV = 0x03,
    RUN = 0x04,
    STDIN = 0x05,
    CREDIT = 0x06,
    SIGNAL = 0x07,
    COLLECT = 0x08,
    PING = 0x09,
    DISCARD = 0x0B,
    NETWORK = 0x0C,
    IDENTITY = 0x0D,
    PREPARE = 0x0E,
    SUSPEND = 0x0F,
    REST = 0x10,
    LAYER = 0x11,
    SECRET = 0x12,
    SESSION = 0x13,
    EXEC = 0x14,
    CONNECT = 0x15,
    RESIZE = 0x16,
    CLOSE = 0x17,
    CHANNELS = 0x18,
    METER = 0x19,
    HELLO = 0x81,
    STARTED = 0x82,
    OUTPUT = 0x83,
    EXITED = 0x84,
    STDIN_CREDIT = 0x85,
    ARTIFACT = 0x86,
    ARTIFACT_DATA = 0x87,
    COLLECTED = 0x88,
    PONG = 0x89,
    FAILED = 0x8A,
    PREPARED = 0x8B,
    SUSPENDED = 0x8C,
    RESTED = 0x8D,
    SERVING = 0x8E,
    CONNECTED = 0x8F,
    END = 0x90,
    CLOSED = 0x91,
    CHANNEL = 0x92,
    USAGE = 0x93,
};

enum stream { NONE = 0, STDOUT = 1, STDERR = 2, ARTIFACTS = 3, STREAMS };
enum stage { STAGE_SCRIPT = 1, STAGE_ISOLATE = 2, STAGE_EXEC = 3 };
enum { RUN_ISOLATED = 1, RUN_KEEP = 2, RUN_WARM_UP = 4, RUN_SCRIPT = 8 };
enum { EXEC_TERMINAL = 1, EXEC_FILES = 2 };
enum { CHANNEL_EXITED = 1, CHANNEL_TERMINAL = 2, CHANNEL_INPUT_ENDED = 4 };

static inline uint16_t get_u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static inline uint32_t get_u32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline uint64_t get_u64(const uint8_t *p)
{
    return (uint64_t)get_u32(p) | (uint64_t)get_u32(p + 4) << 32;
}

static inline void put_u16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

static inline void put_u32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

static inline void put_u64(uint8_t *p, uint64_t v)
{
    put_u32(p, (uint32_t)v);
    put_u32(p + 4, (uint32_t)(v >> 32));
}

#endif
