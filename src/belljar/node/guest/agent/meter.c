/* The usage of the machine of a session, or of a job while its command runs. The host subscribes to it: one small frame at
 * each interval. Every number is the kernel's; one that cannot be read is zero. */
#include "agent.h"

#include <errno.h>
#include <stdio.h>
#include <sys/statvfs.h>

enum { MIN_METER_MS = 100, MEMORY_STAT_TURNS = 16 };

/* METER: interval in milliseconds, at least MIN_METER_MS; 0 ends the subscription. It holds for every command of a job, and
 * may come behind the end of one. */
void set_meter(const uint8_t *payload, size_t length)
{
    uint32_t interval_ms = length == 4 ? get_u32(payload) : 1;
    bool is_allowed = agent.phase == READY || agent.phase >= RUNNING;
    if (!is_allowed || (interval_ms && interval_ms < MIN_METER_MS)) {
        errno = EPROTO;
        die("unexpected METER from host");
    }
    agent.meter_ms = interval_ms;
    agent.metered_us = 0;
}

/* The page cache of a cgroup: the kernel gathers and prints some fifty numbers for it, a fifth of the cost of a message. So
 * it is read for the first message, and for every sixteenth. */
static uint64_t read_cache(const char *cgroup, bool is_first)
{
    static uint64_t cache;
    static unsigned turn;
    turn = is_first ? 0 : turn + 1;
    if (turn % MEMORY_STAT_TURNS == 0)
        cache = read_number(cgroup, "memory.stat", "\nfile ");
    return cache;
}

static void send_usage(bool is_first)
{
    static const char device[] = "/sys/class/net/eth0/statistics";
    uint8_t payload[80] = {0};
    struct statvfs disk = {0};
    const char *cgroup = agent.job.cgroup;
    if (agent.job.isolated) {
        uint64_t before_us = agent.in_session ? 0 : agent.cpu_before_us;
        uint64_t cpu_us = read_number(cgroup, "cpu.stat", "usage_usec ");
        put_u64(payload + 8, cpu_us > before_us ? cpu_us - before_us : 0);
        put_u64(payload + 16, read_number(cgroup, "memory.current", NULL));
        put_u64(payload + 24, read_number(cgroup, "memory.max", NULL));
        put_u64(payload + 32, read_cache(cgroup, is_first));
        put_u32(payload + 72, (uint32_t)read_number(cgroup, "pids.current", NULL));
    }
    if (statvfs(agent.is_init ? "/rw" : "/", &disk) == 0) {
        put_u64(payload + 40, (uint64_t)(disk.f_blocks - disk.f_bfree) * disk.f_frsize);
        put_u64(payload + 48, (uint64_t)disk.f_blocks * disk.f_frsize);
    }
    put_u64(payload, now_us());
    put_u64(payload + 56, read_number(device, "rx_bytes", NULL));
    put_u64(payload + 64, read_number(device, "tx_bytes", NULL));
    send_control(USAGE, payload, sizeof payload);
}

/* Send usage when it is due; return the milliseconds until it is due again, -1 when none is. A host that does not read
 * gets no more. */
int meter_timeout(void)
{
    bool has_command = agent.phase == RUNNING && agent.started_us; /* no frame of a job before STARTED */
    if (!agent.meter_ms || (!has_command && agent.phase != IN_SESSION))
        return -1;
    uint64_t now = now_us(), interval_us = (uint64_t)agent.meter_ms * 1000;
    if (agent.metered_us == 0 || now - agent.metered_us >= interval_us) {
        bool is_first = agent.metered_us == 0;
        agent.metered_us = now;
        if (output_space(CHUNK))
            send_usage(is_first);
    }
    return (int)((interval_us - (now - agent.metered_us)) / 1000) + 1;
}
